"""The cluster as the buckets tell of it, for whoever shows it: what a message about each kind of key comes to. Pure.

A look at the buckets and a watch of them end at the same view. What deciding needs besides, times and promises, a
manager keeps itself (`cdm.manager.manager`, `cdm.manager.topology`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from cdm.dispatch.messages import (
    Cause,
    KeyRejected,
    Message,
    RejectedKeyRemoved,
    ValuePut,
    ValueRejected,
    ValueRemove,
)
from cdm.manager.cluster import Cluster
from cdm.model.artifact import NodeId
from cdm.model.keys import (
    BlueprintKey,
    FenceKey,
    IntentKey,
    Key,
    LeaseKey,
    NodeKey,
    RolloutKey,
    SeenKey,
    SliceKey,
    StatusKey,
)
from cdm.model.node import NO_INTENT, UNREADABLE_INTENT, Fence, Intent, Lease, Registration, Schedule, Seen


class ClusterView:
    """What the messages come to that were taken so far."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        """Blueprints, slices by artifact and by node, the records of rollouts, statuses."""
        self.nodes: dict[NodeId, ValuePut[NodeKey, Registration]] = {}
        """The registered nodes."""
        self.intents: dict[NodeId, ValuePut[IntentKey, Intent] | None] = {}
        """What operators want of nodes; None: something that cannot be read."""
        self.seen: dict[NodeId, ValuePut[SeenKey, Seen]] = {}
        """What the leader remembers of nodes, also of those that are gone."""
        self.ends: dict[NodeId, ValueRemove[NodeKey, Registration]] = {}
        """How and when registrations ended that nobody has made since, for as long as the server knows it."""
        self.lease: Lease | None = None
        """Who leads; None: nobody does."""
        self.fence = Fence(0)
        self.unreadable: dict[Key | tuple[type[Key], str], str] = {}
        """Keys and values that cannot be read: why, by the key, or by its kind and name where that is none."""

    @classmethod
    def of(cls, messages: Iterable[Message]) -> Self:
        """What these messages come to."""
        made = cls()
        for message in messages:
            made.take(message)
        return made

    @property
    def term(self) -> int:
        """Number of the present leadership, or the latest."""
        return max(self.fence.term, self.lease.term if self.lease else 0)

    def intent(self, node: NodeId) -> Intent:
        """What is wanted of the node: one that cannot be read counts as it does to managers."""
        if node not in self.intents:
            return NO_INTENT
        put = self.intents[node]
        return put.value if put is not None else UNREADABLE_INTENT

    def schedule(self, node: NodeId) -> Schedule:
        """What is wanted of the node, by operators or by itself."""
        put = self.nodes.get(node)
        return Schedule.DRAIN if put is not None and put.value.leaving else self.intent(node).schedule

    def take(self, message: Message) -> None:
        """Take in one message."""
        match message:
            case ValuePut(key=key):
                if self.unreadable:
                    self.unreadable.pop(key, None)
                self._put(message)
            case ValueRemove(key=key, revision=revision):
                self.unreadable.pop(key, None)
                self._removed(key, revision)
                if isinstance(key, NodeKey) and message.cause is not Cause.MISSING:
                    self.ends[key.node] = message
            case ValueRejected(key=key):
                self.unreadable[key] = message.reason
                self._rejected(message)
            case KeyRejected(kind=kind, name=name, reason=reason):
                self.unreadable[kind, name] = reason
            case RejectedKeyRemoved(kind=kind, name=name):
                self.unreadable.pop((kind, name), None)

    def _put(self, put: ValuePut[Any, Any]) -> None:
        match put.key:
            case SliceKey():
                self.cluster.put_slice(put)
            case BlueprintKey(artifact):
                self.cluster.accept_blueprint(artifact, put.value, put.revision)
            case StatusKey(name):
                self.cluster.statuses[name] = put.value
            case RolloutKey(service):
                self.cluster.rollouts[service] = put
            case NodeKey(node):
                self.nodes[node] = put
                self.ends.pop(node, None)
            case SeenKey(node):
                self.seen[node] = put
            case IntentKey(node):
                self.intents[node] = put
            case LeaseKey():
                self.lease = put.value
            case FenceKey():
                self.fence = put.value

    def _rejected(self, rejected: ValueRejected[Any, Any]) -> None:
        match rejected.key:
            case BlueprintKey(artifact):
                self.cluster.refuse_blueprint(artifact, rejected.reason, rejected.revision, rejected.removed)
            case IntentKey(node):
                self.intents[node] = None
            case RolloutKey():
                pass  # the leader goes on with the one that it knows
            case key:
                self._removed(key, rejected.revision)

    def _removed(self, key: Key, revision: int) -> None:
        match key:
            case SliceKey():
                self.cluster.remove_slice(key)
            case BlueprintKey(artifact):
                self.cluster.remove_blueprint(artifact, revision)
            case StatusKey(name):
                self.cluster.statuses.pop(name, None)
            case RolloutKey(service):
                self.cluster.rollouts.pop(service, None)
            case NodeKey(node):
                self.nodes.pop(node, None)
            case SeenKey(node):
                self.seen.pop(node, None)
                self.ends.pop(node, None)
            case IntentKey(node):
                self.intents.pop(node, None)
            case LeaseKey():
                self.lease = None
