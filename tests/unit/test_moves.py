"""Moves come to rest: whatever the rules, it takes few of them, and none is made in vain."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdm.allocation.moving import Relocation
from cdm.manager import moves
from cdm.manager.choosing import better_placed
from cdm.model.artifact import Artifact
from cdm.model.keys import SliceKey
from cdm.model.node import Registration, Schedule
from tests.harness.examples import examples
from tests.unit.placement_world import in_zones, live, status, typed, world
from tests.unit.support import APP, OTHER, S, n
from tests.unit.world import NEXT, World

pytestmark = pytest.mark.quick

OWN = str(APP.service)
NEIGHBOUR = str(OTHER.service)


def moves_made(it: World, artifact: Artifact = APP) -> list[SliceKey]:
    """Slices that were taken away because they were better placed elsewhere."""
    return [
        command.key
        for order in it.decided
        for command in order.commands
        if command.key.artifact == artifact and command.state is S.UNLOAD and command.reason.startswith("moved off")
    ]


def go_on(it: World, turns: int = 6, seconds: float = 61.0) -> None:
    for _ in range(turns):
        it.run_down()
        it.tick(seconds)
    it.run_down()


def test_how_busy_nodes_are_moves_nothing_back() -> None:
    it = world(n1=Registration(load=0.0))
    it.apply(APP, typed(2, strategy="least-loaded"))
    it.run_down()
    it.join(n(2), Registration(load=2.0))
    it.apply(APP, typed(2, strategy="least-loaded", rebalanced="x"))
    go_on(it)
    assert len(moves_made(it)) == 1
    assert live(it) == {"n1": 1, "n2": 1}
    assert status(it).rebalanced == "x"


@pytest.mark.parametrize("when", [{"rebalance": "on-join"}, {"rebalanced": "x"}])
def test_what_is_to_be_near_itself_comes_together_and_stays(when: dict[str, Any]) -> None:
    it = world(**in_zones("a", "b", "b"))
    it.apply(APP, typed(3))
    it.run_down()
    assert live(it) == {"n1": 1, "n2": 1, "n3": 1}
    it.apply(APP, typed(3, near=[{"with": OWN, "by": "zone"}], **when))
    go_on(it)
    assert "n1" not in live(it)
    assert len(moves_made(it)) == 1


def test_of_two_spreads_the_one_that_waits_is_not_moved_against() -> None:
    it = world(**in_zones("a", "b", "c"))
    it.apply(APP, typed(2, require=["node in (n1, n2)"]))
    it.run_down()
    it.apply(APP, typed(2, require=["node in (n2, n3)"], on_violation="move"))
    it.run_down()
    assert live(it) == {"n2": 1, "n3": 1}
    before = len(moves_made(it))
    spread = [{"by": "zone", "weights": {"a": 1}}, {"by": "node", "or": "wait"}]
    it.apply(APP, typed(2, spread=spread, rebalanced="x"))
    go_on(it)
    assert live(it).get("n1") == 1
    assert len(moves_made(it)) == before + 1
    assert status(it).rebalanced == "x"


def test_the_next_leader_takes_the_replacement_that_is_not_healthy_yet() -> None:
    it = world(**in_zones("a", "a"))
    it.apply(APP, typed(2, spread=[{"by": "zone"}], rebalance="on-join", min_healthy=10))
    it.run_down()
    it.tick(100.0)
    it.run_down()
    old = it.states(APP)
    it.join(n(3), Registration(labels={"zone": "b"}))
    it.run_down()
    it.tick(61.0)
    it.run_down()
    assert set(it.states(APP).values()) == {S.ACTIVE}
    assert len(it.states(APP)) == 3
    it.boot()
    it.lead()
    it.settle()
    assert {key for key, state in it.states(APP).items() if state is S.ACTIVE} == old.keys()


def test_where_the_replacement_fails_the_instance_stays() -> None:
    it = world(n1=Registration())
    it.apply(APP, typed(2))
    it.run_down()
    before = it.states(APP)
    it.join(n(2), Registration())
    it.apply(APP, typed(2, rebalanced="x"))
    for _ in range(10):
        it.settle()
        for key, put in list(it.slices.items()):
            if key.node == "n2" and put.value.state is S.ACTIVATING:
                it.report(key, S.FAILED)
            elif put.value.state in NEXT:
                it.report(key, NEXT[put.value.state])
        it.tick(20.0)
    it.run_down()
    assert it.states(APP) == before
    assert moves_made(it) == []
    assert status(it).rebalanced == "x"


def test_nothing_is_moved_to_a_node_that_has_just_joined_while_another_one_has_been_up_for_a_minute() -> None:
    it = world(n1=Registration())
    it.apply(APP, typed(4, rebalance="on-join"))
    it.run_down()
    it.join(n(2), Registration())
    it.apply(OTHER, typed(3, require=["node = n2"]))
    it.run_down()
    it.tick(59.0)
    it.join(n(3), Registration())
    it.run_down()
    it.tick(2.0)
    it.run_down()
    assert live(it) == {"n1": 2, "n2": 2}
    go_on(it)
    assert live(it) == {"n1": 2, "n2": 1, "n3": 1} or live(it) == {"n1": 1, "n2": 2, "n3": 1}


@pytest.mark.parametrize(
    "rules", [{"rebalance": "on-join", "spread": [{"by": "zone"}]}, {"on_violation": "move", "require": ["zone"]}]
)
def test_nobody_looks_for_moves_where_nothing_happened(rules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    it = world(**in_zones("a", "b"))
    it.apply(APP, typed(2, **rules))
    go_on(it, 3)
    looks: list[float] = []

    def counted(*facts: Any, **more: Any) -> list[Relocation]:
        looks.append(it.now)
        return better_placed(*facts, **more)

    monkeypatch.setattr(moves, "better_placed", counted)
    go_on(it, 5)  # rounds over everything
    it.join(n(3), Registration(labels={"zone": "c"}))
    go_on(it, 5, 10.0)
    assert looks == []
    go_on(it)
    if "rebalance" in rules:
        assert len(looks) == 1, "once the node has been up for a minute"


def test_what_may_not_be_moved_as_a_spread_waits_is_done() -> None:
    it = world(**in_zones("b", "b", "b"))
    it.apply(APP, typed(3))
    it.run_down()
    it.join(n(4), Registration(labels={"zone": "a"}))
    it.intend(n(4), Schedule.CORDON)
    it.run_down()
    spread, prefer = [{"by": "zone", "or": "wait"}], [{"if": "node = n1", "weight": 5}]
    it.apply(APP, typed(3, spread=spread, prefer=prefer, rebalanced="x"))
    go_on(it, 2)
    assert moves_made(it) == []
    assert status(it).rebalanced == "x"


def test_two_services_of_which_one_follows_the_other_come_to_rest() -> None:
    it = world()
    it.apply(OTHER, typed(1, apart=[OWN], on_violation="move"))
    it.run_down()
    it.apply(APP, typed(1, near=[NEIGHBOUR], rebalance="on-join"))
    go_on(it)
    assert len(moves_made(it)) == 1
    assert live(it).keys().isdisjoint(live(it, OTHER))
    # Once more, when another node has been up for a minute.
    it.join(n(4), Registration())
    go_on(it)
    assert len(moves_made(it)) == 2
    it.apply(APP, typed(1, near=[NEIGHBOUR], rebalanced="now"))
    go_on(it)
    assert len(moves_made(it)) == 3
    assert status(it).rebalanced == "now"


def test_what_is_forbidden_and_stays_keeps_nothing_else_from_being_balanced() -> None:
    it = world(**in_zones("a", "a", "b"))
    it.apply(APP, typed(12))
    it.run_down()
    it.join(n(4), Registration(labels={"zone": "b"}))
    it.intend(n(4), Schedule.CORDON)
    it.apply(APP, typed(12, require=["zone = b"], rebalance="on-join"))
    it.run_down()
    assert live(it) == {"n1": 4, "n2": 4, "n3": 4}
    it.intend(n(4), Schedule.NORMAL)
    go_on(it)
    assert live(it) == {"n1": 4, "n2": 4, "n3": 2, "n4": 2}
    assert status(it).violations == 8


def test_forbidden_instances_that_stay_are_not_moved_for_a_spread_either() -> None:
    it = world(**in_zones("a", "a", "b"))
    it.apply(APP, typed(4, require=["zone = a"]))
    it.run_down()
    it.apply(APP, typed(4, require=["zone = b"], spread=[{"by": "node"}], rebalance="on-join"))
    go_on(it, 2)
    assert live(it) == {"n1": 2, "n2": 2}
    it.apply(APP, typed(4, require=["zone = b"], spread=[{"by": "node"}], rebalanced="x"))
    go_on(it)
    assert live(it) == {"n3": 4}, "who asks for balance wants that, too"


def test_what_must_not_run_twice_goes_first_and_comes_back_where_it_was_to_go() -> None:
    it = world(n1=Registration(load=0.0))
    it.apply(APP, typed(2, strategy="least-loaded", stop_after=5))
    it.run_down()
    it.join(n(2), Registration(load=2.0))
    it.apply(APP, typed(2, strategy="least-loaded", stop_after=5, rebalanced="x"))
    go_on(it)
    assert len(moves_made(it)) == 1
    assert live(it) == {"n1": 1, "n2": 1}


def test_a_node_that_takes_instances_again_has_joined() -> None:
    it = world()
    it.apply(APP, typed(6, rebalance="on-join"))
    it.run_down()
    it.intend(n(1), Schedule.DRAIN)
    go_on(it, 2)
    assert live(it) == {"n2": 3, "n3": 3}
    it.intend(n(1), Schedule.NORMAL)
    go_on(it, 2)
    assert live(it) == {"n1": 2, "n2": 2, "n3": 2}


# Any rules

labels = st.sampled_from(["zone", "rack", "node"])
spreads = st.fixed_dictionaries(
    {"by": labels},
    optional={
        "or": st.just("wait"),
        "max_skew": st.just(2),
        "weights": st.sampled_from([{"a": 2, "*": 1}, {"a": 1, "b": 0}]),
    },
)
nearby = st.fixed_dictionaries({"with": st.sampled_from([OWN, NEIGHBOUR]), "by": labels, "hard": st.just(False)})
apart = st.fixed_dictionaries({"from": st.sampled_from([OWN, NEIGHBOUR]), "by": labels, "hard": st.booleans()})
fields = st.fixed_dictionaries(
    {},
    optional={
        "require": st.just(["zone != c"]),
        "prefer": st.just([{"if": "zone = a", "weight": 50}]),
        "spread": st.lists(spreads, min_size=1, max_size=2, unique_by=lambda each: each["by"]),
        "near": st.lists(nearby, max_size=1),
        "apart": st.lists(apart, max_size=1),
        "max_per_node": st.integers(1, 3),
        "strategy": st.sampled_from(["pack", "cheapest", "least-loaded"]),
        "on_violation": st.sampled_from(["move", "stay"]),
        "stop_after": st.just(5),
    },
)
registrations = st.builds(
    lambda zone, rack, cost, load, capacity: Registration(
        labels={"zone": zone, "rack": rack, "cost": cost}, load=load, capacity=capacity
    ),
    st.sampled_from("abc"),
    st.sampled_from("xy"),
    st.sampled_from("12"),
    st.sampled_from([0.0, 2.0]),
    st.none() | st.integers(1, 6),
)


@settings(max_examples=examples(60), deadline=None)
@given(
    nodes=st.lists(registrations, min_size=2, max_size=5),
    joining=st.lists(registrations, max_size=2),
    needs=st.sampled_from([{}, {"needs": {"cpu": 1}}]),
    instances=st.integers(1, 6),
    typed_=fields,
    others=st.integers(0, 2),
    when=st.sampled_from([{"rebalance": "on-join"}, {"rebalanced": "x"}]),
)
def test_whatever_the_rules_are_moves_come_to_an_end(
    nodes: list[Registration],
    joining: list[Registration],
    needs: dict[str, Any],
    instances: int,
    typed_: dict[str, Any],
    others: int,
    when: dict[str, Any],
) -> None:
    cores = {"cpu": 3.0}
    it = World()
    for number, registration in enumerate(nodes):
        it.join(n(number), msgspec.structs.replace(registration, **cores))
    it.lead()
    stop_after = {name: value for name, value in typed_.items() if name == "stop_after"}
    it.apply(OTHER, typed(others))
    it.apply(APP, typed(instances, **needs, **stop_after))
    it.run_down()
    for number, registration in enumerate(joining, len(nodes)):
        it.join(n(number), msgspec.structs.replace(registration, **cores))
    it.run_down()
    placed = sum(live(it).values())
    it.apply(APP, typed(instances, **needs, **typed_, **when))
    go_on(it, 3)
    made = len(moves_made(it))
    assert made <= instances + (instances if typed_.get("on_violation") == "move" else 0)
    if placed == instances:
        assert sum(live(it).values()) == instances
        assert when.get("rebalanced") is None or status(it).rebalanced == "x"
    go_on(it, 2)
    assert len(moves_made(it)) == made
