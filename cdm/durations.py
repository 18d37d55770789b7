"""How long things took, counted by size: plain numbers that cost little where they are counted."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Durations:
    """Counts durations in buckets.

    Args:
        bounds: the buckets' upper bounds in seconds, ascending; a bound belongs to its bucket.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """How many fell into each bucket; the last one holds what was longer than all bounds."""
        self.total = 0.0
        """The sum of all, in seconds."""

    def take(self, seconds: float) -> None:
        """One more took so long; less than nothing, as where clocks were set, is nothing."""
        seconds = max(seconds, 0.0)
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds
