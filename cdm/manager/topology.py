"""Which nodes there are, and when one is dead. Pure: time comes with the messages.

An expired registration alone proves little: after an outage every registration expires at once, before anybody could
renew it. A node is called dead only when this process could have heard it for one whole TTL and did not (PROTOCOL
I10). When more than half of the known nodes are missing at the same time, the fault is more likely on this side:
then they are given up one by one, at `MASS_LOSS_PACE` of a TTL apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

from msgspec import Struct

from cdm.dispatch.messages import (
    Cause,
    Connected,
    Disconnected,
    IntentChanged,
    KeyRejected,
    Message,
    NodeDied,
    NodeJoined,
    NodeLeft,
    NodeMissing,
    RejectedKeyRemoved,
    Tick,
    ValuePut,
    ValueRejected,
    ValueRemove,
)
from cdm.dispatch.router import receiver
from cdm.log import Log
from cdm.model.artifact import NodeId
from cdm.model.keys import IntentKey, NodeKey
from cdm.model.node import NO_INTENT, UNREADABLE_INTENT, Intent, Registration, Schedule

log = Log("cdm.topology")

MASS_LOSS_PACE = 0.5
"""Pause between two evictions while most nodes are missing, as a fraction of the heartbeat TTL."""

SILENT_AFTER = 0.5
"""Fraction of its TTL after which a node without a heartbeat counts as silent; heartbeats come twice as often."""

LOST_FOR = 2 * 86_400.0
"""Seconds for which it is remembered when a dead node was heard last: longer than anything may run unheard of."""

REMEMBERED = 10_000
"""Most nodes of which it is remembered that they left in good order."""

NEVER = float("-inf")


class Registered(Struct, frozen=True):
    """The node's registration is in the bucket."""

    registration: Registration
    heard: float
    """When its last heartbeat was stored, in seconds on this node's clock."""


class Missing(Struct, frozen=True):
    """The registration is gone, but the node is not yet dead."""

    heard: float
    ttl: float


