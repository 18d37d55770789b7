"""What is known of the cluster's blueprints and slices, indexed by artifact and by node.

The one place where desired and actual state live in a process, on every node, leader or not, so that a new leader
starts warm. It only records; what to do about it is decided in `cdm.manager.reconciliation`.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from cdm.dispatch.messages import ValuePut
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.keys import SliceKey
from cdm.model.slice import SliceState, SliceValue
from cdm.model.status import Status

SlicePut = ValuePut[SliceKey, SliceValue]

STABLE_AFTER = 300.0
"""Seconds of being ACTIVE after which a slice's earlier failures are forgiven."""

# On the hot path: before Python 3.12, looking a member up on its class takes ten times as long.
_ACTIVE, _FAILED = SliceState.ACTIVE, SliceState.FAILED

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
    removed: bool = False
    """Whether a blueprint is known to have been deleted before the refused one: then no instances are wanted."""

    @property
    def instances(self) -> int | None:
        """How many instances are wanted; None: no valid blueprint says so."""
        if self.blueprint is not None:
            return self.blueprint.instances
        return 0 if self.removed else None


_NO_COUNTS: dict[SliceState, int] = dict.fromkeys(SliceState, 0)


class Group:
    """All slices of one artifact, with what can be counted kept counted."""

    __slots__ = ("counts", "failed_on", "failed_unloading", "owed", "slices")

    def __init__(self) -> None:
        self.slices: dict[SliceKey, SlicePut] = {}
        self.counts = _NO_COUNTS.copy()
        self.owed: set[SliceKey] = set()
        self.failed_on: dict[NodeId, float] = {}
        """Nodes on which the artifact failed and was not ACTIVE since, and when."""
        self.failed_unloading: frozenset[SliceKey] = frozenset()
        """FAILED slices that failed while they were being unloaded."""

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
        self.desired[artifact] = Desired(blueprint, revision, revision)
        if group := self.groups.get(artifact):
            group.failed_on.clear()

    def refuse_blueprint(self, artifact: Artifact, problem: str, revision: int, removed: int = 0) -> None:
        """The newest blueprint is refused; the last valid one since ``removed`` stays in force."""
        if removed:
            self.removed[artifact] = removed
        old = self.desired.get(artifact) or Desired(None, 0, 0, removed=artifact in self.removed)
        self.desired[artifact] = replace(old, observed=revision, problem=problem)

    def recover_blueprint(self, artifact: Artifact, blueprint: Blueprint, revision: int) -> None:
        """The newest blueprint stays refused, and this older one turns out to be the last valid one."""
        self.desired[artifact] = replace(self.desired[artifact], blueprint=blueprint, in_force=revision)

    def remove_blueprint(self, artifact: Artifact, revision: int) -> None:
        """There is no blueprint of this artifact any more."""
        self.removed[artifact] = revision
        self.desired.pop(artifact, None)

    def put_slice(self, put: SlicePut) -> None:
        """Record a slice's newest value."""
        key = put.key
        group = self.groups.get(key.artifact)
        if group is None:
            group = self.groups[key.artifact] = Group()
        old = group.slices.get(key)
        if old is None:
            on_node = self.on_node.get(key.node)
            if on_node is None:
                on_node = self.on_node[key.node] = set()
            on_node.add(key)
        else:
            group.counts[old.value.state] -= 1
            put = _with_history(put, old)
        state = put.value.state
        if state is _FAILED:
            group.failed_on[key.node] = put.at
            if old is not None and old.value.state in (SliceState.UNLOADING, SliceState.UNLOAD):
                group.failed_unloading |= {key}
        elif group.failed_unloading:
            group.failed_unloading -= {key}
        if state is _ACTIVE and group.failed_on:
            group.failed_on.pop(key.node, None)
        group.slices[key] = put
        group.counts[state] += 1
        if state in OWED:
            group.owed.add(key)
        elif group.owed:
            group.owed.discard(key)

    def remove_slice(self, key: SliceKey) -> None:
        """The slice's key is gone."""
        group = self.groups.get(key.artifact)
        old = group.slices.pop(key, None) if group else None
        if group is None or old is None:
            return
        group.counts[old.value.state] -= 1
        group.owed.discard(key)
        group.failed_unloading -= {key}
        if not group.slices:
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

    An agent that reports a state without copying ``failures`` and ``blueprint`` from the command does not make them
    forgotten. Failures from before a long time of being ACTIVE are forgiven.
    """
    value, before = put.value, old.value
    failures = before.failures if value.failures is None else value.failures
    blueprint = before.blueprint if value.blueprint is None else value.blueprint
    if value.state is _FAILED and before.state is _ACTIVE and put.at - old.at >= STABLE_AFTER:
        failures = 0
    if failures == value.failures and blueprint == value.blueprint:
        return put
    return replace(put, value=replace(value, failures=failures, blueprint=blueprint))
