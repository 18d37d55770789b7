"""Decides what documents come to, writes it, and follows what becomes of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import anyio
from msgspec import Struct

from cdm.cli.changes import Action, Change, Looks, changes_of, document_of
from cdm.cli.documents import Document
from cdm.cli.editing import Made, looked_at_all, put_blueprint
from cdm.cli.following import followed_all, shown_line, unsaid
from cdm.cli.judging import End, Ended
from cdm.cli.known import nearest, stored_artifacts
from cdm.cli.log_setup import remark
from cdm.cli.writing import PAUSE, TRIES
from cdm.errors import Conflict, StoreBusy, StoreError
from cdm.explain.words import brief
from cdm.model.artifact import Artifact
from cdm.store.connection import Connection


class Wish(Struct, frozen=True):
    """What was typed: documents, or one artifact with options."""

    documents: Sequence[Document] = ()
    artifact: Artifact | None = None
    instances: int | str | None = None
    sets: Sequence[str] = ()
    owner: str | None = None
    prune: bool = False


class Decided(Struct, frozen=True):
    """What it comes to."""

    changes: Sequence[Change]
    looks: Looks


async def decided(connection: Connection, wish: Wish) -> Decided:
    """What a wish comes to, as the cluster stands."""
    documents = wish.documents
    services = {each.artifact.service for each in documents}
    if wish.artifact is not None:
        services = {wish.artifact.service}
    looks = await looked_at_all(connection, None if wish.prune else services)
    missing = services - looks.keys()
    if missing:
        looks |= await looked_at_all(connection, missing)
    if wish.artifact is not None:
        look = looks[wish.artifact.service]
        documents = [document_of(wish.artifact, look, wish.instances, wish.sets)]
    return Decided(changes_of(documents, looks, wish.owner, prune=wish.prune), looks)


async def not_stored(connection: Connection, changes: Sequence[Change]) -> dict[Artifact, str]:
    """Of which artifacts no program is stored, and a question about the one that may have been meant."""
    asked = [each for each in changes if each.action in (Action.CREATE, Action.CHANGE)]
    wanted = [each.artifact for each in asked if each.blueprint is not None and each.blueprint.wants_any]
    if not wanted:
        return {}
    try:
        stored = await stored_artifacts(connection)
    except StoreError:
        return {}  # whoever may write blueprints need not have the right to read artifacts
    return {each: nearest(str(each), stored) for each in wanted if each not in stored}


# Writing


async def write(connection: Connection, changes: Sequence[Change]) -> list[int]:
    """Write each by compare-and-set on what was read; returns the revisions, also of what is left as it is.

    Raises:
        Conflict: one was written by others meanwhile; those before it are written, and that is told.
        Uncertain: no answer came about one, which may be stored, or be stored later; likewise.
        StoreError: the server does not let it be written; likewise.
    """
    revisions: list[int] = []
    for change in changes:
        version = change.version
        if change.action is Action.NOTHING:
            revisions.append(version.revision)
            continue
        put = partial(put_blueprint, connection, version.artifact, change.raw, version.revision, change.owner)
        try:
            revisions.append(await _put(put))
        except Conflict:
            _tell_written(changes[: len(revisions)])
            raise Conflict(
                f"blueprint {version.artifact} was written by others meanwhile, and is left as they wrote it; "
                f"look at it (`cdm history {version.artifact.service}`), and apply again"
            ) from None
        except StoreError:
            _tell_written(changes[: len(revisions)])
            raise
    return revisions


async def _put(put: partial[Any]) -> int:
    for _ in range(TRIES - 1):
        try:
            return int(await put())
        except StoreBusy:
            await anyio.sleep(PAUSE)
    return int(await put())


def _tell_written(changes: Sequence[Change]) -> None:
    done = [str(each.artifact) for each in changes if each.action is not Action.NOTHING]
    if done:
        remark(f"written before that: {', '.join(done)}")


# Following


async def wait_for(
    connection: Connection,
    decided: Decided,
    revisions: Sequence[int],
    *,
    timeout: float | None = None,
    json: bool = False,
) -> dict[Artifact, Ended]:
    """Follow all that is to stand there until it serves, or it is known that it does not."""
    edits = []
    for change, revision in zip(decided.changes, revisions, strict=True):
        if change.raw is None or (change.action is Action.NOTHING and change.version.replaced_by_another):
            continue
        made = Made(change.edit, revision, decided.looks[change.artifact.service])
        edits.append((made, unsaid if json else partial(_say_of, change.artifact)))
    if not edits:
        return {}
    said: set[Artifact] = set()

    def on_end(made: Made, ended: Ended) -> None:
        artifact = made.edit.version.artifact
        if not json and artifact not in said:
            said.add(artifact)
            _say_ended(artifact, ended)

    try:
        ends = await followed_all(connection, edits, timeout, on_end)
    except anyio.get_cancelled_exc_class():  # Ctrl-C
        print("cdm: no longer waited for, but it goes on; see `cdm status`", file=sys.stderr)
        raise
    for (made, _), ended in zip(edits, ends, strict=True):
        on_end(made, ended)  # of what has not ended in time
    if len(ends) > 1 and not json:
        shown_line(_summed({made.edit.version.artifact: ended for (made, _), ended in zip(edits, ends, strict=True)}))
    return {made.edit.version.artifact: ended for (made, _), ended in zip(edits, ends, strict=True)}


def _say_of(artifact: Artifact, text: str) -> None:
    shown_line(f"{artifact}: {text}")


def _say_ended(artifact: Artifact, ended: Ended) -> None:
    """Show how it ended."""
    shown_line(f"{artifact}: {ended.end}{f': {brief(ended.reason)}' if ended.reason else ''}")
    if hint := ended.hint(artifact):
        shown_line(hint)


def _summed(ends: Mapping[Artifact, Ended]) -> str:
    """How many are complete, and which are not."""
    by_end: dict[End, list[str]] = {}
    for artifact, ended in ends.items():
        by_end.setdefault(ended.end, []).append(str(artifact))
    complete = f"{len(by_end.pop(End.COMPLETE, ()))} of {len(ends)} complete"
    return "; ".join((complete, *(f"{end}: {', '.join(found)}" for end, found in by_end.items())))


def code_of(changes: Sequence[Change], ends: dict[Artifact, Ended]) -> int:
    """The exit code: the gravest of all."""
    codes = [ends[each.artifact].code(each.goal) for each in changes if each.artifact in ends]
    return max(codes, default=0)
