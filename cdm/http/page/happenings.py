"""The last events of the cluster, for the page: followed only while somebody looks at it."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from typing import Any, NamedTuple

import anyio

from cdm.errors import CdmError, InvalidArtifact, innermost
from cdm.explain.words import BAD, event_in_words
from cdm.http.desk import Desk
from cdm.log import Log
from cdm.model.artifact import Artifact, NodeId
from cdm.model.event import SLICE_KINDS, EventKind
from cdm.model.keys import SliceKey, encode
from cdm.store.connection import Connection
from cdm.store.events import EventReader, StoredEvent

log = Log("cdm.http")

KEPT = 200
"""Events that the page has."""
SINCE = 3_600.0
"""Seconds before now with which it begins."""
LOOK = 0.5
"""Seconds between two looks whether somebody watches."""
AGAIN = 10.0
"""Seconds after which it is tried again where events cannot be read."""
LINGER = 30.0
"""Seconds for which events are followed after nobody watches any more: pages are loaded anew."""


class News(NamedTuple):
    """What is new of events."""

    number: int
    told: dict[str, Any]


class Happenings:
    """Follows the events.

    Args:
        desk: the connection to NATS.
    """

    def __init__(self, desk: Desk) -> None:
        self.watched = 0
        """How many watch."""
        self._desk = desk
        self._kept: deque[tuple[int, dict[str, Any]]] = deque(maxlen=KEPT)
        self._number = 0
        """Of what was noted last: an event, or why there are none."""
        self._why = ""

    def since(self, number: int | None) -> News | None:
        """What is new since this number (None: everything); None: nothing is."""
        if number == self._number:
            return None
        whole = number is None or number < self._number - KEPT
        found = [event for at, event in self._kept if whole or number is None or at > number]
        return News(self._number, {"whole": whole, "events": found, "why": self._why})

    async def run(self) -> None:
        """Follow them while somebody watches, until cancelled."""
        while True:
            connection = self._desk.connection
            if not self.watched or connection is None:
                await anyio.sleep(LOOK)
                continue
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._stop_when_alone, tasks.cancel_scope)
                    await self._follow(connection)
            except* CdmError as errors:
                self._complain(f"events cannot be read: {innermost(errors)}")
                await anyio.sleep(AGAIN)

    async def _stop_when_alone(self, scope: anyio.CancelScope) -> None:
        alone = 0.0
        while alone < LINGER:
            await anyio.sleep(LOOK)
            alone = 0.0 if self.watched else alone + LOOK
        scope.cancel()

    async def _follow(self, connection: Connection) -> None:
        self._kept.clear()
        self._why = ""
        self._number += KEPT + 1  # whoever knows others is told all anew
        async for page in EventReader(connection).follow(time.time() - SINCE, self._complain):
            self._why = ""
            for stored in page:
                self._number += 1
                self._kept.append((self._number, shown(stored)))

    def _complain(self, why: str) -> None:
        if why != self._why:
            log.warning("the page shows no events", reason=why)
            self._why = why
            self._number += 1


def shown(stored: StoredEvent) -> dict[str, Any]:
    """An event as the page has it."""
    event, data = stored.event, stored.event.data
    about = event.subject.partition("/")[2].removesuffix(".intent").removesuffix(".seen").removeprefix("_rollout.")
    told: dict[str, Any] = {
        "number": stored.sequence,
        "at": stored.at,
        "kind": event.kind,
        "about": about,
        "told": event_in_words(event),
        "node": data.node,
        "artifact": data.artifact,
        "bad": event.kind in BAD,
    }
    if event.kind in (*SLICE_KINDS, EventKind.GONE) and data.node:
        with suppress(InvalidArtifact):  # then it is shown, and leads nowhere
            told["key"] = encode(SliceKey(NodeId(data.node), Artifact.parse(data.artifact), data.ordinal))
    return told
