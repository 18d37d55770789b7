"""Which nodes there are, and when one is dead. Pure: time comes with the messages.

An expired registration alone proves little: after an outage every registration expires at once, before any node could
renew its own. A node is called dead only when this process could have heard it for one whole TTL and did not. When more
than half of the known nodes are missing at the same time, the fault is more likely on this side: then they are given up
one by one, `MASS_LOSS_PACE` of a TTL apart.

Missing is only what was known before: to this process, by what a leader remembered of it, or, in a bucket of an earlier
version, by the marker of its expired registration. Of a node that nobody ever heard of nothing is awaited. A node whose
registration this process never saw may be one out of an old backup: it has one TTL to be heard, and slows the eviction
of no other down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from math import inf

from msgspec import Struct

from cdm.dispatch.messages import (
    Cause,
    Connected,
    Disconnected,
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
from cdm.manager.schedules import Intents
from cdm.model.artifact import NodeId
from cdm.model.keys import NodeKey, SeenKey, SlotKey
from cdm.model.node import LEFT, Registration, Schedule, Seen, Slot

log = Log("cdm.topology")

MASS_LOSS_PACE = 0.5
"""Pause between two evictions while most nodes are missing, as a fraction of the heartbeat TTL."""

SILENT_AFTER = 0.5
"""Fraction of its TTL after which a node without a heartbeat counts as silent; three of them come in a TTL."""

LOST_FOR = 2 * 86_400.0
"""Seconds for which it is remembered when a dead node was heard last: longer than anything may run unheard of."""

EXPIRY_MARGIN = 2.0
"""Seconds after its TTL by which the server has removed a registration. One that is still there was put without a TTL,
by whoever put it, and nothing else would tell that its node is dead."""

REMEMBERED = 10_000
"""Most nodes of which it is remembered that they left in good order."""

NEVER = float("-inf")


class Registered(Struct, frozen=True):
    """The node's registration is in the bucket."""

    registration: Registration
    heard: float
    """When its last heartbeat was stored, in seconds on this node's clock."""
    since: float = NEVER
    """When its process was heard first, in seconds on this node's clock, of what was heard without a gap."""
    back: float = NEVER
    """When the node was heard first of what was heard without a gap, whichever process it was."""


class Missing(Struct, frozen=True):
    """The registration is gone, but the node is not yet dead."""

    heard: float
    """When its last heartbeat was stored, in seconds on this node's clock; `NEVER`: no registration was seen."""
    ttl: float

    @property
    def hearsay(self) -> bool:
        """Whether this process knows the node only by what was left behind in the bucket."""
        return self.heard == NEVER

    def due(self, hearing_since: float) -> float:
        """When the node is dead, unless it is heard: after a whole TTL in which this process could have heard it."""
        return max(hearing_since, self.heard) + self.ttl


