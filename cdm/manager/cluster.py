"""What is known of the cluster's blueprints and slices, indexed by artifact and by node.

The one place where desired and actual state live in a process, on every node, leader or not, so that a new leader
starts warm. It only records; what to do about it is decided in `cdm.manager.reconciliation`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from math import inf
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from cdm.dispatch.messages import ValuePut
from cdm.manager.endings import Endings, ends_between, failures_of
from cdm.model.artifact import Artifact, NodeId, Service
from cdm.model.blueprint import Blueprint
from cdm.model.keys import RolloutKey, SliceKey
from cdm.model.record import Rollout
from cdm.model.slice import TRANSITIONS, Kind, SliceState, SliceValue, Writer
from cdm.model.status import Status

SlicePut = ValuePut[SliceKey, SliceValue]

STABLE_AFTER = 300.0
"""Seconds of being ACTIVE after which a slice's earlier failures are forgiven."""

# On the hot path: before Python 3.12, looking a member up on its class takes ten times as long.
_ACTIVE, _FAILED, _UNLOAD = SliceState.ACTIVE, SliceState.FAILED, SliceState.UNLOAD
_ENDED = frozenset({SliceState.FAILED, SliceState.ACTIVATING})

OWED = frozenset({SliceState.LOADED, SliceState.FAILED})
"""States that rest until the leader answers them."""


class Desired(Struct, frozen=True):
    """What is known of one artifact's blueprint.

    ``problem`` is None where the newest revision is valid; else that revision is refused for this reason, and
    ``blueprint``, the last valid one, stays in force (None: there never was one).
    """

    blueprint: Blueprint | None
    in_force: int
    observed: int
    problem: str | None = None
    settings_since: int = 0
    """Earliest known revision since which the blueprint in force has the settings that it has now."""
    known_since: int = 0
    """Earliest known revision of a valid blueprint: commands that serve an older one were not seen by this process."""
    removed: bool = False
    """Whether a blueprint is known to have been deleted before the refused one: then no instances are wanted."""

    @property
    def instances(self) -> int | None:
        """How many instances are wanted; None: no valid blueprint says so."""
        if self.blueprint is not None:
            return self.blueprint.instances
        return 0 if self.removed else None


class Unanswered(NamedTuple):
    """A command that a node did not answer."""

    state: SliceState
    within: float
    """Seconds."""


_LATEST = 2**63
"""Later than any revision."""
_NO_COUNTS: dict[SliceState, int] = dict.fromkeys(SliceState, 0)


