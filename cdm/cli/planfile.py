"""A plan that is kept in a file: what is to be written, and what it was decided on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from cdm.cli.applying import Decided
from cdm.cli.changes import Change
from cdm.cli.editing import looked_at_all
from cdm.cli.service import ServiceLook
from cdm.cli.writing import typist
from cdm.errors import Conflict, ModelError, UsageError
from cdm.model.artifact import Artifact, Service
from cdm.model.edit import checked
from cdm.store.bucket import buckets
from cdm.store.connection import Connection

FORMAT = 1


class PlannedChange(Struct, frozen=True, forbid_unknown_fields=True):
    """One blueprint of a plan."""

    artifact: str
    blueprint: str | None
    """None: it is to be removed."""
    owner: str = ""
    place: str = ""


class PlanFile(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="cdm plan"):
    """What the file holds."""

    format: int
    bucket: str
    created: str
    """When the bucket of blueprints was created: another one has other revisions."""
    by: str
    changes: list[PlannedChange]
    revisions: dict[str, int]
    """Of all blueprints of the services that it is about, those included that were removed."""


async def save(connection: Connection, path: Path, decided: Decided) -> None:
    """Write the plan to a file that only its owner reads: variables may be secrets.

    Raises:
        UsageError: the file cannot be written.
    """
    bucket = buckets(connection)["blueprints"]
    plan = PlanFile(
        FORMAT,
        bucket.name,
        (await bucket.state()).created,
        typist(),
        [
            PlannedChange(str(each.artifact), None if each.raw is None else each.raw.decode(), each.owner, each.place)
            for each in decided.changes
        ],
        {
            str(artifact): revision
            for service in sorted({each.artifact.service for each in decided.changes})
            for artifact, revision in _revisions(decided.looks[service])
        },
    )
    _write(path, msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n")


def _write(path: Path, raw: bytes) -> None:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(raw)
    except OSError as error:
        raise UsageError(f"--out {path}: cannot be written: {error.strerror}") from None


def _revisions(look: ServiceLook) -> Iterator[tuple[Artifact, int]]:
    return ((each.artifact, each.revision) for each in look.versions.values() if each.revisions)


def load(path: Path) -> PlanFile:
    """Read a plan; raises `UsageError`."""
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=PlanFile)
    except OSError as error:
        raise UsageError(f"--plan {path}: cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise UsageError(f"--plan {path}: is no plan: {error}; `cdm plan --out {path}` writes one") from None
    if plan.format != FORMAT:
        raise UsageError(f"--plan {path}: another cdm wrote it; make a new one with `cdm plan --out {path}`")
    try:
        for each in plan.changes:
            artifact = Artifact.parse(each.artifact)
            if each.blueprint is not None:
                checked(each.blueprint.encode(), artifact)
    except ModelError as error:
        raise UsageError(f"--plan {path}: {each.artifact}: {error}") from None
    return plan


async def decided_before(connection: Connection, plan: PlanFile) -> Decided:
    """What was planned, where all is still as it was then.

    Raises:
        Conflict: a blueprint was changed since, or this is another cluster.
    """
    bucket = buckets(connection)["blueprints"]
    state = await bucket.state()
    if (plan.bucket, plan.created) != (bucket.name, state.created):
        raise Conflict("the plan was made for another cluster, or for a bucket that is there no more; make a new one")
    services: set[Service] = {Artifact.parse(each.artifact).service for each in plan.changes}
    looks = await looked_at_all(connection, services)
    now: dict[str, Any] = {}
    for look in looks.values():
        now |= {str(artifact): revision for artifact, revision in _revisions(look)}
    for name in sorted(now.keys() | plan.revisions.keys()):
        if now.get(name, 0) != plan.revisions.get(name, 0):
            service = Artifact.parse(name).service
            raise Conflict(
                f"blueprint {name} was changed since the plan was made (`cdm history {service}`); nothing was written; "
                "make a new plan"
            )
    changes = []
    for each in plan.changes:
        artifact = Artifact.parse(each.artifact)
        version = looks[artifact.service].version(artifact)
        raw = None if each.blueprint is None else each.blueprint.encode()
        changes.append(Change(version, raw, each.owner, each.place))
    return Decided(changes, looks)
