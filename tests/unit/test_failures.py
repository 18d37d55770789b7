"""Slices that fail, and commands that nobody answers: what is tried again, after which pause, and what is told."""

from __future__ import annotations

from cdm.dispatch.messages import ValueRejected
from cdm.manager.standing import CATCH_UP
from cdm.model.node import Registration
from cdm.model.status import Condition
from tests.unit.leading import NAME, condition, failed_once, running, slept, states, world
from tests.unit.support import APP, S, n


def test_a_slice_that_got_stuck_while_nobody_led_is_replaced_at_once() -> None:
    each = world()
    each.want(APP, 1)
    each.settle()
    each.step_down()
    each.now += 500.0
    each.lead()
    each.settle()
    assert states(each) == {"UNLOAD": 1, "LOAD": 1}


def test_what_came_up_in_an_outage_stays_though_its_deadline_is_over() -> None:
    each = world()
    each.want(APP, 1)
    each.settle()
    (key,) = each.slices
    for state in (S.LOADING, S.LOADED):
        each.report(key, state)
    each.settle()
    each.report(key, S.ACTIVATING)
    each.settle()
    away = each.outage(500.0)
    each.settle()
    each.back(away)
    slept(each, 1.0)
    each.report(key, S.ACTIVE)
    each.settle()
    slept(each, 100.0)
    assert states(each) == {"ACTIVE": 1}
    assert (key, S.ACTIVE) in each.states(APP).items()
    assert condition(each) == (Condition.READY, "")


def test_what_says_nothing_after_an_outage_is_replaced_soon() -> None:
    each = world()
    each.want(APP, 1)
    each.settle()
    away = each.outage(500.0)
    slept(each, 5.0)
    each.back(away)
    each.settle()
    assert states(each) == {"LOAD": 1}
    back = each.now
    while states(each) == {"LOAD": 1}:
        due = each.manager.wake_at()
        assert due is not None
        each.tick(max(due - each.now, 0.0))
        each.settle()
    assert each.now == back + CATCH_UP
    assert states(each) == {"UNLOAD": 1, "LOAD": 1}


def test_an_outage_does_not_cut_a_slice_short_that_is_being_unloaded() -> None:
    each = running(1)
    (key,) = each.slices
    each.want(APP, 0)
    each.settle()
    each.report(key, S.UNLOADING)
    each.settle()
    away = each.outage(500.0)
    each.settle()
    each.back(away)
    slept(each, 1.0)
    assert states(each) == {"UNLOADING": 1}
    slept(each, CATCH_UP)
    assert states(each) == {}


def test_a_node_without_an_agent_is_named_for_as_long_as_it_is_waited_for() -> None:
    each = world(1)
    each.want(APP, 1)
    each.settle()
    assert condition(each) == (Condition.PROGRESSING, "0 of 1 active")
    hint = f"0 of 1 active; LOAD was not answered within 60 s on {n(1)}; does its agent run?"
    for _ in range(3):
        slept(each, 60.0)
        each.settle()
        assert condition(each) == (Condition.PROGRESSING, hint)
    key = next(key for key, value in each.slices.items() if value.value.state is S.LOAD)
    each.report(key, S.LOADING)
    each.settle()
    assert condition(each) == (Condition.PROGRESSING, "0 of 1 active")


def test_a_command_that_is_taken_back_though_there_is_time_left_says_nothing_of_the_node() -> None:
    each = world(2)
    each.want(APP, 2)
    each.settle()
    each.want(APP, 1)
    each.settle()
    assert states(each) == {"LOAD": 1, "UNLOAD": 1}
    assert condition(each) == (Condition.PROGRESSING, "0 of 1 active")


def test_a_failed_slice_is_degraded_until_it_is_replaced_and_why_is_told_meanwhile() -> None:
    each = running(1)
    failed_once(each)
    assert each.statuses[NAME].condition is Condition.DEGRADED
    assert "it broke" in each.statuses[NAME].reason
    each.tick(1.0)
    each.settle()
    assert condition(each) == (Condition.PROGRESSING, "0 of 1 active; failed once before: it broke")
    each.run_down()
    assert each.statuses[NAME].condition is Condition.READY


def test_the_manager_wakes_itself_for_retries() -> None:
    each = running(1)
    failed_once(each)
    due = each.manager.wake_at()
    assert due == each.now + 1.0
    each.tick(1.0)
    assert each.decided


def test_failures_are_counted_up_though_the_agent_drops_them() -> None:
    each = world(1)
    each.want(APP, 1)
    each.settle()
    pauses: list[float] = []
    for _ in range(6):
        (key,) = each.slices
        each.report(key, S.LOADING, copy=False)
        each.report(key, S.FAILED, copy=False)
        failed_at = each.now
        each.settle()
        while each.slices[key].value.state is S.FAILED:
            due = each.manager.wake_at()
            assert due is not None
            each.tick(max(due - each.now, 0.0))
            each.settle()
        pauses.append(each.now - failed_at)
    assert each.slices[key].value.failures == 6
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]


def test_the_backoff_survives_a_change_of_leaders() -> None:
    each = world(1)
    each.want(APP, 1)
    each.settle()
    (key,) = each.slices
    for _ in range(4):
        each.report(key, S.LOADING)
        each.report(key, S.FAILED)
        each.settle()
        each.tick(20.0)
        each.settle()
    each.report(key, S.LOADING)
    each.report(key, S.FAILED)
    each.boot()
    each.lead()
    each.settle()
    assert each.manager.wake_at() == each.now + 16.0


def test_a_command_that_is_not_answered_is_given_up_after_its_deadline() -> None:
    each = world()
    each.want(APP, 1)
    each.settle()
    (key,) = each.slices
    began = each.now
    while each.slices[key].value.state is S.LOAD:
        due = each.manager.wake_at()
        assert due is not None
        each.tick(max(due - each.now, 0.0))
        each.settle()
    assert each.now == began + 60.0
    assert states(each) == {"UNLOAD": 1, "LOAD": 1}


def test_an_unreadable_slice_is_replaced() -> None:
    each = running(1)
    (key,) = each.slices
    each.sequence += 1
    each.route(ValueRejected(key, "not JSON", each.sequence, each.now))
    each.settle()
    assert each.statuses[NAME].condition is Condition.DEGRADED
    each.tick(1.0)
    assert each.decided


def test_a_slice_on_a_full_node_that_failed_is_tried_again() -> None:
    each = world(0)
    each.join(n(1), Registration(capacity=3))
    each.want(APP, 3)
    each.run_down()
    failed_once(each)
    for _ in range(20):
        each.tick(31.0)
        each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert each.statuses[NAME].condition is Condition.READY