class Topology:
    """Follows the ``nodes`` bucket and tells who joins, leaves, goes missing and dies.

    Args:
        emit: takes the messages that it sends.
        node_ttl: heartbeat TTL in seconds, for nodes that do not say their own.
    """

    def __init__(self, emit: Callable[[Message], None], node_ttl: float) -> None:
        self._emit = emit
        self._node_ttl = node_ttl
        self._nodes: dict[NodeId, Registered | Missing] = {}
        self._intents: dict[NodeId, Intent] = {}
        self._missing: dict[NodeId, Missing] = {}
        self._lost: dict[NodeId, float] = {}
        self._departed: dict[NodeId, None] = {}
        """Nodes that left in good order, the latest last: what is still seen on them, nobody runs."""
        self._candidates: set[NodeId] = set()
        self._hearing_since: float | None = None
        self._mass_loss = False
        self._next_eviction = NEVER

    @property
    def nodes(self) -> Mapping[NodeId, Registered | Missing]:
        """All nodes that are not dead."""
        return self._nodes

    @property
    def lost(self) -> Mapping[NodeId, float]:
        """Nodes that died without a word: the latest time at which they may have been heard, on this node's clock."""
        return self._lost

    @property
    def candidates(self) -> AbstractSet[NodeId]:
        """Those of the registered nodes that take part in elections."""
        return self._candidates

    def schedule(self, node: NodeId) -> Schedule:
        """What the operator wants of the node."""
        intent = self._intents.get(node)
        return intent.schedule if intent else Schedule.NORMAL

    def notice(self, node: NodeId) -> None:
        """A slice was seen on a node that is not registered: unless it left, it is lost after a TTL of hearing."""
        if node in self._departed:
            self._emit(NodeLeft(node))
        elif node not in self._nodes:
            self._lose(node, NEVER, self._node_ttl)

    def wake_at(self) -> float | None:
        """When the next node may have to be given up, in seconds on this node's clock."""
        if not self._missing or self._hearing_since is None:
            return None
        due = min(map(self._due, self._missing.values()))
        return max(due, self._next_eviction) if self._mass_loss else due

    @receiver
    def on_registration(self, put: ValuePut[NodeKey, Registration]) -> None:
        """A node registered, or its heart beat."""
        node, new = put.key.node, put.value
        old = self._nodes.get(node)
        self._nodes[node] = Registered(new, put.at)
        self._lost.pop(node, None)
        self._departed.pop(node, None)
        if isinstance(old, Registered) and old.registration == new:
            return
        if self._missing.pop(node, None) and not self._missing:
            self._mass_loss = False
        if new.leads:
            self._candidates.add(node)
        else:
            self._candidates.discard(node)
        log.info(
            "node joined",
            node=node,
            role=new.role,
            runtime=new.runtime,
            capacity=new.capacity,
            labels=new.labels or None,
        )
        self._emit(NodeJoined(node, new))

    @receiver
    def on_deregistration(self, remove: ValueRemove[NodeKey, Registration]) -> None:
        """A node left, or its registration expired."""
        node = remove.key.node
        old = self._nodes.get(node)
        if remove.cause is Cause.DELETED:
            self._depart(node)
            if old is not None:
                self._forget(node)
                log.info("node left", node=node)
                self._emit(NodeLeft(node))
            return
        self._departed.pop(node, None)
        if isinstance(old, Registered):
            log.warning("node is missing", node=node, cause=str(remove.cause))
            self._lose(node, old.heard, self._ttl_of(old))

    @receiver
    def on_intent(self, put: ValuePut[IntentKey, Intent]) -> None:
        """An operator cordoned, drained or freed a node."""
        self._intend(put.key.node, put.value)

    @receiver
    def on_intent_removed(self, remove: ValueRemove[IntentKey, Intent]) -> None:
        """An operator took an intent back."""
        self._intend(remove.key.node, NO_INTENT)

    @receiver
    def on_registration_rejected(self, rejected: ValueRejected[NodeKey, Registration]) -> None:
        """A registration does not decode: a node that lives writes over it, one that does not has its TTL.

        What was written over would have expired, and what is there now may never do.
        """
        log.warning("unreadable registration is ignored", key=str(rejected.key), reason=rejected.reason)
        node = rejected.key.node
        if (old := self._nodes.get(node)) is not None:
            self._lose(node, rejected.at, self._ttl_of(old))

    @receiver
    def on_intent_rejected(self, rejected: ValueRejected[IntentKey, Intent]) -> None:
        """Nobody can read what an operator wants: nothing new is placed there until it is put right."""
        log.warning("unreadable intent counts as cordon", key=str(rejected.key), reason=rejected.reason)
        self._intend(rejected.key.node, UNREADABLE_INTENT)

    @receiver
    def on_key_rejected(self, rejected: KeyRejected[NodeKey]) -> None:
        """A key in ``nodes`` does not decode: it is left alone."""
        log.warning("unreadable key is left alone", bucket="nodes", key=rejected.name, reason=rejected.reason)

    @receiver
    def on_rejected_key_removed(self, removed: RejectedKeyRemoved[NodeKey]) -> None:
        """Nothing was made of it, so nothing is to be undone."""
        log.info("unreadable key is gone", bucket="nodes", key=removed.name)

    @receiver
    def on_connected(self, connected: Connected) -> None:
        """Nodes can be heard from now on."""
        self._hearing_since = connected.at

    @receiver
    def on_disconnected(self, disconnected: Disconnected) -> None:
        """Silence means nothing until the connection is back, and who left may have come back unheard."""
        self._hearing_since = None
        self._departed.clear()

    @receiver
    def on_tick(self, tick: Tick) -> None:
        """Give up the nodes whose time is over."""
        if self._hearing_since is None:
            return
        overdue = [node for node, missing in self._missing.items() if self._due(missing) <= tick.at]
        if overdue and not self._mass_loss and (silent := self._silent(tick.at)) > 1 and 2 * silent > len(self._nodes):
            self._mass_loss = True
            log.warning("most nodes are silent; evictions are paced", silent=silent, nodes=len(self._nodes))
        for node in sorted(overdue):
            if self._mass_loss:
                if tick.at < self._next_eviction:
                    return
                self._next_eviction = tick.at + MASS_LOSS_PACE * self._node_ttl
            log.warning("node is dead", node=node)
            self._remember(node, tick.at)
            self._forget(node)
            self._emit(NodeDied(node))

    def _silent(self, now: float) -> int:
        """How many nodes are missing or about to be: of those that died together, one is the first to expire."""
        return sum(
            isinstance(each, Missing)
            or (each.registration.ttl is not None and now - each.heard > SILENT_AFTER * each.registration.ttl)
            for each in self._nodes.values()
        )

    def _due(self, missing: Missing) -> float:
        assert self._hearing_since is not None
        return max(self._hearing_since, missing.heard) + missing.ttl

    def _ttl_of(self, presence: Registered | Missing) -> float:
        if isinstance(presence, Missing):
            return presence.ttl
        return presence.registration.ttl or self._node_ttl

    def _remember(self, node: NodeId, now: float) -> None:
        """Note when the node may have been heard last: by somebody else, while this process heard nobody."""
        missing = self._missing[node]
        heard = max(self._due(missing) - missing.ttl, self._lost.get(node, NEVER))
        self._lost = {each: at for each, at in self._lost.items() if at > now - LOST_FOR}
        self._lost[node] = heard

    def _lose(self, node: NodeId, heard: float, ttl: float) -> None:
        self._nodes[node] = self._missing[node] = Missing(heard, ttl)
        self._candidates.discard(node)
        self._emit(NodeMissing(node))

    def _depart(self, node: NodeId) -> None:
        self._departed.pop(node, None)
        self._departed[node] = None
        if len(self._departed) > REMEMBERED:
            del self._departed[next(iter(self._departed))]

    def _forget(self, node: NodeId) -> None:
        self._nodes.pop(node, None)
        self._candidates.discard(node)
        if self._missing.pop(node, None) and not self._missing:
            self._mass_loss = False

    def _intend(self, node: NodeId, intent: Intent) -> None:
        if self._intents.get(node, NO_INTENT) == intent:
            return
        if intent.schedule is Schedule.NORMAL:
            self._intents.pop(node, None)
        else:
            self._intents[node] = intent
        log.info("node intent changed", node=node, schedule=str(intent.schedule))
        self._emit(IntentChanged(node, intent))
