"""Puts the lines of several readers into one order of time, as one reader does with those of several nodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import anyio

from cdm.output.source import Shown
from cdm.output.wire import ripe
from cdm.wakeup import Wakeup

Write = Callable[[list[Shown]], Awaitable[None]]


class Merging:
    """Lines of readers, which are shown once nothing earlier can come. A reader waits until its own are.

    Args:
        count: how many readers there are.
        write: shows lines.
    """

    def __init__(self, count: int, write: Write) -> None:
        self._fronts: dict[int, deque[Shown]] = {number: deque() for number in range(count)}
        self._shown = [anyio.Event()] * count
        self._news = Wakeup()
        self._write = write

    def of(self, number: int) -> Write:
        """What this reader writes with."""

        async def write(lines: list[Shown]) -> None:
            self._fronts[number].extend(lines)
            self._shown[number] = anyio.Event()
            self._news.set()
            await self._shown[number].wait()

        return write

    def over(self, number: int) -> None:
        """This reader has no more lines."""
        del self._fronts[number]
        self._news.set()

    async def run(self) -> None:
        """Show lines until all readers have ended."""
        while self._fronts:
            if not all(self._fronts.values()):
                await self._news.wait()
                continue
            await self._write(ripe(self._fronts.values()))
            for number, front in self._fronts.items():
                if not front:
                    self._shown[number].set()
