from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cdm.allocation.case import Case
from cdm.allocation.choice import choose
from cdm.allocation.installed import strategy_named
from cdm.allocation.moving import HARD_RULE, PREFERENCES, STRATEGY, Relocation, moves
from cdm.allocation.removal import surplus
from cdm.allocation.site import Site
from cdm.allocation.strategy import Rank
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SliceKey
from cdm.model.rules import Neighbour, Preference, Rules, Spread
from tests.unit.placing import OWN, by_label, carried_out, case, cases, require, site
from tests.unit.support import APP, n

BY_ZONE = (Spread("zone"),)


def slices_of(given_: Case) -> list[SliceKey]:
    return [SliceKey(node, APP, ordinal) for node, count in given_.mine.items() for ordinal in range(count)]


def after(given_: Case, made: Sequence[Relocation]) -> Case:
    change: Counter[NodeId] = Counter()
    for move in made:
        change[move.slice.node] -= 1
        change[move.to] += 1
    return carried_out(given_, change)


def moved(given_: Case, most: int = 100) -> list[Relocation]:
    return moves(given_, slices_of(given_), most)


def counted(given_: Case) -> list[int]:
    return [given_.mine.get(each.node, 0) for each in given_.sites]


def test_all_replicas_on_one_node_are_put_right() -> None:
    given_ = case(Rules(), 6, *(site(i) for i in range(3)), mine={n(1): 6})
    made = moved(given_)
    assert counted(after(given_, made)) == [2, 2, 2]
    assert [move.slice.ordinal for move in made] == [5, 4, 3, 2]
    assert {move.why for move in made} == {STRATEGY}


def test_nothing_is_moved_where_all_is_balanced() -> None:
    for counts in ([2, 2, 2], [3, 2, 2], [2, 3, 2]):
        mine = {n(i): count for i, count in enumerate(counts)}
        assert not moved(case(Rules(), sum(counts), *(site(i) for i in range(3)), mine=mine))


def test_a_region_that_was_lost_and_comes_back_gets_its_share_and_nobody_else_is_moved() -> None:
    zones = [site(i, "abc"[i % 3]) for i in range(6)]
    rules = Rules(spread=(Spread("zone", {"a": 2, "*": 1}),))
    lost = case(rules, 8, *(each for each in zones if each.labels["zone"] != "c"), mine={n(0): 2, n(3): 2, n(1): 2})
    lost.sites.gone(n(2), zones[2].labels)
    lost.sites.gone(n(5), zones[5].labels)
    without = carried_out(lost, choose(lost, 2).counts)
    assert by_label(without, without.mine) == {"a": 5, "b": 3}
    assert not moved(without)
    back = case(rules, 8, *zones, mine=without.mine)
    made = moved(back)
    assert by_label(back, after(back, made).mine) == {"a": 4, "b": 2, "c": 2}
    assert len(made) == 2
    assert {move.why for move in made} == {"spread by zone"}


def test_a_share_that_is_kept_for_a_region_moves_nobody_while_it_is_down() -> None:
    sites = [site(0, "a"), site(1, "b")]
    down = case(Rules(spread=(Spread("zone", anyway=False),)), 6, *sites, mine={n(0): 2, n(1): 2})
    down.sites.gone(n(2), {"node": n(2), "zone": "c"})
    assert not moved(down)
    assert not choose(down, 2).counts


def test_the_most_wanted_move_comes_first() -> None:
    rules = Rules(require=require("!bad"), spread=BY_ZONE, prefer=(Preference(require("fast")[0], 1),), max_per_node=3)
    sites = [
        site(0, "a", labels={"bad": ""}),
        site(1, "a"),
        site(2, "a", labels={"fast": ""}),
        site(3, "b"),
        site(4, "b", labels={"fast": ""}),
    ]
    given_ = case(rules, 6, *sites, mine={n(0): 1, n(1): 2, n(2): 2, n(3): 1})
    made = moved(given_)
    assert [move.why for move in made] == [HARD_RULE, "spread by zone", PREFERENCES, PREFERENCES]
    assert moves(given_, slices_of(given_), 9, off_forbidden=False)[0].why == "spread by zone"
    assert [moved(given_, most) for most in range(5)] == [made[:most] for most in range(5)]


def test_what_is_within_the_skew_is_not_moved() -> None:
    sites = [site(0, "a"), site(1, "b")]
    for skew, count in ((1, 2), (2, 1), (3, 0)):
        given_ = case(Rules(spread=(Spread("zone", max_skew=skew),)), 6, *sites, mine={n(0): 5, n(1): 1})
        assert len(moved(given_)) == count


def test_load_is_no_reason_to_move() -> None:
    sites = [site(0, load=1.0), site(1, load=0.0)]
    given_ = case(Rules(), 2, *sites, mine={n(0): 1, n(1): 1}, strategy=strategy_named("least-loaded"))
    assert not moved(given_)


def test_a_cheaper_node_that_joined_is_moved_to() -> None:
    sites = [site(0, labels={"cost": "2"}), site(1, labels={"cost": "1"}, capacity=1)]
    given_ = case(Rules(), 2, *sites, mine={n(0): 2}, strategy=strategy_named("cheapest"))
    assert counted(after(given_, moved(given_))) == [1, 1]


