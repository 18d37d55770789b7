"""Ready means served: by all instances, for long enough, by none that ends again and again, with what is wanted."""

from __future__ import annotations

import pytest

from cdm.model.blueprint import Blueprint, Overrides
from cdm.model.node import FEATURES, Registration
from cdm.model.slice import SliceValue
from cdm.model.status import Condition
from tests.unit.leading import NAME, condition, failed_once, running, slept, woken, world
from tests.unit.support import APP, S, n
from tests.unit.world import NEXT, World

OLDER, NEWER = Blueprint(3, min_healthy=0.0), Blueprint(3, Overrides({"LEVEL": "debug"}), 0.0)


def test_ready_means_that_all_instances_have_been_active_for_long_enough() -> None:
    each = world()
    each.want(APP, 3, min_healthy=10.0)
    each.run_down()
    assert condition(each) == (Condition.PROGRESSING, "3 of 3 active, but not all of them for 10 s yet")
    assert woken(each) == 10.0
    assert condition(each) == (Condition.READY, "")
    each.want(APP, 4, min_healthy=10.0)
    each.run_down()
    assert condition(each)[0] is Condition.PROGRESSING
    slept(each, 9.9)
    assert condition(each)[0] is Condition.PROGRESSING
    slept(each, 0.1)
    assert condition(each) == (Condition.READY, "")


def test_instances_are_counted_as_healthy_once_they_are_whatever_else_is_wrong() -> None:
    each = World(interval=1e6)
    each.join(n(1), Registration(version="1", features=FEATURES, capacity=2))
    each.lead()
    each.want(APP, 3, min_healthy=10.0)
    each.run_down()
    slept(each, 9.9)
    told = each.statuses[NAME]
    assert (told.condition, told.active, told.healthy) == (Condition.UNSCHEDULABLE, 2, 0)
    slept(each, 0.1)
    assert each.statuses[NAME].healthy == 2
    due = each.manager.wake_at()
    assert due is not None
    assert due > each.now + 1, "there is nothing to look for any more"


def test_a_young_instance_that_is_removed_does_not_hold_up_the_others() -> None:
    each = running(1, 1)
    each.want(APP, 1, min_healthy=100.0)
    each.run_down()
    slept(each, 100.0)
    assert condition(each)[0] is Condition.READY
    each.want(APP, 2, min_healthy=100.0)
    each.run_down()
    each.want(APP, 1, min_healthy=100.0)
    each.run_down()
    assert condition(each)[0] is Condition.READY


def test_why_an_instance_failed_is_told_until_it_runs_there() -> None:
    each = running(1, 1)
    key = failed_once(each)
    each.tick(1.0)
    each.run_down()
    assert each.states(APP) == {key: S.ACTIVE}
    each.want(APP, 2)
    each.settle()
    (other,) = each.states(APP).keys() - {key}
    each.report(other, S.LOADING)
    each.settle()
    slept(each, 120.0)
    assert "before" not in condition(each)[1], "that it did not answer in time has nothing to do with it"


@pytest.mark.parametrize("fresh", [True, False])
def test_a_change_of_leaders_does_not_begin_the_count_anew(fresh: bool) -> None:
    each = world()
    each.want(APP, 3, min_healthy=10.0)
    each.run_down()
    slept(each, 6.0)
    each.step_down()
    if fresh:
        each.boot()
    each.lead()
    each.settle()
    slept(each, 3.9)
    assert condition(each)[0] is Condition.PROGRESSING
    slept(each, 0.1)
    assert condition(each)[0] is Condition.READY


def test_a_slice_that_says_again_that_it_is_active_has_been_so_all_the_time() -> None:
    each = running()
    each.want(APP, 3, min_healthy=10.0)
    slept(each, 10.0)
    key = next(iter(each.slices))
    each.store(key, SliceValue(S.ACTIVE, 1, port=8080, blueprint=1))
    each.settle()
    assert condition(each)[0] is Condition.READY
    each.store(key, SliceValue(S.ACTIVE, 1, port=8080, blueprint=1, restarts=1))
    each.settle()
    assert condition(each)[0] is Condition.PROGRESSING, "it was started again in between"


def test_a_program_that_ended_once_is_not_ready_until_it_has_been_up_again_for_long_enough() -> None:
    each = running()
    each.want(APP, 3, min_healthy=10.0)
    slept(each, 10.0)
    each.end(next(iter(each.slices)))
    each.settle()
    assert condition(each) == (Condition.PROGRESSING, "2 of 3 active")
    each.run_down()
    assert condition(each)[0] is Condition.PROGRESSING
    slept(each, 10.0)
    assert condition(each)[0] is Condition.READY


@pytest.mark.parametrize("stable", [None, 20.0])
def test_a_program_that_ends_again_and_again_is_never_ready_in_between(stable: float | None) -> None:
    each = running()
    key = next(iter(each.slices))
    for count in range(1, 8):
        each.end(key, stable=stable)
        slept(each, 4.0)
        for pause in (0.0, 12.0):  # just started, and about to end
            if pause:
                each.report(key, S.ACTIVE, stable=stable)
            slept(each, pause)
            if count > 1:
                assert condition(each) == (Condition.DEGRADED, "crash loop: 1 of 3 instances: exit status 1")
    left = (stable or 60.0) - 12.0
    slept(each, left - 0.1)
    assert condition(each)[0] is Condition.DEGRADED
    slept(each, 0.1)
    assert condition(each) == (Condition.READY, "")


