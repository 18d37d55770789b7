from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.allocation.evenly import Allocation, Host, Ranking, allocate, choose_removals, free_ordinals
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey
from tests.unit.support import APP, n

small = st.integers(0, 6)
rooms = st.none() | st.integers(0, 8)


@st.composite
def host_lists(
    draw: st.DrawFn, mine: st.SearchStrategy[int] = small, free: st.SearchStrategy[int | None] = rooms
) -> list[Host]:
    count = draw(st.integers(0, 9))
    names = draw(st.permutations([n(i) for i in range(count)]))
    return [Host(name, draw(mine), draw(st.integers(0, 12)), draw(free)) for name in names]


def naive(count: int, hosts: Sequence[Host]) -> tuple[dict[NodeId, int], NodeId | None]:
    """Even spread, one instance at a time: fewest of the artifact, then fewest in all, then in order."""
    given_out: Counter[NodeId] = Counter()
    last: NodeId | None = None
    for _ in range(count):
        able = [
            (host.mine + given_out[host.node], host.total + given_out[host.node], position, host.node)
            for position, host in enumerate(hosts)
            if host.free is None or given_out[host.node] < host.free
        ]
        if not able:
            break
        last = min(able)[3]
        given_out[last] += 1
    return dict(given_out), last


@given(st.integers(0, 60), host_lists())
def test_allocation_equals_placing_one_by_one(count: int, hosts: list[Host]) -> None:
    assert allocate(count, hosts) == Allocation(*naive(count, hosts))


@given(st.integers(0, 200), host_lists(mine=st.just(0), free=st.none()))
def test_from_nothing_counts_differ_by_at_most_one(count: int, hosts: list[Host]) -> None:
    counts = allocate(count, hosts).counts
    spread = [counts.get(host.node, 0) for host in hosts]
    if hosts:
        assert sum(spread) == count
        assert max(spread) - min(spread) <= 1


@given(st.integers(0, 100), host_lists())
def test_capacity_is_never_exceeded_and_never_wasted(count: int, hosts: list[Host]) -> None:
    counts = allocate(count, hosts).counts
    placed = sum(counts.values())
    assert placed <= count
    for host in hosts:
        assert host.free is None or counts.get(host.node, 0) <= host.free
    if placed < count:
        assert all(host.free is not None and counts.get(host.node, 0) == host.free for host in hosts)
    assert all(counts.values())
    assert set(counts) <= {host.node for host in hosts}


@pytest.mark.parametrize(
    ("count", "nodes", "spread"),
    [(5, 3, [2, 2, 1]), (3, 5, [1, 1, 1, 0, 0]), (6, 3, [2, 2, 2]), (1, 1, [1]), (7, 1, [7]), (0, 3, [0, 0, 0])],
)
def test_more_instances_than_nodes_works(count: int, nodes: int, spread: list[int]) -> None:
    hosts = [Host(n(i), 0, 0) for i in range(nodes)]
    counts = allocate(count, hosts).counts
    assert [counts.get(host.node, 0) for host in hosts] == spread


def test_ties_go_to_the_node_with_the_fewest_slices_in_all() -> None:
    assert allocate(1, [Host(n(1), 0, 5), Host(n(2), 0, 3), Host(n(3), 0, 4)]).counts == {n(2): 1}


def test_further_ties_go_to_the_first_in_the_given_order() -> None:
    assert allocate(1, [Host(n(2), 1, 1), Host(n(1), 1, 1)]) == Allocation({n(2): 1}, n(2))


def test_the_artifacts_own_count_weighs_more_than_all_slices() -> None:
    assert allocate(1, [Host(n(1), 1, 1), Host(n(2), 0, 100)]).counts == {n(2): 1}


def test_round_robin_visits_every_node_when_the_caller_rotates() -> None:
    names = [n(i) for i in range(5)]
    visited: list[NodeId] = []
    start = 0
    for _ in range(10):
        chosen = allocate(1, [Host(name, 0, 0) for name in names[start:] + names[:start]])
        assert chosen.last is not None
        visited.append(chosen.last)
        start = names.index(chosen.last) + 1
    assert visited == names * 2


def test_nothing_is_placed_where_there_is_no_node_or_no_room() -> None:
    assert allocate(3, []) == Allocation({}, None)
    assert allocate(3, [Host(n(1), 0, 2, 0)]) == Allocation({}, None)
    assert allocate(0, [Host(n(1), 0, 0)]) == Allocation({}, None)


def test_large_numbers_cost_what_the_hosts_cost() -> None:
    hosts = [Host(n(i), 0, 0) for i in range(1_000)]
    counts = allocate(100_000, hosts).counts
    assert set(counts.values()) == {100}