class Topology(Intents):
    """Follows the ``nodes`` bucket and tells who joins, leaves, goes missing and dies.

    Args:
        emit: takes the messages that it sends.
        node_ttl: heartbeat TTL in seconds, for nodes that do not say their own.
    """

    def __init__(self, emit: Callable[[Message], None], node_ttl: float) -> None:
        super().__init__(emit)
        self.node_ttl = node_ttl
        self.hosting_since: float | None = None
        """Since when there has been a node that runs slices, in seconds on this node's clock; None: there is none."""
        self.connected_since = inf
        """Since when there has been a connection, in seconds on this node's clock; inf: there is none."""
        self._nodes: dict[NodeId, Registered | Missing] = {}
        self._missing: dict[NodeId, Missing] = {}
        self._lost: dict[NodeId, float] = {}
        self._departed: dict[NodeId, None] = {}
        """Nodes that left in good order, the latest last: slices that are still seen on them run no more."""
        self._seen: dict[NodeId, Seen] = {}
        self._candidates: set[NodeId] = set()
        self._hearing_since: float | None = None
        self._mass_loss = False
        self._next_eviction = NEVER
        self._look_at = NEVER
        """When registrations that do not expire are looked for, by the times of heartbeats."""

    @property
    def nodes(self) -> Mapping[NodeId, Registered | Missing]:
        """All nodes that are not dead."""
        return self._nodes

    @property
    def registrations(self) -> Iterator[tuple[NodeId, Registration]]:
        """What the nodes that are registered say of themselves."""
        return ((node, each.registration) for node, each in self._nodes.items() if isinstance(each, Registered))

    @property
    def lost(self) -> Mapping[NodeId, float]:
        """Nodes that died without a word: the latest time at which they may have been heard, on this node's clock."""
        return self._lost

    @property
    def seen(self) -> Mapping[NodeId, Seen]:
        """What leaders remembered of nodes."""
        return self._seen

    @property
    def candidates(self) -> AbstractSet[NodeId]:
        """Those of the registered nodes that take part in elections."""
        return self._candidates

    def schedule(self, node: NodeId) -> Schedule:
        """What may be placed there, as the operator wants it; a node that is leaving is to be emptied, too."""
        presence = self._nodes.get(node)
        if isinstance(presence, Registered) and presence.registration.leaving:
            return Schedule.DRAIN
        return self.intended(node).intent.schedule

    def left(self, node: NodeId) -> bool:
        """Whether the node is known to have left in good order."""
        return node in self._departed

    def wake_at(self) -> float | None:
        """When the next node may have to be given up, in seconds on this node's clock."""
        since = self._hearing_since
        if not self._missing or since is None:
            return None
        hearsay = [each.due(since) for each in self._missing.values() if each.hearsay]
        heard = [each.due(since) for each in self._missing.values() if not each.hearsay]
        if heard and self._mass_loss:
            heard = [max(min(heard), self._next_eviction)]
        return min(hearsay + heard)

    @receiver
    def on_registration(self, put: ValuePut[NodeKey, Registration]) -> None:
        """A node registered, or its heart beat."""
        node, new = put.key.node, put.value
        if put.at >= self._look_at:
            self._look_for_silent(put.at)
        old = self._nodes.get(node)
        if self.hosting_since is None and new.hosts:
            self.hosting_since = put.at
        same = isinstance(old, Registered) and old.registration.incarnation == new.incarnation
        since, back = (old.since if same else put.at, old.back) if isinstance(old, Registered) else (put.at, put.at)
        self._nodes[node] = Registered(new, put.at, since, back)
        self._lost.pop(node, None)
        self._departed.pop(node, None)
        if isinstance(old, Registered) and not new.differs_from(old.registration):
            return
        self._found(node)
        if new.leads:
            self._candidates.add(node)
        else:
            self._candidates.discard(node)
        log.info(
            "node registered anew" if same else "node joined",
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
            self._lost.pop(node, None)
            if old is not None:
                self._forget(node)
                log.info("node left", node=node)
                self._emit(NodeLeft(node))
            return
        self._departed.pop(node, None)
        if isinstance(old, Registered):
            log.warning("node is missing", node=node, cause=str(remove.cause))
            self._lose(node, old.heard, self._ttl_of(old))
        elif old is None and remove.cause is Cause.EXPIRED and not self._known_gone(node):
            self._lose(node, NEVER, self.node_ttl)

    @receiver
    def on_seen(self, put: ValuePut[SeenKey, Seen]) -> None:
        """A leader remembered a node: one that is not registered, and not known to be gone, is missing."""
        node, seen = put.key.node, put.value
        self._seen[node] = seen
        presence = self._nodes.get(node)
        if isinstance(presence, Registered) or node in self._departed:
            return
        if seen.gone is None:
            if presence is None and not self._known_gone(node):
                # What others wrote is not believed without bound: it may be anything.
                self._lose(node, NEVER, min(seen.registration.ttl or self.node_ttl, self.node_ttl))
        else:
            # Where it left in good order nothing runs there; else something may for some time, as of this message.
            if seen.gone != LEFT:
                self._lost[node] = max(put.at, self._lost.get(node, NEVER))
            if presence is not None:
                self._forget(node)
                self._emit(NodeDied(node))

    @receiver
    def on_seen_removed(self, remove: ValueRemove[SeenKey, Seen] | ValueRejected[SeenKey, Seen]) -> None:
        """What was remembered of a node is gone, or cannot be read: a leader that knows the node writes it anew."""
        self._seen.pop(remove.key.node, None)

    @receiver
    def on_registration_rejected(self, rejected: ValueRejected[NodeKey, Registration]) -> None:
        """A registration does not decode: a living node writes over it; if none does, the node is lost after its TTL.

        The registration that was there before would have expired; what replaced it may have no TTL.
        """
        log.warning("unreadable registration is ignored", key=str(rejected.key), reason=rejected.reason)
        node = rejected.key.node
        if (old := self._nodes.get(node)) is not None:
            self._lose(node, rejected.at, self._ttl_of(old))

    @receiver
    def on_key_rejected(self, rejected: KeyRejected[NodeKey]) -> None:
        """A key in ``nodes`` does not decode: it is reported and left alone."""
        log.warning("unreadable key is left alone", bucket="nodes", key=rejected.name, reason=rejected.reason)

    @receiver
    def on_rejected_key_removed(self, removed: RejectedKeyRemoved[NodeKey]) -> None:
        """It had no effect, so there is nothing to undo."""
        log.info("unreadable key is gone", bucket="nodes", key=removed.name)

    @receiver
    def on_slot(
        self, message: ValuePut[SlotKey, Slot] | ValueRemove[SlotKey, Slot] | ValueRejected[SlotKey, Slot]
    ) -> None:
        """Of a manager's slot: nothing follows from it here, for nodes register what they are."""

    def was_stopped(self, until: float) -> None:
        """This process did not run until now, so it has heard nobody: what is told late is no silence of others."""
        if self._hearing_since is not None:
            self._hearing_since = until

    @receiver
    def on_connected(self, connected: Connected) -> None:
        """Nodes can be heard from now on."""
        self._hearing_since = self.connected_since = connected.at

    @receiver
    def on_disconnected(self, disconnected: Disconnected) -> None:
        """Silence means nothing until the connection is back; a node that left may have come back meanwhile."""
        self._hearing_since, self.connected_since = None, inf
        self._departed.clear()

    @receiver
    def on_tick(self, tick: Tick) -> None:
        """Give up the nodes that have not been heard for too long."""
        since = self._hearing_since
        if since is None:
            return
        overdue = {node: missing for node, missing in self._missing.items() if missing.due(since) <= tick.at}
        for node in sorted(node for node, missing in overdue.items() if missing.hearsay):
            self._give_up(node, overdue.pop(node), since, tick.at)
        if overdue and not self._mass_loss:
            silent, known = self._silent(tick.at)
            if silent > 1 and 2 * silent > known:
                self._mass_loss = True
                log.warning("most nodes are silent; evictions are paced", silent=silent, nodes=known)
        for node in sorted(overdue):
            if self._mass_loss:
                if tick.at < self._next_eviction:
                    return
                self._next_eviction = tick.at + MASS_LOSS_PACE * self.node_ttl
            self._give_up(node, overdue[node], since, tick.at)

    def _give_up(self, node: NodeId, missing: Missing, since: float, now: float) -> None:
        log.warning("node is dead", node=node)
        self._remember(node, max(since, missing.heard), now)
        self._forget(node)
        self._emit(NodeDied(node))

    def _look_for_silent(self, now: float) -> None:
        """Lose the nodes whose registrations should have expired by now, which is when another node was heard.

        As for deaths, silence counts only from when this process could hear. Such a node has one more TTL in which it
        may be heard: the server's clock may have been set.
        """
        since = self._hearing_since
        if since is None:
            return
        self._look_at = now + self.node_ttl / 2
        for node, each in list(self._nodes.items()):
            if isinstance(each, Registered) and now - max(since, each.heard) > self._ttl_of(each) + EXPIRY_MARGIN:
                log.warning("node is missing, and its registration does not expire", node=node)
                self._lose(node, now, self._ttl_of(each))

    def _known_gone(self, node: NodeId) -> bool:
        """Whether this process, or a leader, has given the node up already."""
        seen = self._seen.get(node)
        return node in self._lost or (seen is not None and seen.gone is not None)

    def _silent(self, now: float) -> tuple[int, int]:
        """How many nodes are missing or about to be, and of how many: those that died together expire one by one.

        Only nodes that were registered in this process's time count.
        """
        known = [each for each in self._nodes.values() if isinstance(each, Registered) or not each.hearsay]
        silent = sum(
            isinstance(each, Missing)
            or (each.registration.ttl is not None and now - each.heard > SILENT_AFTER * each.registration.ttl)
            for each in known
        )
        return silent, len(known)

    def _ttl_of(self, presence: Registered | Missing) -> float:
        if isinstance(presence, Missing):
            return presence.ttl
        return presence.registration.ttl or self.node_ttl

    def _remember(self, node: NodeId, heard: float, now: float) -> None:
        """Note the latest time at which another process may have heard the node, while this one could not."""
        heard = max(heard, self._lost.get(node, NEVER))
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
        self._found(node)
        if not any(isinstance(each, Missing) or each.registration.hosts for each in self._nodes.values()):
            self.hosting_since = None

    def _found(self, node: NodeId) -> None:
        """The node is missing no more, for better or worse."""
        if self._missing.pop(node, None) and all(each.hearsay for each in self._missing.values()):
            self._mass_loss = False