def test_a_crash_loop_is_told_of_as_long_as_it_lasts_though_a_newer_blueprint_is_refused() -> None:
    each = running(1)
    (key,) = each.slices
    for _ in range(2):
        each.end(key)
        each.run_down()
    each.refuse(APP, "foo: there is no such field")
    each.settle()
    loop = "foo: there is no such field; in force: crash loop: 1 of 1 instances: exit status 1"
    assert condition(each) == (Condition.INVALID, loop)
    slept(each, 60.0)
    assert condition(each) == (Condition.INVALID, "foo: there is no such field")


def test_ends_that_are_far_apart_and_of_different_instances_are_no_crash_loop() -> None:
    each = running()
    first, second, _ = each.slices
    for key, pause in ((first, 1.0), (second, 301.0), (first, 1.0)):
        each.end(key)
        each.run_down()
        assert condition(each)[0] is Condition.READY
        slept(each, pause)


def test_instances_that_fail_one_after_another_are_a_crash_loop_wherever_they_are_replaced() -> None:
    each = running(1)
    for pause in (1.0, 2.0, 4.0):
        failed_once(each)
        assert condition(each)[0] is Condition.DEGRADED
        slept(each, pause)
        each.run_down()
    assert condition(each) == (Condition.DEGRADED, "crash loop: 1 of 1 instances: it broke")
    slept(each, 59.9)
    assert condition(each)[0] is Condition.DEGRADED
    slept(each, 0.1)
    assert condition(each) == (Condition.READY, "")


def test_a_process_that_began_later_takes_what_was_started_often_for_a_crash_loop() -> None:
    each = running()
    key = next(iter(each.slices))
    each.store(key, SliceValue(S.ACTIVE, 1, restarts=7))
    each.boot()
    each.lead()
    each.settle()
    assert condition(each)[0] is Condition.DEGRADED
    slept(each, 60.0)
    assert condition(each)[0] is Condition.READY


@pytest.mark.parametrize("copy", [True, False])
def test_another_number_of_instances_is_no_other_setting_even_if_the_agent_drops_the_settings(copy: bool) -> None:
    each = world()
    each.apply(APP, NEWER)
    each.settle()
    for _ in range(5):
        for key, put in list(each.slices.items()):
            if put.value.state in NEXT:
                each.report(key, NEXT[put.value.state], copy=copy)
        each.settle()
    for instances in (2, 1):
        each.apply(APP, Blueprint(instances, NEWER.overrides, 0.0))
        each.run_down()
        assert condition(each)[0] is Condition.READY


def dropped(each: World) -> None:
    """Agents that copy nothing but the blueprint's revision go on until nothing is left to do."""
    for _ in range(5):
        for key, put in list(each.slices.items()):
            if put.value.state in NEXT:
                each.report(key, NEXT[put.value.state], copy=False, blueprint=put.value.blueprint)
        each.settle()


def test_an_exclusive_slice_whose_agent_drops_the_settings_is_waited_for_all_the_same() -> None:
    each = world(2)
    overrides = Overrides(stop_after=20.0)
    each.apply(APP, Blueprint(1, overrides, 0.0))
    each.settle()
    dropped(each)
    ((key, put),) = each.slices.items()
    assert (put.value.state, put.value.overrides) == (S.ACTIVE, None)
    each.expire(key.node)
    slept(each, 20.0)
    assert list(each.slices) == [key]
    assert condition(each) == (Condition.PROGRESSING, "waiting for 1 exclusive instance to stop")
    slept(each, overrides.gone_after or 0.0)
    each.run_down()
    assert key not in each.slices
    assert len(each.slices) == 1


def test_what_drops_the_settings_is_not_taken_for_outdated_by_a_leader_that_did_not_see_the_command() -> None:
    each = world()
    each.apply(APP, NEWER)
    each.settle()
    dropped(each)
    each.apply(APP, Blueprint(2, NEWER.overrides, 0.0))
    each.settle()
    dropped(each)
    each.boot()
    each.lead()
    each.settle()
    assert condition(each) == (Condition.READY, "")


def test_what_a_command_sets_no_more_is_not_kept() -> None:
    each = world(1)
    each.apply(APP, NEWER)
    each.settle()
    dropped(each)
    (key, *_) = each.slices
    each.report(key, S.FAILED, copy=False)
    each.apply(APP, OLDER)
    each.run_down()
    assert each.manager.cluster.group(APP).slices[key].value.overrides is None


def test_what_does_not_say_which_blueprint_it_serves_is_never_outdated() -> None:
    each = running(1)
    (key,) = each.slices
    each.step_down()
    each.store(key, SliceValue(S.ACTIVE))
    each.boot()
    each.apply(APP, Blueprint(1, NEWER.overrides, 0.0))
    each.lead()
    each.settle()
    assert condition(each)[0] is Condition.READY