class Group:
    """All slices of one artifact, with what can be counted kept counted."""

    __slots__ = (
        "counts",
        "endings",
        "failed_on",
        "failed_unloading",
        "most_failures",
        "oldest",
        "owed",
        "slices",
        "unanswered",
        "youngest",
    )

    def __init__(self) -> None:
        self.slices: dict[SliceKey, SlicePut] = {}
        self.counts = _NO_COUNTS.copy()
        self.owed: set[SliceKey] = set()
        self.failed_on: dict[NodeId, float] = {}
        """Nodes on which the artifact failed and was not ACTIVE since, and when."""
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
        self.oldest = _LATEST
        """No slice serves a blueprint of an earlier revision than this."""

    @property
    def live(self) -> int:
        """Slices in a live state, wherever they are."""
        counts = self.counts
        idle = counts[SliceState.FAILED] + counts[SliceState.UNLOAD] + counts[SliceState.UNLOADING]
        return len(self.slices) - idle

    @property
    def moving(self) -> bool:
        """Whether any slice is in a state that has a deadline."""
        counts = self.counts
        return len(self.slices) > counts[SliceState.ACTIVE] + counts[SliceState.LOADED] + counts[SliceState.FAILED]

    @property
    def active(self) -> int:
        """Slices that are ACTIVE."""
        return self.counts[SliceState.ACTIVE]

    @property
    def failed(self) -> int:
        """Slices that are FAILED."""
        return self.counts[SliceState.FAILED]

    def only(self, counts: Callable[[SlicePut], bool]) -> Group:
        """The same with those slices alone that count; a view for one decision, or this group where all of them do."""
        kept = {key: put for key, put in self.slices.items() if counts(put)}
        if len(kept) == len(self.slices):
            return self
        part = Group()
        part.slices, part.owed = kept, self.owed & kept.keys()
        part.counts = _NO_COUNTS | Counter(put.value.state for put in kept.values())
        part.failed_on, part.failed_unloading, part.endings = self.failed_on, self.failed_unloading, self.endings
        part.youngest, part.oldest = self.youngest, self.oldest
        return part

    def put(self, put: SlicePut) -> bool:
        """Record a slice's newest value; returns whether the slice is a new one."""
        key = put.key
        old = self.slices.get(key)
        if old is not None:
            self.counts[old.value.state] -= 1
            put = _with_history(put, old)
        value = put.value
        state = value.state
        if state is _ACTIVE:
            self.youngest = max(self.youngest, put.at)
            if self.failed_on:
                self.failed_on.pop(key.node, None)
        elif state is _FAILED:
            self.failed_on[key.node] = put.at
            if old is not None and old.value.state in (SliceState.UNLOADING, SliceState.UNLOAD):
                self.failed_unloading |= {key}
        ended = value.restarts or value.failures or state is _FAILED or (old and old.value.state is _ACTIVE)
        if ended or self.endings:
            self._note_ends(put, old)
        if old is not None and (state is _UNLOAD or self.unanswered):
            self._note_answer(put, old)
        if self.failed_unloading and state is not _FAILED:
            self.failed_unloading -= {key}
        if value.blueprint is not None and value.blueprint < self.oldest:
            self.oldest = value.blueprint
        self.slices[key] = put
        self.counts[state] += 1
        if state in OWED:
            self.owed.add(key)
        elif self.owed:
            self.owed.discard(key)
        return old is None

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

    def drop(self, key: SliceKey) -> bool:
        """Forget a slice; returns whether it was known."""
        old = self.slices.pop(key, None)
        if old is None:
            return False
        self.counts[old.value.state] -= 1
        self.owed.discard(key)
        self.failed_unloading -= {key}
        if self.endings:
            self.endings.forget(key)
        return True


EMPTY = Group()
"""What is known of an artifact without slices; never changed."""


