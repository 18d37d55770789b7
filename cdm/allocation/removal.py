"""Which instances go when there are too many: by the rules that place them, so that a spread that held still holds.

Of the slices of one class those go first that are where a hard rule forbids it; then, by each spread, those of domains
that can spare one; then those on the least preferred nodes; then those that the strategy would have placed last; then
those on nodes with most instances of the version, and with most slices; and on a node the highest ordinal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

from cdm.allocation.balances import balances_of
from cdm.allocation.case import Case
from cdm.allocation.installed import by_strategy
from cdm.allocation.neighbours import Neighbours
from cdm.allocation.shares import Balance
from cdm.allocation.sites import Domain, holds, score
from cdm.allocation.strategy import AllocationStrategy, Rank
from cdm.allocation.tree import Branch, Key, Value
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey


def surplus(case: Case, count: int, ranked: Sequence[Sequence[SliceKey]]) -> list[SliceKey]:
    """Pick ``count`` slices to remove.

    Args:
        case: the facts; ``wanted`` is what remains, ``mine`` what there is.
        count: how many.
        ranked: all live slices of the version in classes; an earlier class goes before a later one.
    """
    if count <= 0:
        return []
    case = case.having(key for group in ranked for key in group)
    return by_strategy(case.strategy, lambda strategy: _Removal(case, strategy).take(count, ranked))


class _Removal:
    """One decision.

    Args:
        case: the facts.
        strategy: the one to go by.
    """

    def __init__(self, case: Case, strategy: AllocationStrategy) -> None:
        self._case = case
        self._strategy = strategy
        self._balances = balances_of(case, None)
        self._mine = dict(case.mine)
        self._gone: dict[NodeId, int] = {}
        self._turn = {node: turn for turn, node in enumerate(sorted(self._mine, reverse=True))}
        neighbours = Neighbours(case)
        self._scores: dict[NodeId, float] = {}
        self._forbidden: set[NodeId] = set()
        """Nodes on which a hard rule forbids instances to be."""
        for node in self._mine:
            site = case.sites.all.get(node)
            if site is None or not (holds(case.rules.require, site.labels) and neighbours.allow(site, without=site)):
                self._forbidden.add(node)
            self._scores[node] = -inf
            if site is not None:
                self._scores[node] = score(case.rules.prefer, site.labels) + neighbours.wishes(site, without=site)

    def take(self, count: int, ranked: Sequence[Sequence[SliceKey]]) -> list[SliceKey]:
        """Take so many, class by class."""
        chosen: list[SliceKey] = []
        for group in ranked:
            if len(chosen) == count:
                break
            slices = self._by_node(group)
            tree = self._tree(slices)
            while len(chosen) < count and tree.best() is not None:
                leaf = tree.first()
                node, allowed = leaf.heap[0][-2:]
                chosen.append(slices[node, allowed].pop())
                self._mine[node] -= 1
                self._gone[node] = self._gone.get(node, 0) + 1
                for balance, domain in zip(self._balances, self._domains(node), strict=True):
                    balance.remove(domain)
                leaf.replace(self._key(node, allowed=allowed) if slices[node, allowed] else None)
        return chosen

    def _by_node(self, group: Iterable[SliceKey]) -> dict[tuple[NodeId, bool], list[SliceKey]]:
        """The slices of each node, the highest ordinal last; those that may be there, and those that may not."""
        found: dict[tuple[NodeId, bool], list[SliceKey]] = {}
        for key in sorted(group, key=lambda key: key.ordinal):
            found.setdefault((key.node, key.node not in self._forbidden), []).append(key)
        rules, sites = self._case.rules, self._case.sites.all
        if rules.max_per_node is not None or rules.needs is not None:
            for node in [node for node, allowed in found if allowed and node in sites]:
                gone = self._gone.get(node, 0)
                there = self._mine[node] + self._case.beside.get(node, 0)
                if (over := self._case.too_many(sites[node], there + gone) - gone) > 0:
                    slices = found[node, True]
                    fewer = max(len(slices) - over, 0)
                    found[node, False] = slices[fewer:]
                    found[node, True] = slices[:fewer]
        return {place: slices for place, slices in found.items() if slices}

    def _tree(self, slices: Iterable[tuple[NodeId, bool]]) -> Branch:
        """Ready to be served. What a hard rule forbids comes before all domains: that is the first level."""
        values: list[Value] = [_not_allowed, *(_spare(balance) for balance in self._balances)]
        tree = Branch(values, lambda key: self._key(key[-2], allowed=key[-1]))
        for node, allowed in slices:
            domains = [_ALLOWED if allowed else None, *self._domains(node)]
            tree.leaf(domains).heap.append(self._key(node, allowed=allowed))
        tree.ready()
        return tree

    def _domains(self, node: NodeId) -> list[Domain]:
        labels = self._case.sites.labels(node)
        return [labels.get(balance.spread.by) for balance in self._balances]

    def _key(self, node: NodeId, *, allowed: bool) -> Key:
        count, site = self._mine[node], self._case.sites.all.get(node)
        if site is None:
            return self._scores[node], 0.0, -count, 0, self._turn[node], node, allowed
        last = _reversed(self._strategy.rank(self._case.artifact, site, count))
        total = site.total - self._gone.get(node, 0)
        return self._scores[node], last, -count, -total, self._turn[node], node, allowed


_ALLOWED = "allowed"


def _not_allowed(domain: Domain) -> float:
    return 0.0 if domain is None else 1.0


def _spare(balance: Balance) -> Value:
    return lambda domain: -balance.first_to_go(domain)


def _reversed(rank: Rank) -> Rank:
    """So that the highest comes first."""
    return tuple(-each for each in rank) if isinstance(rank, tuple) else -rank
