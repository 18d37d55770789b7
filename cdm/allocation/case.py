"""What is decided about: one version of a service, its rules, and the nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from cdm.allocation.site import Freed, Site
from cdm.allocation.sites import Sites
from cdm.allocation.strategy import EVEN, AllocationStrategy
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SliceKey
from cdm.model.quantity import millicores
from cdm.model.rules import Needs, Rules

NO_LIMIT = 1_000_000
"""More instances than any blueprint may want."""

_NOTHING_FREED = Freed(0)


class Case(Struct, frozen=True):
    """The facts of a decision; nothing changes them."""

    artifact: Artifact
    rules: Rules
    sites: Sites
    wanted: int
    """Instances of this version that there are to be in all: what the shares of a spread are shares of."""
    mine: Mapping[NodeId, int] = {}
    """Instances of this version by node, with those on missing nodes that are waited for."""
    beside: Mapping[NodeId, int] = {}
    """Other instances by node that count for `Rules.max_per_node` and for nothing else: those of the version's other
    template, and failed ones that wait."""
    of_service: Mapping[str, Mapping[NodeId, int]] = {}
    """Instances of services (``group:name``), all versions, by node: of those that are neighbours in the rules."""
    leaving: Mapping[str, Mapping[NodeId, int]] = {}
    """Instances of services that are to be `apart`, by node, that are being stopped: until they are gone nothing comes
    beside them, and what is there already is told of none."""
    cursor: NodeId | None = None
    """The node that was served last; among equals the next one in name order comes first."""
    shun: Mapping[NodeId, float] = {}
    """Nodes on which it failed, and when."""
    runs_elsewhere: bool = False
    """Whether it runs anywhere: then it is the node that fails it, and such nodes are the last resort. Else a failure
    weighs as much as an instance."""
    retried: Mapping[NodeId, Freed] = {}
    """Failed slices by node that are due again."""
    strategy: AllocationStrategy = EVEN
    each: bool = False
    """Whether one instance is wanted on each of certain nodes."""

    def having(self, slices: Iterable[SliceKey]) -> Case:
        """The case with at least these instances: whoever asks about some need not have counted all of them."""
        there = Counter(key.node for key in slices)
        if all(self.mine.get(node, 0) >= count for node, count in there.items()):
            return self
        return replace(self, mine=dict(Counter(self.mine) | there))

    def placed(self, counts: Mapping[NodeId, int]) -> Case:
        """The case after these new instances were placed; for a look at what more there is room for."""
        if not counts:
            return self
        needs, own = self.rules.needs or Needs(), str(self.artifact.service)
        sites, retried = self.sites.copy(), dict(self.retried)
        for node, count in counts.items():
            site, freed = sites.all[node], self.retried.get(node, _NOTHING_FREED)
            again = min(count, freed.slices)
            retried[node] = freed._replace(slices=freed.slices - again)
            sites.put(
                replace(
                    site,
                    total=site.total + count - again,
                    cpu_reserved=site.cpu_reserved + needs.cpu * count - freed.cpu * again,
                    memory_reserved=site.memory_reserved + needs.memory * count - freed.memory * again,
                )
            )
        of_service = dict(self.of_service)
        if own in of_service:
            of_service[own] = dict(Counter(of_service[own]) + Counter(counts))
        mine = dict(Counter(self.mine) + Counter(counts))
        left = {node: freed for node, freed in retried.items() if freed.slices}
        return replace(self, sites=sites, mine=mine, of_service=of_service, retried=left)

    def on_node(self, node: NodeId) -> int:
        """How many instances on a node count for `Rules.max_per_node`."""
        return self.mine.get(node, 0) + self.beside.get(node, 0)

    def rooms(self, sites: Sequence[Site]) -> list[int]:
        """How many more instances each of the nodes has room for: `room`, for many nodes at once."""
        rules = self.rules
        if rules.max_per_node is not None or self.retried:
            return [self.room(site) for site in sites]
        found = [NO_LIMIT if site.capacity is None else max(site.capacity - site.total, 0) for site in sites]
        needs = rules.needs
        if needs is not None and (cpu := millicores(needs.cpu)):
            free = [0 if each.cpu is None else millicores(each.cpu) - millicores(each.cpu_reserved) for each in sites]
            found = [min(room, max(each, 0) // cpu) for room, each in zip(found, free, strict=True)]
        if needs is not None and (memory := needs.memory):
            free = [0 if each.memory is None else each.memory - each.memory_reserved for each in sites]
            found = [min(room, max(each, 0) // memory) for room, each in zip(found, free, strict=True)]
        return found

    def room(self, site: Site) -> int:
        """How many more instances a node has room for, be it open or not; `NO_LIMIT` where nothing limits it."""
        held = self.retried.get(site.node, _NOTHING_FREED)
        room = NO_LIMIT
        if site.capacity is not None:
            room = min(room, site.capacity - site.total + held.slices)
        rules = self.rules
        if rules.max_per_node is not None:
            room = min(room, rules.max_per_node - self.on_node(site.node))
        needs = rules.needs
        if needs is not None and room > 0:
            if cpu := millicores(needs.cpu):
                free = None if site.cpu is None else millicores(site.cpu) - millicores(site.cpu_reserved)
                room = min(room, _fits(free, cpu, held.slices, millicores(held.cpu)))
            if needs.memory:
                free = None if site.memory is None else site.memory - site.memory_reserved
                room = min(room, _fits(free, needs.memory, held.slices, held.memory))
        return max(room, 0)

    def too_many(self, site: Site, mine: int) -> int:
        """How many instances are too many on a node, by number and by what is reserved there; below 1: none.

        Args:
            site: the node.
            mine: instances that are counted there.
        """
        rules, found = self.rules, 0
        if rules.max_per_node is not None:
            found = mine - rules.max_per_node
        if (needs := rules.needs) is not None:
            if (cpu := millicores(needs.cpu)) and site.cpu is not None:
                found = max(found, -((millicores(site.cpu) - millicores(site.cpu_reserved)) // cpu))
            if needs.memory and site.memory is not None:
                found = max(found, -((site.memory - site.memory_reserved) // needs.memory))
        return found


def _fits(free: int | None, need: int, slices: int, held: int) -> int:
    """How many instances fit that need so much; so many of them may take over what a failed slice holds."""
    if free is None:
        return 0
    if not slices:
        return free // need
    if need <= held:
        return slices + max(free // need, 0) if free >= 0 else 0
    taken_over = free // (need - held)
    return taken_over if taken_over <= slices else slices + (free - slices * (need - held)) // need
