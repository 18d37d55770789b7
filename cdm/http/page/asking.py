"""Explains what somebody points at, as ``cdm explain`` does, and reads what it wrote, as ``cdm logs`` does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread
from msgspec import to_builtins
from msgspec.structs import replace

from cdm import clock
from cdm.errors import CdmError, OutputMissing, OutputUnknown, ServiceMissing, SliceMissing, UsageError, innermost
from cdm.explain.past import with_history, with_past
from cdm.http.desk import Desk
from cdm.http.page.feed import Feed
from cdm.manager.emptying import left_on
from cdm.manager.explanation import NOTHING_IN_FORCE, STANDINGS, explained, explained_slice
from cdm.manager.onlooker import Onlooker
from cdm.manager.standing import Standing
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SLICES, SliceKey
from cdm.model.node import Schedule
from cdm.output.client import Reader
from cdm.output.source import Shown, keeps_output
from cdm.output.wire import LogRequest
from cdm.store.connection import Connection

PATIENCE = 10.0
"""Seconds that reading output may take."""
MOST_LINES = 500
"""Lines that are shown; of each slice fewer, where there are many."""
AT_ONCE = 2
"""Questions that are answered at the same time."""


@dataclass
class Inquiries:
    """Answers what the page asks.

    Args:
        desk: what is known of the cluster.
        feed: knows the messages that it is known from.
    """

    desk: Desk
    feed: Feed

    def __post_init__(self) -> None:
        self._turn = anyio.Semaphore(AT_ONCE)

    async def explain(self, kind: str, name: str) -> dict[str, Any]:
        """Explain a slice (its key), a version, or a node.

        Raises:
            UsageError, ModelError: there can be no such thing.
            ServiceMissing, SliceMissing: there is none.
        """
        async with self._turn:
            match kind:
                case "slice":
                    return await self._slice(_slice_key(name))
                case "version":
                    return await self._version(Artifact.parse(name))
                case "node":
                    return await self._node(NodeId(name))
        raise UsageError("kind is slice, version or node")

    async def _look(self) -> Onlooker:
        """What a manager knows that has heard what is known here. In a thread: of a large cluster it takes a while."""
        return await anyio.to_thread.run_sync(Onlooker, list(self.feed.current.values()), clock.now())

    async def _slice(self, key: SliceKey) -> dict[str, Any]:
        look = await self._look()
        found = await anyio.to_thread.run_sync(explained_slice, look, key)
        if found is None:
            raise SliceMissing("there is no such slice any more")
        if (connection := self._connection) is not None:
            found = await with_past(connection, key, found, list(self.feed.current.values()))
        return {**to_builtins(found), "standing_told": STANDINGS.get(Standing(found.standing), "")}

    async def _version(self, artifact: Artifact) -> dict[str, Any]:
        look = await self._look()
        if artifact not in set(look.cluster.artifacts()):
            raise ServiceMissing("there is no blueprint of it any more, and no slice")
        found = await anyio.to_thread.run_sync(explained, look, artifact)
        if (connection := self._connection) is not None:
            found = await with_history(connection, found, artifact)
        desired = look.cluster.desired.get(artifact)
        if desired is None or desired.blueprint is None:
            found = replace(found, summary=NOTHING_IN_FORCE, awaited=[], nearest=[], nodes=[])
        return {**to_builtins(found)}

    async def _node(self, node: NodeId) -> dict[str, Any]:
        reserved = self.desk.sight.cluster.reserved
        told = {"reserved_cpu": reserved.cpu(node), "reserved_memory": reserved.memory(node)}
        if self.desk.sight.schedule(node) is not Schedule.DRAIN:
            return told
        look = await self._look()
        return {**told, "left": to_builtins(await anyio.to_thread.run_sync(left_on, look, node))}

    @property
    def _connection(self) -> Connection | None:
        """To NATS, where that answers."""
        return self.desk.connection if self.desk.sight.is_live else None

    async def logs(self, kind: str, name: str, lines: int) -> dict[str, Any]:
        """The last lines of a slice, or of all slices of a version.

        Raises:
            UsageError, ModelError: there can be no such thing.
        """
        if kind not in ("slice", "version"):
            raise UsageError("kind is slice or version")
        key = _slice_key(name) if kind == "slice" else None
        artifact = key.artifact if key is not None else Artifact.parse(name)
        if (connection := self._connection) is None:
            return {"lines": [], "why": "NATS is away: nodes cannot be asked"}
        slices = max(len(self.desk.sight.cluster.group(artifact).slices), 1)
        most = min(max(lines, 1), MOST_LINES)
        request = LogRequest(
            artifact=str(artifact),
            ordinal=None if key is None else key.ordinal,
            lines=most if key is not None else max(min(most, MOST_LINES // slices), 2),
        )
        async with self._turn:
            return await self._read(connection, request, None if key is None else key.node)

    async def _read(self, connection: Connection, request: LogRequest, only: NodeId | None) -> dict[str, Any]:
        hosts = [
            put
            for node, put in sorted(self.desk.sight.nodes.items())
            if only in (None, node) and keeps_output(put.value)
        ]
        if not hosts:
            return {"lines": [], "why": "its output is not kept by a node that is there"}
        found: list[dict[str, Any]] = []
        said: list[str] = []

        async def write(page: list[Shown]) -> None:
            found.extend(map(_line, page))

        with anyio.move_on_after(PATIENCE) as scope:
            try:
                await Reader(connection, request, only, write, said.append, _nothing).run(hosts)
            except* OutputUnknown as errors:
                said.append(str(innermost(errors)))
            except* OutputMissing:
                said.append("there is no output so far")
            except* CdmError as errors:
                said.append(str(innermost(errors)))
        if scope.cancelled_caught:
            said.append(f"not all of it came within {PATIENCE:g} s")
        return {"lines": found[-MOST_LINES:], "why": "; ".join(dict.fromkeys(said))}


def _slice_key(name: str) -> SliceKey:
    key = SLICES.decode(name)
    if not isinstance(key, SliceKey):
        raise UsageError("this is no slice")
    return key


def _line(each: Shown) -> dict[str, Any]:
    line = each.line
    return {
        "time": line.time.isoformat(timespec="milliseconds"),
        "node": each.node,
        "ordinal": line.ordinal,
        "stream": line.stream,
        "text": line.text,
    }


async def _nothing() -> str:
    return ""
