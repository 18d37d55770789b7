"""Where instances go that have no rules, and which ones go first: pure functions, called by reconciliation.

Spreading is water-filling: the nodes with the fewest instances of the artifact are raised together, level by level;
within a level those with the fewest slices in all come first, and then the order in which the hosts are given, which
the caller rotates (round robin). One pass costs what the number of hosts costs, not what the number of instances
does.

Most placements are small and find enough nodes that have equally few instances of the artifact. For these `Ranking`
keeps the nodes in order, so that the cost is that of the placement and not of the cluster; the answer is the same.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey


class Host(NamedTuple):
    """A node that takes new slices, as one artifact's allocation sees it."""

    node: NodeId
    mine: int
    """Live instances of the artifact on it."""
    total: int
    """Slices of all artifacts on it."""
    free: int | None = None
    """How many more slices it takes; None: no limit."""


class Allocation(NamedTuple):
    """Who gets how many."""

    counts: dict[NodeId, int]
    """New instances by node; hosts that get none are left out."""
    last: NodeId | None
    """The host that was served last."""


def allocate(count: int, hosts: Sequence[Host]) -> Allocation:
    """Spread ``count`` new instances over the hosts; fewer are placed only when every host is full."""
    # Hosts are known by their position. `pool` holds those that are being raised, all to the same level and in order.
    waiting = sorted(range(len(hosts)), key=lambda i: hosts[i].mine, reverse=True)
    total = [host.total for host in hosts]
    free = [count if host.free is None else host.free for host in hosts]
    given = [0] * len(hosts)
    pool: list[int] = []
    level = 0
    last: int | None = None
    while count > 0:
        if not pool:
            if not waiting:
                break
            level = hosts[waiting[-1]].mine
        joining = len(pool)
        while waiting and hosts[waiting[-1]].mine <= level:
            position = waiting.pop()
            if free[position] > 0:
                pool.append(position)
        if not pool:
            continue
        if len(pool) > joining:
            pool.sort(key=lambda i: (total[i], i))
        rounds = min(count // len(pool), *(free[i] for i in pool))
        if waiting:
            rounds = min(rounds, hosts[waiting[-1]].mine - level)
        if rounds == 0:
            for i in pool[:count]:
                given[i] += 1
            last = pool[count - 1]
            break
        for i in pool:
            total[i] += rounds
            free[i] -= rounds
            given[i] += rounds
        last = pool[-1]
        count -= rounds * len(pool)
        level += rounds
        pool = [i for i in pool if free[i] > 0]
    counts = {hosts[i].node: n for i, n in enumerate(given) if n}
    return Allocation(counts, None if last is None else hosts[last].node)


class Ranking:
    """Open nodes by the number of their slices, kept in order while that number changes."""

    def __init__(self) -> None:
        self._levels: dict[int, list[NodeId]] = {}
        self._total: dict[NodeId, int] = {}

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._total)

    def put(self, node: NodeId, total: int) -> None:
        """The node is open and has so many slices in all."""
        before = self._total.get(node)
        if before == total:
            return
        levels = self._levels
        if before is not None:
            left = levels[before]  # as `_take_out` does, which would be called for each new slice
            del left[bisect_left(left, node)]
            if not left:
                del levels[before]
        self._total[node] = total
        level = levels.get(total)
        if level is None:
            levels[total] = [node]
        else:
            insort(level, node)

    def drop(self, node: NodeId) -> None:
        """The node takes nothing any more."""
        total = self._total.pop(node, None)
        if total is not None:
            self._take_out(node, total)

    def _take_out(self, node: NodeId, total: int) -> None:
        level = self._levels[total]
        del level[bisect_left(level, node)]
        if not level:
            del self._levels[total]

    def level(self, node: NodeId) -> int:
        """What a node was put with."""
        return self._total[node]

    def pick(
        self, count: int, mine: Mapping[NodeId, int], cursor: NodeId | None, shun: Collection[NodeId] = ()
    ) -> list[NodeId] | None:
        """The first ``count`` of the nodes that have the fewest instances of an artifact; None: those are fewer.

        They are what `allocate` would choose.

        Args:
            count: how many.
            mine: the artifact's instances by node.
            cursor: the node that was served last.
            shun: nodes that are left out.
        """
        if count > len(self._total):
            return None
        if not mine and not shun:
            return self._first(count, cursor)
        least = 0
        if len(mine) >= len(self._total):  # else there is a node without any
            least = min((mine.get(node, 0) for node in self._total if node not in shun), default=0)
        free = (node for node in self.in_order(cursor) if mine.get(node, 0) == least and node not in shun)
        found = list(islice(free, count))
        return found if len(found) == count else None

    def _first(self, count: int, cursor: NodeId | None) -> list[NodeId]:
        """The first ``count`` of all, which must be that many: in one piece, where they have equally many slices."""
        found: list[NodeId] = []
        for total in sorted(self._levels):
            level = self._levels[total]
            start = bisect_right(level, cursor) if cursor is not None else 0
            found += level[start : start + count - len(found)]
            found += level[: min(start, count - len(found))]
            if len(found) == count:
                break
        return found

    def in_order(self, cursor: NodeId | None) -> Iterator[NodeId]:
        """Those with the fewest slices first, and among them the one behind the cursor."""
        for total in sorted(self._levels):
            level = self._levels[total]
            start = bisect_right(level, cursor) if cursor is not None else 0
            yield from islice(level, start, None)
            yield from islice(level, start)


def free_ordinals(count: int, in_use: Iterable[int]) -> list[int]:
    """The ``count`` lowest ordinals that are not in use."""
    used = set(in_use)
    if not used:
        return list(range(count))
    found: list[int] = []
    ordinal = 0
    while len(found) < count:
        if ordinal not in used:
            found.append(ordinal)
        ordinal += 1
    return found


def choose_removals(
    count: int,
    ranked: Sequence[Sequence[SliceKey]],
    totals: Callable[[NodeId], int],
) -> list[SliceKey]:
    """Pick ``count`` slices of one artifact to remove.

    Args:
        count: how many.
        ranked: all live slices of the artifact in classes; an earlier class goes before a later one.
        totals: how many slices of all artifacts are on a node.

    Within a class the fullest node gives first (most instances of the artifact, then most slices in all, then the
    last in name order), and on a node the highest ordinal.
    """
    mine: dict[NodeId, int] = {}
    for group in ranked:
        for key in group:
            mine[key.node] = mine.get(key.node, 0) + 1
    total = {node: totals(node) for node in mine}
    order = {node: rank for rank, node in enumerate(sorted(mine, reverse=True))}
    chosen: list[SliceKey] = []
    for group in ranked:
        if len(chosen) == count:
            break
        on_node: dict[NodeId, list[SliceKey]] = {}
        for key in group:
            on_node.setdefault(key.node, []).append(key)
        for keys in on_node.values():
            keys.sort(key=lambda key: key.ordinal)
        heap = [(-mine[node], -total[node], order[node], node) for node in on_node]
        heapq.heapify(heap)
        while heap and len(chosen) < count:
            node = heap[0][3]
            chosen.append(on_node[node].pop())
            mine[node] -= 1
            total[node] -= 1
            if on_node[node]:
                heapq.heapreplace(heap, (-mine[node], -total[node], order[node], node))
            else:
                heapq.heappop(heap)
    return chosen
