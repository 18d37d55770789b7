"""The slices of one artifact, with what can be counted of them kept counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import inf
from typing import NamedTuple

from msgspec.structs import replace

from cdm.dispatch.messages import ValuePut
from cdm.manager.endings import Endings, ends_between, failures_of
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey
from cdm.model.slice import TRANSITIONS, Kind, SliceState, SliceValue, Writer

SlicePut = ValuePut[SliceKey, SliceValue]

STABLE_AFTER = 300.0
"""Seconds of being ACTIVE after which a slice's earlier failures are forgiven."""

# On the hot path: before Python 3.12, looking a member up on its class takes ten times as long.
_ACTIVE, _FAILED, _LOAD, _UNLOAD = SliceState.ACTIVE, SliceState.FAILED, SliceState.LOAD, SliceState.UNLOAD
_LOADED, _UNLOADING = SliceState.LOADED, SliceState.UNLOADING
_ENDED = frozenset({SliceState.FAILED, SliceState.ACTIVATING})

OWED = frozenset({SliceState.LOADED, SliceState.FAILED})
"""States that rest until the leader answers them."""


class Unanswered(NamedTuple):
    """A command that a node did not answer."""

    state: SliceState
    within: float
    """Seconds."""


class FailedThere(NamedTuple):
    """How an artifact failed on a node last."""

    at: float
    """When, in seconds on this node's clock."""
    why: str
    """Empty: the node did not say."""


_KIND = {state: (state.live, state is _FAILED) for state in SliceState}
"""Whether a slice counts, or failed, or is on its way out."""

_NO_COUNTS: dict[SliceState, int] = dict.fromkeys(SliceState, 0)


class Group:
    """All slices of one artifact, with what can be counted kept counted."""

    __slots__ = (
        "builds",
        "comings",
        "counts",
        "endings",
        "failed_on",
        "failed_unloading",
        "most_failures",
        "owed",
        "slices",
        "unanswered",
        "youngest",
    )

    def __init__(self) -> None:
        self.slices: dict[SliceKey, SlicePut] = {}
        self.counts = _NO_COUNTS.copy()
        self.comings = 0
        """How often a slice came or went, or another number of them was live, or failed."""
        self.builds: dict[tuple[str | None, str | None], int] = {}
        """How many slices were started with each template and content (their digests)."""
        self.owed: set[SliceKey] = set()
        self.failed_on: dict[NodeId, FailedThere] = {}
        """Nodes on which the artifact failed and was not ACTIVE since."""
        self.unanswered: dict[NodeId, Unanswered] = {}
        """Nodes that did not answer a command in time, and did not say anything of the artifact since."""
        self.failed_unloading: frozenset[SliceKey] = frozenset()
        """FAILED slices that failed while they were being unloaded."""
        self.endings: Endings | None = None
        """Which instances ended; None: none did."""
        self.most_failures = 0
        """No slice that was seen here told of more failures than this."""
        self.youngest = -inf
        """No ACTIVE slice became so later than this."""

    @property
    def live(self) -> int:
        """Slices in a live state, wherever they are."""
        counts = self.counts
        return len(self.slices) - counts[_FAILED] - counts[_UNLOAD] - counts[_UNLOADING]

    @property
    def moving(self) -> bool:
        """Whether any slice is in a state that has a deadline."""
        counts = self.counts
        return len(self.slices) > counts[_ACTIVE] + counts[_LOADED] + counts[_FAILED]

    @property
    def active(self) -> int:
        """Slices that are ACTIVE."""
        return self.counts[_ACTIVE]

    @property
    def failed(self) -> int:
        """Slices that are FAILED."""
        return self.counts[_FAILED]

    @property
    def leaving(self) -> int:
        """Slices that are being unloaded."""
        return self.counts[SliceState.UNLOAD] + self.counts[SliceState.UNLOADING]

    @property
    def why_failed(self) -> str:
        """Why it failed last where it has not run since; empty: it did not fail, or nobody said why."""
        return max(self.failed_on.values()).why if self.failed_on else ""

    def why_ended(self, key: SliceKey) -> str:
        """Why the program of a slice ended last; empty: it did not, or nobody said why."""
        return self.endings.reason_of(key) if self.endings and key in self.slices else ""

    def only(self, counts: Callable[[SlicePut], bool]) -> Group:
        """The same with those slices alone that count; a view for one decision, or this group where all of them do."""
        kept = {key: put for key, put in self.slices.items() if counts(put)}
        if len(kept) == len(self.slices):
            return self
        part = Group()
        part.slices, part.owed = kept, self.owed & kept.keys()
        for put in kept.values():
            part._count_build(put.value, 1)
        part.counts = _NO_COUNTS | Counter(put.value.state for put in kept.values())
        part.failed_on, part.failed_unloading, part.endings = self.failed_on, self.failed_unloading, self.endings
        part.youngest = self.youngest
        return part

    def put(self, put: SlicePut) -> SlicePut | None:
        """Record a slice's newest value; returns the one before, None for a slice that is new."""
        key = put.key
        old = self.slices.get(key)
        if old is not None:
            put = _with_history(put, old)
        value = put.value
        self._count(value, old)
        state = value.state
        if state is _ACTIVE:
            self.youngest = max(self.youngest, put.at)
            if self.failed_on:
                self.failed_on.pop(key.node, None)
        elif state is _FAILED:
            self.failed_on[key.node] = FailedThere(put.at, value.reason or "")
            if old is not None and old.value.state in (SliceState.UNLOADING, SliceState.UNLOAD):
                self.failed_unloading |= {key}
        ended = value.restarts or value.failures or state is _FAILED or (old and old.value.state is _ACTIVE)
        if ended or self.endings:
            self._note_ends(put, old)
        if old is not None and (state is _UNLOAD or self.unanswered):
            self._note_answer(put, old)
        if self.failed_unloading and state is not _FAILED:
            self.failed_unloading -= {key}
        self.slices[key] = put
        if state in OWED:
            self.owed.add(key)
        elif self.owed:
            self.owed.discard(key)
        return old

    def _count(self, value: SliceValue, old: SlicePut | None) -> None:
        self.counts[value.state] += 1
        if old is None:
            self.comings += 1
            self._count_build(value, 1)
            return
        before = old.value
        if value.state is not before.state and _KIND[value.state] != _KIND[before.state]:
            self.comings += 1
        self.counts[before.state] -= 1
        if value.template != before.template or value.content != before.content:
            self._count_build(before, -1)
            self._count_build(value, 1)

    def _count_build(self, value: SliceValue, more: int) -> None:
        build = value.template, value.content
        count = self.builds.get(build, 0) + more
        if count:
            self.builds[build] = count
        else:
            del self.builds[build]

    def assume(self, template: str | None = None, content: str | None = None) -> None:
        """Slices of which nothing else is known count as started with these (digests; None: not known either)."""
        for key, put in self.slices.items():
            value = put.value
            if (template and value.template is None) or (content and value.content is None):
                value = replace(value, template=value.template or template, content=value.content or content)
                self._count(value, put)
                self.slices[key] = replace(put, value=value)

    def _note_answer(self, put: SlicePut, old: SlicePut) -> None:
        """Record whether a node answers, or a leader took a command back since it did not: only that is a failure."""
        value, before = put.value, old.value
        if value.state.kind is not Kind.COMMAND:
            self.unanswered.pop(put.key.node, None)
        elif before.state.kind is Kind.COMMAND and (value.failures or 0) > (before.failures or 0):
            self.unanswered[put.key.node] = Unanswered(before.state, put.at - old.at)

    def _note_ends(self, put: SlicePut, old: SlicePut | None) -> None:
        """Record that a slice's program ended, where it did."""
        failures = failures_of(put.value)
        if old is not None:
            ended = ends_between(old.value, put.value)
        else:
            # Failures that happened here were noted, unless they were none of the program's.
            ended = (put.value.restarts or 0) + (failures if failures > self.most_failures else 0)
        self.most_failures = max(self.most_failures, failures)
        if ended and self.endings is None:
            self.endings = Endings()
        if self.endings:
            self.endings.follow(put, old, ended)

    def drop(self, key: SliceKey) -> SlicePut | None:
        """Forget a slice; returns its last value, None where it was not known."""
        old = self.slices.pop(key, None)
        if old is None:
            return None
        self.comings += 1
        self.counts[old.value.state] -= 1
        self._count_build(old.value, -1)
        self.owed.discard(key)
        self.failed_unloading -= {key}
        if self.endings:
            self.endings.forget(key)
        return old


