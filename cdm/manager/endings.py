"""Programs that end again and again: what is remembered of it, and how long it counts as a crash loop. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
HEIRLESS = 2 * WINDOW
"""Seconds after its last end for which an instance that is gone is remembered: longer than a retry is put off."""
MOST_LEFT = 1_000
"""Most instances of an artifact that are gone and remembered."""
NO_REASON = "no reason given"
EARLIER = "ended several times before the leader's process started"
"""The reason of what ended before this process could see it, until it ends again."""

# On the hot path: before Python 3.12, looking a member up on its class takes ten times as long.
_ACTIVE, _ACTIVATING, _FAILED = SliceState.ACTIVE, SliceState.ACTIVATING, SliceState.FAILED
_Put = ValuePut[SliceKey, SliceValue]
_RUNNING = frozenset({_ACTIVE, _ACTIVATING})


LAST_OUTPUT = "; last output: "
"""What runtimes put between how a program ended and the last lines of its output, which " | " separates."""
_VARYING = r"\b\d+(?:\.\d+)? ?(?:ms|s|min|h)\b|\bline \d+|/(?:[^\s/'\"]+/)+"
"""What differs between ends of the same kind: durations, numbers of lines, and folders."""


def kind_of(reason: str) -> tuple[str, str]:
    """What reasons have in common that need not be told twice: how it ended, and the last line of its output."""
    how, _, output = reason.partition(LAST_OUTPUT)
    return re.sub(_VARYING, "", how), re.sub(_VARYING, "", output.rpartition(" | ")[2])


Build = tuple[str | None, str | None]
"""What an instance was started with: digests of template and content; None: not known."""


def _alike(one: Build, other: Build) -> bool:
    return all(None in pair or pair[0] == pair[1] for pair in zip(one, other, strict=True))


class Ending(NamedTuple):
    """How an instance ended last, and whether it does so again and again."""

    last: float
    """When, in seconds on this node's clock."""
    looping: bool
    """Whether it ended twice within `WINDOW`, and has not been up for long enough since."""
    reason: str
    stable: float
    """Seconds of being up that end the crash loop, for slices that do not say their own."""
    build: Build = (None, None)


class CrashLoop(NamedTuple):
    """What is to be told of a crash loop."""

    instances: int
    reasons: frozenset[str]
    until: float | None
    """When it may be over, in seconds on this node's clock; None: not before something else happens."""


def ends_between(old: SliceValue, new: SliceValue) -> int:
    """How often the program of a slice ended by itself between two of its values."""
    if new.state is _FAILED and new.lapsed:
        return 0
    if new.state is _FAILED:
        return 1 if old.state is _ACTIVE or (old.state is _ACTIVATING and old.restarts) else 0
    if new.state not in _RUNNING or old.state not in _RUNNING:
        return 0
    least = 1 if old.state is _ACTIVE and new.state is _ACTIVATING else 0
    return max((new.restarts or 0) - (old.restarts or 0), least)


def failures_of(value: SliceValue) -> int:
    """How often an instance has failed as far as a value tells, wherever it ran."""
    return (value.failures or 0) + (value.state is _FAILED and not value.lapsed)


def stable_at(put: _Put, otherwise: float = STABLE) -> float:
    """When an ACTIVE slice whose program ended before counts as stable; ``otherwise``: if it does not say its own."""
    told = put.value.stable
    return put.at + (otherwise if told is None else min(max(told, 0.0), LONGEST_STABLE))


