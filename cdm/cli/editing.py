"""Reads how a service stands, and writes one edit of a blueprint by compare-and-set."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

import anyio
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cdm.cli.known import meant
from cdm.cli.plans import Edit
from cdm.cli.service import ServiceLook, VersionLook, look_of
from cdm.cli.writing import PAUSE, TRIES, typist
from cdm.errors import Conflict, InvalidKey, ServiceMissing, StoreBusy, StoreError, Uncertain, innermost
from cdm.model.artifact import Artifact, Service
from cdm.model.keys import BlueprintKey, LastValidKey, RolloutKey, decode_artifact, encode, encode_service
from cdm.model.last_valid import LastValid
from cdm.store.bucket import Bucket, Stored, buckets
from cdm.store.connection import Connection
from cdm.store.revisions import Revision, revisions
from cdm.store.snapshot import check_there
from cdm.store.wire import OWNER, WRITER

FEW = 3
"""Most services that are read one by one, and not together with all others."""
RECORDS = "_rollout.>"
"""A pattern of the keys of rollouts' records."""

Plan = Callable[[ServiceLook], Edit]


class Made(Struct, frozen=True):
    """An edit that stands in the bucket."""

    edit: Edit
    revision: int
    """Of the blueprint; where nothing was to be changed, that which it had."""
    look: ServiceLook
    """How the service stood before."""


class _Unsure(NamedTuple):
    """An edit that was sent, and of which no answer came: it may yet be stored."""

    made: Made
    """As if it were; its revision is not known."""
    error: Uncertain


def keys_of(service: Service) -> str:
    """A pattern of the keys in ``blueprints`` and ``status`` that covers a service's, and little else.

    A dot in a name ends a token of the subject; what stands before the last one is the same in all its keys.
    """
    return ".".join((*encode_service(service).split(".")[:-1], ">"))


async def looked(connection: Connection, service: Service) -> ServiceLook:
    """How a service stands.

    Raises:
        StoreError: the buckets are missing, or cannot be read; in an exception group.
    """
    there, keys = buckets(connection), keys_of(service)
    await check_there(there["blueprints"])
    read: dict[str, list[Revision]] = {}
    records: list[bytes | None] = []

    async def read_bucket(bucket: Bucket) -> None:
        read[bucket.layout.name] = await revisions(bucket, keys)

    async def read_record() -> None:
        stored = await there["slices"].read_near(RolloutKey(service))
        records.append(stored.payload if stored else None)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_bucket, there["blueprints"])
        tasks.start_soon(read_bucket, there["status"])
        tasks.start_soon(read_record)
    return await _with_copies(there["slices"], look_of(service, read["blueprints"], read["status"], records[0]))


async def _with_copies(slices: Bucket, look: ServiceLook) -> ServiceLook:
    """The same with the blueprints in force that refused ones have pushed out of the bucket's history."""
    for version in look.versions.values():
        if version.raw is not None and version.valid is None:
            copied = replace(version, copy=await _copy_of(slices, version.artifact))
            look = replace(look, versions={**look.versions, version.version: copied})
    return look


async def _copy_of(slices: Bucket, artifact: Artifact) -> LastValid | None:
    stored = await slices.read_near(LastValidKey(artifact))
    if stored is not None and stored.payload is not None:
        with suppress(msgspec.MsgspecError):
            return msgspec.json.decode(stored.payload, type=LastValid)
    return None


async def looked_at_all(
    connection: Connection, services: Iterable[Service] | None = None
) -> dict[Service, ServiceLook]:
    """How services stand; None: all that have, or had, a blueprint.

    Raises:
        StoreError: the buckets are missing, or cannot be read; in an exception group.
    """
    wanted = None if services is None else set(services)
    if wanted is not None and len(wanted) <= FEW:
        return {service: await looked(connection, service) for service in sorted(wanted)}
    there = buckets(connection)
    await check_there(there["blueprints"])
    read: dict[str, list[Revision]] = {}

    async def read_bucket(name: str, keys: str) -> None:
        read[name] = await revisions(there[name], keys)

    async with anyio.create_task_group() as tasks:
        for name, keys in (("blueprints", ">"), ("status", ">"), ("slices", RECORDS)):
            tasks.start_soon(read_bucket, name, keys)
    records = {each.name: each.payload for each in read["slices"]}
    blueprints, statuses = _by_service(read["blueprints"]), _by_service(read["status"])
    looks: dict[Service, ServiceLook] = {}
    for service in sorted(blueprints if wanted is None else wanted):
        record = records.get(encode(RolloutKey(service)))
        look = look_of(service, blueprints.get(service, ()), statuses.get(service, ()), record)
        looks[service] = await _with_copies(there["slices"], look)
    return looks


