"""Moments, and wake-up calls from synchronous code to one waiting task."""

from __future__ import annotations

import asyncio


class Moment:
    """Something that happens, and may be waited for: `asyncio.Event`, but small while nobody does.

    That one keeps 760 bytes for those who might wait. A slice has ten of them, and at rest two are waited for.
    """

    __slots__ = ("_is_set", "_waiting")

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: tuple[asyncio.Future[None], ...] = ()

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._is_set

    def set(self) -> None:
        """It has happened: all who wait go on."""
        self._is_set = True
        for each in self._waiting:
            if not each.done():  # it is, where it was cancelled, or this comes twice before it goes on
                each.set_result(None)

    def clear(self) -> None:
        """Be as if it had not happened."""
        self._is_set = False

    async def wait(self) -> None:
        """Wait until it has happened."""
        if self._is_set:
            return
        own = asyncio.get_running_loop().create_future()
        self._waiting = (*self._waiting, own)
        try:
            await own
        finally:
            self._waiting = tuple(each for each in self._waiting if each is not own)


class Wakeup:
    """Wakes one waiting task; set while nobody waits, it wakes the next one at once."""

    __slots__ = ("_moment",)

    def __init__(self) -> None:
        self._moment = Moment()

    @property
    def is_set(self) -> bool:
        """Whether a wake-up call waits."""
        return self._moment.is_set()

    def set(self) -> None:
        """Wake."""
        self._moment.set()

    async def wait(self) -> None:
        """Wait to be woken, and forget it."""
        if self._moment.is_set():
            await asyncio.sleep(0)  # others have their turn, however often this one is woken
        await self._moment.wait()
        self.forget()

    def forget(self) -> None:
        """Be as if nobody had called."""
        self._moment.clear()
