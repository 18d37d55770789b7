"""The cluster as one document: what ``cdm status`` shows. Pure; made from messages of the four buckets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from cdm.cluster import Cluster
from cdm.messages import KeyRejected, Message, ValuePut, ValueRejected
from cdm.model.artifact import NodeId
from cdm.model.keys import (
    LAYOUTS,
    BlueprintKey,
    FenceKey,
    IntentKey,
    LeaseKey,
    NodeKey,
    SliceKey,
    StatusKey,
    encode,
    encode_artifact,
)
from cdm.model.node import Fence, Intent, Lease, Registration, Schedule
from cdm.model.status import Status


class NodeReport(Struct, frozen=True):
    """One registered node."""

    node: NodeId
    schedule: Schedule
    runtime: str
    capacity: int | None
    labels: dict[str, str]
    version: str
    started: str
    slices: int


class BlueprintReport(Struct, frozen=True):
    """One blueprint: what is wanted, what is there, and what the leader says of it."""

    artifact: str
    condition: str
    reason: str
    desired: int
    active: int
    pending: int
    failed: int
    observed_revision: int
    in_force_revision: int


class SliceReport(Struct, frozen=True):
    """One slice."""

    key: str
    node: NodeId
    artifact: str
    ordinal: int
    state: str
    term: int
    reason: str | None
    failures: int


class Report(Struct, frozen=True):
    """Everything."""

    leader: NodeId | None
    term: int
    nodes: list[NodeReport]
    blueprints: list[BlueprintReport]
    slices: list[SliceReport]
    unreadable: list[str]
    """Keys and values that do not decode, and why."""

    @property
    def healthy(self) -> bool:
        """Whether somebody leads."""
        return self.leader is not None


def report(messages: Iterable[Message]) -> Report:
    """Put together what the buckets hold."""
    cluster = Cluster()
    registrations: dict[NodeId, Registration] = {}
    intents: dict[NodeId, Intent] = {}
    lease: Lease | None = None
    fence = Fence(0)
    unreadable: list[str] = []
    for message in messages:
        match message:
            case ValuePut(key=SliceKey()):
                cluster.put_slice(message)
            case ValuePut(key=BlueprintKey(artifact), value=blueprint, revision=revision):
                cluster.accept_blueprint(artifact, blueprint, revision)
            case ValueRejected(key=BlueprintKey(artifact), reason=reason, revision=revision):
                cluster.refuse_blueprint(artifact, reason, revision)
            case ValuePut(key=StatusKey(name), value=Status() as status):
                cluster.statuses[name] = status
            case ValuePut(key=NodeKey(node), value=Registration() as registration):
                registrations[node] = registration
            case ValuePut(key=IntentKey(node), value=Intent() as intent):
                intents[node] = intent
            case ValuePut(key=LeaseKey(), value=Lease() as value):
                lease = value
            case ValuePut(key=FenceKey(), value=Fence() as value):
                fence = value
            case KeyRejected(kind=kind, name=name, reason=reason):
                unreadable.append(f"{_bucket(kind)}/{name}: {reason}")
            case ValueRejected(key=key, reason=reason):
                unreadable.append(f"{key}: {reason}")
    return Report(
        leader=lease.node if lease else None,
        term=max(fence.term, lease.term if lease else 0),
        nodes=[
            _node(node, registrations[node], intents.get(node, Intent()), len(cluster.on_node.get(node, ())))
            for node in sorted(registrations)
        ],
        blueprints=_blueprints(cluster),
        slices=_slices(cluster),
        unreadable=unreadable,
    )


def _bucket(kind: type[Any]) -> str:
    return next((layout.name for layout in LAYOUTS if kind in layout.kinds), kind.__name__)


def _node(node: NodeId, registration: Registration, intent: Intent, slices: int) -> NodeReport:
    return NodeReport(
        node,
        intent.schedule,
        registration.runtime,
        registration.capacity,
        registration.labels,
        registration.version,
        registration.started,
        slices,
    )


def _blueprints(cluster: Cluster) -> list[BlueprintReport]:
    found = []
    for artifact in sorted(cluster.desired):
        desired, group = cluster.desired[artifact], cluster.group(artifact)
        status = cluster.statuses.get(encode_artifact(artifact))
        wanted = desired.blueprint.instances if desired.blueprint else (status.desired if status else 0)
        found.append(
            BlueprintReport(
                str(artifact),
                status.condition if status else "Unknown",
                status.reason if status else "no leader has looked at it yet",
                wanted,
                group.active,
                group.live - group.active,
                group.failed,
                desired.observed,
                desired.in_force or (status.in_force_revision if status else 0),
            )
        )
    return found


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
            put.value.reason,
            put.value.failures or 0,
        )
        for put in puts
    ]