def _by_service(found: Iterable[Revision]) -> dict[Service, list[Revision]]:
    sorted_out: dict[Service, list[Revision]] = {}
    for each in found:
        with suppress(InvalidKey):
            sorted_out.setdefault(decode_artifact(each.name).service, []).append(each)
    return sorted_out


async def edited(connection: Connection, service: Service, plan: Plan) -> Made:
    """Have one blueprint edited; what was written by others meanwhile is looked at, and the edit made anew.

    Raises:
        EditRefused, UsageError, InvalidBlueprint: as the service stands, the edit makes no sense.
        ServiceMissing: nothing is known of the service.
        Conflict: it was written by others again and again.
        StoreBusy: the server cannot write.
        Uncertain: no answer came; it may be stored, or be stored later.
    """
    busy: StoreBusy | None = None
    unsure: _Unsure | None = None
    for _ in range(TRIES):
        look = await _looked_after(connection, service, unsure)
        if unsure is not None and (now := _written_since(unsure.made, look)) is not None:
            if now.raw == unsure.made.edit.raw:
                return replace(unsure.made, revision=now.revision)
            unsure = None  # others have written since: it comes no more
        try:
            edit = plan(look)
        except ServiceMissing as error:
            raise ServiceMissing(f"{error}{await meant(connection, service)}") from None
        if not edit.changes:
            return Made(edit, edit.version.revision, look)
        try:
            return Made(edit, await _put(connection, edit), look)
        except Conflict:
            busy = None
        except StoreBusy as error:
            busy = error
        except Uncertain as error:
            busy, unsure = None, _Unsure(Made(edit, 0, look), error)
        await anyio.sleep(random.uniform(PAUSE / 4, PAUSE))
    if unsure is not None:
        raise unsure.error
    if busy is not None:
        raise busy
    raise Conflict(
        f"blueprint {edit.version.artifact} was written by others meanwhile, {TRIES} times in a row; nothing of this "
        f"was stored (see `cdm history {service}`)"
    )


async def _looked_after(connection: Connection, service: Service, unsure: _Unsure | None) -> ServiceLook:
    """How a service stands; where that cannot be seen after an edit without an answer, that one's error is raised."""
    try:
        return await looked(connection, service)
    except (StoreError, ExceptionGroup) as error:
        if unsure is None or not isinstance(innermost(error), StoreError):
            raise
        raise unsure.error from None


def _written_since(made: Made, look: ServiceLook) -> VersionLook | None:
    """The version that an edit is of, if its blueprint was written after the edit looked at it."""
    before = made.edit.version
    now = look.versions.get(before.version)
    return now if now is not None and now.revision > before.revision else None


async def _put(connection: Connection, edit: Edit) -> int:
    """Write it; raises `Conflict` and `StoreBusy`, after which nothing of it is stored, and `Uncertain`."""
    version = edit.version
    return await put_blueprint(connection, version.artifact, edit.raw, version.revision, version.owner)


async def put_blueprint(
    connection: Connection, artifact: Artifact, raw: bytes | None, expect: int, owner: str = ""
) -> int:
    """Write a blueprint by compare-and-set; returns its revision.

    Args:
        connection: to NATS.
        artifact: whose.
        raw: what it says; None: it is removed.
        expect: the revision that it must have now.
        owner: who is to look after it; empty: nobody in particular.

    Raises:
        Conflict: it has another revision: nothing of this is stored, or it was written over.
        StoreBusy: the server cannot write at present; nothing is stored.
        Uncertain: no answer came; it may be stored, or be stored later.
    """
    bucket, key = buckets(connection)["blueprints"], BlueprintKey(artifact)
    headers = {WRITER: typist(), **({OWNER: owner} if owner and raw is not None else {})}
    try:
        if raw is None:
            return await bucket.delete(key, expect=expect, headers=headers)
        return await bucket.put(key, raw, expect=expect, headers=headers)
    except Uncertain:
        stored: Stored | None = None
        with suppress(StoreError):
            stored = await bucket.read_near(key)
        if stored is not None and stored.revision > expect:
            if stored.payload == raw:
                return stored.revision
            raise Conflict("others have written it since") from None
        # A replica that is behind, or has no leader, shows what was there before: that tells nothing.
        raise Uncertain(
            f"no answer came: blueprint {artifact} may be stored, or be stored later; "
            f"look (`cdm history {artifact.service}`), and try again"
        ) from None
