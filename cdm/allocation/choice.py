"""Which nodes get new instances of a version that has rules. Pure.

In this order, compared and never averaged: hard rules; a node on which it failed, if it runs elsewhere; each spread;
preferences; the strategy; fewest instances of the version; fewest slices; round robin.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from heapq import heappop, heapreplace

from cdm.allocation.balances import balances_of
from cdm.allocation.case import Case
from cdm.allocation.evenly import Allocation
from cdm.allocation.exchange import Exchange
from cdm.allocation.few import choose_few
from cdm.allocation.installed import by_strategy
from cdm.allocation.neighbours import Neighbours
from cdm.allocation.site import Site
from cdm.allocation.sites import Domain
from cdm.allocation.strategy import EVEN, AllocationStrategy
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
    if (few := choose_few(case, count)) is not None:
        return few
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
        self._domains = [[site.labels.get(spread.by) for site in self._sites] for spread in case.rules.spread]
        """By spread, then by node."""
        self._balances = balances_of(case, zip(self._sites, self._room, strict=True))
        scored = case.rules.prefer or self._neighbours.soft
        self._scores = [self._score(site) for site in self._sites] if scored else [0] * len(self._sites)
        self._best = max(self._scores, default=0)

    def place(self, count: int) -> Allocation:
        """Place as many as can be."""
        sites, shun = self._sites, self._case.shun
        everyone = range(len(sites))
        if shun and self._case.runs_elsewhere:
            left = self._place_on([i for i in everyone if sites[i].node not in shun], count)
            # Those come first on which it failed longest ago, instead of the one whose turn it is.
            last_resort = sorted((i for i in everyone if sites[i].node in shun), key=lambda i: shun[sites[i].node])
            left = self._place_on(last_resort, left)
        else:
            left = self._place_on(everyone, count)
        if left:
            self._exchange(left)
        counts = {site.node: given for site, given in zip(sites, self._given, strict=True) if given}
        return Allocation(counts, None if self._last is None else sites[self._last].node)

    def _with_room(self) -> tuple[list[Site], list[int]]:
        """The nodes that fit by their labels and that have room, and how much they have."""
        case = self._case
        all_, allow = case.sites.all, self._neighbours.allow
        nodes = case.sites.fitting(case.rules.require)
        start = bisect_right(nodes, case.cursor) if case.cursor else 0
        sites = [all_[node] for node in (*nodes[start:], *nodes[:start])]
        if self._neighbours.hard:
            sites = [site for site in sites if allow(site)]
        rooms = case.rooms(sites)
        if not all(rooms):
            sites = [site for site, room in zip(sites, rooms, strict=True) if room]
            rooms = [room for room in rooms if room]
        return sites, rooms

    def _score(self, site: Site) -> int:
        rules = self._case.rules
        score = self._case.sites.scores(rules.prefer)[site.node] if rules.prefer else 0
        return score + self._neighbours.wishes(site)

    def _place_on(self, nodes: Sequence[int], count: int) -> int:
        """Place so many on these nodes, given in their turn; returns how many are left."""
        while count:
            tree = self._tree(nodes)
            left = count
            if isinstance(tree, Branch) and len(self._balances) == 1 and not self._neighbours.moving:
                left = self._give_what_they_lack(tree, nodes, left)
            tree.ready()
            left = self._serve(tree, nodes, left)
            if left == count:
                break
            count = left
        return count

    def _exchange(self, count: int) -> None:
        """Place as many of these as can be by giving others another node, the best nodes first."""
        order = sorted(range(len(self._sites)), key=lambda i: (-self._scores[i], self._sites[i].total))
        room, given = [self._room[i] for i in order], [self._given[i] for i in order]
        exchange = Exchange([self._sites[i] for i in order], room, given, self._balances, self._neighbours)
        if not exchange.may_help:
            return
        while count and exchange.one_more():
            count -= 1
        for place, i in enumerate(order):
            self._room[i], self._given[i] = room[place], given[place]

    def _give_what_they_lack(self, tree: Branch, nodes: Sequence[int], count: int) -> int:
        """Give each domain what it lacks, if there are so many: whose turn it is makes no difference then."""
        (balance,) = self._balances
        lacks = {domain: lack for domain in tree.children if (lack := balance.lacks(domain)) > 0}
        if sum(lacks.values()) > count:
            return count
        for domain, lack in lacks.items():
            leaf = tree.children[domain]
            assert isinstance(leaf, Leaf)
            leaf.ready()
            placed = lack - self._fill(leaf, nodes, lack)
            balance.counts[domain] += placed
            count -= placed
        return count

    def _fill(self, leaf: Leaf, nodes: Sequence[int], count: int) -> int:
        """Place so many on the nodes of one leaf; returns how many are left."""
        given, room, heap = self._given, self._room, leaf.heap
        numbers = self._strategy is EVEN
        while count and heap:
            key = heap[0]
            number = key if numbers else key[-1]
            i = nodes[number & _TURN]
            given[i] += 1
            room[i] -= 1
            count -= 1
            if not room[i]:
                heappop(heap)
            elif numbers:
                heapreplace(heap, key + _ONE_MORE)
            else:
                heapreplace(heap, self._key(i, number + _ONE_MORE))
            self._last = i
        return count

    def _serve(self, tree: Branch | Leaf, nodes: Sequence[int], count: int) -> int:
        """Place until nobody takes any more, or until some other node looks better than it did."""
        moving = self._neighbours.moving
        if isinstance(tree, Leaf) and not moving:
            return self._fill(tree, nodes, count)
        better = False
        while count and not better and tree.best() is not None:
            leaf = tree if isinstance(tree, Leaf) else tree.first()
            self._fill(leaf, nodes, 1)
            count -= 1
            i = self._last
            assert i is not None
            for balance, domains in zip(self._balances, self._domains, strict=True):
                balance.add(domains[i])
            if moving:
                better = self._neighbours.placed(self._sites[i])
        return count

    def _tree(self, nodes: Sequence[int]) -> Branch | Leaf:
        """Those of the nodes that have room, by their domains; it is not `ready` yet."""

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
        if not values:
            leaf = Leaf(again)
            leaf.heap += [self._key(i, number) for i, number in self._numbers(nodes)]
            return leaf
        tree = Branch(values, again)
        domains = list(zip(*self._domains, strict=True))
        heaps: dict[tuple[Domain, ...], list[Key]] = {each: tree.leaf(each).heap for each in set(domains)}
        for i, number in self._numbers(nodes):
            heaps[domains[i]].append(self._key(i, number))
        return tree

    def _numbers(self, nodes: Sequence[int]) -> Iterator[tuple[int, int]]:
        """The nodes that have room: instances, slices, and turn of each, in one number."""
        mine, failed = self._case.mine, {} if self._case.runs_elsewhere else self._case.shun
        sites, room, given = self._sites, self._room, self._given
        for turn, i in enumerate(nodes):
            if room[i]:
                site = sites[i]
                node = site.node
                count = mine.get(node, 0) + (node in failed) + given[i]
                yield i, (count << 2 * _BITS) + (site.total + given[i] << _BITS) + turn

    def _key(self, i: int, number: int) -> Key:
        """What a node is compared by; ``number``: instances, slices, and turn."""
        worse = self._best - self._scores[i]
        if self._strategy is EVEN:
            return (worse << 3 * _BITS) + (number & _NUMBER)
        return worse, self._strategy.rank(self._case.artifact, self._sites[i], number >> 2 * _BITS), number
