"""How many checks are made at once: not many of all, and fewer of one host or subject: one that hangs leaves room."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CapacityLimiter

AT_ONCE = 64
"""Checks of all hosts together."""
AT_ONCE_OF_ONE = 16
"""Checks of one host, or of one subject."""


class _Lane:
    def __init__(self, width: int) -> None:
        self.limiter = CapacityLimiter(width)
        self.users = 0
        """Those who are in it, and those who wait."""


class Lanes:
    """One lane for each host or subject that is asked, and a limit to all of them.

    Args:
        all_together: most that go on at once.
        of_one: most that go on at once in one lane.
    """

    def __init__(self, all_together: int = AT_ONCE, of_one: int = AT_ONCE_OF_ONE) -> None:
        self._all = CapacityLimiter(all_together)
        self._of_one = of_one
        self._lanes: dict[str, _Lane] = {}

    @asynccontextmanager
    async def lane(self, host: str) -> AsyncIterator[None]:
        """Wait for one's turn, and have it in the ``with`` block."""
        lane = self._lanes.setdefault(host, _Lane(self._of_one))
        lane.users += 1
        try:
            # In this order: who waits for its own host takes nobody's place.
            async with lane.limiter, self._all:
                yield
        finally:
            lane.users -= 1
            if not lane.users:
                del self._lanes[host]
