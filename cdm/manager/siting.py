"""Nodes as rules see them, kept change by change; nothing is kept until the first blueprint has rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from cdm.allocation.site import Site
from cdm.allocation.sites import Sites
from cdm.manager.cluster import Cluster
from cdm.manager.ledger import Ledger
from cdm.manager.standing import LiveNode
from cdm.manager.topology import Registered, Topology
from cdm.model.artifact import Artifact, NodeId, Service
from cdm.model.keys import SliceKey
from cdm.model.node import GIVES_SECRETS, RUNS_SIGNED, Registration
from cdm.model.rules import NODE_LABEL, SECRETS_LABEL, TRUST_LABEL, Rules
from cdm.model.slice import SliceState

_LEAVING = (SliceState.UNLOAD, SliceState.UNLOADING)
_UNKNOWN = Registration()
"""What is known of a node that was never registered in this process's time."""


class Siting:
    """The nodes for `cdm.allocation`.

    Args:
        cluster: which slices are where, and what they reserve.
        topology: which nodes there are.
        total: how many slices are on a node, commanded ones included.
        coming: what commanded slices reserve that the mirror does not show.
        expected: slices of an artifact that were commanded to be loaded, new or again; the mirror may not show it.
    """

    def __init__(
        self,
        cluster: Cluster,
        topology: Topology,
        total: Callable[[NodeId], int],
        coming: Ledger,
        expected: Callable[[Artifact], Iterable[SliceKey]],
    ) -> None:
        self._cluster = cluster
        self._topology = topology
        self._total = total
        self._coming = coming
        self._expected = expected
        self._sites: Sites | None = None
        self._known: set[NodeId] = set()
        """Nodes that the sites have, be they there or gone."""
        self._stale: set[NodeId] = set()

    def changed(self, nodes: Iterable[NodeId]) -> None:
        """What is on these nodes, or how busy they are, is another thing."""
        if self._sites is not None:
            self._stale.update(nodes)

    def heard(self, node: NodeId) -> None:
        """The node's heart beat."""
        if self._sites is not None and (site := self._sites.all.get(node)) is not None:
            presence = self._topology.nodes.get(node)
            if isinstance(presence, Registered) and presence.registration.load != site.load:
                self._stale.add(node)

    def sites(self, nodes: Mapping[NodeId, LiveNode], *, anew: bool) -> Sites:
        """The nodes now.

        Args:
            nodes: those that are not dead and run slices.
            anew: whether they are others, or other ones, than before.
        """
        sites = self._sites
        if sites is None:
            sites, anew = Sites(), True
            self._sites = sites
        if anew:
            self._follow(sites, nodes)
        for node in self._stale:
            if (live := nodes.get(node)) is not None:
                sites.put(self._site(live))
        self._stale.clear()
        return sites

    def _follow(self, sites: Sites, nodes: Mapping[NodeId, LiveNode]) -> None:
        seen = self._topology.seen
        gone = {node for node, each in seen.items() if node not in nodes and each.registration.hosts}
        for node in self._known - nodes.keys() - gone:
            sites.forget(node)
        for node in gone:
            sites.gone(node, _labels(node, seen[node].registration))
        self._known = {*nodes, *gone}
        self._stale.update(nodes)

    def _site(self, live: LiveNode) -> Site:
        node, topology, reserved, coming = live.node, self._topology, self._cluster.reserved, self._coming
        presence, seen = topology.nodes.get(node), topology.seen.get(node)
        registration = seen.registration if seen is not None else _UNKNOWN
        if isinstance(presence, Registered):
            registration = presence.registration
        return Site(
            node,
            _labels(node, registration),
            live.open,
            live.draining,
            live.registered,
            live.capacity,
            self._total(node),
            registration.cpu,
            registration.memory,
            reserved.cpu(node) + coming.cpu(node),
            reserved.memory(node) + coming.memory(node),
            registration.load,
        )

    def of_service(self, service: Service, nodes: Mapping[NodeId, LiveNode]) -> Counter[NodeId]:
        """How many instances of a service, of whatever version, are on each node, or are about to be."""
        found: Counter[NodeId] = Counter()
        for artifact in self._cluster.versions_of(service):
            slices = self._cluster.group(artifact).slices
            found.update(key.node for key, put in slices.items() if put.value.state.live and key.node in nodes)
            for key in self._expected(artifact):
                put = slices.get(key)
                if put is None or not put.value.state.live:  # what failed and is tried again counts from its command on
                    found[key.node] += 1
        return found

    def leaving(self, service: Service, nodes: Mapping[NodeId, LiveNode]) -> Counter[NodeId]:
        """How many instances of a service, of whatever version, are being stopped on each node, and may still serve."""
        return Counter(
            key.node
            for artifact in self._cluster.versions_of(service)
            for key, put in self._cluster.group(artifact).slices.items()
            if put.value.state in _LEAVING and key.node in nodes
        )


def _labels(node: NodeId, registration: Registration) -> Mapping[str, str]:
    """A node's labels as conditions see them: what cdm says by a label holds, whatever the node says."""
    labels = {**registration.labels, NODE_LABEL: node}
    for label, feature in ((SECRETS_LABEL, GIVES_SECRETS), (TRUST_LABEL, RUNS_SIGNED)):
        labels.pop(label, None)
        if feature in registration.features:
            labels[label] = ""
    return labels


def nodes_for_each(sites: Sites, rules: Rules, holding: Iterable[NodeId]) -> frozenset[NodeId]:
    """The nodes on each of which one instance is wanted.

    That is every open one that fulfils the conditions, whether it has room or not. One that is cordoned, or missing,
    keeps what it has; one that is emptied, or takes no slices at all, has none.

    Args:
        sites: the nodes.
        rules: of the blueprint.
        holding: the nodes that have an instance, or are about to.
    """
    found = {node for node in sites.fitting(rules.require) if sites.all[node].capacity != 0}
    for node in holding:
        site = sites.all.get(node)
        if site is None or site.draining or site.capacity == 0:
            continue  # what is where nothing is taken could not be replaced there: rollouts would wait for it
        if not site.registered or all(condition.holds(site.labels) for condition in rules.require):
            found.add(node)
    return frozenset(found)
