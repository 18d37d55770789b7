"""The cluster as one document, which ``cdm status`` shows: a pure function of the four buckets' contents."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from cdm.cli.emptying import Emptied, GoneNode, emptied, gone
from cdm.cli.known import nearest
from cdm.cli.wording import natural
from cdm.dispatch.messages import KeyRejected, Message, ValuePut, ValueRejected
from cdm.manager.cluster import Cluster
from cdm.manager.endings import kind_of
from cdm.model.artifact import NodeId
from cdm.model.keys import (
    LAYOUTS,
    BlueprintKey,
    FenceKey,
    IntentKey,
    Key,
    LeaseKey,
    NodeKey,
    SliceKey,
    StatusKey,
    encode,
    encode_artifact,
)
from cdm.model.node import (
    EXPIRY_BY_CLOCK,
    EXPIRY_IN_WORDS,
    INTENT_FIELDS,
    NO_INTENT,
    UNREADABLE_INTENT,
    Fence,
    Intent,
    Lease,
    Registration,
    Schedule,
    managers_without,
    waits_for,
)
from cdm.model.record import RolloutPhase
from cdm.model.slice import SliceState
from cdm.model.status import Condition, RolloutStatus

_OVER = (RolloutPhase.COMPLETE, RolloutPhase.REVERTED)


class NodeReport(Struct, frozen=True):
    """One registered node."""

    node: NodeId
    role: str
    schedule: Schedule
    runtime: str
    capacity: int | None
    labels: dict[str, str]
    version: str
    started: str
    slices: int
    heard: float
    """Seconds since its registration was last written."""
    cpu: float | None = None
    """Cores that slices may reserve; None: not given."""
    memory: int | None = None
    """Bytes of memory that slices may reserve; None: not given."""
    load: float | None = None
    reserved_cpu: float = 0.0
    """Cores that its slices reserve."""
    reserved_memory: int = 0
    """Bytes that its slices reserve."""
    leaving: bool = False
    """Whether it is about to stop, and waits for its slices to be moved elsewhere."""


class BlueprintReport(Struct, frozen=True):
    """One blueprint: what is desired, what is there, and what the leader says of it."""

    artifact: str
    condition: str
    reason: str
    desired: int
    active: int
    pending: int
    failed: int
    observed_revision: int
    in_force_revision: int
    up_to_date: int | None = None
    """Live instances of the wanted template; None: no leader says."""
    healthy: int | None = None
    outdated: int | None = None
    violations: int = 0
    """Live instances on nodes that a hard rule forbids by now."""
    rollout: RolloutStatus | None = None
    """The rollout that it takes part in, or the last one."""

    @property
    def told_rollout(self) -> RolloutStatus | None:
        """A rollout that is under way, or failed and stays; told of once, by the version that takes over."""
        rollout, (_, _, version) = self.rollout, self.artifact.rpartition(":")
        if rollout is None or rollout.target != version or rollout.phase in _OVER:
            return None
        return rollout

    @property
    def replaced(self) -> bool:
        """Whether another version serves in its place."""
        return self.condition == Condition.SUPERSEDED or (self.condition == Condition.REVERTED and not self.desired)

    @property
    def past(self) -> bool:
        """Whether there is nothing more to tell of it: it was replaced, and has neither instances nor a rollout."""
        rollout = self.rollout
        told = rollout is not None and (self.condition == Condition.REVERTED or rollout.phase not in _OVER)
        return self.replaced and not (self.active or self.pending or self.failed or told)


class SliceReport(Struct, frozen=True):
    """One slice."""

    key: str
    node: NodeId
    artifact: str
    ordinal: int
    state: str
    term: int
    port: int | None
    reason: str | None
    failures: int
    restarts: int
    """Starts of its program since it was loaded, less one."""

    @property
    def troubled(self) -> bool:
        """Whether something is wrong with it, or it has a warning."""
        return self.state == SliceState.FAILED or self.reason is not None


class Trouble(NamedTuple):
    """Slices of one artifact that have reasons of the same kind to be in the same state."""

    state: str
    reason: str
    slices: list[SliceReport]


class ClusterReport(Struct, frozen=True):
    """The whole cluster."""

    leader: NodeId | None
    term: int
    nodes: list[NodeReport]
    blueprints: list[BlueprintReport]
    slices: list[SliceReport]
    notes: list[str]
    """Keys and values that cannot be read, and why; intents for nodes that are not registered; old buckets."""
    draining: list[Emptied] = []
    """The nodes that are being drained, and what is left there."""
    gone: list[GoneNode] = []
    """Nodes that are gone, and not forgotten."""

    @property
    def healthy(self) -> bool:
        """Whether somebody leads."""
        return self.leader is not None


def report(
    messages: Iterable[Message],
    now: float,
    writers: Mapping[NodeId, str] | None = None,
    old: Sequence[str] = (),
) -> ClusterReport:
    """Make a report of what the buckets hold.

    Args:
        messages: a snapshot of the buckets.
        now: the time of the snapshot, in seconds on `cdm.clock`, as the messages are timed.
        writers: who wrote the nodes' intents, where that is known.
        old: the buckets that are still as managers of an earlier version need them.
    """
    reader, told = _Reader(), list(messages)
    for message in told:
        reader.read(message)
    epoch = time.time() - now
    return replace(reader.report(now, old), draining=emptied(told, now, epoch, writers), gone=gone(told, epoch))


def troubles(slices: Iterable[SliceReport]) -> dict[str, list[Trouble]]:
    """What is wrong with slices, by artifact, what concerns most of them first."""
    found: dict[str, dict[tuple[str, tuple[str, str]], Trouble]] = {}
    for each in slices:
        if each.troubled:
            reason = each.reason or "no reason given"
            alike = found.setdefault(each.artifact, {})
            alike.setdefault((each.state, kind_of(reason)), Trouble(each.state, reason, [])).slices.append(each)
    return {
        artifact: sorted(alike.values(), key=lambda trouble: -len(trouble.slices)) for artifact, alike in found.items()
    }


class _Reader:
    """Gathers what the messages say."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.registrations: dict[NodeId, ValuePut[NodeKey, Registration]] = {}
        self.intents: dict[NodeId, Intent] = {}
        self.lease: Lease | None = None
        self.fence = Fence(0)
        self.unreadable: list[str] = []

    def read(self, message: Message) -> None:
        """Take in one message."""
        match message:
            case ValuePut():
                self._value(message)
            case ValueRejected(key=BlueprintKey(artifact), reason=reason, revision=revision):
                self.cluster.refuse_blueprint(artifact, reason, revision)
            case ValueRejected(key=IntentKey(node), reason=reason):
                self.intents[node] = UNREADABLE_INTENT
                self.unreadable.append(f"nodes/{node}.intent (counts as cordon): {reason}")
            case ValueRejected(key=key, reason=reason):
                self.unreadable.append(f"{key}: {reason}")
            case KeyRejected(kind=kind, name=name, reason=reason):
                self.unreadable.append(f"{_bucket(kind)}/{name}: {reason}")

    def _value(self, put: ValuePut[Key, Any]) -> None:
        match put.key:
            case SliceKey():
                self.cluster.put_slice(put)  # type: ignore[arg-type]  # the key says which value it is
            case BlueprintKey(artifact):
                self.cluster.accept_blueprint(artifact, put.value, put.revision)
            case StatusKey(name):
                self.cluster.statuses[name] = put.value
            case NodeKey(node):
                self.registrations[node] = put  # type: ignore[assignment]  # likewise
            case IntentKey(node):
                self.intents[node] = put.value
                for field in put.value.unknown:
                    near = nearest(field, INTENT_FIELDS)
                    self.unreadable.append(f"nodes/{node}.intent: {field} has no effect: there is no such field{near}")
            case LeaseKey():
                self.lease = put.value
            case FenceKey():
                self.fence = put.value

    def report(self, now: float, old: Sequence[str]) -> ClusterReport:
        """The report of all messages that were read."""
        lease, cluster = self.lease, self.cluster
        orphans = (
            f"nodes/{node}.intent: {intent.schedule}, but no such node is registered"
            for node, intent in sorted(self.intents.items())
            if node not in self.registrations
        )
        return ClusterReport(
            leader=lease.node if lease else None,
            term=max(self.fence.term, lease.term if lease else 0),
            nodes=[
                _node(put, self.intents.get(node, NO_INTENT), cluster, now)
                for node, put in sorted(self.registrations.items())
            ],
            blueprints=_blueprints(cluster),
            slices=_slices(cluster),
            notes=[*self.unreadable, *orphans, *self._old(old)],
        )

    def _old(self, buckets: Sequence[str]) -> Iterator[str]:
        """What buckets that are as earlier versions need them wait for."""
        if buckets:
            known = ((node, put.value) for node, put in self.registrations.items())
            waits = waits_for(managers_without(EXPIRY_BY_CLOCK, known), EXPIRY_IN_WORDS)
            which = f"{', '.join(buckets)}: whoever may write one key can still have others removed (roll-ups)"
            yield f"{which}; {waits or 'the leader changes that, or else `cdm init --upgrade`'}"


