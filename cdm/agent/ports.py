"""Which slices of one node have which ports: of two that demand the same one, the later waits for the earlier."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import anyio

from cdm.model.keys import SliceKey

PATIENCE = 10.0
"""Seconds that a slice waits for a port that another slice of this node has and keeps: it may be told to go by then.
Longer would keep it from being started on another node."""
INTERVAL = 1.0
"""Seconds between two looks whether whoever has the port is told to go."""


class Holder(NamedTuple):
    """A slice that has a port, or is about to."""

    key: SliceKey
    leaves_within: Callable[[], float | None]
    """Tells for how many seconds it goes on, where it is told to go; None: it stays."""


class Ports:
    """The ports that one node's slices have."""

    def __init__(self) -> None:
        self._taken: dict[SliceKey, tuple[int, Holder]] = {}
        self._freed = anyio.Event()

    def take(self, port: int, holder: Holder) -> None:
        """From now on this slice has this port, and no other one."""
        self._taken[holder.key] = (port, holder)

    def free(self, key: SliceKey) -> None:
        """Nothing of this slice runs any more."""
        if self._taken.pop(key, None) is not None:
            self._freed.set()
            self._freed = anyio.Event()

    def holder(self, port: int, but: SliceKey) -> Holder | None:
        """Which other slice has the port; None: none."""
        return next((holder for taken, holder in self._taken.values() if taken == port and holder.key != but), None)

    async def until_one_is_free(self, timeout: float) -> None:
        """Wait until a port is freed, whichever, or for so many seconds."""
        with anyio.move_on_after(timeout):
            await self._freed.wait()
