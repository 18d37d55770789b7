"""Agents that do as they are told, with nothing but a NATS client."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import nats.errors
from nats.aio.msg import Msg

from cdm.model.slice import SliceState, legal
from tests.harness.servers import NatsServer
from tests.harness.wire import CONFLICT, EXPECT, Raw, Record, Rejection, raw


class Agents:
    """Moves the slices of some nodes as a node's agent does, with nothing but a NATS client. Made by `agents`."""

    def __init__(self, user: Raw, nodes: set[str], seen: Callable[[], Awaitable[object]] | None = None) -> None:
        self.nodes = nodes
        self._seen = seen
        self.written: Counter[str] = Counter()
        """Counts by state of what was written."""
        self._user = user
        self._wake = anyio.Event()

    async def run(self) -> None:
        """Answer commands until cancelled."""

        async def wake(message: Msg) -> None:
            self._wake.set()

        if self._user.keys == ">":
            await self._user.client.subscribe(f"$KV.{self._user.bucket('slices')}.*.>", cb=wake)
        while True:
            try:
                for key, record in (await self._user.contents("slices")).items():
                    if key.partition(".")[0] in self.nodes and not key.startswith("_"):
                        await self._answer(key, record)
            except (nats.errors.Error, OSError, Rejection, TimeoutError):
                await anyio.sleep(0.1)
            with anyio.move_on_after(0.3):
                await self._wake.wait()
            self._wake = anyio.Event()

    async def _answer(self, key: str, record: Record) -> None:
        try:
            match record.value.get("state"):
                case "LOAD" | "LOADING":
                    await self._go(key, record, SliceState.LOADING, SliceState.LOADED)
                case "ACTIVATE" | "ACTIVATING":
                    await self._go(key, record, SliceState.ACTIVATING, SliceState.ACTIVE)
                case "DEACTIVATE" | "DEACTIVATING":
                    await self._go(key, record, SliceState.DEACTIVATING, SliceState.LOADED)
                case "UNLOAD" | "UNLOADING":
                    await self._go(key, record, SliceState.UNLOADING, None)
                case _:
                    pass
        except Rejection as rejection:
            if rejection.code not in (CONFLICT, 10164):
                raise
            self._wake.set()  # the leader wrote in between: read again, and obey

    async def _go(self, key: str, record: Record, *states: SliceState | None) -> None:
        revision, before = record.sequence, SliceState(record.value["state"])
        for state in states:
            if state is before:
                continue
            assert legal(before, state)
            if self._seen is not None:  # else what is there may be replaced before it is delivered
                await self._seen()
            headers = {EXPECT: str(revision)}
            if state is None:
                headers["KV-Operation"] = "DEL"
                await self._user.put("slices", key, b"", headers)
                self.written["deleted"] += 1
                return
            revision = await self._user.put("slices", key, {**record.value, "state": state}, headers)
            self.written[state] += 1
            before = state


@asynccontextmanager
async def agents(
    server: NatsServer | Sequence[NatsServer], *nodes: str, seen: Callable[[], Awaitable[object]] | None = None
) -> AsyncIterator[Agents]:
    """Agents for these nodes, on a connection of their own."""
    async with raw(server) as user, agents_of(user, *nodes, seen=seen) as running:
        yield running


@asynccontextmanager
async def agents_of(
    user: Raw, *nodes: str, seen: Callable[[], Awaitable[object]] | None = None
) -> AsyncIterator[Agents]:
    """Agents for these nodes, on somebody's connection."""
    async with anyio.create_task_group() as tasks:
        running = Agents(user, set(nodes), seen)
        tasks.start_soon(running.run)
        yield running
        tasks.cancel_scope.cancel()