class Endings:
    """The ends of one artifact's instances.

    What is remembered of an instance does not end with its key: what replaces it, on whichever node and with whichever
    ordinal, inherits it. Only what was started with something else (another template or content) begins anew.
    """

    __slots__ = ("_by_key", "_left")

    def __init__(self) -> None:
        self._by_key: dict[SliceKey, Ending] = {}
        """Of live slices."""
        self._left: dict[SliceKey, Ending] = {}
        """Of slices that failed, were unloaded or are gone, the latest last, until another inherits it."""

    def follow(self, put: _Put, old: _Put | None, ended: int) -> None:
        """A slice has a new value, before which its program ended so many times.

        The last time was just before, also of what is first seen now: what has been up since told so when it came up.
        """
        key, live = put.key, put.value.state.live
        if live and (old is None or not old.value.state.live) and (inherited := self._inherit(put)):
            self._by_key[key] = inherited
        if ended:
            self._by_key[key] = _one_more(self._by_key.get(key), put, old, ended)
        elif not live and (known := self._by_key.get(key)) and _recovered(known, put, old):
            del self._by_key[key]
        if not live:
            self.forget(key)

    def forget(self, key: SliceKey) -> None:
        """The slice serves no more, or is gone."""
        if ending := self._by_key.pop(key, None):
            self._left[key] = ending
            if len(self._left) > MOST_LEFT:
                del self._left[next(iter(self._left))]

    def _inherit(self, put: _Put) -> Ending | None:
        """What a slice that begins takes over: its own, or that of the one that has waited longest."""
        build = _build(put)
        if (own := self._left.get(put.key)) and _alike(own.build, build):
            return self._left.pop(put.key)
        self._left = {each: ending for each, ending in self._left.items() if ending.last + HEIRLESS > put.at}
        heir_of = next((key for key, ending in self._left.items() if _alike(ending.build, build)), None)
        return self._left.pop(heir_of) if heir_of is not None else None

    def reason_of(self, key: SliceKey) -> str:
        """Why a live slice, or what it replaces, ended last; empty: it did not, or nobody said why."""
        ending = self._by_key.get(key)
        return "" if ending is None or ending.reason in (NO_REASON, EARLIER) else ending.reason

    def crash_loop(self, slices: Mapping[SliceKey, _Put], now: float) -> CrashLoop | None:
        """The instances that ended twice within `WINDOW` and have not been up for long enough since."""
        reasons: list[str] = []
        until: list[float] = []

        def loops(put: _Put, ending: Ending) -> bool:
            if put.value.state is _ACTIVE:
                if (at := stable_at(put, ending.stable)) <= now:
                    return False
                until.append(at)
            reasons.append(ending.reason)
            return True

        for key, ending in self._by_key.items():
            if ending.looping and (put := slices.get(key)):
                loops(put, ending)
        left = [each for each in self._left.values() if each.looping and each.last + HEIRLESS > now]
        if left:
            # Some were replaced before they went, so that nobody inherited: what came up after their last end.
            left.sort(key=lambda ending: ending.last)
            younger = [
                put
                for key, put in slices.items()
                if put.at > left[0].last and put.value.state.live and not self._loops(key)
            ]
            for build in {_build(put): None for put in younger}:
                alike = [ending for ending in left if _alike(ending.build, build)]
                puts = (put for put in younger if _build(put) == build)
                for put in sorted(puts, key=lambda put: -put.at):
                    while alike and put.at <= alike[-1].last:
                        alike.pop()
                    if alike and loops(put, alike[-1]):
                        alike.pop()
        return CrashLoop(len(reasons), frozenset(reasons), min(until, default=None)) if reasons else None

    def _loops(self, key: SliceKey) -> bool:
        return (ending := self._by_key.get(key)) is not None and ending.looping


def _build(put: _Put) -> Build:
    return put.value.template, put.value.content


def _recovered(known: Ending, put: _Put, old: _Put | None) -> bool:
    """Whether the slice had been up for long enough when it changed."""
    return old is not None and old.value.state is _ACTIVE and stable_at(old, known.stable) <= put.at


def _one_more(known: Ending | None, put: _Put, old: _Put | None, ended: int) -> Ending:
    """What is remembered of an instance that ended."""
    value = put.value
    looping, stable = ended > 1, STABLE
    if known is not None:
        looping = looping or put.at - known.last <= WINDOW or (known.looping and not _recovered(known, put, old))
        stable = known.stable
    if value.stable is not None:
        stable = min(max(value.stable, 0.0), LONGEST_STABLE)
    # That of an ACTIVE slice is a warning.
    reason = value.reason if value.state in (_FAILED, _ACTIVATING) else None
    return Ending(
        put.at, looping, reason or (known.reason if known else NO_REASON if old else EARLIER), stable, _build(put)
    )
