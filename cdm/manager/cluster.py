"""What is known of the cluster's blueprints and slices, indexed by artifact and by node.

The one place where desired and actual state live in a process, on every node, leader or not, so that a new leader
starts warm. It only records; what to do about it is decided in `cdm.manager.reconciliation`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
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
from cdm.model.template import PLAIN, Template, template_of

SlicePut = ValuePut[SliceKey, SliceValue]

STABLE_AFTER = 300.0
"""Seconds of being ACTIVE after which a slice's earlier failures are forgiven."""

# On the hot path: before Python 3.12, looking a member up on its class takes ten times as long.
_ACTIVE, _FAILED, _LOAD, _UNLOAD = SliceState.ACTIVE, SliceState.FAILED, SliceState.LOAD, SliceState.UNLOAD
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
    removed: bool = False
    """Whether a blueprint is known to have been deleted before the refused one: then no instances are wanted."""
    template: Template = PLAIN
    """Of the blueprint in force."""

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


_NO_COUNTS: dict[SliceState, int] = dict.fromkeys(SliceState, 0)


class Group:
    """All slices of one artifact, with what can be counted kept counted."""

    __slots__ = (
        "builds",
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
        self.builds: dict[tuple[str | None, str | None], int] = {}
        """How many slices were started with each template and content (their digests)."""
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
        for put in kept.values():
            part._count_build(put.value, 1)
        part.counts = _NO_COUNTS | Counter(put.value.state for put in kept.values())
        part.failed_on, part.failed_unloading, part.endings = self.failed_on, self.failed_unloading, self.endings
        part.youngest = self.youngest
        return part

    def put(self, put: SlicePut) -> bool:
        """Record a slice's newest value; returns whether the slice is a new one."""
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
        self.slices[key] = put
        if state in OWED:
            self.owed.add(key)
        elif self.owed:
            self.owed.discard(key)
        return old is None

    def _count(self, value: SliceValue, old: SlicePut | None) -> None:
        self.counts[value.state] += 1
        if old is None:
            self._count_build(value, 1)
            return
        before = old.value
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
        self._count_build(old.value, -1)
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
        self.contents: dict[Artifact, str] = {}
        """Digests of the contents of artifacts, as far as they are known."""
        self.successors: dict[Service, set[Artifact]] = {}
        """Versions of services whose blueprints name another one that they replace."""
        self._versions: dict[Service, set[Artifact]] = {}
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
        if artifact not in self.desired:
            self._add_version(artifact)
        self._note_successor(artifact, blueprint)
        self.desired[artifact] = Desired(blueprint, revision, revision, template=template_of(blueprint))
        if group := self.groups.get(artifact):
            group.failed_on.clear()
        if not blueprint.instances:
            self._forget_endings(artifact)

    def refuse_blueprint(self, artifact: Artifact, problem: str, revision: int, removed: int = 0) -> None:
        """The newest blueprint is refused; the last valid one since ``removed`` stays in force."""
        if removed:
            self.removed[artifact] = removed
        self._add_version(artifact)
        old = self.desired.get(artifact) or Desired(None, 0, 0, removed=artifact in self.removed)
        self.desired[artifact] = replace(old, observed=revision, problem=problem)

    def recover_blueprint(self, artifact: Artifact, blueprint: Blueprint, revision: int) -> None:
        """The newest blueprint stays refused, and this older one turns out to be the last valid one."""
        self._note_successor(artifact, blueprint)
        self.desired[artifact] = replace(
            self.desired[artifact],
            blueprint=blueprint,
            in_force=revision,
            template=template_of(blueprint),
        )

    def remove_blueprint(self, artifact: Artifact, revision: int) -> None:
        """There is no blueprint of this artifact any more."""
        self.removed[artifact] = revision
        self._note_successor(artifact, None)
        self.desired.pop(artifact, None)
        self._forget_endings(artifact)
        self._drop_version(artifact)

    def _note_successor(self, artifact: Artifact, blueprint: Blueprint | None) -> None:
        if blueprint is not None and blueprint.rollout.source is not None:
            self.successors.setdefault(artifact.service, set()).add(artifact)
        elif self.successors and (known := self.successors.get(artifact.service)):
            known.discard(artifact)
            if not known:
                del self.successors[artifact.service]

    def versions_of(self, service: Service) -> AbstractSet[Artifact]:
        """The versions of a service that have a blueprint or slices."""
        return self._versions.get(service, frozenset())

    def _add_version(self, artifact: Artifact) -> None:
        self._versions.setdefault(artifact.service, set()).add(artifact)

    def _drop_version(self, artifact: Artifact) -> None:
        """Forget the version, where it has neither a blueprint nor slices."""
        if artifact in self.desired or artifact in self.groups:
            return
        versions = self._versions.get(artifact.service)
        if versions is not None:
            versions.discard(artifact)
            if not versions:
                del self._versions[artifact.service]

    def _forget_endings(self, artifact: Artifact) -> None:
        """No instances are wanted any more: what is started later has nothing to do with them."""
        if group := self.groups.get(artifact):
            group.endings = None
            if not group.slices:
                del self.groups[artifact]

    def know_content(self, artifact: Artifact, digest: str | None) -> bool:
        """The artifact has this content from now on; None: none that is known. Returns whether it had another."""
        before = self.contents.pop(artifact, None)
        if digest is not None:
            self.contents[artifact] = digest
        return digest != before

    def put_slice(self, put: SlicePut) -> None:
        """Record a slice's newest value."""
        key = put.key
        group = self.groups.get(key.artifact)
        if group is None:
            group = self.groups[key.artifact] = Group()
            self._add_version(key.artifact)
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
            self._drop_version(key.artifact)
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
    template, content = value.template, value.content
    if failures is None:
        failures = before.failures
    if blueprint is None:
        blueprint = before.blueprint
    if overrides is None and before.overrides is not None and TRANSITIONS[value.state].writer is Writer.NODE:
        overrides = before.overrides
    if value.state is not _LOAD:
        template = before.template if template is None else template
        content = before.content if content is None else content
    if before.state is _ACTIVE:
        if value.state is _ACTIVE and value.restarts == before.restarts:
            at = old.at
        elif value.state in _ENDED and put.at - old.at >= STABLE_AFTER:
            failures = 0
    elif failures and before.failures == 0 and TRANSITIONS[value.state].writer is Writer.NODE:
        failures = 0
    same = failures == value.failures and blueprint == value.blueprint and overrides is value.overrides
    if same and at == put.at and template is value.template and content is value.content:
        return put
    value = replace(
        value, failures=failures, blueprint=blueprint, overrides=overrides, template=template, content=content
    )
    return replace(put, value=value, at=at)
