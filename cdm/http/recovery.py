"""Whether a process has heard by now what happened while its event loop stood still."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import anyio

from cdm import clock
from cdm.errors import StoreError
from cdm.http.beat import Beat, Standstill
from cdm.store.watch import Watch

PATIENCE = 10.0
"""Seconds that the mirrors have to catch up before their buckets are looked at again."""
PAUSE = 0.5
"""Seconds before another try where the server did not say how far a bucket is."""


class Recovery:
    """Has the mirrors catch up after each standstill.

    Args:
        beat: knows of standstills.
        watches: tells the watches of the mirrors.
    """

    def __init__(self, beat: Beat, watches: Callable[[], Iterable[Watch]]) -> None:
        self._beat = beat
        self._watches = watches
        self._heard = float("-inf")
        """What happened before this has been heard, in seconds on this node's clock."""

    def is_from(self, still: Standstill) -> bool:
        """Whether everything that happened during it is known."""
        return self._heard >= still.until

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            await self._beat.stood_still.wait()
            await self._catch_up()

    async def _catch_up(self) -> None:
        while True:
            began = clock.now()
            try:
                with anyio.fail_after(PATIENCE):
                    for watch in list(self._watches()):
                        await watch.caught_up()
            except (StoreError, TimeoutError):
                await anyio.sleep(PAUSE)
            else:
                self._heard = began
                return
