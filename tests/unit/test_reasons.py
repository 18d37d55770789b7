"""What the status says of instances that have no place, or have one where a rule forbids it, and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from cdm.dispatch.messages import Cause
from cdm.model.artifact import NodeId
from cdm.model.node import Registration, Schedule
from cdm.model.status import Condition
from tests.unit.placement_world import in_zones, live, status, typed, world
from tests.unit.support import APP, OTHER, S, n
from tests.unit.world import World

pytestmark = pytest.mark.quick

WAITS = {"by": "zone", "or": "wait"}


def reason(it: World) -> str:
    return status(it).reason


# Whom a spread that waits waits for


def test_a_domain_whose_nodes_are_gone_is_named_with_what_gives_its_share_up() -> None:
    it = world(**in_zones("a", "b", "b"))
    it.apply(APP, typed(2, spread=[WAITS]))
    it.run_down()
    for node in (n(2), n(3)):
        it.expire(node, Cause.DELETED)
    it.run_down()
    assert "1 is kept for zone b, where all are gone: n2, n3; to give that up cdm node forget n2 n3" in reason(it)
    it.forget(n(2))
    it.run_down()
    assert "1 is kept for zone b, where all are gone: n3; to give that up cdm node forget n3" in reason(it)
    it.forget(n(3))
    it.run_down()
    assert live(it) == {"n1": 2}


def test_a_node_without_the_label_that_is_gone_is_waited_for_and_named() -> None:
    it = world(**in_zones("a", "b", "c"), bad=Registration())
    it.run_down()
    it.expire(NodeId("bad"), Cause.DELETED)
    it.apply(APP, typed(7, spread=[WAITS]))
    it.run_down()
    assert "1 of 7 instances cannot be placed" in reason(it)
    assert "1 is kept for nodes without zone, where all are gone: bad; to give that up cdm node forget bad" in (
        reason(it)
    )


def test_a_domain_that_only_weights_name_is_named() -> None:
    it = world(**in_zones("a"))
    it.apply(APP, typed(3, spread=[{**WAITS, "weights": {"mars": 2, "a": 1}}]))
    it.run_down()
    assert "2 are kept for zone mars, where there is no node; to give that up take it out of weights" in reason(it)


def test_a_domain_whose_nodes_take_nothing_is_named_with_them() -> None:
    it = world(**in_zones("a", *"bbbb"))
    for number in range(2, 6):
        it.intend(n(number), Schedule.CORDON)
    it.apply(APP, typed(2, spread=[WAITS]))
    it.run_down()
    assert "1 is kept for zone b, where no node takes any now: n2, n3, n4 and 1 more" in reason(it)


# Violations


def test_what_cannot_be_moved_is_told_with_the_rule() -> None:
    it = world(**in_zones("a", "b"))
    it.apply(APP, typed(2, on_violation="move"))
    it.run_down()
    it.apply(APP, typed(2, on_violation="move", require=["zone = zz"]))
    it.run_down()
    assert status(it).violations == 2
    assert status(it).condition is Condition.READY
    assert reason(it) == "2 instances are where a rule forbids it: zone is not zz, and no other node takes one"
    it.join(n(3), Registration(labels={"zone": "zz"}))
    it.settle()
    assert reason(it).startswith("an instance is being moved off n1, for a hard rule: zone is not zz")
    for _ in range(9):
        it.run_down()
        it.tick(1.0)
    assert live(it) == {"n3": 2}
    assert reason(it) == ""


def test_what_stays_where_a_rule_forbids_it_is_told_with_the_rules() -> None:
    it = world(n1=Registration(), n2=Registration())
    it.apply(APP, typed(4))
    it.apply(OTHER, typed(2))
    it.run_down()
    it.apply(APP, typed(4, apart=[str(OTHER.service)], max_per_node=1))
    it.run_down()
    assert reason(it) == f"4 instances are where a rule forbids it: beside {OTHER.service}"


# One on each node


def test_each_that_fits_nowhere_says_why() -> None:
    it = world(**in_zones("a", "b"))
    it.apply(APP, typed("each", require=["zone = A"]))
    it.run_down()
    assert (status(it).condition, status(it).desired) == (Condition.READY, 0)
    assert reason(it) == "no node is to have one: 0 of 2 nodes take it: 2 zone is not A"
    it.join(n(3), Registration(labels={"zone": "A"}))
    it.run_down()
    assert reason(it) == ""


def test_each_does_not_name_the_nodes_that_have_one_before_the_one_that_has_none() -> None:
    it = world(p1=Registration(capacity=1))
    it.apply(OTHER, typed(1))
    it.run_down()
    for number in range(1, 6):
        it.join(n(number), Registration())
    it.apply(APP, typed("each"))
    it.run_down()
    why = "0 of 6 nodes take it: 5 with one already, 1 full (1 of 1 slices); only capacity keeps p1 out: 1 of 1 slices"
    assert reason(it) == f"1 of 6 instances cannot be placed: {why}"


# Needs


@pytest.mark.parametrize(
    ("needs", "told"),
    [
        ({"cpu": 100}, "2 too small (cpu 4 and the like); only cpu keeps n1 out: 100 needed, 4 there"),
        ({"memory": "1T"}, "only memory keeps n1 out: 1T needed, 1G there"),
    ],
)
def test_needs_larger_than_any_node_are_told_as_such(needs: dict[str, Any], told: str) -> None:
    it = world(n1=Registration(cpu=4.0, memory=10**9), n2=Registration(cpu=2.0, memory=10**9))
    it.apply(APP, typed(1, needs=needs))
    it.run_down()
    assert told in reason(it)


# Rollouts


@pytest.mark.parametrize("rules", [{}, {"max_per_node": 1}])
def test_an_instance_without_a_place_that_holds_a_rollout_up_is_told_with_the_node(rules: dict[str, Any]) -> None:
    it = world(**{f"n{i}": Registration(capacity=1) for i in (1, 2, 3)})
    it.apply(OTHER, typed(1))
    it.run_down()
    it.apply(APP, typed(3, **rules))
    it.run_down()
    assert status(it).condition is Condition.UNSCHEDULABLE
    it.apply(APP, typed(3, restarted="again", **rules))
    it.run_down()
    assert reason(it).startswith(
        "0 of 3 new instances healthy; 1 has no place, and counts as unavailable, so that no other one goes: "
        "make room, or raise max_unavailable; 0 of 3 nodes take it: "
    )
    assert "full (1 of 1 slices)" in reason(it)
    it.apply(APP, typed(3, restarted="again", rollout={"max_unavailable": 2}, **rules))
    for _ in range(40):
        it.run_down()
        it.tick(1.0)
    assert reason(it).startswith("2 of 3 new instances healthy; no node takes another one; 0 of 3 nodes take it: ")


def test_while_an_old_instance_is_being_stopped_that_is_what_is_waited_for() -> None:
    it = world(**{f"n{i}": Registration(capacity=1) for i in (1, 2)})
    it.apply(APP, typed(2))
    it.run_down()
    it.apply(APP, typed(2, restarted="again"))
    for _ in range(10):
        it.settle()
        if S.UNLOADING in it.states(APP).values():
            break
        it.answer()
    it.tick(6.0)
    it.settle()
    assert "there is room once what is being stopped has gone" in reason(it)
