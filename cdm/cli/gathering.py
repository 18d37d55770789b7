"""Gathers what the buckets say of the cluster, once or as it changes, and makes the report of it. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, UnsetType

from cdm.cli.concerns import concerns
from cdm.cli.emptying import Emptied, emptied, gone
from cdm.cli.known import nearest
from cdm.cli.report import BlueprintReport, ClusterReport, NodeReport, SliceReport
from cdm.cli.wording import natural
from cdm.dispatch.messages import KeyRejected, Message, RejectedKeyRemoved, ValuePut, ValueRejected, ValueRemove
from cdm.manager.cluster import Cluster
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import (
    LAYOUTS,
    BlueprintKey,
    FenceKey,
    IntentKey,
    Key,
    LeaseKey,
    NodeKey,
    SeenKey,
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
    Seen,
    managers_without,
    waits_for,
)
from cdm.model.status import Condition

if TYPE_CHECKING:
    from cdm.manager.onlooker import Onlooker


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
    gathered = Gathered()
    for message in messages:
        gathered.take(message)
    return gathered.report(now, writers or {}, old)


class Gathered:
    """What the messages come to that were taken so far."""

    def __init__(self) -> None:
        self.intents: dict[NodeId, ValuePut[IntentKey, Intent] | None] = {}
        """None: it cannot be read."""
        self._cluster = Cluster()
        self._registrations: dict[NodeId, ValuePut[NodeKey, Registration]] = {}
        self._seen: dict[NodeId, ValuePut[SeenKey, Seen]] = {}
        self._lease: Lease | None = None
        self._fence = Fence(0)
        self._written: dict[Artifact, float] = {}
        """When the newest revision of each blueprint was stored."""
        self._unreadable: dict[object, list[str]] = {}
        """What is to be said of each key."""
        self._current: dict[object, Message] = {}
        """The message about each key that counts."""
        self._look: Onlooker | None = None
        """Knows what is left on nodes that drain, and why; there once one does."""
        self._untold: list[Message] = []
        """What it is to be told."""

    def take(self, message: Message) -> None:
        """Take in one message."""
        if self._look is not None:
            self._untold.append(message)
        match message:
            case ValuePut(key=key):
                self._current[key] = message
                if self._unreadable:
                    self._unreadable.pop(key, None)
                self._put(message)
            case ValueRemove(key=key):
                self._forget(key)
                self._removed(key, message.revision)
            case ValueRejected(key=key, reason=reason, revision=revision):
                self._forget(key)
                self._current[key] = message
                self._rejected(key, reason, revision, message.at)
            case KeyRejected(kind=kind, name=name, reason=reason):
                self._current[kind, name] = message
                self._unreadable[kind, name] = [f"{_bucket(kind)}/{name}: {reason}"]
            case RejectedKeyRemoved(kind=kind, name=name):
                self._forget((kind, name))

    def _forget(self, key: object) -> None:
        self._current.pop(key, None)
        self._unreadable.pop(key, None)

    def _put(self, put: ValuePut[Any, Any]) -> None:
        match put.key:
            case SliceKey():
                self._cluster.put_slice(put)
            case BlueprintKey(artifact):
                self._cluster.accept_blueprint(artifact, put.value, put.revision)
                self._written[artifact] = put.at
            case StatusKey(name):
                self._cluster.statuses[name] = put.value
            case NodeKey(node):
                self._registrations[node] = put
            case SeenKey(node):
                self._seen[node] = put
            case IntentKey(node):
                self.intents[node] = put
                self._unreadable[put.key] = [
                    f"nodes/{node}.intent: {field} has no effect: there is no such field{nearest(field, INTENT_FIELDS)}"
                    for field in put.value.unknown
                ]
            case LeaseKey():
                self._lease = put.value
            case FenceKey():
                self._fence = put.value

    def _removed(self, key: Key, revision: int) -> None:
        match key:
            case SliceKey():
                self._cluster.remove_slice(key)
            case BlueprintKey(artifact):
                self._cluster.remove_blueprint(artifact, revision)
            case StatusKey(name):
                self._cluster.statuses.pop(name, None)
            case NodeKey(node):
                self._registrations.pop(node, None)
            case SeenKey(node):
                self._seen.pop(node, None)
            case IntentKey(node):
                self.intents.pop(node, None)
            case LeaseKey():
                self._lease = None

    def _rejected(self, key: Key, reason: str, revision: int, at: float) -> None:
        match key:
            case BlueprintKey(artifact):
                self._cluster.refuse_blueprint(artifact, reason, revision)
                self._written[artifact] = at
                return
            case IntentKey(node):
                self.intents[node] = None
                self._unreadable[key] = [f"nodes/{node}.intent (counts as cordon): {reason}"]
                return
            case SliceKey() | StatusKey() | NodeKey():
                self._removed(key, revision)
        self._unreadable[key] = [f"{key}: {reason}"]

    def report(self, now: float, writers: Mapping[NodeId, str], old: Sequence[str]) -> ClusterReport:
        """The report of all messages that were taken; arguments as in the function `report`."""
        lease, cluster, epoch = self._lease, self._cluster, time.time() - now
        unreadable = [each for some in self._unreadable.values() for each in some]
        orphans = (
            f"nodes/{node}.intent: {self._intent(node).schedule}, but no such node is registered"
            for node in sorted(self.intents)
            if node not in self._registrations
        )
        found = ClusterReport(
            leader=lease.node if lease else None,
            term=max(self._fence.term, lease.term if lease else 0),
            nodes=[_node(put, self._intent(node), cluster, now) for node, put in sorted(self._registrations.items())],
            blueprints=list(self._blueprints(epoch)),
            slices=_slices(cluster, epoch),
            draining=self._emptied(now, epoch, writers),
            gone=gone(self._seen, self._registrations, cluster.on_node, epoch),
            notes=[*unreadable, *orphans, *self._old(old)],
        )
        return concerns(found, unreadable)

    def _intent(self, node: NodeId) -> Intent:
        if node not in self.intents:
            return NO_INTENT
        put = self.intents[node]
        return put.value if put is not None else UNREADABLE_INTENT

    def _emptied(self, now: float, epoch: float, writers: Mapping[NodeId, str]) -> list[Emptied]:
        wanted = any(self._intent(node).schedule is Schedule.DRAIN for node in self.intents)
        if not wanted and not any(put.value.leaving for put in self._registrations.values()):
            self._look, self._untold = None, []
            return []
        if self._look is None:
            from cdm.manager.onlooker import Onlooker  # noqa: PLC0415  # slow to import, and rarely needed

            self._look = Onlooker(self._current.values(), now)
        else:
            self._look.look_again(self._untold, now)
        self._untold = []
        return emptied(self._look, epoch, writers)

    def _blueprints(self, epoch: float) -> Iterator[BlueprintReport]:
        cluster = self._cluster
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
            yield BlueprintReport(
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
                sum(put.value.restarts or 0 for put in group.slices.values()),
                time_of(self._written[artifact] + epoch),
                read,
            )

    def _old(self, buckets: Sequence[str]) -> Iterator[str]:
        """What buckets that are as earlier versions need them wait for."""
        if buckets:
            known = ((node, put.value) for node, put in self._registrations.items())
            waits = waits_for(managers_without(EXPIRY_BY_CLOCK, known), EXPIRY_IN_WORDS)
            which = f"{', '.join(buckets)}: whoever may write one key can still have others removed (roll-ups)"
            yield f"{which}; {waits or 'the leader changes that, or else `cdm init --upgrade`'}"


def time_of(at: float) -> str:
    """A time in seconds since 1970 as RFC 3339 has it."""
    return _second(int(max(at, 0.0)))


@lru_cache(1_024)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


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
        registration.ttl,
    )


def _known(count: int | UnsetType) -> int | None:
    return None if count is UNSET else count


def _slices(cluster: Cluster, epoch: float) -> list[SliceReport]:
    found: list[SliceReport] = []
    for artifact in sorted(cluster.groups):
        name = str(artifact)
        # By node and ordinal: the artifact is the same.
        for key, put in sorted(cluster.groups[artifact].slices.items()):
            value = put.value
            found.append(
                SliceReport(
                    encode(key),
                    key.node,
                    name,
                    key.ordinal,
                    value.state,
                    value.term,
                    value.port,
                    value.reason,
                    value.failures or 0,
                    value.restarts or 0,
                    time_of(put.at + epoch),
                )
            )
    return found
