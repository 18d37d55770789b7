"""Which instances to move so that the rules are kept better: the fewest that do, the most wanted first. Pure.

First what a hard rule forbids to be where it is; then, spread after spread, from domains that have too many to those
that lack some; then, within the same domains, to nodes that are preferred, that the strategy puts first, or that have
fewer instances. What is within the skew of a spread is not moved over its domains. How busy nodes are is no reason to
move: that changes with each move.

The room that a move leaves behind is not counted on: an instance goes only when the one that replaces it is healthy.
What is moved first can be moved as things are; what follows counts on the moves before it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from msgspec.structs import replace

from cdm.allocation.balances import balance_of, balances_of
from cdm.allocation.case import Case
from cdm.allocation.installed import by_strategy
from cdm.allocation.neighbours import Neighbours
from cdm.allocation.sites import Domain, holds, score
from cdm.allocation.strategy import EVEN, AllocationStrategy, Rank
from cdm.allocation.verdict import broken
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey


class Relocation(NamedTuple):
    """An instance that is to be somewhere else."""

    slice: SliceKey
    to: NodeId
    why: str
    """``a hard rule``, ``spread by zone``, ``preferences``, or ``strategy``: the first rule that is kept better."""


HARD_RULE = "a hard rule"
PREFERENCES = "preferences"
STRATEGY = "strategy"

TRIES = 50
"""So many ways to make one move for a spread are tried where spreads that wait forbid some."""


def moves(
    case: Case,
    slices: Iterable[SliceKey],
    most: int,
    *,
    off_forbidden: bool = True,
    avoid: Container[NodeId] = frozenset(),
) -> list[Relocation]:
    """What to move, at most so much; nothing where the rules are kept as well as they can be.

    Nothing is moved to a node on which the version failed.

    Args:
        case: the facts; ``wanted`` is how many instances there are to be.
        slices: those that may be moved: healthy ones on nodes that are there.
        most: how many.
        off_forbidden: whether those are moved that are where a hard rule forbids it; else they stay, whatever else
            there is to be said for another node.
        avoid: nodes to which nothing is moved.
    """
    movable = list(slices)
    case = case.having(movable)
    if not movable or _is_settled(case, movable):
        return []
    return by_strategy(
        case.strategy,
        lambda strategy: _Moving(case, strategy, movable, most, avoid).decide(off_forbidden=off_forbidden),
    )


def takes(case: Case, node: NodeId) -> bool:
    """Whether a node takes one more instance by all hard rules, those spreads among them that wait."""
    site, rules = case.sites.all.get(node), case.rules
    if site is None or not site.open or not holds(rules.require, site.labels) or not case.room(site):
        return False
    waiting = [balance_of(case, spread, None) for spread in rules.spread if not spread.anyway]
    return Neighbours(case).allow(site) and all(
        balance.next(site.labels.get(balance.spread.by)) is not None for balance in waiting
    )


def _is_settled(case: Case, slices: Iterable[SliceKey]) -> bool:
    """Whether a look at where the instances are shows that none is to be moved; else all nodes have to be looked at."""
    rules = case.rules
    if case.strategy is not EVEN or max(case.mine.values(), default=0) > 1 or Neighbours(case).soft or broken(case):
        return False
    for spread in rules.spread:
        balance = balance_of(case, spread, None)
        if any(balance.off(domain) for domain in balance.counts):
            return False
    if rules.prefer:
        best = case.sites.best_score(rules.require, rules.prefer)
        return all(score(rules.prefer, case.sites.labels(key.node)) >= best for key in slices)
    return True


_Group = dict[Domain, list[NodeId]]


class _Moving:
    """One decision: moves are made one by one, on counts of its own.

    Args:
        case: the facts.
        strategy: the one to go by.
        slices: those that may be moved.
        most: how many of them.
        avoid: nodes to which nothing is moved.
    """

    def __init__(
        self,
        case: Case,
        strategy: AllocationStrategy,
        slices: Sequence[SliceKey],
        most: int,
        avoid: Container[NodeId],
    ) -> None:
        self._case = case
        self._strategy = strategy
        self._most = most
        self._sites = case.sites.all
        self._mine = dict(case.mine)
        self._steps = 4 * len(slices)
        """So many are made at most: a strategy that contradicts itself would go on for ever."""
        self._neighbours, self._after = Neighbours(case), Neighbours(case)
        """With what is moved still where it was, and without."""
        self._movable: dict[NodeId, list[SliceKey]] = {}
        for key in sorted(slices, key=lambda key: key.ordinal):
            if key.node in self._sites:
                self._movable.setdefault(key.node, []).append(key)
        self._arrived: dict[NodeId, list[SliceKey]] = {}
        """Slices that are moved, by where they are moved to."""
        self._why: dict[SliceKey, str] = {}
        fitting = [
            node for node in case.sites.fitting(case.rules.require) if node not in case.shun and node not in avoid
        ]
        room = case.rooms([self._sites[node] for node in fitting])
        self._room = {node: free for node, free in zip(fitting, room, strict=True) if free}
        takers = [(self._sites[node], free) for node, free in self._room.items()]
        self._balances = balances_of(case, [each for each in takers if self._neighbours.allow(each[0])])
        self._some_wait = any(not balance.spread.anyway for balance in self._balances)
        self._nodes = sorted({*self._movable, *self._room})
        self._domains: dict[NodeId, tuple[Domain, ...]] = {}
        for node in self._nodes:
            labels = self._sites[node].labels
            self._domains[node] = tuple(labels.get(balance.spread.by) for balance in self._balances)
        self._by_level: dict[int, list[_Group]] = {}
        self._empty: dict[NodeId, tuple[object, ...]] = {}
        """What nodes without an instance are compared by, within their domains."""

    def decide(self, *, off_forbidden: bool) -> list[Relocation]:
        """Make moves until all is as it should be."""
        if off_forbidden:
            self._keep_hard_rules()
        else:
            self._leave_forbidden()
        for level in range(len(self._balances)):
            while self._left and self._spread(level):
                pass
        for cell in self._cells():
            while self._left and self._improve(cell):
                pass
        at = {key: node for node, keys in self._arrived.items() for key in keys}
        return [Relocation(key, at[key], why) for key, why in self._why.items() if at[key] != key.node]

    @property
    def _left(self) -> bool:
        return len(self._why) < self._most and self._steps > 0

    def _groups(self, level: int) -> list[_Group]:
        """The nodes that are in the same domains of the spreads before a level, by their domain of that one."""
        found = self._by_level.get(level)
        if found is None:
            groups: dict[tuple[Domain, ...], _Group] = {}
            for node in self._nodes:
                domains = self._domains[node]
                groups.setdefault(domains[:level], {}).setdefault(domains[level], []).append(node)
            found = self._by_level[level] = list(groups.values())
        return found

    def _cells(self) -> Iterable[list[NodeId]]:
        """The nodes that are in the same domains of all spreads."""
        found: dict[tuple[Domain, ...], list[NodeId]] = {}
        for node in self._nodes:
            found.setdefault(self._domains[node], []).append(node)
        return found.values()

    def _keep_hard_rules(self) -> None:
        for node in [node for node in self._nodes if self._has(node)]:
            too_many = self._case.too_many(self._sites[node], self._mine[node])
            while self._left and self._has(node) and (too_many > 0 or self._forbidden(node)):
                if (to := self._elsewhere(node)) is None:
                    break
                self._move(node, to, HARD_RULE)
                too_many -= 1

    def _leave_forbidden(self) -> None:
        """Have nothing moved that is where a hard rule forbids it to be."""
        for node, keys in self._movable.items():
            if self._forbidden(node):
                keys.clear()
            elif (too_many := self._case.too_many(self._sites[node], self._mine[node])) > 0:
                del keys[-too_many:]

    def _elsewhere(self, node: NodeId) -> NodeId | None:
        """Where an instance goes that must leave its node; None: nowhere."""
        return self._to([each for each in self._nodes if each != node and self._takes(each)], node)

    def _to(self, able: Iterable[NodeId], source: NodeId) -> NodeId | None:
        """The best of these nodes for an instance of the source, as spreads let it be; None: there is none."""
        for balance, domain in zip(self._balances, self._domains[source], strict=True):
            balance.remove(domain)
        allowed = [each for each in able if self._values(each) is not None] if self._some_wait else able
        to = min(self._candidates(allowed), key=lambda each: self._first(each, source), default=None)
        for balance, domain in zip(self._balances, self._domains[source], strict=True):
            balance.add(domain)
        return to

    def _forbidden(self, node: NodeId) -> bool:
        site = self._sites[node]
        return not (holds(self._case.rules.require, site.labels) and self._after.allow(site, without=site))

    def _spread(self, level: int) -> bool:
        """Make the most wanted move for a spread that keeps those before it as they are; returns whether there is."""
        balance = self._balances[level]
        best: tuple[float, NodeId, NodeId] | None = None
        for group in self._groups(level):
            for give, take, gain in self._wanted(level, group):
                if best is not None and gain <= best[0]:
                    continue
                having = [node for node in group[give] if self._has(node)]
                able = [node for node in group[take] if self._takes(node)]
                if (move := self._allowed(having, able)) is not None:
                    best = gain, *move
                    break
        if best is None:
            return False
        self._move(best[1], best[2], f"spread by {balance.spread.by}")
        return True

    def _wanted(self, level: int, group: _Group) -> Iterator[tuple[Domain, Domain, float]]:
        """Which domain of a spread is to give an instance to which, and how much that is wanted: the most first.

        More than one pair only where a spread that waits may forbid the first.
        """
        balance = self._balances[level]
        givers = [domain for domain, nodes in group.items() if any(map(self._has, nodes))]
        takers = [domain for domain, nodes in group.items() if any(map(self._takes, nodes))]
        values = {domain: value for domain in takers if (value := balance.next(domain)) is not None}
        if not givers or not values:
            return

        def spares(domain: Domain) -> tuple[float, bool, str]:
            return balance.first_to_go(domain), domain is not None, domain or ""

        def lacks(domain: Domain) -> tuple[float, bool, str]:
            return values[domain], domain is None, domain or ""

        if self._some_wait:
            giving, taking = sorted(givers, key=spares, reverse=True), sorted(values, key=lacks)
        else:
            giving, taking = [max(givers, key=spares)], [min(values, key=lacks)]
        lacking = [domain for domain in taking if balance.off(domain) < 0]
        without_harm = [domain for domain in taking if values[domain] <= 0]
        pairs = (
            (give, take, balance.first_to_go(give) - values[take])
            for give in giving
            for take in (without_harm if balance.off(give) > 0 else lacking if balance.first_to_go(give) >= 0 else ())
            if give != take
        )
        yield from islice(pairs, TRIES)

    def _allowed(self, having: Sequence[NodeId], able: Sequence[NodeId]) -> tuple[NodeId, NodeId] | None:
        """The best node of one domain to give, and of another to take; None: spreads that wait forbid all pairs."""
        if not self._some_wait:
            source = max(having, key=self._last)
            return source, self._best_of(able, source)
        alike: set[tuple[Domain, ...]] = set()
        for source in sorted(having, key=self._last, reverse=True):
            if self._domains[source] not in alike and len(alike) < TRIES:
                alike.add(self._domains[source])
                if (to := self._to(able, source)) is not None:
                    return source, to
        return None

    def _improve(self, cell: Sequence[NodeId]) -> bool:
        """Make the most wanted move between nodes that are in the same domains; returns whether there is one."""
        sources = [node for node in cell if self._has(node)]
        if not sources:
            return False
        source = max(sources, key=self._last)
        able = [node for node in cell if node != source and self._takes(node)]
        if not able:
            return False
        if self._some_wait and self._to(able, source) is None:
            return False
        to = self._best_of(able, source)
        if (there_is := self._score(to, source)) != (here_is := self._score(source, source)):
            better, why = there_is > here_is, PREFERENCES
        else:
            there, here = self._mine.get(to, 0), self._mine[source] - 1
            better, why = (self._rank(to, there), there) < (self._rank(source, here), here), STRATEGY
        if better:
            self._move(source, to, why)
        return better

    def _move(self, source: NodeId, to: NodeId, why: str) -> None:
        self._steps -= 1
        if self._movable.get(source):
            key = self._movable[source].pop()
            self._why[key] = why
        else:
            key = self._arrived[source].pop()
        self._arrived.setdefault(to, []).append(key)
        self._room[to] -= 1
        self._mine[source] -= 1
        self._mine[to] = self._mine.get(to, 0) + 1
        self._neighbours.placed(self._sites[to])
        self._after.placed(self._sites[to])
        self._after.left(self._sites[source])
        for number, balance in enumerate(self._balances):
            balance.remove(self._domains[source][number])
            balance.add(self._domains[to][number])

    def _has(self, node: NodeId) -> bool:
        return bool(self._movable.get(node) or self._arrived.get(node))

    def _takes(self, node: NodeId) -> bool:
        return self._room.get(node, 0) > 0 and self._neighbours.allow(self._sites[node])

    def _score(self, node: NodeId, source: NodeId) -> int:
        """What is to be said for a node, for an instance that is on the source."""
        site = self._sites[node]
        return score(self._case.rules.prefer, site.labels) + self._after.wishes(site, without=self._sites[source])

    def _rank(self, node: NodeId, count: int) -> Rank:
        site = self._sites[node]
        if site.load is not None:
            site = replace(site, load=None)
        return self._strategy.rank(self._case.artifact, site, count)

    def _values(self, node: NodeId) -> list[float] | None:
        """How the node's domains stand; None: one of them must not have more."""
        found = [each.next(domain) for each, domain in zip(self._balances, self._domains[node], strict=True)]
        values = [value for value in found if value is not None]
        return values if len(values) == len(found) else None

    def _best_of(self, nodes: Sequence[NodeId], source: NodeId) -> NodeId:
        return min(self._candidates(nodes), key=lambda node: self._first(node, source))

    def _candidates(self, nodes: Iterable[NodeId]) -> Iterable[NodeId]:
        """The nodes among which the first of these is: of those without an instance one for all that is alike."""
        if self._neighbours.soft:
            return nodes  # how they are compared changes with each move
        mine, empty, domains = self._mine, self._empty, self._domains
        found: list[NodeId] = []
        best: dict[tuple[Domain, ...], NodeId] = {}
        for node in nodes:
            if mine.get(node):
                found.append(node)
                continue
            if node not in empty:
                empty[node] = self._in_itself(node)
            known = best.get(domains[node])
            if known is None or empty[node] < empty[known]:
                best[domains[node]] = node
        return [*found, *best.values()]

    def _in_itself(self, node: NodeId) -> tuple[object, ...]:
        """What a node without an instance is compared by, but for how its domains stand: as in `_first`."""
        site = self._sites[node]
        return -score(self._case.rules.prefer, site.labels), self._rank(node, 0), site.total, node

    def _first(self, node: NodeId, source: NodeId) -> tuple[object, ...]:
        """The lowest is the one that is to get the source's instance."""
        count = self._mine.get(node, 0)
        values = self._values(node)
        total = self._sites[node].total
        return values is None, values or [], -self._score(node, source), self._rank(node, count), count, total, node

    def _last(self, node: NodeId) -> tuple[object, ...]:
        """The highest is the one that is to give an instance."""
        count = self._mine[node] - 1
        spare = [each.first_to_go(domain) for each, domain in zip(self._balances, self._domains[node], strict=True)]
        return spare, -self._score(node, node), self._rank(node, count), count, self._sites[node].total, node
