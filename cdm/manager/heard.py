"""Which nodes are registered, and which have not been heard for too long, for whoever only looks on. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from cdm.dispatch.messages import Cause, Message, ValuePut, ValueRejected, ValueRemove
from cdm.model.artifact import NodeId
from cdm.model.node import Registration

DEFAULT_TTL = 10.0
"""Seconds without a heartbeat after which a node that does not say so itself counts as gone."""
EXPIRY_GRACE = 0.5
"""Fraction of its TTL for which a node whose registration expired may still be heard. After an outage of NATS all
registrations expire at once, before any node could renew its own."""


class HeardNodes:
    """The nodes that count as there."""

    def __init__(self) -> None:
        self._nodes: dict[NodeId, Registration] = {}
        self._expired: dict[NodeId, float] = {}
        """Nodes whose registration expired, which may yet be heard, and when it did, in seconds on `cdm.clock`."""
        self._since: float | None = None
        """Since when nodes can be heard; None: they cannot."""

    @property
    def nodes(self) -> Mapping[NodeId, Registration]:
        """What they registered."""
        return self._nodes

    def take(self, node: NodeId, message: Message) -> bool:
        """Learn from a message about a node's registration; returns whether anything may be another now, or later."""
        match message:
            case ValuePut(value=Registration() as registration):
                before = self._nodes.get(node)
                self._nodes[node] = registration
                self._expired.pop(node, None)
                return before is None or registration.differs_from(before)
            case ValueRemove(cause=Cause.DELETED):
                return self._forget(node)
            case ValueRemove(at=at) | ValueRejected(at=at) if node in self._nodes:
                self._expired.setdefault(node, at)
                return True
        return False

    def connected(self, now: float) -> None:
        """Nodes can be heard from now on."""
        self._since = now

    def disconnected(self) -> None:
        """What is known stays as it is: silence means nothing until the connection is back."""
        self._since = None

    def tick(self, now: float) -> list[NodeId]:
        """Forget the nodes that have not been heard for too long; returns which."""
        gone = [node for node in self._expired if self._gone_at(node) <= now]
        for node in gone:
            self._forget(node)
        return gone

    def wake_at(self) -> float | None:
        """When the next node may be gone, in seconds on `cdm.clock`; None: none that is known of."""
        if self._since is None or not self._expired:
            return None
        return min(map(self._gone_at, self._expired))

    def _gone_at(self, node: NodeId) -> float:
        """When a node whose registration expired is gone, unless it is heard: as managers judge it, or a little later.

        They delete the slices of a node that died, which is told before this.
        """
        if self._since is None:
            return float("inf")
        ttl = self._nodes[node].ttl or DEFAULT_TTL
        return max(self._since + ttl, self._expired[node] + EXPIRY_GRACE * ttl)

    def _forget(self, node: NodeId) -> bool:
        self._expired.pop(node, None)
        return self._nodes.pop(node, None) is not None