def _bucket(kind: type[Any]) -> str:
    return next((layout.name for layout in LAYOUTS if kind in layout.kinds), kind.__name__)


def _node(put: ValuePut[NodeKey, Registration], intent: Intent, cluster: Cluster, now: float) -> NodeReport:
    registration, node = put.value, put.key.node
    return NodeReport(
        node,
        registration.role,
        Schedule.DRAIN if registration.leaving else intent.schedule,
        registration.runtime,
        registration.capacity,
        registration.labels,
        registration.version,
        registration.started,
        len(cluster.on_node.get(node, ())),
        round(max(now - put.at, 0), 3),
        registration.cpu,
        registration.memory,
        registration.load,
        cluster.reserved.cpu(node),
        cluster.reserved.memory(node),
        registration.leaving,
    )


def _blueprints(cluster: Cluster) -> list[BlueprintReport]:
    found = []
    for artifact in sorted(cluster.desired, key=lambda each: (each.service, natural(each.version))):
        desired, group = cluster.desired[artifact], cluster.group(artifact)
        status = cluster.statuses.get(encode_artifact(artifact))
        blueprint = desired.blueprint
        wanted = blueprint.instances if blueprint else 0
        replaced = status is not None and status.condition in (Condition.SUPERSEDED, Condition.REVERTED)
        # Another version's blueprint may say how many: the leader knows, once it has read this one.
        read = status is not None and status.observed_revision >= desired.observed
        if status and (replaced or read or blueprint is None or blueprint.each):
            wanted = status.desired
        found.append(
            BlueprintReport(
                str(artifact),
                status.condition if status else "Unknown",
                status.reason if status else "no leader has processed it yet",
                wanted,
                group.active,
                group.live - group.active,
                group.failed,
                desired.observed,
                desired.in_force or (status.in_force_revision if status else 0),
                _known(status.up_to_date) if status else None,
                _known(status.healthy) if status else None,
                _known(status.outdated) if status else None,
                (status.violations or 0) if status else 0,
                (status.rollout or None) if status else None,
            )
        )
    return found


def _known(count: int | UnsetType) -> int | None:
    return None if count is UNSET else count


def _slices(cluster: Cluster) -> list[SliceReport]:
    puts = sorted(
        (put for group in cluster.groups.values() for put in group.slices.values()),
        key=lambda put: (put.key.artifact, put.key.node, put.key.ordinal),
    )
    return [
        SliceReport(
            encode(put.key),
            put.key.node,
            str(put.key.artifact),
            put.key.ordinal,
            put.value.state,
            put.value.term,
            put.value.port,
            put.value.reason,
            put.value.failures or 0,
            put.value.restarts or 0,
        )
        for put in puts
    ]
