"""Whether this process's event loop gets round, and how late it is: what hangs cannot tell of it itself."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import anyio

from cdm import clock
from cdm.durations import Durations
from cdm.wakeup import Wakeup

PERIOD = 0.25
"""Seconds between two beats."""
STOOD_STILL = 1.0
"""Seconds of being late from which on the loop counts as having stood still."""
_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Standstill(NamedTuple):
    """The loop did not get round."""

    until: float
    """In seconds on this node's clock."""
    seconds: float
    """For how long."""


class Beat:
    """Measures by how much a task is late that wants to run every so often."""

    def __init__(self) -> None:
        self.late = Durations(_BOUNDS)
        self.stood_still = Wakeup()
        """Tells one task of each standstill."""
        self._latest: Standstill | None = None
        self._due = inf

    def standstill(self, now: float) -> Standstill | None:
        """The latest one, also one of which only whoever asks now is aware; None: there was none."""
        late = now - self._due
        return Standstill(now, late) if late >= STOOD_STILL else self._latest

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            self._due = clock.now() + PERIOD
            await anyio.sleep(PERIOD)
            now = clock.now()
            self.late.take(now - self._due)
            if now - self._due >= STOOD_STILL:
                self._latest = Standstill(now, now - self._due)
                self.stood_still.set()
