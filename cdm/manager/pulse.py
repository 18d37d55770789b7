"""Notices that this process was stopped: by a paused machine, by a signal, or by work that took too long. Pure.

Others may have been stopped with it, as all processes of a paused hypervisor are. Their registrations expire where that
took two thirds of a TTL, for heartbeats come a third of it apart. So what is looked for is a stop of half of that.
"""

from __future__ import annotations

LATE = 0.6
"""Seconds by which a beat of a busy process may be late."""
LEAST_GAP = LATE + 0.4
"""Seconds that are no stop, however short TTLs are: each beat wakes the process."""


class Pulse:
    """The beats of one process.

    Args:
        now: when it began, in seconds on a clock that goes on while the machine is suspended.
    """

    def __init__(self, now: float) -> None:
        self._last = now
        self._longest_gap = LEAST_GAP

    def pause(self, ttl: float) -> float:
        """In how many seconds the next beat is to come.

        Args:
            ttl: the shortest TTL of any node's heartbeats, in seconds.
        """
        self._longest_gap = max(LEAST_GAP, ttl / 3)
        return self._longest_gap - LATE

    def beat(self, now: float) -> float:
        """The process runs; returns for how many seconds it may have been stopped before, 0 where it was not.

        Beats may come sooner than `pause` says.
        """
        gap, self._last = now - self._last, now
        return gap if gap >= self._longest_gap else 0.0
