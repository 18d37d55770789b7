"""A few instances on many nodes: without looking at all of them, and with the same answer as if all were. Pure.

That can be where nodes that have no instance yet, and on which none failed, are enough for what every domain lacks: of
these the one with the fewest slices comes first, and `Sites.ranked` has them in that order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from math import inf

from cdm.allocation.balances import balance_of
from cdm.allocation.case import Case
from cdm.allocation.evenly import Allocation, Ranking
from cdm.allocation.neighbours import Neighbours
from cdm.allocation.shares import Balance
from cdm.allocation.sites import PREFERRED_BITS, Domain, score
from cdm.allocation.strategy import EVEN
from cdm.model.artifact import NodeId

FEW = 32
"""Most instances that are placed like this, and most domains."""

_Turn = tuple[int, bool, NodeId]
"""What nodes without an instance are compared by: preferences and slices, and whose turn it is."""


def choose_few(case: Case, count: int) -> Allocation | None:
    """Place ``count`` new instances; None: all nodes have to be looked at."""
    rules = case.rules
    neighbours = Neighbours(case)
    if count > FEW or case.strategy is not EVEN or neighbours.soft or neighbours.moving:
        return None
    if len(rules.spread) > 1 or not case.retried.keys() <= case.shun.keys():
        return None
    if not rules.spread:
        return _take(_Queues(case, neighbours, case.sites.ranked(rules.require, rules.prefer, None)), None, count)
    (spread,) = rules.spread
    balance = balance_of(case, spread, None)
    if len(balance.counts) > FEW or (case.shun and not case.runs_elsewhere):
        return None
    queues = _Queues(case, neighbours, case.sites.ranked(rules.require, rules.prefer, spread.by))
    if spread.anyway:
        # What a domain has no room for would be others' share.
        for domain, share in balance.share.items():
            if not queues.has(domain, share + (domain in balance.tied) - balance.counts[domain]):
                return None
    return _take(queues, balance, count)


def _take(queues: _Queues, balance: Balance | None, count: int) -> Allocation | None:
    given: dict[NodeId, int] = {}
    least = queues.occupied_level
    for _ in range(count):
        best: tuple[float, _Turn, Domain] | None = None
        for domain in queues.domains:
            value = 0.0 if balance is None else balance.next(domain)
            if value is None:
                continue
            if not queues.has(domain, 1):
                return None
            turn = queues.first(domain)
            if best is None or (value, turn) < best[:2]:
                best = value, turn, domain
        if best is None or best[1][0] >> PREFERRED_BITS > least:
            return None
        # A node that has an instance is better than one that is less preferred.
        least = best[1][0] >> PREFERRED_BITS
        node = best[1][2]
        given[node] = 1
        queues.take(best[2])
        if balance is not None:
            balance.add(best[2])
    return Allocation(given, node)


class _Queues:
    """For each domain the nodes that have no instance, and that take one, in order.

    Args:
        case: the facts.
        neighbours: of the case.
        ranked: the open nodes that have room for slices, by domain.
    """

    def __init__(self, case: Case, neighbours: Neighbours, ranked: Mapping[Domain, Ranking]) -> None:
        self._case = case
        self._neighbours = neighbours
        self._coming = {domain: self._able(ranking) for domain, ranking in ranked.items()}
        self._queues: dict[Domain, deque[_Turn]] = {domain: deque() for domain in ranked}

    @property
    def occupied_level(self) -> float:
        """How little is preferred of the best node that has an instance, or failed with one."""
        case, prefer = self._case, self._case.rules.prefer
        if not prefer:
            return inf
        nodes = case.mine.keys() if case.runs_elsewhere else case.mine.keys() | case.shun.keys()
        return min((-score(prefer, case.sites.labels(node)) for node in nodes), default=inf)

    @property
    def domains(self) -> Iterator[Domain]:
        """Those that have open nodes."""
        return iter(self._queues)

    def has(self, domain: Domain, count: int) -> bool:
        """Whether there are still so many."""
        queue = self._queues.get(domain)
        if queue is None:
            return count <= 0
        while len(queue) < count:
            following = next(self._coming[domain], None)
            if following is None:
                return False
            queue.append(following)
        return True

    def first(self, domain: Domain) -> _Turn:
        """The one that comes first; `has` said that there is one."""
        return self._queues[domain][0]

    def take(self, domain: Domain) -> None:
        """The first one got an instance."""
        self._queues[domain].popleft()

    def _able(self, ranking: Ranking) -> Iterator[_Turn]:
        case, allow = self._case, self._neighbours.allow
        sites, mine, shun, cursor = case.sites.all, case.mine, case.shun, case.cursor
        limited = case.rules.needs is not None or case.rules.max_per_node is not None
        for node in ranking.in_order(cursor):
            if not mine.get(node) and node not in shun:
                site = sites[node]
                if (not limited or case.room(site)) and allow(site):
                    yield ranking.level(node), cursor is not None and node <= cursor, node
