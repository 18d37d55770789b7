"""Reads what can wait for a moment together with what comes after it, instead of each message for itself.

To be woken takes a process some tenths of a millisecond, longer than to take a message in. The heartbeats of a
thousand nodes come to each manager 300 times a second, nearly each for itself. Where they are all that comes they are
read fifty times a second. What cannot wait comes on the same connection: the first of it waits, too, and what follows
is read at once for as long as it comes. Answers that are waited for never wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

GAP = 0.02
"""Seconds from one reading to the next where all that came for so long can wait."""
MUCH = 16 * 1024
"""Bytes read at once behind which there is more, and which nobody is woken for."""


class Timers(Protocol):
    """An event loop, as far as it is needed here."""

    def time(self) -> float:
        """Seconds on its clock."""

    def call_later(self, delay: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        """Have something called in so many seconds."""


class Gathering:
    """When one connection is read. Everything is called on the event loop.

    Args:
        loop: the event loop.
    """

    def __init__(self, loop: Timers) -> None:
        self.urgent = False
        """Set for a message that cannot wait."""
        self._loop = loop
        self._urgent_at = self._read_at = float("-inf")
        self._line: asyncio.ReadTransport | None = None
        """Where nothing is read at present."""
        self._again: asyncio.TimerHandle | None = None
        """When it is read again."""

    def after(self, line: asyncio.ReadTransport, size: int) -> None:
        """So many bytes were read, and something that can wait may come next: it is read with what follows."""
        now = self._loop.time()
        before, self._read_at = self._read_at, now
        if self.urgent:
            self.urgent, self._urgent_at = False, now
        if self._again is None and now < before + GAP and now >= self._urgent_at + GAP and size < MUCH:
            line.pause_reading()
            self._line, self._again = line, self._loop.call_later(GAP, self.read_on)

    def hurry(self) -> None:
        """Something is about to come that cannot wait."""
        self._urgent_at = self._loop.time()
        self.read_on()

    def read_on(self) -> None:
        """Read what is there."""
        if self._line is not None and self._again is not None:
            self._again.cancel()
            # What comes now comes as often as before.
            self._read_at = self._loop.time()
            line, self._line, self._again = self._line, None, None
            line.resume_reading()
