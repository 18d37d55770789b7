"""Nodes that this process has not seen: slices on some that may never come, and the wait for those that may."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from cdm.dispatch.messages import Cause, ValuePut
from cdm.manager.active import Active
from cdm.manager.policy import Policy
from cdm.model.blueprint import Blueprint, Overrides
from cdm.model.keys import SeenKey, SliceKey
from cdm.model.node import LEFT, LOST, Registration, Role, Schedule, Seen
from cdm.model.slice import SliceValue
from cdm.model.status import Condition
from tests.unit.leading import NAME, condition, running, slept, states, world
from tests.unit.support import APP, S, n
from tests.unit.world import World


def spread(each: World) -> dict[str, int]:
    return dict(Counter(key.node for key in each.slices))


# Nodes that this process never saw


GHOST = n(50)


def haunted(each: World, count: int = 4, **more: Any) -> None:
    """What an older backup brings: the memory of a node that is no more, and slices that once ran there."""
    each.seen[GHOST] = (Seen(Registration()), each.now)
    each.route(ValuePut(SeenKey(GHOST), Seen(Registration()), 1, each.now))
    for ordinal in range(1, count + 1):
        each.store(SliceKey(GHOST, APP, ordinal), SliceValue(S.ACTIVE, 1, **more))
    each.run_down()


def test_slices_on_a_node_that_this_process_never_saw_take_no_instances_place() -> None:
    each = running(3)
    haunted(each)
    assert not each.decided, "they may be there, and are left alone"
    assert condition(each) == (Condition.READY, "")
    each.want(APP, 7)
    each.run_down()
    assert Counter(key.node == GHOST for key in each.slices) == {False: 7, True: 4}
    assert each.statuses[NAME].active == 7
    assert condition(each) == (Condition.READY, "")
    slept(each, 10.0)
    each.run_down()
    assert states(each) == {"ACTIVE": 7}
    assert all(key.node != GHOST for key in each.slices)


def test_ready_counts_no_slice_on_a_node_that_this_process_never_saw() -> None:
    each = world()
    haunted(each, 3)
    for node in (n(1), n(2), n(3)):
        each.intend(node, Schedule.CORDON)
    each.want(APP, 3)
    each.run_down()
    status = each.statuses[NAME]
    assert (status.condition, status.active) == (Condition.UNSCHEDULABLE, 0)


def test_a_node_that_this_process_never_saw_and_that_registers_keeps_its_slices() -> None:
    each = running(3)
    haunted(each, 3)
    each.want(APP, 6)
    each.run_down()
    each.join(GHOST)
    each.want(APP, 9)
    each.run_down()
    assert states(each) == {"ACTIVE": 9}
    assert spread(each)[GHOST] == 3


def test_what_must_not_run_twice_is_not_replaced_while_it_may_run_on_a_node_that_this_process_never_saw() -> None:
    each = world()
    overrides = Overrides(stop_after=20.0)
    haunted(each, 1, overrides=overrides)
    each.apply(APP, Blueprint(1, overrides, min_healthy=0.0))
    each.run_down()
    assert set(spread(each)) == {GHOST}
    status = each.statuses[NAME]
    assert (status.condition, status.active) == (Condition.PROGRESSING, 0)
    slept(each, 20.0)
    each.run_down()
    assert set(spread(each)) == {GHOST}
    slept(each, overrides.gone_after or 0.0)
    each.run_down()
    assert len(each.slices) == 1
    assert GHOST not in spread(each)


def test_a_cluster_of_nodes_that_this_process_never_saw_has_none() -> None:
    each = world(0)
    haunted(each, 3)
    each.want(APP, 3)
    each.settle()
    assert condition(each) == (Condition.DEGRADED, "no nodes")


# Nodes that are waited for


def cold(*names: int, markers: bool = True, settle: float = 3.0) -> World:
    """A process that begins after a power cut, in which three nodes were known; only these are back."""
    before = running(6) if markers else World()
    each = World(policy=Policy(settle=settle))
    each.seen, each.statuses, each.blueprints = before.seen, before.statuses, before.blueprints
    each.now, each.sequence, each.term = before.now + 100.0, before.sequence, before.term
    each.boot()
    for number in names:
        each.join(n(number))
    each.lead()
    return each


def test_after_a_power_cut_the_first_node_up_does_not_get_everything() -> None:
    each = cold(1)
    each.run_down()
    assert each.slices == {}
    assert condition(each) == (
        Condition.PROGRESSING,
        "6 of 6 instances not placed yet; waiting for nodes to register",
    )
    each.tick(5.0)
    each.join(n(2))
    each.run_down()
    assert each.slices == {}
    each.join(n(3))
    each.run_down()
    assert spread(each) == {n(1): 2, n(2): 2, n(3): 2}


def test_nodes_that_do_not_come_back_are_waited_for_one_ttl_at_most() -> None:
    each = cold(1, 2)
    slept(each, 9.9)
    assert each.slices == {}
    slept(each, 0.1)
    each.run_down()
    assert spread(each) == {n(1): 3, n(2): 3}


def test_a_node_that_left_for_good_or_runs_nothing_is_not_waited_for() -> None:
    each = cold(1, 2)
    each.seen[n(3)] = (Seen(Registration(), LEFT), 0.0)
    each.seen[n(4)] = (Seen(Registration(), LOST), 0.0)
    each.seen[n(5)] = (Seen(Registration(role=Role.MANAGER)), 0.0)
    each.boot()
    each.lead()
    each.run_down()
    assert spread(each) == {n(1): 3, n(2): 3}


def test_a_very_first_start_waits_for_a_moment_from_the_first_registration() -> None:
    each = cold(1, markers=False)
    each.want(APP, 3)
    slept(each, 2.0)
    each.join(n(2))
    each.join(n(3))
    slept(each, 0.9)
    assert each.slices == {}
    slept(each, 0.1)
    each.run_down()
    assert spread(each) == {n(1): 1, n(2): 1, n(3): 1}


def stopped(each: World, cause: Cause = Cause.DELETED) -> None:
    """All nodes go, and the last leader tells of it."""
    for node in list(each.nodes):
        each.expire(node, cause)
    slept(each, 100.0)
    each.run_down()
    assert each.slices == {}
    assert all(seen.gone for seen, _ in each.seen.values())


@pytest.mark.parametrize("cause", [Cause.DELETED, Cause.EXPIRED])
@pytest.mark.parametrize("fresh", [True, False])
def test_after_all_nodes_have_left_a_start_is_like_the_very_first(fresh: bool, cause: Cause) -> None:
    each = running(6)
    each.policy = Policy(settle=3.0)
    stopped(each, cause)
    each.step_down()
    each.boot()
    if not fresh:  # a manager that heard of a node that has left since
        each.join(n(1))
        each.expire(n(1), cause=Cause.DELETED)
        each.tick(50.0)
    else:
        each.join(n(1))
    each.lead()
    if not fresh:
        slept(each, 50.0)
        each.join(n(1))
    slept(each, 0.8)
    assert each.slices == {}
    assert "waiting for nodes to register" in condition(each)[1]
    each.join(n(2))
    slept(each, 0.8)
    each.join(n(3))
    each.run_down()
    assert each.slices == {}
    slept(each, 1.4)
    each.run_down()
    assert spread(each) == {n(1): 2, n(2): 2, n(3): 2}


def test_slices_that_nodes_left_behind_in_good_order_make_a_start_no_other() -> None:
    each = running(6)
    each.policy = Policy(settle=3.0)
    for node in list(each.nodes):
        each.expire(node, Cause.DELETED)
    each.tell()
    each.boot()
    each.join(n(1))
    each.seen = {node: (Seen(Registration(), LEFT), 0.0) for node in each.seen}
    each.boot()
    each.lead()
    each.run_down()
    assert spread(each) == {n(1): 2}, "its own"
    slept(each, 1.0)
    each.join(n(2))
    each.join(n(3))
    slept(each, 2.0)
    each.run_down()
    assert spread(each) == {n(1): 2, n(2): 2, n(3): 2}


def test_the_last_leader_is_at_rest_only_when_it_is_remembered_that_all_have_left() -> None:
    each = running(3)
    for node in list(each.nodes):
        each.expire(node, Cause.DELETED)
    while each.write():
        pass
    each.deliver()
    each.acknowledge()
    remembered = dict(each.outbox.seen)
    each.outbox.seen.clear()  # taken, and not stored yet
    each.settle()
    assert isinstance(each.manager.state, Active)
    assert each.slices == {}
    assert not each.manager.state.at_rest
    for node, seen in remembered.items():
        each.outbox.remember(node, seen)
    each.settle()
    assert each.manager.state.at_rest


def test_scaling_down_and_deleting_never_wait() -> None:
    each = running(6)
    each.nodes.pop(n(3))
    each.boot()
    each.lead()
    each.want(APP, 1)
    each.settle()
    assert states(each) == {"ACTIVE": 3, "UNLOAD": 3}
    each.drop(APP)
    each.settle()
    assert states(each) == {"ACTIVE": 2, "UNLOAD": 4}, "all but those of the node that may come back"


@pytest.mark.parametrize("fresh", [True, False])
def test_a_fail_over_in_a_running_cluster_never_waits(fresh: bool) -> None:
    each = running(6)
    each.policy = Policy()
    each.step_down()
    if fresh:
        each.boot()
    each.lead()
    each.want(APP, 9)
    each.run_down()
    assert states(each) == {"ACTIVE": 9}
