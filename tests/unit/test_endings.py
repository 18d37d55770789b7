"""Programs that end again and again, wherever their instances are replaced: never Ready in between."""

from __future__ import annotations

import pytest

from cdm.manager.cluster import Desired
from cdm.manager.group import Group
from cdm.manager.progress import Progress
from cdm.manager.service import Facts, Version
from cdm.manager.standing import Fleet, LiveNode
from cdm.model.blueprint import Blueprint
from cdm.model.keys import SliceKey
from cdm.model.node import Schedule
from cdm.model.record import Rollout, RolloutPhase, Side
from cdm.model.status import Condition
from tests.unit.leading import condition, running, slept
from tests.unit.support import APP, S, n
from tests.unit.support import put as slice_put
from tests.unit.world import World

LOOP = (Condition.DEGRADED, "crash loop: 1 of 1 instances: exit status 1")


def only(each: World) -> SliceKey:
    """The one slice that is ACTIVE."""
    (key,) = (key for key, put in each.slices.items() if put.value.state is S.ACTIVE)
    return key


def served(each: World, seconds: float) -> Condition:
    """Let it be replaced and be up for some time; returns what is told of it then."""
    each.run_down()
    slept(each, 8.0)
    each.run_down()
    slept(each, seconds)
    return condition(each)[0]


def restarted_until_it_failed(each: World, restarts: int = 3) -> SliceKey:
    """Its program ends, and is started again, so many times, and then once more."""
    key = only(each)
    for _ in range(restarts):
        slept(each, 12.0)
        each.end(key)
        each.run_down()
    slept(each, 12.0)
    each.report(key, S.FAILED, reason="exit status 1")
    each.settle()
    return key


def test_what_replaces_a_crash_loop_on_another_node_is_not_ready_until_it_is_stable() -> None:
    each = running(1, 2)
    old = restarted_until_it_failed(each)
    assert served(each, 12.0) is Condition.DEGRADED
    new = only(each)
    assert new.node != old.node
    assert condition(each) == LOOP
    each.end(new)
    each.run_down()
    assert condition(each) == LOOP
    slept(each, 59.9)
    assert condition(each) == LOOP
    slept(each, 0.1)
    assert condition(each) == (Condition.READY, "")


def test_a_replacement_counts_as_stable_when_what_it_replaces_would_have() -> None:
    each = running(1, 2)
    for _ in range(2):
        each.end(only(each), stable=20.0)
        each.run_down()
    each.report(only(each), S.FAILED, reason="exit status 1")
    each.settle()
    assert served(each, 10.0) is Condition.DEGRADED
    slept(each, 10.0)
    assert condition(each)[0] is Condition.READY


def test_programs_that_are_never_started_again_are_a_crash_loop_from_the_second_end_on() -> None:
    each = running(1, 2)
    for ends in (1, 2, 3):
        each.report(only(each), S.FAILED, reason="exit status 1")
        each.settle()
        assert served(each, 4.0) is (Condition.READY if ends == 1 else Condition.DEGRADED)


def test_a_crash_loop_that_is_retried_ever_more_rarely_stays_one() -> None:
    each = running(1, 2)
    for ends in range(1, 12):
        each.report(only(each), S.FAILED, reason="exit status 1")
        for _ in range(80):  # the longest wait between retries is 300 s
            slept(each, 4.0)
            each.run_down()
            if each.manager.cluster.group(APP).active:
                break
        slept(each, 30.0)
        assert ends == 1 or condition(each) == LOOP


def test_a_crash_loop_is_not_over_because_its_node_is_drained_or_dies() -> None:
    each = running(1, 3)
    for _ in range(2):
        each.end(only(each))
        each.run_down()
    slept(each, 5.0)
    assert condition(each) == LOOP
    each.intend(only(each).node, Schedule.DRAIN)
    each.run_down()
    slept(each, 5.0)
    assert condition(each) == LOOP, "its replacement was there before it went"
    each.end(only(each))
    each.run_down()
    slept(each, 5.0)
    assert condition(each) == LOOP, "and ended as well"
    each.expire(only(each).node)
    slept(each, 10.0)
    each.run_down()
    slept(each, 5.0)
    assert condition(each) == LOOP
    slept(each, 60.0)
    assert condition(each)[0] is Condition.READY


def test_a_crash_loop_is_over_when_its_instance_is_not_wanted_any_more() -> None:
    each = running(3, 3)
    slept(each, 100.0)
    key = min(each.slices)
    for _ in range(2):
        each.end(key)
        each.settle()
        if each.slices[key].value.restarts == 1:
            each.run_down()
    assert condition(each)[0] is Condition.DEGRADED
    each.want(APP, 2)
    each.run_down()
    assert key not in each.slices
    assert condition(each)[0] is Condition.READY


@pytest.mark.parametrize("gone", [True, False])
def test_a_crash_loop_is_forgotten_with_the_blueprint_and_where_no_instances_are_wanted(gone: bool) -> None:
    each = running(1, 2)
    for _ in range(2):
        each.end(only(each))
        each.run_down()
    assert condition(each) == LOOP
    if gone:
        each.drop(APP)
    else:
        each.want(APP, 0)
    each.run_down()
    assert not each.slices
    assert not each.manager.cluster.groups
    each.want(APP, 1)
    each.run_down()
    assert condition(each)[0] is Condition.READY


