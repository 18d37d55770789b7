"""Nodes join, leave, die, come back, are cordoned and drained: what becomes of their slices."""

from __future__ import annotations

from collections import Counter

import pytest

from cdm.dispatch.messages import Cause
from cdm.model.artifact import Artifact
from cdm.model.keys import SliceKey
from cdm.model.node import LEFT, LOST, Registration, Role, Schedule, Seen
from cdm.model.slice import SliceValue
from cdm.model.status import Condition
from tests.unit.leading import NAME, running, slept, states, world
from tests.unit.support import APP, OTHER, S, n


def test_a_manager_gets_nothing_and_loses_what_is_there() -> None:
    each = world(0)
    each.join(n(1))
    each.join(n(2), Registration(role=Role.MANAGER, capacity=0))
    each.want(APP, 2)
    each.tick()
    each.settle()
    assert {key.node for key in each.slices} == {n(1)}
    each.join(n(3))
    each.join(n(1), Registration(role=Role.MANAGER, capacity=0, incarnation="b"))
    each.tick()
    each.settle()
    assert {key.node for key in each.slices} == {n(3)}
    assert states(each) == {"LOAD": 2}


def test_a_dead_nodes_slices_are_replaced_and_its_keys_deleted() -> None:
    each = running()
    each.expire(n(2))
    each.tick(0.0)
    each.settle()
    assert each.decided == [], "missing is not dead"
    each.tick(10.0)
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert n(2) not in {key.node for key in each.slices}


def test_a_node_that_died_while_nobody_led_is_replaced_by_the_next_leader() -> None:
    each = running()
    each.step_down()
    each.expire(n(2))
    each.tick(15.0)
    assert n(2) not in each.topology.nodes
    each.lead()
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert n(2) not in {key.node for key in each.slices}


def test_a_node_that_died_while_no_process_ran_is_replaced_by_the_next_leader() -> None:
    each = running()
    each.step_down()
    del each.nodes[n(2)]
    each.now += 100.0
    each.boot()
    each.tick(11.0)
    each.lead()
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert n(2) not in {key.node for key in each.slices}


def test_a_node_that_left_while_nobody_led_is_replaced_by_the_next_leader() -> None:
    each = running()
    each.step_down()
    each.expire(n(2), Cause.DELETED)
    each.lead()
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert n(2) not in {key.node for key in each.slices}


@pytest.mark.parametrize("order", [("nodes", "slices"), ("slices", "nodes")])
@pytest.mark.parametrize(("cause", "moved"), [(Cause.DELETED, True), (Cause.EXPIRED, False), (Cause.MISSING, False)])
def test_a_process_that_began_later_knows_by_the_marker_that_a_node_left(
    order: tuple[str, str], cause: Cause, moved: bool
) -> None:
    each = running()
    each.step_down()
    each.expire(n(2), cause)
    each.boot((*order, "blueprints", "statuses"))
    each.lead()
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert (n(2) not in {key.node for key in each.slices}) is moved
    each.tick(10.0)
    each.run_down()
    assert n(2) not in {key.node for key in each.slices}


def test_an_order_for_a_node_that_leaves_meanwhile_is_decided_anew_at_once() -> None:
    each = world()
    each.want(APP, 3)
    each.tick()
    each.expire(n(2), Cause.DELETED)
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert n(2) not in {key.node for key in each.slices}


def test_a_drain_ordered_while_nobody_led_is_carried_out() -> None:
    each = running()
    each.step_down()
    each.intend(n(2), Schedule.DRAIN)
    each.lead()
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert n(2) not in {key.node for key in each.slices}


def test_a_drain_never_lets_fewer_serve() -> None:
    each = running(6)
    each.intend(n(1), Schedule.DRAIN)
    for _ in range(20):
        each.settle()
        assert states(each)["ACTIVE"] >= 6
        each.answer()
    each.run_down()
    assert Counter(key.node for key in each.slices) == {n(2): 3, n(3): 3}
    assert each.statuses[NAME].condition is Condition.READY


def test_a_cordoned_node_gets_nothing_new() -> None:
    each = running()
    each.intend(n(1), Schedule.CORDON)
    each.want(APP, 6)
    each.run_down()
    assert Counter(key.node for key in each.slices)[n(1)] == 1
    each.intend(n(1), Schedule.NORMAL)
    each.want(APP, 7)
    each.run_down()
    assert Counter(key.node for key in each.slices)[n(1)] == 2


