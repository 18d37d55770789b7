"""Rollouts of what breaks or never comes up, in virtual time: it is taken back, and the status says why."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cdm.manager.gates import Gate
from cdm.manager.health import SideHealth, judge
from cdm.manager.service import revert
from cdm.model.blueprint import Blueprint, Overrides
from cdm.model.record import Rollout, RolloutPhase, Side
from cdm.model.rollout import RolloutSettings
from cdm.model.status import Condition
from tests.unit.rollout_world import (
    FROM,
    MIN_HEALTHY,
    NEXT_VERSION,
    blueprint,
    condition,
    count,
    env_of,
    fail_new,
    finish,
    later,
    phase,
    running,
    status,
)
from tests.unit.support import APP, S
from tests.unit.world import NEXT

pytestmark = pytest.mark.quick


def test_a_revert_to_what_does_not_come_up_any_more_says_so_and_keeps_what_serves() -> None:
    each = running(2)
    each.apply(NEXT_VERSION, blueprint(2, rollout=FROM))
    finish(each)
    each.apply(NEXT_VERSION, blueprint(2, rollout=RolloutSettings(source="1.0.0", abort=True)))
    each.settle()
    for _ in range(4):
        each.answer()
        each.settle()
        for key in [key for key, put in each.slices.items() if key.artifact == APP and put.value.state is S.ACTIVATING]:
            each.report(key, S.FAILED, fatal=True)
        each.settle()
    later(each, 1.0)
    assert phase(each) is RolloutPhase.REVERTING
    why = condition(each, NEXT_VERSION)[1]
    assert why.endswith("; 0 of 2 old instances healthy; 1 old instance failed or restarted: it broke")
    rollout = status(each, NEXT_VERSION).rollout
    assert rollout
    assert rollout.stuck
    assert count(each, NEXT_VERSION) == 2


@pytest.mark.parametrize(
    ("troubled", "troubles", "told"),
    [
        (1, 1, "1 new instance failed or restarted: it broke"),
        (1, 2, "1 new instance failed or restarted twice: it broke"),
        (1, 3, "1 new instance failed or restarted 3 times: it broke"),
        (2, 2, "2 new instances failed or restarted: it broke"),
        (2, 5, "2 new instances failed or restarted, 5 times in all: it broke"),
    ],
)
def test_how_often_instances_failed_is_told(troubled: int, troubles: int, told: str) -> None:
    new = SideHealth(live=2, troubled=troubled, troubles=troubles, troubled_since=0.0, reason="it broke")
    verdict = judge(new, SideHealth(), 10.0, 60.0)
    assert (verdict.gate, verdict.reason) == (Gate.FAIL, told)


def test_a_version_is_not_told_to_have_failed_for_what_ended_the_other_one() -> None:
    """Also where both are the same version, started with other settings."""
    each = running()
    each.apply(APP, blueprint(LEVEL="debug"))
    each.run_down()
    old, new = sorted(
        (key for key, put in each.slices.items() if put.value.state is S.ACTIVE),
        key=lambda key: each.slices[key].at,
    )[:: len(each.slices) - 1]
    for reason in ("new 1", "new 2"):
        each.end(new, reason)
        each.report(new, S.ACTIVE)
    each.end(old, "old")
    each.report(old, S.ACTIVE)
    each.settle()
    told = condition(each)[1]
    assert "1 new instance failed or restarted twice: new 2" in told, told


def test_why_the_program_ended_is_told_also_of_an_instance_that_is_up_again() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.run_down()
    key = next(key for key, put in each.slices.items() if key.artifact == NEXT_VERSION and put.value.state is S.ACTIVE)
    for reason in ("it broke 1", "it broke 2"):
        each.end(key, reason)
        each.report(key, S.ACTIVE)
    each.settle()
    assert condition(each, NEXT_VERSION)[1] == "1 new instance failed or restarted twice: it broke 2"


def test_a_version_that_fails_twice_is_taken_back_once() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.run_down()
    fail_new(each)
    assert phase(each) is RolloutPhase.ROLLING
    later(each, 1.0)
    fail_new(each)
    finish(each)
    later(each, MIN_HEALTHY)
    assert phase(each) is RolloutPhase.REVERTED
    assert condition(each, NEXT_VERSION) == (Condition.REVERTED, "1 new instance failed or restarted twice: it broke")
    assert condition(each) == (Condition.READY, "")
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.run_down()
    later(each, 60.0)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0), "the same is not tried again"
    each.apply(NEXT_VERSION, blueprint(rollout=FROM, LEVEL="debug"))
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)


def test_a_variable_that_breaks_it_is_taken_back() -> None:
    each = running(LEVEL="info")
    each.apply(APP, blueprint(LEVEL="debug"))
    each.run_down()
    key = next(key for key, put in each.slices.items() if put.value.overrides == Overrides({"LEVEL": "debug"}))
    each.report(key, S.FAILED, fatal=True)
    each.settle()
    finish(each)
    later(each, MIN_HEALTHY)
    assert env_of(each) == [{"LEVEL": "info"}] * 3
    assert condition(each)[0] is Condition.REVERTED
    each.apply(APP, blueprint(5, LEVEL="debug"))
    each.run_down()
    assert env_of(each) == [{"LEVEL": "info"}] * 5, "the number of instances holds for what is in force"


def test_what_is_never_healthy_is_taken_back_at_its_deadline() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", deadline=60.0)))
    each.settle()
    for _ in range(30):
        for key in [key for key in each.slices if key.artifact == NEXT_VERSION]:
            if each.slices[key].value.state in NEXT and each.slices[key].value.state is not S.ACTIVATING:
                each.report(key, NEXT[each.slices[key].value.state])
        each.tick(2.5)
        each.settle()
    finish(each)
    assert condition(each, NEXT_VERSION) == (Condition.REVERTED, "no instance became healthy for 60 s")


def test_where_none_are_wanted_none_can_fail() -> None:
    each = running(2, 1)
    each.apply(APP, blueprint(0, LEVEL="debug"))
    each.report(next(iter(each.slices)), S.FAILED, copy=False)  # it is not known any more what it was started with
    each.now += 60.0
    each.boot(["nodes", "blueprints", "slices", "statuses"])
    each.tick()
    each.lead()
    finish(each)
    each.apply(APP, blueprint(2, LEVEL="debug"))
    finish(each)
    later(each, MIN_HEALTHY)
    assert env_of(each) == [{"LEVEL": "debug"}] * 2
    assert condition(each)[0] is Condition.READY


def test_the_deadline_counts_from_the_last_that_became_healthy() -> None:
    each = running(4, 4)
    slow = Blueprint(4, None, 40.0, rollout=RolloutSettings(source="1.0.0", deadline=60.0))
    each.apply(NEXT_VERSION, slow)
    for _ in range(20):
        later(each, 10.0)
    assert phase(each) is RolloutPhase.COMPLETE, "each took 40 s, and all of them much longer than the deadline"


def test_a_deadline_does_not_run_in_an_outage() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", deadline=60.0)))
    each.settle()
    away = each.outage(500.0)
    each.settle()
    assert phase(each) is RolloutPhase.ROLLING
    each.back(away)
    finish(each)
    assert phase(each) is RolloutPhase.COMPLETE


def test_a_deadline_runs_anew_after_an_outage() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", deadline=60.0)))
    each.settle()
    each.back(each.outage(500.0))
    each.settle()
    each.tick(59.0)
    each.settle()
    assert phase(each) is RolloutPhase.ROLLING
    each.tick(1.0)
    each.settle()
    assert phase(each) is RolloutPhase.REVERTED


def test_an_instance_that_failed_once_is_not_judged_by_its_silence_in_an_outage() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.run_down()
    fail_new(each)
    each.tick(1.0)
    each.settle()
    away = each.outage(500.0)
    each.settle()
    assert phase(each) is RolloutPhase.ROLLING
    each.back(away)
    finish(each)
    assert phase(each) is RolloutPhase.COMPLETE


def test_what_is_the_same_is_not_gone_back_to_and_that_is_said() -> None:
    side = Side("1.0.0", 1, digest="d")
    rolling = Rollout(side, replace(side, revision=2), RolloutPhase.ROLLING)
    found = revert(rolling, "it broke", 5.0)
    assert (found.phase, found.since) == (RolloutPhase.FAILED, 5.0)
    assert found.reason == "it broke; the version before is the same, so there is nothing to go back to"
    assert revert(found, "it broke again", 6.0) is found


def test_a_new_leader_goes_on_in_the_middle() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    for _ in range(40):
        each.settle()
        each.answer()
        each.boot()
        each.lead()
        each.settle()
        each.tick(1.0)
        assert count(each, APP) + count(each, NEXT_VERSION) >= 3
    finish(each)
    assert phase(each) is RolloutPhase.COMPLETE
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)
