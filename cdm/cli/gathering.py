"""Gathers what the buckets say of the cluster, once or as it changes, and makes the report of it. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType

from cdm.cli.concerns import concerns
from cdm.cli.emptying import Emptied, emptied, gone
from cdm.cli.known import nearest
from cdm.cli.report import BlueprintReport, ClusterReport, NodeReport, SliceReport
from cdm.cli.wording import natural
from cdm.dispatch.messages import KeyRejected, Message, RejectedKeyRemoved, ValuePut, ValueRejected, ValueRemove
from cdm.manager.cluster import Cluster
from cdm.manager.cluster_view import ClusterView
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import BlueprintKey, IntentKey, Key, NodeKey, bucket_of, encode, encode_artifact
from cdm.model.node import (
    EXPIRY_BY_CLOCK,
    EXPIRY_IN_WORDS,
    INTENT_FIELDS,
    Registration,
    Schedule,
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
    return Gathered.of(messages).report(now, writers or {}, old)


class Gathered(ClusterView):
    """What the messages come to that were taken so far."""

    def __init__(self) -> None:
        super().__init__()
        self._current: dict[object, Message] = {}
        """The message about each key that counts."""
        self._look: Onlooker | None = None
        """Knows what is left on nodes that drain, and why; there once one does."""
        self._untold: list[Message] = []
        """What it is to be told."""

    def take(self, message: Message) -> None:
        """Take in one message."""
        super().take(message)
        if self._look is not None:
            self._untold.append(message)
        match message:
            case ValuePut(key=key) | ValueRejected(key=key):
                self._current[key] = message
            case ValueRemove(key=key):
                self._current.pop(key, None)
            case KeyRejected(kind=kind, name=name):
                self._current[kind, name] = message
            case RejectedKeyRemoved(kind=kind, name=name):
                self._current.pop((kind, name), None)

    def report(self, now: float, writers: Mapping[NodeId, str], old: Sequence[str]) -> ClusterReport:
        """The report of all messages that were taken; arguments as in the function `report`."""
        lease, cluster, epoch = self.lease, self.cluster, time.time() - now
        unreadable = list(self._problems())
        orphans = (
            f"nodes/{node}.intent: {self.intent(node).schedule}, but no such node is registered"
            for node in sorted(self.intents)
            if node not in self.nodes
        )
        found = ClusterReport(
            leader=lease.node if lease else None,
            term=self.term,
            nodes=[_node(put, self.schedule(node), cluster, now) for node, put in sorted(self.nodes.items())],
            blueprints=list(self._blueprints(epoch)),
            slices=_slices(cluster, epoch),
            draining=self._emptied(now, epoch, writers),
            gone=gone(self, epoch),
            notes=[*unreadable, *orphans, *self._old(old)],
        )
        return concerns(found, unreadable)

    def _problems(self) -> Iterator[str]:
        """What cannot be read, and what nobody obeys."""
        for which, reason in self.unreadable.items():
            match which:
                case BlueprintKey():
                    pass  # the artifact's own line says it
                case IntentKey(node):
                    yield f"nodes/{node}.intent (counts as cordon): {reason}"
                case Key():
                    yield f"{which}: {reason}"
                case kind, name:
                    yield f"{bucket_of(kind)}/{name}: {reason}"
        for put in filter(None, self.intents.values()):
            for field in put.value.unknown:
                meant = nearest(field, INTENT_FIELDS)
                yield f"nodes/{put.key.node}.intent: {field} has no effect: there is no such field{meant}"

    def _emptied(self, now: float, epoch: float, writers: Mapping[NodeId, str]) -> list[Emptied]:
        if not any(self.schedule(node) is Schedule.DRAIN for node in {*self.intents, *self.nodes}):
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
        cluster = self.cluster
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
                time_of(self._stored(artifact) + epoch),
                read,
            )

    def _stored(self, artifact: Artifact) -> float:
        """When the newest revision of its blueprint was."""
        message = self._current[BlueprintKey(artifact)]
        return message.at if isinstance(message, (ValuePut, ValueRejected)) else 0.0

    def _old(self, buckets: Sequence[str]) -> Iterator[str]:
        """What buckets that are as earlier versions need them wait for."""
        if buckets:
            known = ((node, put.value) for node, put in self.nodes.items())
            waits = waits_for(managers_without(EXPIRY_BY_CLOCK, known), EXPIRY_IN_WORDS)
            which = f"{', '.join(buckets)}: whoever may write one key can still have others removed (roll-ups)"
            yield f"{which}; {waits or 'the leader changes that, or else `cdm init --upgrade`'}"


def time_of(at: float) -> str:
    """A time in seconds since 1970 as RFC 3339 has it."""
    return _second(int(max(at, 0.0)))


@lru_cache(1_024)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def _node(put: ValuePut[NodeKey, Registration], schedule: Schedule, cluster: Cluster, now: float) -> NodeReport:
    registration, node = put.value, put.key.node
    return NodeReport(
        node,
        registration.role,
        schedule,
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
        registration.auto,
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
