"""How much room each node has for slices; commands that the mirror does not show yet are counted in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from math import inf

from cdm.allocation.evenly import Ranking
from cdm.allocation.sites import Sites
from cdm.manager.cluster import Cluster
from cdm.manager.group import Group
from cdm.manager.ledger import Ledger, more
from cdm.manager.plan import Command
from cdm.manager.siting import Siting, nodes_for_each
from cdm.manager.standing import Fleet, LiveNode, exclusive, runs_unheard_for
from cdm.manager.topology import Missing, Registered, Topology
from cdm.model.artifact import Artifact, NodeId, Service
from cdm.model.keys import SliceKey
from cdm.model.node import Schedule
from cdm.model.rules import Needs, Rules
from cdm.model.slice import SliceState

# On the hot path: before Python 3.12, looking a member up on its class takes ten times as long.
_LOAD, _UNLOAD = SliceState.LOAD, SliceState.UNLOAD


class Placement:
    """Keeps up, change by change, what would be too slow to work out for every decision.

    Args:
        cluster: which slices are where.
        topology: which nodes there are.
    """

    def __init__(self, cluster: Cluster, topology: Topology) -> None:
        self._cluster = cluster
        self._topology = topology
        self._nodes: dict[NodeId, LiveNode] | None = None
        self._draining: list[NodeId] = []
        self.forced: AbstractSet[NodeId] = frozenset()
        """Nodes that are to be emptied at once."""
        self._hearsay: frozenset[NodeId] = frozenset()
        """Missing nodes whose registration this process never saw."""
        self._ranking = Ranking()
        self._recount: set[NodeId] = set()
        """Nodes whose number of slices may be another one than the ranking has."""
        self._expected: dict[Artifact, set[SliceKey]] = {}
        """New slices that were commanded and that the mirror does not show yet."""
        self._extra: Counter[NodeId] = Counter()
        """The same, counted by node."""
        self._coming = Ledger()
        """What commanded slices reserve, beyond what the mirror shows."""
        self._anew: dict[Artifact, dict[SliceKey, Needs | None]] = {}
        """Slices that the mirror shows, and that were commanded to be loaded anew, and what they are to reserve."""
        self._stopping: dict[Artifact, set[SliceKey]] = {}
        """Slices that must not run twice, and were commanded to be unloaded; the mirror does not show that yet."""
        self._siting = Siting(cluster, topology, self.total, self._coming, self.expected)
        self._fleet: Fleet | None = None
        """What the latest decision was made with."""
        self._moved = False
        """Whether nodes are others, or other ones, than when sites were last asked for."""

    @property
    def nodes(self) -> dict[NodeId, LiveNode]:
        """All nodes that are not dead and run slices, in name order.

        What is left on a node that came back as a manager alone is treated like a dead node's.
        """
        if self._nodes is None:
            self._nodes = {
                node: self._live(node, presence)
                for node, presence in sorted(self._topology.nodes.items())
                if not isinstance(presence, Registered) or presence.registration.hosts
            }
            self._draining = [node for node, live in self._nodes.items() if live.draining]
            missing = ((node, each) for node, each in self._topology.nodes.items() if isinstance(each, Missing))
            self._hearsay = frozenset(node for node, each in missing if each.hearsay)
            self._ranking = Ranking()
            self._recount.update(self._nodes)
            self._moved = True
        return self._nodes

    def fleet(self, *, settling: bool) -> Fleet:
        """The nodes as they are now, for one decision; ``settling``: which is to place nothing yet."""
        nodes, ranking, fleet = self.nodes, self.ranking(), self._fleet
        lost, connected_since = self._topology.lost, self._topology.connected_since
        same = fleet is not None and fleet.nodes is nodes and fleet.lost is lost and fleet.settling is settling
        if fleet is None or not same or fleet.connected_since != connected_since:
            fleet = self._fleet = Fleet(
                nodes,
                self.total,
                lost,
                ranking,
                settling,
                self.sites,
                self.of_service,
                self.leaving,
                self.others_of,
                self.promised,
                connected_since,
            )
        return fleet

    def sites(self) -> Sites:
        """The same nodes as rules see them."""
        nodes = self.nodes
        moved, self._moved = self._moved, False
        return self._siting.sites(nodes, anew=moved)

    def of_service(self, service: Service) -> Mapping[NodeId, int]:
        """How many instances of a service are on each node, or are about to be."""
        return self._siting.of_service(service, self.nodes)

    def leaving(self, service: Service) -> Mapping[NodeId, int]:
        """How many instances of a service are being stopped on each node, and may still serve."""
        return self._siting.leaving(service, self.nodes)

    def others_of(self, artifacts: Iterable[Artifact], own: Container[SliceKey]) -> Iterator[NodeId]:
        """The nodes of all slices of artifacts but these, whatever their state."""
        for artifact in artifacts:
            yield from (key.node for key in self.taken(artifact) if key not in own)

    def nodes_for_each(self, artifacts: Iterable[Artifact], rules: Rules) -> frozenset[NodeId]:
        """The nodes on each of which one instance is wanted, of one of these artifacts."""
        holding = {
            key.node
            for artifact in artifacts
            for key, put in self._cluster.group(artifact).slices.items()
            if put.value.state.live
        }
        return nodes_for_each(self.sites(), rules, holding)

    def heard(self, node: NodeId) -> None:
        """A node's heart beat: it may be busier than it was."""
        self._siting.heard(node)

    def refresh(self) -> None:
        """A node joined, went, or was given another intent."""
        self._nodes = None

    def force(self, nodes: AbstractSet[NodeId]) -> None:
        """These nodes are to be emptied at once, and no others."""
        self.forced = nodes
        self.refresh()

    def total(self, node: NodeId) -> int:
        """How many slices of all artifacts are on a node, commanded ones included."""
        return len(self._cluster.on_node.get(node, ())) + self._extra[node]

    def ranking(self) -> Ranking:
        """The open nodes that have room, in order."""
        nodes = self.nodes
        ranking, on_node, extra = self._ranking, self._cluster.on_node, self._extra
        for node in self._recount:
            live, total = nodes.get(node), len(on_node.get(node, ())) + extra[node]  # as `total` has it
            if live is not None and live.open and (live.capacity is None or total < live.capacity):
                ranking.put(node, total)
            else:
                ranking.drop(node)
        self._recount.clear()
        return ranking

    def drains(self, artifact: Artifact) -> bool:
        """Whether the artifact has slices on a draining node."""
        if not (self.nodes and self._draining):
            return False
        on_node = self._cluster.on_node
        return any(key.artifact == artifact for node in self._draining for key in on_node.get(node, ()))

    def promised(self, own: Container[SliceKey]) -> int:
        """How many places are meant for what is being stopped on draining nodes, since it must not run twice.

        Args:
            own: slices whose places are not counted.
        """
        found = 0
        for node in self._draining if self.nodes else ():
            for key in self._cluster.on_node.get(node, ()):
                put = self._cluster.group(key.artifact).slices.get(key)
                if put is not None and key not in own and runs_unheard_for(put):
                    stops = put.value.state in (_UNLOAD, SliceState.UNLOADING)
                    found += stops or key in self._stopping.get(key.artifact, ())
        return found

    def counted(self, group: Group, *, with_exclusive: bool = False) -> Group:
        """The artifact's slices without those on nodes whose registration this process never saw.

        Such a slice may be out of an old backup: it takes no instance's place, and is left alone until its node
        registers or is dead.

        Args:
            group: all slices.
            with_exclusive: keep those that must not run twice and may run.
        """
        if not (self.nodes and self._hearsay):
            return group
        hearsay = self._hearsay
        return group.only(lambda put: put.key.node not in hearsay or (with_exclusive and exclusive(put)))

    def expect(self, commands: Iterable[Command]) -> None:
        """These are commanded, or are about to be: until the mirror shows what is new it is counted here."""
        artifact: Artifact | None = None
        extra, coming, new = self._extra, self._coming, []
        reserves = not coming.empty
        for command in commands:
            if command.state is not _LOAD:
                if command.state is _UNLOAD and command.overrides is not None and command.overrides.gone_after:
                    self._stopping.setdefault(command.key.artifact, set()).add(command.key)
                continue
            key = command.key
            if key.artifact is not artifact:  # most often all are of one
                artifact = key.artifact
                known, expected = self._cluster.group(artifact).slices, self._expected.get(artifact)
            if key in known:
                self._anew.setdefault(key.artifact, {})[key] = command.needs
                if command.needs is not None:
                    self._reserve_anew(key, command.needs)
                continue
            if expected is not None and key in expected:
                continue
            if expected is None:
                expected = self._expected[key.artifact] = set()
            node = key.node
            expected.add(key)
            extra[node] += 1
            if reserves or command.needs is not None:
                coming.note(key, command.needs)
            new.append(node)
        self._changed_all(new)

    @property
    def expecting(self) -> list[Artifact]:
        """The artifacts of which anything is commanded, or about to be, that the mirror does not show yet."""
        return [*{**self._expected, **self._anew, **self._stopping}]

    def _reserve_anew(self, key: SliceKey, needs: Needs) -> None:
        """Count what a slice that is there was commanded to reserve beyond what the mirror shows."""
        self._coming.note(key, more(needs, self._cluster.reserved.of(key)))
        self._changed(key.node)

    def taken(self, artifact: Artifact) -> Collection[SliceKey]:
        """The keys of the artifact's slices, commanded ones included."""
        known, expected = self._cluster.group(artifact).slices, self._expected.get(artifact)
        return known.keys() | expected if expected else known

    def seen(self, key: SliceKey) -> None:
        """The mirror shows the slice, or shows it no more."""
        if self._stopping:
            self._stopping.get(key.artifact, set()).discard(key)
        expected = self._expected.get(key.artifact)
        if expected is not None and key in expected:
            expected.remove(key)
            self._extra[key.node] -= 1
            self._coming.note(key, None)
            if key in self._cluster.on_node.get(key.node, ()):
                self._siting.changed((key.node,))  # it was counted when it was commanded: the ranking stays as it is
                return
        elif self._anew and (needs := self._anew.get(key.artifact, {}).get(key)):
            self._reserve_anew(key, needs)
        self._changed(key.node)

    def expected(self, artifact: Artifact) -> frozenset[SliceKey]:
        """Slices of the artifact that were commanded to be loaded, new or again, and that the mirror may not show."""
        return frozenset((*self._expected.get(artifact, ()), *self._anew.get(artifact, ())))

    def _changed(self, node: NodeId) -> None:
        """There are more slices on the node than before, or fewer, or they reserve something else."""
        self._changed_all((node,))

    def _changed_all(self, nodes: Iterable[NodeId]) -> None:
        """The same of several nodes."""
        self._recount.update(nodes)
        self._siting.changed(nodes)

    def release(self, artifact: Artifact) -> None:
        """The mirror shows all that was commanded of the artifact."""
        self._stopping.pop(artifact, None)
        for key in self._expected.pop(artifact, ()):
            self._extra[key.node] -= 1
            self._coming.note(key, None)
            self._changed(key.node)
        for key in self._anew.pop(artifact, ()):
            self._coming.note(key, None)
            self._changed(key.node)

    def _live(self, node: NodeId, presence: Registered | Missing) -> LiveNode:
        schedule = self._topology.schedule(node)
        if not isinstance(presence, Registered):
            return LiveNode(node, open=False, draining=False, registered=False)
        draining = schedule is Schedule.DRAIN
        return LiveNode(
            node,
            schedule is Schedule.NORMAL,
            draining,
            presence.registration.capacity,
            forced=draining and node in self.forced,
            since=presence.back if self._topology.connected_since > -inf else -inf,
        )
