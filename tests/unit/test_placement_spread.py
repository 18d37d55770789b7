"""A leader that spreads instances over zones, on the way up and down, and how much of that it decides at once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from cdm.manager import growth
from cdm.model.artifact import NodeId
from cdm.model.node import Registration, Schedule
from cdm.model.rules import NO_RULES, Rules, Spread
from cdm.model.status import Condition
from tests.unit.placement_world import in_zones, live, run_on, status, typed, world
from tests.unit.support import APP, OTHER, S, n
from tests.unit.world import World

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("keeps_out", "placed"),
    [({}, 1), ({"require": ["zone != b"]}, 2), ({"weights": {"b": 0, "*": 1}}, 2)],
)
def test_the_domain_of_a_node_that_takes_nothing_is_waited_for_unless_it_is_kept_out(
    keeps_out: dict[str, Any], placed: int
) -> None:
    it = world(n1=Registration(labels={"zone": "a"}), n2=Registration(labels={"zone": "b"}, capacity=0))
    weights = {"weights": keeps_out["weights"]} if "weights" in keeps_out else {}
    rules = {"require": keeps_out["require"]} if "require" in keeps_out else {}
    it.apply(APP, typed(2, spread=[{"by": "zone", "or": "wait", **weights}], **rules))
    it.run_down()
    assert live(it) == {"n1": placed}


def test_a_spread_is_kept_when_nodes_drain_and_when_it_shrinks() -> None:
    it = world(**in_zones("a", "a", "b", "b", "c", "c"))
    it.apply(APP, typed(6, spread=[{"by": "zone"}]))
    it.run_down()
    assert by_zone(it) == {"a": 2, "b": 2, "c": 2}
    it.intend(n(1), Schedule.DRAIN)
    it.intend(n(3), Schedule.DRAIN)
    it.run_down()
    assert by_zone(it) == {"a": 2, "b": 2, "c": 2}
    assert live(it).keys().isdisjoint({"n1", "n3"})
    it.apply(APP, typed(3, spread=[{"by": "zone"}]))
    it.run_down()
    assert by_zone(it) == {"a": 1, "b": 1, "c": 1}


def by_zone(it: World) -> dict[str, int]:
    found: Counter[str] = Counter()
    for node, count in live(it).items():
        found[it.nodes[NodeId(node)][0].labels["zone"]] += count
    return dict(found)


def test_a_zone_that_is_lost_is_made_up_for_and_balance_comes_back_on_demand() -> None:
    it = world(**in_zones("a", "b", "c"))
    it.apply(APP, typed(6, spread=[{"by": "zone"}], min_healthy=10))
    it.run_down()
    it.tick(10.0)
    it.run_down()
    it.expire(n(3))
    it.tick(30.0)
    it.run_down()
    it.tick(10.0)
    it.run_down()
    assert by_zone(it) == {"a": 3, "b": 3}
    stayed = {key for key in it.states(APP) if key.node != "n3"}
    it.join(n(3), Registration(labels={"zone": "c"}))
    it.run_down()
    it.tick(300.0)
    it.run_down()
    assert by_zone(it) == {"a": 3, "b": 3}, "what is healthy stays"
    assert stayed <= it.states(APP).keys()
    it.apply(APP, typed(6, spread=[{"by": "zone"}], min_healthy=10, rebalanced="once"))
    fewest = run_on(it, 10)
    assert fewest == 6
    assert by_zone(it) == {"a": 2, "b": 2, "c": 2}
    assert status(it).rebalanced == "once"
    before = len(it.decided)
    run_on(it, 10)
    assert len(it.decided) == before, "that was it"


def test_what_waits_for_its_share_does_no_more_when_the_lost_zone_is_forgotten() -> None:
    it = world(**in_zones("a", "a", "b"))
    it.apply(APP, typed(2, spread=[{"by": "zone", "or": "wait"}]))
    it.run_down()
    it.expire(n(3))
    it.tick(30.0)
    it.run_down()
    assert status(it).condition is Condition.UNSCHEDULABLE
    it.forget(n(3))
    it.run_down()
    assert sum(live(it).values()) == 2
    assert status(it).condition is Condition.READY


def test_what_costs_much_is_placed_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "LOOKS_AT_ONCE", 24)
    it = world(**in_zones("a", "b", "c", "a"))
    spread = [{"by": "zone", "or": "wait"}, {"by": "node"}]
    it.apply(APP, typed(9, spread=spread))
    it.run_down()
    loads = [sum(each.state is S.LOAD for each in order.commands) for order in it.decided]
    assert [count for count in loads if count] == [3, 3, 3]
    assert sum(live(it).values()) == 9
    assert status(it).condition is Condition.READY

    it.apply(APP, typed(9, spread=spread, max_per_node=1))
    it.apply(OTHER, typed(9, spread=spread, max_per_node=1))
    it.run_down()
    assert sum(live(it, OTHER).values()) == 4
    assert status(it, OTHER).reason.startswith("5 of 9 ")


@pytest.mark.parametrize(
    ("spreads", "nodes", "expected"), [(0, 1000, 1_000_000), (1, 1000, 25_000), (10, 1000, 20), (2, 10_000, 10)]
)
def test_no_decision_takes_longer_than_a_leader_has(spreads: int, nodes: int, expected: int) -> None:
    rules = Rules(spread=tuple(Spread(f"l{number}") for number in range(spreads))) if spreads else NO_RULES
    assert growth.most_at_once(rules, nodes) == expected
