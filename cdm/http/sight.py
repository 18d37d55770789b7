"""What handlers see of the cluster: the newest of every mirror, and when NATS was last heard. Pure but for waiting.

It is changed by the event loop alone, between two steps of any handler: what a handler reads without waiting in between
belongs together.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import anyio

from cdm import clock
from cdm.dispatch.messages import KeyRejected, Message, RejectedKeyRemoved, ValuePut, ValueRejected, ValueRemove
from cdm.manager.cluster import Cluster
from cdm.model.artifact import NodeId
from cdm.model.keys import (
    LAYOUTS,
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
from cdm.model.node import Fence, Intent, Lease, Registration, Seen


class Sight:
    """The cluster as this process's mirrors have it."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        """Blueprints, slices by artifact and by node, the records of rollouts, statuses."""
        self.nodes: dict[NodeId, ValuePut[NodeKey, Registration]] = {}
        """The registered nodes."""
        self.intents: dict[NodeId, ValuePut[IntentKey, Intent]] = {}
        self.seen: dict[NodeId, ValuePut[SeenKey, Seen]] = {}
        """What the leader remembers of nodes, also of those that are gone."""
        self.lease: Lease | None = None
        """Who leads; None: nobody does."""
        self.fence = Fence(0)
        self.unreadable: dict[object, str] = {}
        """Keys and values that cannot be read: why, by the key, or by its kind and name."""
        self.changes = 0
        """Grows with every message, and where NATS comes or goes."""
        self.listed = False
        """Whether all buckets were listed once: before, nothing that is missing here is known to be missing."""
        self.problem = ""
        """Why the buckets cannot be followed at all; empty: they can, or are waited for."""
        self.closing = False
        """Whether this process is about to end: whoever waits is to be answered now."""
        self._behind = {layout.name for layout in LAYOUTS}
        self._away_since: float | None = clock.now()
        self._waiting: anyio.Event | None = None

    # For handlers

    @property
    def is_live(self) -> bool:
        """Whether all mirrors are complete and hear of changes."""
        return not self._behind

    @property
    def behind(self) -> frozenset[str]:
        """The buckets that are not heard of at present."""
        return frozenset(self._behind)

    def age(self, now: float) -> float:
        """For how many seconds changes may not have been heard; 0 while NATS is there."""
        return 0.0 if self._away_since is None else max(now - self._away_since, 0.0)

    async def after(self, changes: int) -> int:
        """Wait until `changes` is above this; returns it. Any number of tasks may wait."""
        while self.changes <= changes and not self.closing:
            if self._waiting is None:
                self._waiting = anyio.Event()
            await self._waiting.wait()
        return self.changes

    # For whoever follows the buckets

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
            case ValueRejected(key=key, reason=reason, revision=revision):
                self.unreadable[key] = reason
                if isinstance(key, BlueprintKey):
                    self.cluster.refuse_blueprint(key.artifact, reason, revision, message.removed)
                elif not isinstance(key, RolloutKey):  # the leader goes on with the one that it knows
                    self._removed(key, revision)
            case KeyRejected(kind=kind, name=name, reason=reason):
                self.unreadable[kind, name] = reason
            case RejectedKeyRemoved(kind=kind, name=name):
                self.unreadable.pop((kind, name), None)
        self.tell()

    def heard(self, bucket: str, *, live: bool, late: float = 0.0) -> None:
        """The mirror of this bucket is complete, or may fall behind, and has for so many seconds."""
        if live:
            self._behind.discard(bucket)
        else:
            self._behind.add(bucket)
        if not self._behind:
            self.listed, self.problem, self._away_since = True, "", None
        elif self._away_since is None:
            self._away_since = clock.now() - (late if isfinite(late) else 0.0)
        self.tell()

    def close(self) -> None:
        """Have nobody wait any more."""
        self.closing = True
        self.tell()

    def tell(self) -> None:
        """Wake whoever waits for something new."""
        self.changes += 1
        if self._waiting is not None:
            self._waiting.set()
            self._waiting = None

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
            case SeenKey(node):
                self.seen[node] = put
            case IntentKey(node):
                self.intents[node] = put
            case LeaseKey():
                self.lease = put.value
            case FenceKey():
                self.fence = put.value

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
            case IntentKey(node):
                self.intents.pop(node, None)
            case LeaseKey():
                self.lease = None
