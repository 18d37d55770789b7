"""Programs that end again and again: what is remembered of it, and how long it counts as a crash loop. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import inf
from typing import NamedTuple

from cdm.dispatch.messages import ValuePut
from cdm.model.keys import SliceKey
from cdm.model.manifest import Restart
from cdm.model.slice import SliceState, SliceValue

WINDOW = 300.0
"""Seconds within which an instance that ended twice is in a crash loop."""
STABLE = Restart().stable
"""Seconds of being up that end a crash loop, for slices that do not say their own."""
LONGEST_STABLE = 86_400.0
"""Most seconds that are believed of a slice that says its own."""

# On the hot path: before Python 3.12, looking a member up on its class takes ten times as long.
_ACTIVE, _ACTIVATING, _FAILED = SliceState.ACTIVE, SliceState.ACTIVATING, SliceState.FAILED
_Put = ValuePut[SliceKey, SliceValue]
_RUNNING = frozenset({_ACTIVE, _ACTIVATING})


LAST_OUTPUT = "; last output: "
"""What runtimes put between how a program ended and the last lines of its output, which " | " separates."""
_VARYING = re.compile(r"\b\d+(?:\.\d+)? ?(?:ms|s|min|h)\b|\bline \d+|/(?:[^\s/'\"]+/)+")
"""What differs between ends of the same kind: durations, numbers of lines, and folders."""


def kind_of(reason: str) -> tuple[str, str]:
    """What reasons have in common that need not be told twice: how it ended, and the last line of its output."""
    how, _, output = reason.partition(LAST_OUTPUT)
    return _VARYING.sub("", how), _VARYING.sub("", output.rpartition(" | ")[2])


class Ending(NamedTuple):
    """The latest two ends of an instance, in seconds on this node's clock, and how it ended last."""

    previous: float
    last: float
    reason: str

    @property
    def again(self) -> bool:
        """Whether the two are so close that it is a crash loop."""
        return self.last - self.previous <= WINDOW


class CrashLoop(NamedTuple):
    """What is to be told of a crash loop."""

    instances: int
    reasons: frozenset[str]
    until: float | None
    """When it may be over, in seconds on this node's clock; None: not before something else happens."""


def ends_between(old: SliceValue, new: SliceValue) -> int:
    """How often the program of a slice ended between two of its values."""
    if new.state is _FAILED:
        return 1 if old.state is _ACTIVE or (old.state is _ACTIVATING and old.restarts) else 0
    if new.state not in _RUNNING or old.state not in _RUNNING:
        return 0
    least = 1 if old.state is _ACTIVE and new.state is _ACTIVATING else 0
    return max((new.restarts or 0) - (old.restarts or 0), least)


def stable_at(put: _Put) -> float:
    """When an ACTIVE slice whose program ended before counts as stable."""
    told = put.value.stable
    return put.at + (STABLE if told is None else min(max(told, 0.0), LONGEST_STABLE))


class Endings:
    """The ends of one artifact's instances."""

    __slots__ = ("_by_key", "_failed")

    def __init__(self) -> None:
        self._by_key: dict[SliceKey, Ending] = {}
        self._failed: Ending | None = None
        """Of instances that were not started again on their node, whichever: their replacements have other keys."""

    def note(self, put: _Put, times: int) -> None:
        """A slice's program ended, the last time just before this value."""
        known = self._by_key.get(put.key)
        reason = put.value.reason or (known.reason if known else "no reason given")
        previous = put.at if times > 1 else known.last if known else -inf
        self._by_key[put.key] = Ending(previous, put.at, reason)
        if put.value.state is _FAILED:
            # Several that fail for the first time at once are no loop yet.
            before = self._failed.last if self._failed and put.value.failures else -inf
            self._failed = Ending(before, put.at, reason)

    def forget(self, key: SliceKey) -> None:
        """The slice is gone."""
        self._by_key.pop(key, None)

    def crash_loop(self, slices: Mapping[SliceKey, _Put], now: float) -> CrashLoop | None:
        """The instances that ended twice within `WINDOW` and have not been up for long enough since."""
        reasons: list[str] = []
        until: list[float] = []
        for key, ending in self._by_key.items():
            put = slices.get(key)
            if not ending.again or put is None or not put.value.state.live:
                continue
            if put.value.state is _ACTIVE:
                if (at := stable_at(put)) <= now:
                    continue
                until.append(at)
            reasons.append(ending.reason)
        failed = self._failed
        if not reasons and failed is not None and failed.again and (over := _replaced_at(failed, slices)) > now:
            reasons.append(failed.reason)
            until.append(over)
        return CrashLoop(len(reasons), frozenset(reasons), min(until, default=None)) if reasons else None


def _replaced_at(failed: Ending, slices: Mapping[SliceKey, _Put]) -> float:
    """When the replacement of an instance that failed counts as stable, or nothing more needs to be said of it."""
    stable = (stable_at(put) for put in slices.values() if put.value.state is _ACTIVE and put.at > failed.last)
    return min((failed.last + WINDOW, *stable))
