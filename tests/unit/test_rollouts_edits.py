"""What users write in the middle of a rollout, before and after it, in virtual time: each edit has one outcome."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from cdm.model.artifact import Artifact
from cdm.model.keys import SliceKey
from cdm.model.record import Rollout, RolloutPhase, Weights
from cdm.model.rollout import RolloutKind, RolloutSettings
from cdm.model.status import Condition
from tests.unit.rollout_world import (
    FROM,
    MIN_HEALTHY,
    NEXT_VERSION,
    THIRD_VERSION,
    blueprint,
    condition,
    count,
    env_of,
    fail_new,
    finish,
    later,
    phase,
    record,
    running,
    status,
    steps,
)
from tests.unit.support import APP, S, n
from tests.unit.world import World

pytestmark = pytest.mark.quick

ABORT = RolloutSettings(abort=True)
FROM_AND_ABORT = replace(FROM, abort=True)
CANARY: dict[str, Any] = {"source": "1.0.0", "kind": RolloutKind.CANARY, "steps": steps(34, "approve", 67, "approve")}


def losing_all(each: World) -> None:
    """Every node is lost, and another one comes."""
    for node in list(each.nodes):
        each.expire(node)
    each.join(n(9))
    for _ in range(4):
        later(each, 30.0)


def taken_back(each: World) -> None:
    """The next version is rolled out, and breaks."""
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.run_down()
    fail_new(each, fatal=True)
    finish(each)
    later(each, MIN_HEALTHY)
    assert phase(each) is RolloutPhase.REVERTED


# Aborted before it began


def test_what_is_put_again_with_an_abort_and_another_template_comes_back_as_it_was() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    later(each, MIN_HEALTHY)
    each.apply(APP, blueprint(rollout=ABORT, LEVEL="debug"))
    finish(each)
    later(each, MIN_HEALTHY)
    assert phase(each) is RolloutPhase.REVERTED
    assert (env_of(each), count(each, NEXT_VERSION)) == ([{}] * 3, 0)
    assert condition(each) == (Condition.REVERTED, "aborted before it began")
    losing_all(each)
    assert env_of(each) == [{}] * 3, "also where every instance was lost"
    each.apply(APP, blueprint(LEVEL="debug"))
    finish(each)
    assert env_of(each) == [{"LEVEL": "debug"}] * 3, "without the abort it begins"


def test_a_template_that_came_with_an_abort_does_not_begin_when_every_instance_is_lost() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    each.apply(NEXT_VERSION, blueprint(rollout=FROM_AND_ABORT, LEVEL="debug"))
    each.run_down()
    losing_all(each)
    assert env_of(each, NEXT_VERSION) == [{}] * 3
    assert condition(each, NEXT_VERSION) == (Condition.REVERTED, "aborted before it began")


@pytest.mark.parametrize("ended", [False, True])
def test_a_version_that_came_with_an_abort_does_not_begin_when_what_it_names_is_put_again(ended: bool) -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM_AND_ABORT))
    each.run_down()
    each.apply(APP, blueprint())
    later(each, 60.0)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)
    assert condition(each, NEXT_VERSION) == (Condition.REVERTED, "aborted before it began")
    each.apply(THIRD_VERSION, blueprint(rollout=FROM))
    finish(each) if ended else later(each, MIN_HEALTHY)
    assert count(each, NEXT_VERSION) == 0, "nor when another version replaces it"
    assert condition(each, NEXT_VERSION) == (Condition.REVERTED, "aborted before it began")


# What is named in `from`


def test_what_is_named_in_from_and_is_not_in_force_is_told() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="0.9.0")))
    finish(each)
    later(each, MIN_HEALTHY)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 3)
    why = "rollout.from: 0.9.0 is not in force, so nothing is replaced"
    assert condition(each, NEXT_VERSION) == (Condition.READY, why)
    assert condition(each) == (Condition.READY, "")
    fail_new(each)
    told = condition(each, NEXT_VERSION)
    assert told[0] is Condition.DEGRADED
    assert told[1].endswith(f"; {why}"), "also where something else is wrong"


def test_what_is_named_in_from_and_was_replaced_before_is_told_with_what_is_in_force() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    each.apply(THIRD_VERSION, blueprint(rollout=FROM))
    finish(each)
    later(each, MIN_HEALTHY)
    assert (count(each, NEXT_VERSION), count(each, THIRD_VERSION)) == (3, 3)
    why = "rollout.from: 1.0.0 is not in force (1.1.0 is), so nothing is replaced"
    assert condition(each, THIRD_VERSION) == (Condition.READY, why)
    assert condition(each, NEXT_VERSION) == (Condition.READY, "")


def test_what_is_named_in_from_and_was_written_later_is_told() -> None:
    each = running(0)
    each.drop(APP)
    each.run_down()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.run_down()
    each.apply(APP, blueprint())
    each.run_down()
    later(each, MIN_HEALTHY)
    why = "rollout.from: 1.0.0 was written later, so it is not replaced; write this one again to replace it"
    assert condition(each, NEXT_VERSION) == (Condition.READY, why)
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    later(each, MIN_HEALTHY)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)
    assert condition(each, NEXT_VERSION) == (Condition.READY, "")


def test_what_names_a_version_that_was_taken_back_replaces_what_serves_instead() -> None:
    each = running()
    taken_back(each)
    each.apply(THIRD_VERSION, blueprint(rollout=RolloutSettings(source="1.1.0")))
    each.run_down()
    found = record(each)
    assert found is not None
    assert (found.source.version, found.target.version) == ("1.0.0", "1.2.0")
    finish(each)
    later(each, MIN_HEALTHY)
    assert [count(each, one) for one in (APP, NEXT_VERSION, THIRD_VERSION)] == [0, 0, 3]
    assert condition(each, THIRD_VERSION) == (Condition.READY, "")


# Why a version was taken back


def test_why_a_version_was_taken_back_is_told_for_as_long_as_its_blueprint_stands() -> None:
    each = running()
    taken_back(each)
    why = condition(each, NEXT_VERSION)
    assert why == (Condition.REVERTED, "1 new instance failed or restarted: it broke")
    each.apply(THIRD_VERSION, blueprint(rollout=FROM))
    finish(each)
    later(each, MIN_HEALTHY)
    each.boot()
    each.lead()
    each.run_down()
    assert condition(each, NEXT_VERSION) == why
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.2.0"), LEVEL="debug"))
    finish(each)
    found = record(each)
    assert found is not None
    assert not found.reasons


def test_a_record_of_before_tells_no_reasons_and_has_no_approvals() -> None:
    sides = {"from": {"version": "1.0.0", "revision": 1}, "to": {"version": "1.1.0", "revision": 2}}
    found = msgspec.convert({**sides, "phase": "reverted", "reverted": {"1.1.0": "digest"}}, Rollout)
    assert (found.reasons, found.approved) == ({}, 0)


# How many there are after a revert


def test_a_version_that_was_taken_back_and_is_scaled_to_none_takes_nothing_from_what_serves() -> None:
    each = running()
    taken_back(each)
    each.apply(NEXT_VERSION, blueprint(0, rollout=FROM))
    for _ in range(3):
        later(each, MIN_HEALTHY)
    assert (count(each, APP), condition(each)) == (3, (Condition.READY, ""))
    each.apply(NEXT_VERSION, blueprint(2, rollout=FROM))
    for _ in range(3):
        later(each, MIN_HEALTHY)
    why = "as many instances as the blueprint of 1.1.0 says, which was written last"
    assert (count(each, APP), condition(each)) == (2, (Condition.READY, why))
    each.apply(APP, blueprint(4))
    for _ in range(3):
        later(each, MIN_HEALTHY)
    assert (count(each, APP), condition(each)) == (4, (Condition.READY, ""))


def test_an_abort_with_no_instances_goes_back_to_as_many_as_there_were() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    later(each, MIN_HEALTHY)
    each.apply(NEXT_VERSION, blueprint(0, rollout=FROM_AND_ABORT))
    finish(each)
    later(each, MIN_HEALTHY)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)


# Steps, weights and approvals


def test_what_goes_back_is_in_no_step() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(**CANARY)))
    each.run_down()
    later(each, MIN_HEALTHY)
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(**CANARY, abort=True)))
    each.settle()
    told = status(each, NEXT_VERSION).rollout
    assert told
    assert (told.phase, told.step, told.steps) == ("reverting", 0, 0)


@pytest.mark.parametrize("fields", [{}, {"kind": RolloutKind.CANARY, "steps": steps(50)}, {"kind": "blue-green"}])
def test_at_the_end_the_new_side_has_all_the_weight(fields: dict[str, Any]) -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=msgspec.convert({"from": "1.0.0", **fields}, RolloutSettings)))
    finish(each)
    found = record(each)
    assert found is not None
    assert (found.phase, found.weights) == (RolloutPhase.COMPLETE, Weights(0, 100))
    gone_back = msgspec.convert({"from": "1.0.0", **fields, "abort": True}, RolloutSettings)
    each.apply(NEXT_VERSION, blueprint(rollout=gone_back))
    each.settle()
    found = record(each)
    assert found is not None
    assert (found.phase, found.weights) == (RolloutPhase.REVERTING, None), "nothing is there yet to send requests to"


def approve(each: World, times: int, **env: Any) -> None:
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(**CANARY, approved=times), **env))
    for _ in range(4):
        later(each, MIN_HEALTHY)


def test_approvals_that_a_blueprint_brings_along_approve_nothing() -> None:
    each = running()
    approve(each, 1)
    assert (phase(each), count(each, NEXT_VERSION)) == (RolloutPhase.PAUSED, 1)
    approve(each, 2)
    assert (phase(each), count(each, NEXT_VERSION)) == (RolloutPhase.PAUSED, 2)
    approve(each, 3)
    finish(each)
    assert phase(each) is RolloutPhase.COMPLETE
    approve(each, 3, LEVEL="debug")
    assert (phase(each), sorted(map(len, env_of(each, NEXT_VERSION)))) == (RolloutPhase.PAUSED, [0, 0, 1])


def test_approvals_that_are_taken_out_of_the_blueprint_do_not_count_against_those_to_come() -> None:
    each = running()
    approve(each, 3)
    approve(each, 0)
    assert (phase(each), count(each, NEXT_VERSION)) == (RolloutPhase.PAUSED, 1)
    approve(each, 1)
    assert (phase(each), count(each, NEXT_VERSION)) == (RolloutPhase.PAUSED, 2)


# How long what goes serves on


def reached(each: World, artifact: Artifact = APP) -> None:
    """Its instances can be reached, and so are drained."""
    for key, put in list(each.slices.items()):
        if key.artifact == artifact:
            each.store(key, replace(put.value, port=8080))
    each.settle()


def draining(each: World, left: float | None) -> list[SliceKey]:
    """Agents that are told to unload answer that so many seconds are left; None: as long as they were told."""
    each.settle()
    told = [key for key, put in each.slices.items() if put.value.state is S.UNLOAD]
    for key in told:
        each.report(key, S.UNLOADING, after=each.slices[key].value.after if left is None else left)
    each.settle()
    return told


def hurried(each: World) -> list[float | None]:
    """What is left, as each is told, to those that are told to unload once more."""
    each.settle()
    return [put.value.after for put in each.slices.values() if put.value.state is S.UNLOAD]


def test_what_drains_for_long_is_told_to_go_sooner_when_the_blueprint_says_so() -> None:
    each = running()
    each.apply(APP, replace(blueprint(), drain_delay=3_600.0))
    reached(each)
    each.apply(APP, replace(blueprint(1), drain_delay=3_600.0))
    assert len(draining(each, None)) == 2
    each.tick(60.0)
    each.settle()
    assert hurried(each) == [], "it is told again only what is another"
    each.apply(APP, replace(blueprint(1), drain_delay=30.0))
    assert hurried(each) == [30.0, 30.0]
    draining(each, 0.0)
    each.apply(APP, replace(blueprint(1), drain_delay=0.0))
    assert hurried(each) == []


def test_what_was_replaced_drains_as_the_new_blueprint_says_and_sooner_when_that_is_changed() -> None:
    each = running()
    reached(each)
    each.apply(NEXT_VERSION, replace(blueprint(rollout=replace(FROM, max_surge=3)), drain_delay=3_600.0))
    each.run_down()
    each.tick(MIN_HEALTHY)
    assert len(draining(each, None)) == 3
    each.tick(60.0)
    each.settle()
    assert phase(each) is RolloutPhase.COMPLETE
    assert hurried(each) == []
    each.apply(NEXT_VERSION, replace(blueprint(rollout=replace(FROM, max_surge=3)), drain_delay=30.0))
    assert hurried(each) == [30.0] * 3


def test_what_is_deleted_drains_for_as_long_as_its_blueprint_said() -> None:
    each = running()
    each.apply(APP, replace(blueprint(), drain_delay=60.0))
    reached(each)
    each.drop(APP)
    each.settle()
    assert hurried(each) == [60.0] * 3
    draining(each, None)
    each.boot()
    each.lead()
    each.tick(30.0)
    each.settle()
    assert hurried(each) == [], "a new leader does not know for how long, and changes nothing"


def test_a_version_that_is_put_again_and_named_anew_before_anybody_looked_does_not_come_up() -> None:
    """It was started when the rollout was complete, and taken away at once."""
    each = running()
    waits = replace(FROM, auto_promote=False, if_stable_down="hold")
    each.apply(NEXT_VERSION, blueprint(rollout=waits))
    finish(each, 60.0)
    assert (phase(each), count(each, APP)) == (RolloutPhase.PAUSED, 0)
    each.apply(APP, blueprint())
    each.apply(NEXT_VERSION, blueprint(rollout=replace(waits, approved=1)))
    decided = len(each.decided)
    later(each, 60.0)
    assert (phase(each), count(each, APP), count(each, NEXT_VERSION)) == (RolloutPhase.COMPLETE, 0, 3)
    assert condition(each)[0] is Condition.SUPERSEDED
    assert not [each.commands for each in each.decided[decided:] if each.commands]


# What was whole before


def _restart(each: World, artifact: Artifact, stamp: str, **more: Any) -> Rollout:
    each.apply(artifact, replace(blueprint(**more), restarted=stamp))
    finish(each)
    found = record(each)
    assert found is not None
    assert (found.phase, found.only_restarts) == (RolloutPhase.COMPLETE, True)
    return found


def test_a_restart_leaves_in_the_record_what_was_whole_before_and_not_what_was_replaced_in_the_middle() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    later(each, MIN_HEALTHY)
    third = RolloutSettings(source="1.1.0")
    each.apply(THIRD_VERSION, blueprint(rollout=third))
    finish(each)
    for stamp in ("once", "twice"):
        before = _restart(each, THIRD_VERSION, stamp, rollout=third).before
        assert before is not None
        assert before.version == "1.0.0"


def test_settings_that_were_replaced_in_the_middle_or_taken_back_never_were_whole() -> None:
    each = running()
    each.apply(APP, blueprint(LEVEL="middle"))
    later(each, MIN_HEALTHY)
    each.apply(APP, blueprint(LEVEL="whole"))
    finish(each)
    for rollout in (RolloutSettings(), ABORT):
        each.apply(APP, blueprint(rollout=rollout, LEVEL="bad"))
        later(each, MIN_HEALTHY)
    finish(each)
    assert phase(each) is RolloutPhase.REVERTED
    each.apply(APP, blueprint(LEVEL="whole"))
    finish(each)
    before = _restart(each, APP, "once", LEVEL="whole").before
    assert before is not None
    assert before.template.overrides.env == {}