EMPTY = Group()
"""What is known of an artifact without slices; never changed."""


def _with_history(put: SlicePut, old: SlicePut) -> SlicePut:
    """The slice's new value, with what is known from the one before.

    An agent that reports a state without copying ``failures``, ``blueprint``, ``overrides`` and ``needs`` from the
    command does not make them forgotten; a command without overrides says that there are none. Failures from before a
    long time of being ACTIVE are forgiven, and an agent that goes on copying them does not bring them back. A slice
    that says again that it is ACTIVE is so since it first said it, unless its program was started again in between.
    """
    value, before = put.value, old.value
    failures, blueprint, overrides, at = value.failures, value.blueprint, value.overrides, put.at
    template, content, needs = value.template, value.content, value.needs
    if failures is None:
        failures = before.failures
    if blueprint is None:
        blueprint = before.blueprint
    if overrides is None and before.overrides is not None and TRANSITIONS[value.state].writer is Writer.NODE:
        overrides = before.overrides
    if value.state is not _LOAD:
        template = before.template if template is None else template
        content = before.content if content is None else content
        needs = before.needs if needs is None else needs
    if before.state is _ACTIVE:
        if value.state is _ACTIVE and value.restarts == before.restarts:
            at = old.at
        elif value.state in _ENDED and put.at - old.at >= STABLE_AFTER:
            failures = 0
    elif failures and before.failures == 0 and TRANSITIONS[value.state].writer is Writer.NODE:
        failures = 0
    same = failures == value.failures and blueprint == value.blueprint and overrides is value.overrides
    same = same and template is value.template and content is value.content and needs is value.needs
    if same and at == put.at:
        return put
    value = replace(
        value,
        failures=failures,
        blueprint=blueprint,
        overrides=overrides,
        template=template,
        content=content,
        needs=needs,
    )
    return replace(put, value=value, at=at)
