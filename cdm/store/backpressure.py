"""What a leader's writers and its watch of ``slices`` tell each other: that commands wait to be written."""

from __future__ import annotations

from collections.abc import Callable

import anyio


class Backpressure:
    """What commands go before; at first nothing is held back.

    Statuses wait while there are any commands. Deliveries wait only while there are many: the server makes room for a
    leader's writes when it need not deliver them back at the same time, and the leader decides meanwhile.
    """

    def __init__(self) -> None:
        self._released = anyio.Event()
        self._released.set()
        self._on_release: list[Callable[[], None]] = []
        self.much = False
        """Whether more commands wait than go into a batch: deliveries may wait, too."""

    def hold(self, *, much: bool = False) -> None:
        """Commands wait to be written; ``much``: more than go into a batch."""
        self.much = self.much or much
        if self._released.is_set():
            self._released = anyio.Event()

    def release(self) -> None:
        """All commands are written: nothing has to wait for them any more."""
        self.much = False
        self._released.set()
        for each in self._on_release:
            each()

    async def released(self) -> None:
        """Wait until no commands wait."""
        await self._released.wait()

    def listen(self, on_release: Callable[[], None]) -> None:
        """Call this whenever all commands are written."""
        self._on_release.append(on_release)

    def unlisten(self, on_release: Callable[[], None]) -> None:
        """Do not call this any more."""
        self._on_release.remove(on_release)
