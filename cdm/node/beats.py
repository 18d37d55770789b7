"""When a node's heartbeats are due: so many a TTL, and those of different nodes at different times. Pure.

Nodes that start together, or are connected again together, would go on together: each waits a random part of its time.
"""

from __future__ import annotations

from collections.abc import Callable

from cdm.model.node import HEARTBEATS_PER_TTL


class Beats:
    """The times of one node's heartbeats, in seconds on `cdm.clock`.

    Args:
        ttl: the registration's, in seconds.
        random: from 0 (included) to 1.
    """

    def __init__(self, ttl: float, random: Callable[[], float]) -> None:
        self.interval = ttl / HEARTBEATS_PER_TTL
        """Seconds between two of them."""
        self.due = float("inf")
        """When the next one is due."""
        self._ttl = ttl
        self._random = random
        self._accepted = float("-inf")

    def begin(self, now: float) -> None:
        """The node has registered."""
        self.due = now + self._random() * self.interval

    def beat(self, now: float) -> None:
        """One is being sent."""
        self.due = now + self.interval

    def accepted(self, sent: float) -> None:
        """One that was sent then is stored, for a TTL from then on."""
        self._accepted = sent

    def at_once(self, now: float) -> None:
        """There is something to tell."""
        self.due = now

    def connected(self, now: float) -> None:
        """The connection is up again: TTLs ran on, and all nodes learn of it at the same time.

        What still lives is renewed before it ends. What has ended is of no use to anybody any more: managers give
        nobody up before they could hear for a whole TTL.
        """
        left = self._accepted + self._ttl - now
        spread = min(self.interval, left / 2) if left > 0 else self.interval
        self.due = min(max(self.due, now), now + self._random() * spread)
