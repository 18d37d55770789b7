"""A wake-up call from synchronous code to one waiting task."""

from __future__ import annotations

import asyncio


class Wakeup:
    """Wakes one waiting task; set while nobody waits, it wakes the next one at once."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def is_set(self) -> bool:
        """Whether a wake-up call waits."""
        return self._event.is_set()

    def set(self) -> None:
        """Wake."""
        self._event.set()

    async def wait(self) -> None:
        """Wait to be woken, and forget it."""
        if self._event.is_set():
            await asyncio.sleep(0)  # others have their turn, however often this one is woken
        await self._event.wait()
        self.forget()

    def forget(self) -> None:
        """Be as if nobody had called."""
        self._event = asyncio.Event()
