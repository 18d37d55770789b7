"""What a leader's writers and its watch of ``slices`` tell each other: how much is to be done before them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Backpressure:
    """What commands go before; at first nothing is held back.

    Statuses wait while there are any commands. Deliveries wait only while there is much to do: the server makes room
    for a leader's writes when it need not deliver them back at the same time, and the leader decides meanwhile.
    """

    def __init__(self) -> None:
        self._released = asyncio.Event()
        self._released.set()
        self.much: Callable[[], bool] = lambda: False
        """Whether so much is to be decided or written that deliveries may wait."""

    def hold(self) -> None:
        """Commands wait to be written."""
        if self._released.is_set():
            self._released = asyncio.Event()

    def release(self) -> None:
        """All commands are written."""
        self._released.set()

    async def released(self) -> None:
        """Wait until no commands wait."""
        await self._released.wait()