@given(st.integers(0, 30), st.lists(st.integers(0, 20)))
def test_the_lowest_free_ordinals_are_taken(count: int, taken: list[int]) -> None:
    found = free_ordinals(count, taken)
    assert found == [i for i in range(60) if i not in taken][:count]


Ranked = list[list[SliceKey]]


@st.composite
def rankings(draw: st.DrawFn) -> tuple[Ranked, dict[NodeId, int]]:
    keys = draw(
        st.lists(
            st.builds(SliceKey, st.integers(0, 4).map(n), st.just(APP), st.integers(0, 5)), unique=True, max_size=16
        )
    )
    classes = [draw(st.integers(0, 2)) for _ in keys]
    ranked = [[key for key, each in zip(keys, classes, strict=True) if each == rank] for rank in range(3)]
    own = Counter(key.node for key in keys)
    totals = {node: count + draw(st.integers(0, 3)) for node, count in own.items()}
    return ranked, totals


def naive_removals(count: int, ranked: Ranked, totals: dict[NodeId, int]) -> list[SliceKey]:
    """The smallest change, one removal at a time."""
    left = [list(group) for group in ranked]
    total = dict(totals)
    chosen: list[SliceKey] = []
    while len(chosen) < count and any(left):
        first = next(group for group in left if group)
        mine = Counter(key.node for group in left for key in group)
        key = max(first, key=lambda key: (mine[key.node], total[key.node], key.node, key.ordinal))
        first.remove(key)
        total[key.node] -= 1
        chosen.append(key)
    return chosen


@given(rankings(), st.integers(0, 20))
def test_removals_equal_choosing_one_by_one(given_: tuple[Ranked, dict[NodeId, int]], count: int) -> None:
    ranked, totals = given_
    assert choose_removals(count, ranked, totals.__getitem__) == naive_removals(count, ranked, totals)


@given(rankings(), st.integers(0, 20))
def test_exactly_as_many_are_removed_as_asked_for_and_none_twice(
    given_: tuple[Ranked, dict[NodeId, int]], count: int
) -> None:
    ranked, totals = given_
    chosen = choose_removals(count, ranked, totals.__getitem__)
    everything = [key for group in ranked for key in group]
    assert len(chosen) == min(count, len(everything))
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(everything)


@given(rankings(), st.integers(0, 20))
def test_an_earlier_class_is_used_up_before_a_later_one_is_touched(
    given_: tuple[Ranked, dict[NodeId, int]], count: int
) -> None:
    ranked, totals = given_
    chosen = set(choose_removals(count, ranked, totals.__getitem__))
    for earlier, later in pairwise(ranked):
        assert not chosen & set(later) or set(earlier) <= chosen


@given(st.integers(1, 5), st.integers(0, 30), st.integers(0, 30))
def test_an_even_spread_stays_even_when_it_shrinks(nodes: int, instances: int, count: int) -> None:
    placed = allocate(instances, [Host(n(i), 0, 0) for i in range(nodes)]).counts
    keys = [SliceKey(node, APP, ordinal) for node, many in placed.items() for ordinal in range(many)]
    gone = choose_removals(min(count, instances), [keys], lambda node: placed.get(node, 0))
    left = Counter(key.node for key in keys if key not in gone)
    spread = [left[n(i)] for i in range(nodes)]
    assert max(spread) - min(spread) <= 1
    for node in placed:
        kept = sorted(key.ordinal for key in keys if key.node == node and key not in gone)
        assert kept == list(range(len(kept)))


operations = st.lists(st.tuples(st.integers(0, 7).map(n), st.none() | st.integers(0, 4)), max_size=30)


counted = st.dictionaries(st.integers(0, 7).map(n), st.integers(0, 3), max_size=8)


@given(operations, st.integers(1, 9), counted, st.none() | st.integers(0, 9).map(n), st.sets(st.integers(0, 7).map(n)))
def test_the_ranking_picks_what_allocation_would_choose(
    changes: list[tuple[NodeId, int | None]],
    count: int,
    mine: dict[NodeId, int],
    cursor: NodeId | None,
    shun: set[NodeId],
) -> None:
    ranking = Ranking()
    totals: dict[NodeId, int] = {}
    for node, total in changes:
        if total is None:
            ranking.drop(node)
            totals.pop(node, None)
        else:
            ranking.put(node, total)
            totals[node] = total
    names = sorted(totals)
    order = [node for node in names if cursor is not None and node > cursor]
    order += [node for node in names if node not in order]
    hosts = [Host(node, mine.get(node, 0), totals[node]) for node in order if node not in shun]
    least = min((host.mine for host in hosts), default=0)
    picked = ranking.pick(count, mine, cursor, shun)
    if count > sum(host.mine == least for host in hosts):
        assert picked is None
    else:
        chosen = allocate(count, hosts)
        assert picked is not None
        assert dict.fromkeys(picked, 1) == chosen.counts
        assert picked[-1] == chosen.last
