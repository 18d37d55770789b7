"""The mirrors of a manager that decides nothing: for whoever asks what it would decide, and why. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import NamedTuple

from msgspec.structs import replace

from cdm.dispatch.messages import MESSAGES, Message
from cdm.dispatch.router import Router
from cdm.manager.cluster import Desired
from cdm.manager.copies import recover
from cdm.manager.draining import Drains
from cdm.manager.manager import ClusterDeploymentManager
from cdm.manager.outbox import Outbox
from cdm.manager.placement import Placement
from cdm.manager.policy import Policy
from cdm.manager.reconciliation import situation_of
from cdm.manager.situation import Situation
from cdm.manager.topology import Registered, Topology
from cdm.manager.wishes import Wishes
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import LeaseKey, encode_artifact
from cdm.model.node import Lease
from cdm.model.status import Status

NOBODY = NodeId("")
"""The node that an onlooker is."""


class Lookup(NamedTuple):
    """What there is to know of one artifact."""

    desired: Desired | None
    """Its blueprint, which may be a refused one; None: it has none."""
    status: Status | None
    """What the leader says of it."""
    at: Situation
    """What the leader would decide on."""


class Onlooker:
    """Takes in one look at the buckets as a manager does, and leads never.

    Args:
        messages: what the buckets hold.
        now: the time of that, in seconds on this process's clock, as the messages are timed.
        node_ttl: heartbeat TTL in seconds, for nodes that do not say their own.
    """

    def __init__(self, messages: Iterable[Message], now: float, node_ttl: float = 10.0) -> None:
        self.now = now
        self.topology = Topology(self.route, node_ttl)
        self.topology.connected_since = -inf  # one look tells nothing of outages
        self.outbox = Outbox(_nothing, _nothing)
        self.manager = ClusterDeploymentManager(
            NOBODY, self.topology, self.outbox, lambda: self.now, _nothing, Policy(settle=0.0)
        )
        self.cluster = self.manager.cluster
        self.leader: NodeId | None = None
        """Which node leads; None: nobody does."""
        self._router = Router([self.topology, self.manager], MESSAGES)
        for message in messages:
            if isinstance(lease := getattr(message, "value", None), Lease) and message.topic[1] is LeaseKey:
                self.leader = lease.node
            self.route(message)
        recover(self.cluster)
        self.placement = Placement(self.cluster, self.topology)
        self._wishes = Wishes(self.cluster, self.placement, self.topology)
        self.drains = Drains(self.cluster, self.topology, self.placement, self._wishes.no_deadlines)
        self.drains.look(now)

    def route(self, message: Message) -> None:
        """Take in one more message."""
        self._router.route(message)

    def look_again(self, messages: Iterable[Message], now: float) -> None:
        """Take in what has changed since, up to this time."""
        self.now = now
        for message in messages:
            if isinstance(getattr(message, "key", None), LeaseKey):
                value = getattr(message, "value", None)
                self.leader = value.node if isinstance(value, Lease) else None
            self.route(message)
        self.placement.refresh()
        self.drains.look(now)

    def registered(self, node: NodeId) -> bool:
        """Whether the node's registration is in the bucket."""
        return isinstance(self.topology.nodes.get(node), Registered)

    def held(self, artifact: Artifact) -> str:
        """Why a leader leaves the artifact as it is: a manager does not know what its blueprint says; empty: all do."""
        return self._wishes.not_known(artifact)

    @property
    def unforced(self) -> str:
        """Why no drain is forced, whatever its deadline: which manager does not know that; empty: they are."""
        return self._wishes.no_deadlines()

    def lookup(self, artifact: Artifact) -> Lookup:
        """What there is to know of an artifact."""
        cluster, placement = self.cluster, self.placement
        desired = self._wishes.desired(artifact)
        status = cluster.statuses.get(encode_artifact(artifact))
        wanted = self._wishes.wanted(artifact)
        if desired is not None and status is not None and status.observed_revision >= desired.observed:
            # The leader knows of rollouts: what was replaced wants none, and the two sides of one share the number.
            wanted = replace(wanted, instances=status.desired)
        ends = self._wishes.ends(artifact)
        if artifact in ends:
            wanted = replace(wanted, beside=ends)
        group, fleet = cluster.group(artifact), placement.fleet(settling=False)
        if outlives := self.drains.outlived(artifact, fleet, self.now):
            wanted = replace(wanted, outlives=tuple(map(str, outlives)))
        at = situation_of(artifact, wanted, group, fleet, self.now, Policy(), placement.taken(artifact))
        return Lookup(desired, status, at)


def _nothing() -> None:
    """Nobody waits for it."""
