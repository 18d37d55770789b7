"""Asks a proxy, and keeps count of who answered and of what went wrong."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import anyio

from tests.harness.waiting import patience

UNANSWERED = ("(b'')", "(ConnectionResetError(104, ")
"""How it is told that a connection ended without an answer, be it before a request could be sent."""


class Visitor:
    """Asks one proxy, each time on a new connection, one try each.

    Args:
        port: where it listens.
        again: whether to ask once more where the connection ends without an answer, as browsers do.
    """

    def __init__(self, port: int, *, again: bool = False) -> None:
        self._port = port
        self._again = again
        self.asked = 0
        self.dropped = 0
        """How often it was asked once more."""
        self.answers: Counter[str] = Counter()
        """Good answers, by version."""
        self.failures: list[str] = []

    async def once(self) -> str:
        """Ask; returns the version that answered, or, in brackets, what went wrong."""
        try:
            async with asyncio.timeout(patience()):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    writer.write(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
                    found = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            return f"({error!r})"
        head, _, body = found.partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            return f"({head[:200]!r})"
        # It may be chunked.
        return str(json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])["artifact"]).rpartition(":")[2]

    async def ask(self) -> None:
        """Ask, and count."""
        self.asked += 1
        answer = await self.once()
        if self._again and answer.startswith(UNANSWERED):
            self.dropped += 1
            answer = await self.once()
        if answer.startswith("("):
            self.failures.append(f"{datetime.now(UTC):%H:%M:%S.%f} {answer}")
        else:
            self.answers[answer] += 1

    async def ask_often(self, times: int, at_once: int) -> Counter[str]:
        """Ask so many times, several at once; returns what was answered meanwhile."""
        before = Counter(self.answers)

        async def some(count: int) -> None:
            for _ in range(count):
                await self.ask()

        async with anyio.create_task_group() as tasks:
            for number in range(at_once):
                tasks.start_soon(some, times // at_once + (number < times % at_once))
        return self.answers - before


@asynccontextmanager
async def visiting(*visitors: Visitor, pause: float = 0.05) -> AsyncIterator[None]:
    """Each asks all the time."""

    async def go_on(visitor: Visitor) -> None:
        while True:
            await visitor.ask()
            await anyio.sleep(pause)

    async with anyio.create_task_group() as tasks:
        for each in visitors:
            tasks.start_soon(go_on, each)
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()
