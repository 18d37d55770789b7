"""Notices that this process was stopped: by a paused machine, by a signal, or by work that took too long. Pure."""

from __future__ import annotations

LONGEST_GAP = 1.0
"""Seconds between two beats from which on the process counts as stopped meanwhile."""
PERIOD = LONGEST_GAP * 0.4
"""Seconds between two beats of a process that runs: each wakes it; a busy one may be late by the rest of the gap."""


class Pulse:
    """The beats of one process.

    Args:
        now: when it began, in seconds on a clock that goes on while the machine is suspended.
    """

    def __init__(self, now: float) -> None:
        self._last = now

    def beat(self, now: float) -> float:
        """The process runs; returns for how many seconds it may have been stopped before, 0 where it was not."""
        gap, self._last = now - self._last, now
        return gap if gap >= LONGEST_GAP else 0.0
