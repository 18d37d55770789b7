"""What handlers see of the cluster: the newest of every mirror, and when NATS was last heard. Pure but for waiting.

It is changed by the event loop alone, between two steps of any handler: what a handler reads without waiting in between
belongs together.
"""

from __future__ import annotations

from math import isfinite

import anyio

from cdm import clock
from cdm.dispatch.messages import Message
from cdm.manager.cluster_view import ClusterView
from cdm.model.keys import LAYOUTS


class Sight(ClusterView):
    """The cluster as this process's mirrors have it."""

    def __init__(self) -> None:
        super().__init__()
        self.changes = 0
        """Grows with every message, and where NATS comes or goes."""
        self.listed = False
        """Whether all buckets were listed once: before, nothing that is missing here is known to be missing."""
        self.problem = ""
        """Why the buckets cannot be followed at all; empty: they can, or are waited for."""
        self.closing = False
        """Whether this process is about to end: whoever waits is to be answered now."""
        self._behind = {layout.name for layout in LAYOUTS}
        self._away_since: float | None = clock.now()
        self._waiting: anyio.Event | None = None

    # For handlers

    @property
    def is_live(self) -> bool:
        """Whether all mirrors are complete and hear of changes."""
        return not self._behind

    @property
    def behind(self) -> frozenset[str]:
        """The buckets that are not heard of at present."""
        return frozenset(self._behind)

    def age(self, now: float) -> float:
        """For how many seconds changes may not have been heard; 0 while NATS is there."""
        return 0.0 if self._away_since is None else max(now - self._away_since, 0.0)

    async def after(self, changes: int) -> int:
        """Wait until `changes` is above this; returns it. Any number of tasks may wait."""
        while self.changes <= changes and not self.closing:
            if self._waiting is None:
                self._waiting = anyio.Event()
            await self._waiting.wait()
        return self.changes

    # For whoever follows the buckets

    def take(self, message: Message) -> None:
        """Take in one message."""
        super().take(message)
        self.tell()

    def heard(self, bucket: str, *, live: bool, late: float = 0.0) -> None:
        """The mirror of this bucket is complete, or may fall behind, and has for so many seconds."""
        if live:
            self._behind.discard(bucket)
        else:
            self._behind.add(bucket)
        if not self._behind:
            self.listed, self.problem, self._away_since = True, "", None
        elif self._away_since is None:
            self._away_since = clock.now() - (late if isfinite(late) else 0.0)
        self.tell()

    def close(self) -> None:
        """Have nobody wait any more."""
        self.closing = True
        self.tell()

    def tell(self) -> None:
        """Wake whoever waits for something new."""
        self.changes += 1
        if self._waiting is not None:
            self._waiting.set()
            self._waiting = None
