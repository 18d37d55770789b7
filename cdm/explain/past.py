"""What led to what is explained: events that the leader told, and the last lines that a program wrote."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import anyio
from msgspec.structs import replace

from cdm.dispatch.messages import Message, ValuePut
from cdm.errors import CdmError
from cdm.explain.words import event_in_words
from cdm.manager.explanation import Explanation, Happening, SliceExplanation, WrittenLine
from cdm.model.artifact import Artifact
from cdm.model.event import Event, EventKind
from cdm.model.keys import NodeKey, SliceKey
from cdm.output.client import Reader
from cdm.output.source import Registered, Shown, keeps_output
from cdm.output.wire import LogRequest
from cdm.store.connection import Connection
from cdm.store.events import EventReader, StoredEvent

MOST = 12
"""Most events that are told."""
LINES = 5
"""Most lines of output."""
LATELY = 3_600.0
"""Seconds for which all events of a slice are read; of before that only the last time of each of its states."""
PATIENCE = 3.0
"""Seconds that reading may take: whoever looks wants to know the rest at once."""
_OF_ARTIFACT = (EventKind.BLUEPRINT, EventKind.REFUSED, EventKind.ROLLOUT, EventKind.CONDITION, "failed")


async def with_history(connection: Connection, found: Explanation, artifact: Artifact) -> Explanation:
    """The explanation of a version with what was done with it last, and its last failures."""
    told: list[StoredEvent] = []

    async def read(kind: str) -> None:
        told.extend(await _latest(EventReader(connection, kind=kind, artifact=artifact)))

    with anyio.move_on_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for kind in _OF_ARTIFACT:
                tasks.start_soon(read, kind)
    return replace(found, history=_happenings(told))


async def with_past(
    connection: Connection, key: SliceKey, found: SliceExplanation, messages: Iterable[Message]
) -> SliceExplanation:
    """The explanation of a slice with its last states, who did what, and what its program wrote last, if it ended."""
    told: list[StoredEvent] = []
    lines: list[WrittenLine] = []

    async def states() -> None:
        told.extend(each for each in await _lately(connection, key) if each.event.data.ordinal == key.ordinal)

    async def deeds(reader: EventReader) -> None:
        told.extend(await _latest(reader))

    async def output() -> None:
        lines.extend(await _last_lines(connection, key, messages))

    with anyio.move_on_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(states)
            for kind in (EventKind.BLUEPRINT, EventKind.ROLLOUT):
                tasks.start_soon(deeds, EventReader(connection, kind=kind, artifact=key.artifact))
            tasks.start_soon(deeds, EventReader(connection, kind=EventKind.INTENT, node=key.node))
            if found.reason or found.failures or found.restarts:
                tasks.start_soon(output)
    return replace(found, history=_happenings(told), output=lines)


async def _lately(connection: Connection, key: SliceKey) -> list[StoredEvent]:
    """What happened to the slices of this artifact on this node."""
    reader = EventReader(connection, node=key.node, artifact=key.artifact)
    found: list[StoredEvent] = []
    try:
        async for page in reader.read(time.time() - LATELY):
            found = [*found, *page][-MOST * 20 :]  # of others on this node, too
    except CdmError:
        return []  # there is no stream, or this user may not read it: the rest is told all the same
    return found or await _latest(EventReader(connection, node=key.node, artifact=key.artifact))


async def _latest(reader: EventReader) -> list[StoredEvent]:
    try:
        return await reader.latest()
    except CdmError:
        return []


def _happenings(told: Sequence[StoredEvent]) -> list[Happening]:
    """The last of them, in the order of time, and always the last deeds of people, and why it was placed."""
    in_order = sorted({each.sequence: each for each in told}.values(), key=lambda each: each.event.time)
    last = in_order[-MOST:]
    done = {each.event.kind: each for each in in_order if each.event.data.by or each.event.kind == "load"}
    kept = {each.sequence: each for each in (*done.values(), *last)}
    return [_happening(each.event) for each in sorted(kept.values(), key=lambda each: each.event.time)]


def _happening(event: Event) -> Happening:
    return Happening(event.time, event.kind, event.subject, event_in_words(event), event.data.by)


async def _last_lines(connection: Connection, key: SliceKey, messages: Iterable[Message]) -> list[WrittenLine]:
    """The last lines of output that the slice's node keeps of it; none: it does not answer, or keeps none."""
    hosts: list[Registered] = [
        each
        for each in messages
        if isinstance(each, ValuePut) and isinstance(each.key, NodeKey) and each.key.node == key.node
    ]
    if not hosts or not keeps_output(hosts[0].value):
        return []
    found: list[WrittenLine] = []

    async def write(lines: list[Shown]) -> None:
        found.extend(WrittenLine(each.line.time.isoformat(), each.line.text) for each in lines)

    async def nothing() -> str:
        return ""

    request = LogRequest(artifact=str(key.artifact), ordinal=key.ordinal, lines=LINES)
    try:
        await Reader(connection, request, key.node, write, lambda _text: None, nothing).run(hosts)
    except* CdmError:
        pass  # there is none, the node does not answer, or this user may not ask it
    return found[-LINES:]