def test_a_strategy_that_contradicts_itself_comes_to_an_end() -> None:
    class Restless:
        name = "restless"

        def __init__(self) -> None:
            self.rank_of = itertools.count(9**9, -1)

        def rank(self, artifact: Artifact, site: Site, count: int) -> Rank:
            return next(self.rank_of)

    given_ = case(Rules(), 3, *(site(i) for i in range(3)), mine={n(0): 3}, strategy=Restless())
    assert len(moved(given_)) <= 3


def test_instances_that_were_not_counted_are_moved_and_taken_away_all_the_same() -> None:
    keys = [SliceKey(n(0), APP, ordinal) for ordinal in range(4)]
    given_ = case(Rules(spread=BY_ZONE), 4, site(0, "a"), site(1, "b"))
    assert len(moves(given_, keys, 9)) == 2
    assert surplus(given_, 3, [keys]) == keys[:0:-1]


@pytest.mark.parametrize("near", [True, False])
def test_an_instance_is_no_neighbour_of_its_own(near: bool) -> None:
    wish = (Neighbour(OWN, "zone"),)
    rules = Rules(near=wish) if near else Rules(apart=wish)
    sites = [site(0, "a"), site(1, "a"), site(2, "b")]
    for mine in ({n(0): 1}, {n(0): 1, n(2): 1}):
        given_ = case(rules, len(mine), *sites, mine=mine, of_service={OWN: mine})
        made = moved(given_)
        assert [move.why for move in made] == ([PREFERENCES] if near and len(mine) > 1 else [])
        assert not moved(after(given_, made))


def test_nothing_is_moved_to_a_node_on_which_it_failed() -> None:
    given_ = case(Rules(), 4, *(site(i) for i in range(3)), mine={n(0): 4}, shun={n(1): 1.0}, runs_elsewhere=True)
    assert {move.to for move in moved(given_)} == {n(2)}


def test_two_that_are_to_be_apart_are_not_moved_within_their_zone() -> None:
    rules = Rules(apart=(Neighbour(OWN, "zone", hard=True),), prefer=(Preference(require("fast")[0], 1),))
    sites = [site(0, "a"), site(1, "a", labels={"fast": ""}), site(2, "b")]
    alone = case(rules, 1, *sites, mine={n(0): 1}, of_service={OWN: {n(0): 1}})
    assert not moved(alone)
    both = case(rules, 2, *sites, mine={n(0): 1, n(1): 1}, of_service={OWN: {n(0): 1, n(1): 1}})
    assert [(move.to, move.why) for move in moved(both)] == [(n(2), HARD_RULE)]


def test_what_has_no_room_elsewhere_stays() -> None:
    sites = [site(0), site(1, capacity=1, total=1), site(2, open=False)]
    assert not moved(case(Rules(), 3, *sites, mine={n(0): 3}))


@given(cases())
def test_no_move_breaks_a_hard_rule_and_all_together_leave_nothing_to_move(drawn: tuple[Case, int]) -> None:
    given_, _ = drawn
    given_ = replace(given_, wanted=sum(given_.mine.values()), shun={}, runs_elsewhere=True)
    made = moved(given_)
    assert len({move.slice for move in made}) == len(made)
    for number, move in enumerate(made):
        now = after(given_, made[:number])
        assert move.slice.node != move.to
        # It is placed beside what is there, before that goes.
        after_it = carried_out(now, {move.to: 1})
        each = after_it.sites.all[move.to]
        assert each.open
        assert all(condition.holds(each.labels) for condition in given_.rules.require)
        assert now.room(now.sites.all[move.to]) > 0
    if all(move.why != HARD_RULE for move in made):
        assert not moved(after(given_, made))


@st.composite
def small(draw: st.DrawFn) -> Case:
    nodes = [site(i, draw(st.sampled_from("ab")), capacity=draw(st.sampled_from([None, 3]))) for i in range(4)]
    mine = {each.node: count for each in nodes if (count := draw(st.integers(0, 3)))}
    nodes = [replace(each, total=mine.get(each.node, 0)) for each in nodes]
    prefer = draw(st.sampled_from([(), (Preference(require("node in (n0, n1)")[0], 1),)]))
    spread = draw(st.sampled_from([(), BY_ZONE, (Spread("zone", {"a": 2, "b": 1}),)]))
    return case(Rules(spread=spread, prefer=prefer), sum(mine.values()), *nodes, mine=mine)


def neighbouring(given_: Case, counts: Mapping[NodeId, int]) -> Iterator[dict[NodeId, int]]:
    for source, count in counts.items():
        for each in given_.sites:
            have = counts.get(each.node, 0)
            if count and each.node != source and (each.capacity is None or have < each.capacity):
                yield {**counts, source: count - 1, each.node: have + 1}


@pytest.mark.slow
@given(small())
def test_no_shorter_list_of_moves_leaves_nothing_to_move(given_: Case) -> None:
    made = moved(given_)
    seen = {tuple(counted(given_))}
    level: list[dict[NodeId, int]] = [dict(given_.mine)]
    for distance in range(len(made)):
        following: list[dict[NodeId, int]] = []
        for counts in level:
            change = {each.node: counts.get(each.node, 0) - given_.mine.get(each.node, 0) for each in given_.sites}
            reached = carried_out(given_, change)
            assert moved(reached), f"{counts} is reached by {distance} moves, not {len(made)}"
            for further in neighbouring(given_, counts):
                state = tuple(further.get(each.node, 0) for each in given_.sites)
                if state not in seen:
                    seen.add(state)
                    following.append(further)
        level = following