class Cluster:
    """Blueprints, slices and statuses, as the mirrors have them."""

    def __init__(self) -> None:
        self.revision = 0
        """How far the mirror of ``slices`` has come."""
        self.desired: dict[Artifact, Desired] = {}
        self.groups: dict[Artifact, Group] = {}
        self.on_node: dict[NodeId, set[SliceKey]] = {}
        self.removed: dict[Artifact, int] = {}
        """Revision at which an artifact's blueprint was last removed."""
        self.rollouts: dict[Service, ValuePut[RolloutKey, Rollout]] = {}
        """The records of rollouts."""
        self.statuses: dict[str, Status] = {}
        self.refused: dict[str, tuple[str, int]] = {}
        """Blueprint keys that do not parse: why, and the revision."""

    def artifacts(self) -> Iterator[Artifact]:
        """All artifacts that have a blueprint or a slice."""
        yield from self.desired
        for artifact in self.groups:
            if artifact not in self.desired:
                yield artifact

    def group(self, artifact: Artifact) -> Group:
        """The artifact's slices; an empty group where there are none."""
        return self.groups.get(artifact, EMPTY)

    def accept_blueprint(self, artifact: Artifact, blueprint: Blueprint, revision: int) -> None:
        """A valid blueprint is in force from now on."""
        old = self.desired.get(artifact)
        same = old is not None and old.blueprint is not None and old.blueprint.overrides == blueprint.overrides
        since = old.settings_since if old is not None and same else revision
        known = old.known_since if old is not None and old.blueprint is not None else revision
        self.desired[artifact] = Desired(blueprint, revision, revision, settings_since=since, known_since=known)
        if group := self.groups.get(artifact):
            group.failed_on.clear()
        if not blueprint.instances:
            self._forget_endings(artifact)

    def refuse_blueprint(self, artifact: Artifact, problem: str, revision: int, removed: int = 0) -> None:
        """The newest blueprint is refused; the last valid one since ``removed`` stays in force."""
        if removed:
            self.removed[artifact] = removed
        old = self.desired.get(artifact) or Desired(None, 0, 0, removed=artifact in self.removed)
        self.desired[artifact] = replace(old, observed=revision, problem=problem)

    def recover_blueprint(self, artifact: Artifact, blueprint: Blueprint, revision: int) -> None:
        """The newest blueprint stays refused, and this older one turns out to be the last valid one."""
        self.desired[artifact] = replace(
            self.desired[artifact],
            blueprint=blueprint,
            in_force=revision,
            settings_since=revision,
            known_since=revision,
        )

    def remove_blueprint(self, artifact: Artifact, revision: int) -> None:
        """There is no blueprint of this artifact any more."""
        self.removed[artifact] = revision
        self.desired.pop(artifact, None)
        self._forget_endings(artifact)

    def _forget_endings(self, artifact: Artifact) -> None:
        """No instances are wanted any more: what is started later has nothing to do with them."""
        if group := self.groups.get(artifact):
            group.endings = None
            if not group.slices:
                del self.groups[artifact]

    def put_slice(self, put: SlicePut) -> None:
        """Record a slice's newest value."""
        key = put.key
        group = self.groups.get(key.artifact)
        if group is None:
            group = self.groups[key.artifact] = Group()
        if group.put(put):
            on_node = self.on_node.get(key.node)
            if on_node is None:
                on_node = self.on_node[key.node] = set()
            on_node.add(key)

    def remove_slice(self, key: SliceKey) -> None:
        """The slice's key is gone."""
        group = self.groups.get(key.artifact)
        if group is None or not group.drop(key):
            return
        desired = self.desired.get(key.artifact)
        if not group.slices and not (group.endings and desired and desired.instances):
            del self.groups[key.artifact]
        on_node = self.on_node[key.node]
        on_node.discard(key)
        if not on_node:
            del self.on_node[key.node]

    def artifacts_on(self, node: NodeId) -> set[Artifact]:
        """The artifacts that have slices on the node."""
        return {key.artifact for key in self.on_node.get(node, ())}


def _with_history(put: SlicePut, old: SlicePut) -> SlicePut:
    """The slice's new value, with what is known from the one before.

    An agent that reports a state without copying ``failures``, ``blueprint`` and ``overrides`` from the command does
    not make them forgotten; a command without overrides says that there are none. Failures from before a long time of
    being ACTIVE are forgiven, and an agent that goes on copying them does not bring them back. A slice that says again
    that it is ACTIVE is so since it first said it, unless its program was started again in between.
    """
    value, before = put.value, old.value
    failures, blueprint, overrides, at = value.failures, value.blueprint, value.overrides, put.at
    if failures is None:
        failures = before.failures
    if blueprint is None:
        blueprint = before.blueprint
    if overrides is None and before.overrides is not None and TRANSITIONS[value.state].writer is Writer.NODE:
        overrides = before.overrides
    if before.state is _ACTIVE:
        if value.state is _ACTIVE and value.restarts == before.restarts:
            at = old.at
        elif value.state in _ENDED and put.at - old.at >= STABLE_AFTER:
            failures = 0
    elif failures and before.failures == 0 and TRANSITIONS[value.state].writer is Writer.NODE:
        failures = 0
    if failures == value.failures and blueprint == value.blueprint and overrides is value.overrides and at == put.at:
        return put
    return replace(put, value=replace(value, failures=failures, blueprint=blueprint, overrides=overrides), at=at)
