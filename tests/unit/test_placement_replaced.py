"""A leader that replaces instances by rules: on nodes that drain, in rollouts, and for balance."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cdm.model.node import Registration, Schedule
from cdm.model.status import Condition
from tests.unit.placement_world import live, run_on, status, typed, world
from tests.unit.support import APP, OTHER, S, n

pytestmark = pytest.mark.quick


# Drains


@pytest.mark.parametrize(
    ("rules", "stays"),
    [
        ({"require": ["gpu"]}, True),
        ({"needs": {"cpu": 4}}, True),
        ({"require": ["!gone"]}, False),
        ({"apart": [{"from": str(APP.service), "by": "zone"}]}, False),
    ],
)
def test_what_must_not_run_twice_leaves_a_draining_node_where_the_rules_let_it_be_elsewhere(
    rules: dict[str, Any], *, stays: bool
) -> None:
    it = world(
        n1=Registration(labels={"gpu": "1", "zone": "a"}, cpu=8.0), n2=Registration(labels={"zone": "a"}, cpu=2.0)
    )
    it.intend(n(2), Schedule.CORDON)
    it.apply(APP, typed(1, stop_after=5, **rules))
    it.run_down()
    it.intend(n(2), Schedule.NORMAL)
    it.intend(n(1), Schedule.DRAIN)
    it.run_down()
    assert live(it) == ({"n1": 1} if stays else {"n2": 1})
    if stays:
        assert status(it).condition is Condition.UNSCHEDULABLE
        assert "1 cannot be moved" in status(it).reason


@pytest.mark.parametrize("rules", [{}, {"require": ["!gone"]}])
@pytest.mark.parametrize("at_once", [True, False])
def test_of_two_that_must_not_run_twice_one_leaves_for_the_one_free_place(
    rules: dict[str, Any], *, at_once: bool
) -> None:
    it = world(n1=Registration())
    for artifact in (APP, OTHER):
        it.apply(artifact, typed(1, stop_after=5, **rules))
    it.run_down()
    it.join(n(2), Registration(capacity=1))
    it.intend(n(1), Schedule.DRAIN)
    if not at_once:
        it.settle()
        it.answer()
        for artifact in (APP, OTHER):
            it.apply(artifact, typed(1, stop_after=5, min_healthy=1, **rules))
    it.run_down()
    for _ in range(5):
        it.tick(1.0)
        it.run_down()
    assert sorted([*live(it), *live(it, OTHER)]) == ["n1", "n2"]


# Rollouts


def test_where_no_surge_can_be_placed_one_goes_first() -> None:
    it = world(n1=Registration(cpu=1.0), n2=Registration(cpu=1.0))
    it.apply(APP, typed(2, needs={"cpu": 1}))
    it.run_down()
    it.apply(APP, typed(2, needs={"cpu": 0.75}))
    assert run_on(it, 3) == 1
    assert live(it) == {"n1": 1, "n2": 1}
    assert {put.value.needs.cpu for put in it.slices.values() if put.value.needs} == {0.75}
    assert status(it).condition is Condition.READY


def test_nothing_goes_for_a_new_one_that_fits_nowhere() -> None:
    it = world(n1=Registration(cpu=1.0), n2=Registration(cpu=1.0))
    it.apply(APP, typed(2, needs={"cpu": 1}))
    it.run_down()
    it.apply(APP, typed(2, needs={"cpu": 1.5}))
    assert run_on(it, 10) == 2
    assert live(it) == {"n1": 1, "n2": 1}
    assert "no room for a new one beside the old ones" in status(it).reason


@pytest.mark.parametrize("rules", [{"max_per_node": 1}, {"apart": ["org.example:slice"]}])
def test_the_most_on_a_node_counts_old_and_new_instances(rules: dict[str, Any]) -> None:
    it = world()
    it.apply(APP, typed(3, **rules))
    it.run_down()
    it.apply(APP, typed(3, restarted="again", **rules))
    fewest = 3
    for _ in range(80):
        it.settle()
        fewest = min(fewest, sum(state is S.ACTIVE for state in it.states(APP).values()))
        assert max(live(it).values()) == 1
        if not it.answer():
            it.tick(1.0)
    assert fewest == 2
    assert status(it).condition is Condition.READY


@pytest.mark.parametrize("rules", [{"max_per_node": 1}, {"apart": ["org.example:slice"]}])
def test_while_an_old_instance_stops_its_place_is_waited_for_and_no_other_one_goes(rules: dict[str, Any]) -> None:
    it = world(**dict.fromkeys(("n1", "n2", "n3", "n4"), Registration()))
    it.apply(APP, typed(3, **rules))
    it.run_down()
    it.apply(APP, typed(3, restarted="again", **rules))
    fewest = 3
    for _ in range(80):
        it.settle()
        fewest = min(fewest, sum(state is S.ACTIVE for state in it.states(APP).values()))
        if not it.answer():
            it.tick(1.0)
    assert fewest == 3
    assert status(it).condition is Condition.READY


def test_another_version_that_is_in_force_is_no_part_of_a_rollout() -> None:
    it = world()
    newer = APP.service.version("2.0.0")
    for artifact in (APP, newer):
        it.apply(artifact, typed("each"))
    it.run_down()
    it.apply(newer, typed("each", restarted="again"))
    run_on(it, 10)
    assert live(it) == live(it, newer) == {"n1": 1, "n2": 1, "n3": 1}
    assert (status(it, newer).condition, status(it, newer).outdated) == (Condition.READY, 0)


# Balance


def test_on_join_waits_until_the_node_has_been_up_for_a_minute() -> None:
    it = world(n1=Registration(), n2=Registration())
    it.apply(APP, typed(6, rebalance="on-join", min_healthy=10))
    it.run_down()
    run_on(it, 8)
    it.join(n(3), Registration())
    it.run_down()
    it.tick(50.0)
    it.run_down()
    assert "n3" not in live(it)
    assert run_on(it, 10) == 6
    assert live(it) == {"n1": 2, "n2": 2, "n3": 2}


def test_nothing_is_moved_while_a_rollout_is_under_way() -> None:
    it = world(n1=Registration(), n2=Registration())
    canary = {"kind": "canary", "steps": [{"weight": 50}, {"pause": "approve"}]}
    it.apply(APP, typed(4, min_healthy=10, rollout=canary))
    it.run_down()
    it.tick(20.0)
    it.run_down()
    it.join(n(3), Registration())
    it.apply(APP, typed(4, min_healthy=10, restarted="x", rebalanced="now", rollout=canary))
    run_on(it, 10)
    assert status(it).rebalanced is msgspec.UNSET
    it.apply(APP, typed(4, min_healthy=10, restarted="x", rebalanced="now", rollout={**canary, "approved": 1}))
    run_on(it, 20)
    assert status(it).rebalanced == "now"
    assert sorted(live(it).values()) == [1, 1, 2]


def test_a_new_leader_goes_on_with_a_rebalance_that_is_not_done() -> None:
    it = world(n1=Registration())
    it.apply(APP, typed(4, min_healthy=10))
    it.run_down()
    it.tick(10.0)
    it.join(n(2), Registration())
    it.apply(APP, typed(4, min_healthy=10, rebalanced="x"))
    it.run_down()
    assert sum(live(it).values()) == 5
    it.boot()
    it.lead()
    assert run_on(it, 10) >= 4
    assert live(it) == {"n1": 2, "n2": 2}
    assert status(it).rebalanced == "x"


def test_how_busy_a_node_is_is_no_news_of_the_node() -> None:
    it = world(n1=Registration(load=0.0), n2=Registration(load=0.0))
    it.apply(OTHER, typed(1, strategy="least-loaded"))
    it.run_down()
    before = len(it.decided)
    it.join(n(1), Registration(load=1.0))
    it.run_down()
    assert len(it.decided) == before
    it.apply(APP, typed(1, strategy="least-loaded"))
    it.run_down()
    assert live(it) == {"n2": 1}
