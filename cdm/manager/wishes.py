"""What blueprints come to at this moment: how many instances, of what, and whether it may be done already."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from cdm.manager.cluster import Cluster, Desired
from cdm.manager.placement import Placement
from cdm.manager.standing import LiveNode
from cdm.manager.topology import Topology
from cdm.manager.wanted import Wanted, rules_of, wanted_of
from cdm.model.artifact import Artifact, NodeId
from cdm.model.node import DRAINS, PLACEMENT, ROLLOUTS, SECRETS, managers_without, waits_for


class Wishes:
    """Answers from the mirrors.

    Args:
        cluster: the blueprints.
        placement: the nodes that fit.
        topology: which managers there are, and what they know.
    """

    def __init__(self, cluster: Cluster, placement: Placement, topology: Topology) -> None:
        self._cluster = cluster
        self._placement = placement
        self._topology = topology
        self._nodes: Mapping[NodeId, LiveNode] | None = None
        self._lacks: dict[str, str] = {}
        """Which managers among these nodes do not know a feature: asked for all the time, and hardly ever news."""

    def wanted(self, artifact: Artifact, desired: Desired | None = None) -> Wanted:
        """What the artifact's blueprint wants; ``desired``: what `desired` said a moment ago."""
        cluster, desired = self._cluster, desired or self.desired(artifact)
        delay = cluster.drain_delays.get(artifact) if desired is None else None
        return wanted_of(desired, cluster.contents.get(artifact), drain_delay=delay)

    def desired(self, artifact: Artifact) -> Desired | None:
        """What is known of the artifact's blueprint; one that wants an instance on each node, with their number."""
        cluster = self._cluster
        desired = cluster.desired.get(artifact)
        each = cluster.ruled.each
        if not each or desired is None or artifact not in each or (blueprint := desired.blueprint) is None:
            return desired
        ends = self.ends(artifact)
        versions = ends if artifact in ends else {artifact}
        nodes = self._placement.nodes_for_each(versions, rules_of(blueprint))
        return replace(desired, blueprint=replace(blueprint, instances=len(nodes)), nodes=nodes)

    def ends(self, artifact: Artifact) -> frozenset[Artifact]:
        """The versions that a rollout of the artifact's service leads from and to; none: none is under way."""
        put = self._cluster.rollouts.get(artifact.service)
        if put is None or not put.value.phase.under_way:
            return frozenset()
        return frozenset(artifact.service.version(each.version) for each in (put.value.source, put.value.target))

    def no_rollouts(self) -> str:
        """Which manager does not know rollouts, for people; empty: all do."""
        return self._lacking(ROLLOUTS, "rollouts")

    def no_copies(self) -> str:
        """Which manager does not know copies of blueprints (`cdm.manager.copies`); empty: all do."""
        return self._lacking(SECRETS, "secrets")

    def no_deadlines(self) -> str:
        """Which manager does not know that a drain may have a deadline, for people; empty: all do."""
        return self._lacking(DRAINS, "deadlines of drains")

    def not_known(self, artifact: Artifact) -> str:
        """Which manager does not know what the blueprints of a service say; empty: all do.

        That is, where instances go, and which secrets they are given. Until all do nothing is done about it: one that
        does not, and leads next, would place them anywhere.
        """
        ruled, versions = self._cluster.ruled, self._cluster.versions_of(artifact.service)
        if not ruled.artifacts or ruled.artifacts.isdisjoint(versions):
            return ""
        waits = self._lacking(PLACEMENT, "where instances are to go")
        if not waits and not ruled.secret.isdisjoint(versions):
            return self._lacking(SECRETS, "secrets")
        return waits

    def _lacking(self, feature: str, what: str) -> str:
        nodes = self._placement.nodes
        if nodes is not self._nodes:
            self._nodes, self._lacks = nodes, {}
        found = self._lacks.get(feature)
        if found is None:
            lacking = managers_without(feature, self._topology.registrations)
            found = self._lacks[feature] = waits_for(lacking, what)
        return found
