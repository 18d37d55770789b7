"""How slices fare, and who led: counted from what the buckets tell. Pure.

Plain numbers of one process, from when it began to follow the buckets.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from cdm.dispatch.messages import Message, ValuePut, ValueRemove
from cdm.durations import Durations
from cdm.model.artifact import Artifact
from cdm.model.keys import LeaseKey, SliceKey
from cdm.model.node import Lease
from cdm.model.slice import SliceState, SliceValue

MOST = 10_000
"""Most artifacts of which it is counted how often they failed, or were started again."""
_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
# On the hot path: before Python 3.12, looking a member up on its class takes ten times as long.
_LOAD, _ACTIVE, _FAILED, _UNLOAD = SliceState.LOAD, SliceState.ACTIVE, SliceState.FAILED, SliceState.UNLOAD


class Lives:
    """What one process has seen. What was there before is where it begins to count."""

    def __init__(self) -> None:
        self.to_active = Durations(_BOUNDS)
        """From LOAD to ACTIVE, of slices of which both were seen."""
        self.restarts: Counter[Artifact] = Counter()
        """How often programs ended, and were started again by their node."""
        self.failures: Counter[Artifact] = Counter()
        """How often slices became FAILED."""
        self.leader_changes = 0
        """How often another term began to be led."""
        self._term: int | None = None
        self._loads: dict[SliceKey, float] = {}
        """When slices were commanded to LOAD that are not ACTIVE yet, in seconds on this node's clock."""
        self._restarts: dict[SliceKey, int] = {}
        """How often each slice says that it was started again."""
        self._failed: set[SliceKey] = set()

    def take(self, message: Message) -> None:
        """Take in a message about a bucket."""
        match message:
            case ValuePut(key=SliceKey() as key, value=SliceValue() as value, at=at):
                self._put(key, value, at)
            case ValueRemove(key=SliceKey() as key):
                self._loads.pop(key, None)
                self._restarts.pop(key, None)
                self._failed.discard(key)
            case ValuePut(key=LeaseKey(), value=Lease(term=term)) if term != self._term:
                self.leader_changes += self._term is not None
                self._term = term

    def _put(self, key: SliceKey, value: SliceValue, at: float) -> None:
        state, known, told = value.state, self._restarts.get(key), value.restarts or 0
        if known is not None and told > known:
            _count(self.restarts, key.artifact, told - known)
        self._restarts[key] = told
        if state is _LOAD:
            self._loads[key] = at
        elif state is _ACTIVE:
            if (began := self._loads.pop(key, None)) is not None:
                self.to_active.take(at - began)
        elif state is _FAILED or state is _UNLOAD:
            self._loads.pop(key, None)
        if state is not _FAILED:
            self._failed.discard(key)
        elif key not in self._failed:
            self._failed.add(key)
            if known is not None:
                _count(self.failures, key.artifact, 1)


def _count(counts: Counter[Any], artifact: Artifact, more: int) -> None:
    counts[artifact] += more
    if len(counts) > MOST:
        del counts[next(iter(counts))]