def test_instances_that_are_ended_by_commands_or_with_their_nodes_are_no_crash_loop() -> None:
    each = running(2, 4)
    for instances in (4, 1, 3, 2):
        each.want(APP, instances)
        each.run_down()
        assert condition(each)[0] is Condition.READY
    for node in (n(1), n(2)):
        each.intend(node, Schedule.DRAIN)
        each.run_down()
        assert condition(each)[0] is Condition.READY
    each.expire(n(3))
    slept(each, 10.0)
    each.run_down()
    assert condition(each)[0] is Condition.READY


def test_instances_that_fail_all_at_once_are_no_crash_loop_yet() -> None:
    each = running(3, 6)
    for key in list(each.slices):
        each.report(key, S.FAILED)
    each.settle()
    assert served(each, 1.0) is Condition.READY


def started_anew(each: World) -> None:
    """The leader's process ends, and another begins."""
    each.boot()
    each.lead()
    each.settle()


@pytest.mark.parametrize("waiting", [True, False])
def test_a_process_that_began_later_takes_what_failed_often_for_a_crash_loop(waiting: bool) -> None:
    each = running(1, 2)
    for _ in range(3):
        failed = each.now
        each.report(only(each), S.FAILED, reason="exit status 1")
        each.settle()
        if waiting:
            started_anew(each)
            assert condition(each) == (Condition.DEGRADED, "1 failed: exit status 1")
        served(each, 4.0)
    if not waiting:
        started_anew(each)
    assert each.now < failed + 60.0
    why = "exit status 1" if waiting else "ended several times before the leader's process started"
    assert condition(each) == (Condition.DEGRADED, f"crash loop: 1 of 1 instances: {why}")
    up = next(iter(each.slices.values())).at
    slept(each, up + 59.9 - each.now)
    assert condition(each)[0] is Condition.DEGRADED
    slept(each, 0.1)
    assert condition(each)[0] is Condition.READY
    started_anew(each)
    assert condition(each)[0] is Condition.READY


def test_two_ends_are_a_crash_loop_also_if_the_leader_was_started_anew_in_between() -> None:
    each = running(1, 2)
    each.end(only(each))
    each.run_down()
    started_anew(each)
    assert condition(each)[0] is Condition.READY
    each.end(only(each))
    each.run_down()
    assert condition(each) == LOOP


def test_what_could_not_be_loaded_several_times_is_no_crash_loop_for_a_leader_that_saw_it() -> None:
    each = running(1, 2)
    each.want(APP, 2)
    for _ in range(3):
        for _ in range(60):
            slept(each, 1.0)
            if loading := [key for key, put in each.slices.items() if put.value.state is S.LOAD]:
                break
        each.report(loading[0], S.LOADING)
        each.settle()
        each.report(loading[0], S.FAILED, reason="no such artifact")
        each.settle()
    served(each, 1.0)
    assert condition(each) == (Condition.READY, "")


def test_what_was_started_with_something_else_has_nothing_to_do_with_a_crash_loop_before() -> None:
    each = running(1, 2)
    restarted_until_it_failed(each)
    served(each, 12.0)
    assert condition(each) == LOOP
    each.apply(APP, Blueprint(1, min_healthy=0.0, restarted="now"))
    each.run_down()
    assert condition(each) == (Condition.READY, "")
    new = only(each)
    for _ in range(2):
        each.end(new)
        each.run_down()
    assert condition(each) == LOOP, "it is judged by its own ends"


def test_why_instances_fail_is_told_also_while_they_are_tried_again() -> None:
    group = Group()
    group.put(slice_put(n(1), S.FAILED, reason="no database", failures=1))
    group.put(slice_put(n(1), S.LOAD, failures=2))
    record = Rollout(Side(APP.version, 1), Side("2.0.0", 2), RolloutPhase.REVERTING)
    version = Version(APP, Desired(Blueprint(1), 1, 1), None, group)
    fleet = Fleet({n(1): LiveNode(n(1), open=True, draining=False)}, lambda _: 1)
    progress = Progress(Facts(APP.service, record, {APP.version: version}, fleet, 100.0), record)
    assert (progress.stable.troubled, progress.stable.reason) == (1, "no database")


def test_what_was_stopped_on_purpose_did_not_end() -> None:
    """A node that was cut off stopped it (`stop_after`): its first end after that is the first one."""
    for new_leader in (False, True):
        each = running(1, 2)
        each.report(only(each), S.FAILED, reason="stopped", lapsed=True)
        if new_leader:
            each.boot()
            each.lead()
        each.settle()
        assert served(each, 20.0) is Condition.READY
        assert not each.slices[only(each)].value.failures
        each.end(only(each))
        each.run_down()
        slept(each, 12.0)
        assert condition(each) == (Condition.READY, "")
        each.end(only(each))
        each.run_down()
        slept(each, 12.0)
        assert condition(each) == LOOP
