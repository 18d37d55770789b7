"""Back-pressure on a mirror: its updates may wait while this process writes to the bucket itself."""

from __future__ import annotations

import anyio


class Backpressure:
    """What a leader's writer and the watch of ``slices`` share; at first nothing is held back.

    The server makes room for a leader's writes when it need not deliver them back at the same time: measured, half as
    many writes again in a second.
    """

    def __init__(self) -> None:
        self._released = anyio.Event()
        self._released.set()

    def hold(self) -> None:
        """Commands wait to be written: updates may wait."""
        if self._released.is_set():
            self._released = anyio.Event()

    def release(self) -> None:
        """All commands are written: updates are wanted again."""
        self._released.set()

    async def released(self) -> None:
        """Wait until updates are not held back."""
        await self._released.wait()
