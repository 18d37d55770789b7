"""Drains with a deadline: when what is left on a node is taken away, and what goes first where all is stopped. Pure.

A drain replaces first, however long that takes. Where the intent says so (``force``), what is left at its deadline goes
all the same. Where no node takes anything any more, that stops services: those go first that need others (``after``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import inf

from cdm.log import Log
from cdm.manager.cluster import Cluster
from cdm.manager.placement import Placement
from cdm.manager.standing import MAY_RUN, Fleet
from cdm.manager.topology import Topology
from cdm.model.artifact import Artifact, NodeId, Service

log = Log("cdm.manager")

TOGETHER = 5.0
"""Seconds: drains that are forced one so long after another are one stop of everything."""


class Drains:
    """Knows which nodes' drains are forced by now, and tells the placement.

    Args:
        cluster: which slices are where, and what their blueprints say under ``after``.
        topology: what operators want of nodes.
        placement: told of the nodes whose deadline is over.
        waits_for: which manager does not know deadlines, for people; empty: all do. Until then none is forced.
    """

    def __init__(
        self, cluster: Cluster, topology: Topology, placement: Placement, waits_for: Callable[[], str]
    ) -> None:
        self._cluster = cluster
        self._topology = topology
        self._placement = placement
        self._waits_for = waits_for
        self.due_at = inf
        """When another drain is forced, in seconds on this node's clock."""
        self._due: Mapping[NodeId, float] = {}
        """When each drain that is to be forced is, and was."""

    def look(self, now: float) -> set[NodeId]:
        """Find out which drains are forced by now; returns the nodes of which that is news."""
        forcing = {
            node: each.due for node, each in self._topology.intents.items() if each.intent.force and each.due < inf
        }
        if forcing and self._waits_for():
            forcing = {}
        self._due = forcing
        forced = {node for node, due in forcing.items() if due <= now}
        self.due_at = min((due for due in forcing.values() if due > now), default=inf)
        news = forced ^ self._placement.forced
        if news:
            self._placement.force(forced)
            for node in sorted(news & forced):
                left = len(self._cluster.on_node.get(node, ()))
                log.warning("the deadline of a drain is over: what is left goes", node=node, slices=left)
        return news

    def outlived(self, artifact: Artifact, fleet: Fleet, now: float) -> tuple[Service, ...]:
        """The services that are to stop before the artifact's instances do, since they need its service.

        None where any node takes instances: there what is taken away is replaced. Those that need each other in a
        circle do not wait for each other. Just before the first deadline all that runs is to stop: of other nodes the
        same may be about to be heard.
        """
        if not self._due:
            return ()
        first, until = min(self._due.values(), default=inf), now + TOGETHER
        if first > until or any(node.open for node in fleet.nodes.values()):
            return ()
        service, dependencies = artifact.service, self._cluster.dependencies
        others = first if first > now else inf
        found = {
            each.service
            for each in dependencies.dependents(service)
            if each.service != service
            and any(
                self._due.get(key.node, others) <= until and put.value.state in MAY_RUN
                for key, put in self._cluster.group(each).slices.items()
                if key.node in fleet.nodes
            )
        }
        # What the service needs itself, by whatever way, is in a circle with it.
        return tuple(sorted(each for each in found if not self._needs(service, each)))

    def freed_by(self, artifact: Artifact) -> Iterator[Artifact]:
        """The artifacts that may go next, since an instance of this one is gone."""
        if self._due:
            for service in self._cluster.dependencies.of(artifact):
                yield from self._cluster.versions_of(service)

    def _needs(self, service: Service, other: Service) -> bool:
        """Whether the service needs the other one, by whatever way."""
        return any(each.service == service for each in self._cluster.dependencies.downstream(other))
