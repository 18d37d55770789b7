"""Which artifacts a leader has yet to look at, and when it looks at others although nothing happens.

An artifact that was written to is put off until the mirror shows everything up to what was written (read-your-writes):
what happens to it meanwhile is looked at then.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator

from cdm.manager.outbox import Order
from cdm.model.artifact import Artifact


class Agenda:
    """The artifacts of one leadership.

    Args:
        wake: called when there is something to look at.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        # Not a plain dictionary: that one goes past all it gave away to find its first.
        self._dirty: OrderedDict[Artifact, bool] = OrderedDict()
        """Artifacts to look at; True: look closely, whatever the counts say."""
        self._awaited: dict[Artifact, float] = {}
        """Artifacts with writes that the mirror does not show yet: the revision to wait for (inf: not yet acked)."""
        self.orders: dict[Artifact, Order] = {}
        """What was written of these artifacts."""
        self._held: dict[Artifact, bool] = {}
        """Artifacts that changed while they were awaited."""
        self._acked: deque[tuple[int, Artifact]] = deque()
        self._timers: list[tuple[float, Artifact]] = []
        self._timer_of: dict[Artifact, float] = {}

    @property
    def empty(self) -> bool:
        """Whether nothing is to be looked at now."""
        return not self._dirty

    @property
    def length(self) -> int:
        """How many artifacts are to be looked at now."""
        return len(self._dirty)

    @property
    def awaits(self) -> bool:
        """Whether the mirror has yet to show something that was written."""
        return bool(self._awaited)

    def touch(self, artifact: Artifact, closely: bool = False) -> None:
        """The artifact changed; ``closely``: look at it closely, whatever the counts say."""
        if artifact in self._awaited:
            self._held[artifact] = closely or self._held.get(artifact, False)
        else:
            self._dirty[artifact] = closely or self._dirty.get(artifact, False)
            self._wake()

    def take(self) -> tuple[Artifact, bool]:
        """The artifact to look at next, and whether closely; there must be one."""
        return self._dirty.popitem(last=False)

    def take_all(self, artifacts: Iterable[Artifact]) -> bool:
        """Look at these together. Returns whether that can be done: else it is, once none of them is awaited."""
        awaited = [artifact for artifact in artifacts if artifact in self._awaited]
        for artifact in awaited:
            self._held[artifact] = True
        if awaited:
            return False
        for artifact in artifacts:
            self._dirty.pop(artifact, None)
        return True

    # What was written

    def is_put_off(self, artifact: Artifact) -> bool:
        """Whether the mirror has yet to show what was written of it."""
        return artifact in self._awaited

    def put_off(self, artifact: Artifact, order: Order) -> None:
        """The artifact is being written to."""
        self._awaited[artifact] = math.inf
        self.orders[artifact] = order

    def written(self, artifact: Artifact, revision: int) -> bool:
        """It is stored, up to this revision, or will not be; returns whether that was waited for."""
        if artifact not in self._awaited:
            return False
        self._awaited[artifact] = revision
        self._acked.append((revision, artifact))
        return True

    def reached(self, revision: int) -> Iterator[Artifact]:
        """The mirror shows everything up to this revision; yields the artifacts that need not be put off any longer."""
        while self._acked and self._acked[0][0] <= revision:
            awaited, artifact = self._acked.popleft()
            if self._awaited.get(artifact) == awaited:
                del self._awaited[artifact]
                self.orders.pop(artifact, None)
                yield artifact
                if artifact in self._held:
                    self.touch(artifact, self._held.pop(artifact))

    # Time

    @property
    def due_at(self) -> float:
        """When the next artifact is due, in seconds on this node's clock; inf: none is."""
        return self._timers[0][0] if self._timers else math.inf

    def is_timed(self, artifact: Artifact) -> bool:
        """Whether the artifact will be looked at although nothing happens."""
        return artifact in self._timer_of

    def look_at(self, artifact: Artifact, at: float) -> None:
        """Look at it at this time, or before; inf: only when something happens."""
        if at == math.inf:
            return
        known = self._timer_of.get(artifact)
        if known is None or at < known:
            self._timer_of[artifact] = at
            heapq.heappush(self._timers, (at, artifact))

    def ring(self, now: float) -> None:
        """It is so late: what is due is to be looked at closely."""
        while self._timers and self._timers[0][0] <= now:
            due, artifact = heapq.heappop(self._timers)
            if self._timer_of.get(artifact) == due:
                del self._timer_of[artifact]
                self.touch(artifact, closely=True)