def test_what_a_node_leaves_behind_is_decided_on_in_the_same_order_by_every_process() -> None:
    each = world(2)
    artifacts = [Artifact("g", "a", f"1.{number}.0") for number in range(8)]
    for artifact in artifacts:
        each.want(artifact, 2)
    each.run_down()
    each.decided.clear()
    each.expire(n(1), Cause.DELETED)
    each.settle()
    assert [order.artifact for order in each.decided] == artifacts


def test_a_dead_node_that_returns_is_used_again() -> None:
    each = running()
    each.expire(n(2))
    each.tick(11.0)
    each.run_down()
    each.join(n(2))
    each.want(APP, 4)
    each.run_down()
    assert n(2) in {key.node for key in each.slices}


@pytest.mark.parametrize("fresh", [True, False])
def test_slices_of_nodes_that_nobody_knows_are_deleted_and_nothing_else_is_touched(fresh: bool) -> None:
    each = running(12)
    before = dict(each.slices)
    for number in range(10, 50):
        each.store(SliceKey(n(number), APP), SliceValue(S.ACTIVE))
    if fresh:
        each.boot(("slices", "nodes", "blueprints", "statuses"))
        each.lead()
    each.settle()
    assert each.slices == before
    assert {command.state for order in each.decided for command in order.commands} == {None}


def test_one_of_an_unknown_node_that_takes_a_missing_ones_place_in_the_counts_is_seen_through() -> None:
    each = running()
    each.step_down()
    (gone, *_) = each.slices
    each.store(gone, None)
    each.store(SliceKey(n(9), APP), SliceValue(S.ACTIVE))
    each.lead()
    each.run_down()
    slept(each, 10.0)  # slices may name nodes that come back from a power cut
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert n(9) not in {key.node for key in each.slices}


def test_unknown_nodes_slow_no_eviction_down() -> None:
    each = running()
    for number in range(10, 50):
        each.store(SliceKey(n(number), OTHER), SliceValue(S.ACTIVE))
    each.settle()
    each.expire(n(2))
    each.tick(10.0)
    assert n(2) not in each.topology.nodes


def test_nothing_is_unloaded_for_a_missing_node_that_may_not_come_back() -> None:
    each = running(6)
    each.expire(n(2))
    each.want(APP, 4)
    each.settle()
    assert not any(order.commands for order in each.decided)
    each.tick(10.0)
    each.run_down()
    assert states(each) == {"ACTIVE": 4}
    assert n(2) not in {key.node for key in each.slices}
    assert not any(c.state is S.UNLOAD for order in each.decided for c in order.commands), "four served all the time"


def test_a_missing_node_that_comes_back_loses_what_is_too_many() -> None:
    each = running(6)
    each.expire(n(2))
    each.want(APP, 4)
    each.settle()
    each.join(n(2))
    each.run_down()
    assert states(each) == {"ACTIVE": 4}


def test_the_leader_remembers_nodes_and_says_when_they_are_gone() -> None:
    each = running()
    assert {node: seen.gone for node, (seen, _) in each.seen.items()} == {n(1): None, n(2): None, n(3): None}
    each.expire(n(1), Cause.DELETED)
    each.expire(n(2))
    each.tick(10.0)
    each.run_down()
    assert {node: seen.gone for node, (seen, _) in each.seen.items()} == {n(1): LEFT, n(2): LOST, n(3): None}
    each.join(n(2), Registration(incarnation="b", load=0.5))
    each.settle()
    assert each.seen[n(2)][0] == Seen(Registration(incarnation="b")), "without what changes all the time"


def test_a_process_that_began_later_knows_by_what_is_remembered_that_a_node_may_come_back() -> None:
    each = running()
    del each.nodes[n(2)]  # its registration expired, and so did the marker of that
    each.boot()
    each.lead()
    each.run_down()
    assert each.decided == [], "it has a whole TTL to come back"
    each.tick(10.0)
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert n(2) not in {key.node for key in each.slices}


def test_a_process_that_began_later_waits_for_no_node_that_was_given_up() -> None:
    each = running()
    each.expire(n(2))
    each.tick(10.0)
    each.run_down()
    each.boot()
    assert n(2) not in each.topology.nodes
    each.lead()
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
