"""Which nodes get new instances of a version that has rules. Pure.

In this order, compared and never averaged: hard rules; a node on which it failed, if it runs elsewhere; each spread;
preferences; the strategy; fewest instances of the version; fewest slices; round robin.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from cdm.allocation.balances import balances_of
from cdm.allocation.case import Case
from cdm.allocation.evenly import Allocation
from cdm.allocation.neighbours import Neighbours
from cdm.allocation.site import Site
from cdm.allocation.strategy import EVEN, AllocationStrategy, by_strategy
from cdm.allocation.tree import Branch, Key, Leaf

# Instances, then slices, then the node's turn, in one number: heaps compare it faster than a tuple.
_BITS = 24
_TURN = (1 << _BITS) - 1
_NUMBER = (1 << 3 * _BITS) - 1
_ONE_MORE = (1 << 2 * _BITS) + (1 << _BITS)


def choose(case: Case, count: int) -> Allocation:
    """Place ``count`` new instances; fewer only where hard rules leave no node for them."""
    if count <= 0:
        return Allocation({}, None)
    return by_strategy(case.strategy, lambda strategy: _Choice(case, strategy).place(count))


class _Choice:
    """One decision. A node is known by its place in lists, which are in the order in which it is nodes' turn.

    Args:
        case: the facts.
        strategy: the one to go by.
    """

    def __init__(self, case: Case, strategy: AllocationStrategy) -> None:
        self._case = case
        self._strategy = strategy
        self._neighbours = Neighbours(case)
        self._sites, self._room = self._with_room()
        self._given = [0] * len(self._sites)
        self._last: int | None = None
        spreads = case.rules.spread
        self._domains = [[site.labels.get(spread.by) for spread in spreads] for site in self._sites] if spreads else []
        self._balances = balances_of(case, zip(self._sites, self._room, strict=True))
        self._scores = [self._score(site) for site in self._sites]
        self._best = max(self._scores, default=0)

    def place(self, count: int) -> Allocation:
        """Place as many as can be."""
        sites, shun = self._sites, self._case.shun
        everyone = range(len(sites))
        if shun and self._case.runs_elsewhere:
            left = self._place_on([i for i in everyone if sites[i].node not in shun], count)
            # Those come first on which it failed longest ago, instead of the one whose turn it is.
            last_resort = sorted((i for i in everyone if sites[i].node in shun), key=lambda i: shun[sites[i].node])
            self._place_on(last_resort, left)
        else:
            self._place_on(everyone, count)
        counts = {site.node: given for site, given in zip(sites, self._given, strict=True) if given}
        return Allocation(counts, None if self._last is None else sites[self._last].node)

    def _with_room(self) -> tuple[list[Site], list[int]]:
        """The nodes that fit by their labels and that have room, and how much they have."""
        case = self._case
        all_, room, allow = case.sites.all, case.room, self._neighbours.allow
        nodes = case.sites.fitting(case.rules.require)
        start = bisect_right(nodes, case.cursor) if case.cursor else 0
        sites: list[Site] = []
        rooms: list[int] = []
        for node in (*nodes[start:], *nodes[:start]):
            site = all_[node]
            free = room(site)
            if free and allow(site):
                sites.append(site)
                rooms.append(free)
        return sites, rooms

    def _score(self, site: Site) -> int:
        rules = self._case.rules
        score = self._case.sites.scores(rules.prefer)[site.node] if rules.prefer else 0
        return score + self._neighbours.wishes(site)

    def _place_on(self, nodes: Sequence[int], count: int) -> int:
        """Place so many on these nodes, given in their turn; returns how many are left."""
        while count:
            left = self._serve(self._tree(nodes), nodes, count)
            if left == count:
                break
            count = left
        return count

    def _serve(self, tree: Branch | Leaf, nodes: Sequence[int], count: int) -> int:
        """Place until nobody takes any more, or until some other node looks better than it did."""
        given, room, balances, moving = self._given, self._room, self._balances, self._neighbours.moving
        numbers = self._strategy is EVEN
        better = False
        while count and not better and tree.best() is not None:
            leaf = tree if isinstance(tree, Leaf) else tree.first()
            key = leaf.heap[0]
            number = key if numbers else key[-1]
            self._last = i = nodes[number & _TURN]
            given[i] += 1
            room[i] -= 1
            count -= 1
            for position, balance in enumerate(balances):
                balance.add(self._domains[i][position])
            if moving:
                better = self._neighbours.placed(self._sites[i])
            if not room[i]:
                leaf.replace(None)
            else:
                leaf.replace(key + _ONE_MORE if numbers else self._key(i, number + _ONE_MORE))
        return count

    def _tree(self, nodes: Sequence[int]) -> Branch | Leaf:
        """Those of the nodes that have room, ready to be served."""

        def look(key: Key) -> Key | None:
            """Looks at a node anew after the service itself, its neighbour, got another instance."""
            number = key & _NUMBER if isinstance(key, int) else key[-1]
            i = nodes[number & _TURN]
            if not self._neighbours.allow(self._sites[i]):
                return None
            self._scores[i] = self._score(self._sites[i])
            return self._key(i, number)

        values = [balance.next for balance in self._balances]
        again = look if self._neighbours.moving else None
        tree: Branch | Leaf = Branch(values, again) if values else Leaf(again)
        mine = self._case.mine
        failed = {} if self._case.runs_elsewhere else self._case.shun
        for turn, i in enumerate(nodes):
            if self._room[i]:
                site, given = self._sites[i], self._given[i]
                count = mine.get(site.node, 0) + (site.node in failed) + given
                leaf = tree if isinstance(tree, Leaf) else tree.leaf(self._domains[i])
                leaf.heap.append(self._key(i, (count << 2 * _BITS) + (site.total + given << _BITS) + turn))
        tree.ready()
        return tree

    def _key(self, i: int, number: int) -> Key:
        """What a node is compared by; ``number``: instances, slices, and turn."""
        worse = self._best - self._scores[i]
        if self._strategy is EVEN:
            return (worse << 3 * _BITS) + (number & _NUMBER)
        return worse, self._strategy.rank(self._case.artifact, self._sites[i], number >> 2 * _BITS), number
