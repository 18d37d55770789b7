"""Rollouts step by step, in virtual time: canaries, blue-green, and checks that have to pass on the way."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from cdm.dispatch.messages import CheckResult
from cdm.model.check import Check, CheckOutcome
from cdm.model.record import RolloutPhase
from cdm.model.rollout import RolloutKind, RolloutSettings
from cdm.model.status import Condition
from tests.unit.rollout_world import (
    MIN_HEALTHY,
    NEXT_VERSION,
    blueprint,
    condition,
    count,
    env_of,
    finish,
    later,
    phase,
    record,
    running,
    status,
    steps,
)
from tests.unit.support import APP
from tests.unit.world import World

pytestmark = pytest.mark.quick


# Steps


def test_a_canary_goes_step_by_step_and_waits_for_approvals() -> None:
    each = running(10, 5)
    settings: dict[str, Any] = {"source": "1.0.0", "kind": RolloutKind.CANARY, "steps": steps(10, "approve", 50, 60.0)}
    each.apply(NEXT_VERSION, blueprint(10, rollout=RolloutSettings(**settings)))
    each.run_down()
    later(each, MIN_HEALTHY)
    later(each, 600.0)
    assert phase(each) is RolloutPhase.PAUSED
    assert (count(each, APP), count(each, NEXT_VERSION)) == (9, 1)
    found = status(each, NEXT_VERSION).rollout
    assert found
    assert (found.phase, found.step, found.steps, found.share) == ("paused", 2, 5, 10.0)
    assert found.why == "waiting for an approval: cdm rollout approve org.example:slice"
    each.apply(NEXT_VERSION, blueprint(10, rollout=RolloutSettings(**settings, approved=1)))
    each.run_down()
    for _ in range(5):
        later(each, MIN_HEALTHY)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (5, 5)
    later(each, 60.0)
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 10)
    assert phase(each) is RolloutPhase.COMPLETE


def test_before_the_first_share_nothing_comes_up() -> None:
    each = running()
    settings: dict[str, Any] = {"source": "1.0.0", "kind": RolloutKind.CANARY, "steps": steps("approve", 50)}
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(**settings)))
    later(each, 600.0)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)
    assert condition(each, NEXT_VERSION)[1] == "waiting for an approval: cdm rollout approve org.example:slice"
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(**settings, approved=1)))
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)


def test_blue_green_switches_when_all_are_there_and_keeps_the_old_ones_for_a_while() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", kind=RolloutKind.BLUE_GREEN)))
    each.run_down()
    found = record(each)
    assert found is not None
    assert found.weights is not None
    assert (found.weights.source, found.weights.target) == (100, 0)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 3)
    later(each, MIN_HEALTHY)
    found = record(each)
    assert found is not None
    assert found.weights is not None
    assert (found.phase, found.weights.source, found.weights.target) == (RolloutPhase.SWITCHED, 0, 100)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 3)
    later(each, 30.0)
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)
    assert phase(each) is RolloutPhase.COMPLETE


def test_both_sides_grow_at_once_and_take_keys_and_room_of_their_own() -> None:
    each = running(1, 2, capacity=2)
    settings = RolloutSettings(kind=RolloutKind.BLUE_GREEN)
    each.apply(APP, blueprint(2, rollout=settings, LEVEL="debug"))
    each.run_down()
    assert sorted(map(len, env_of(each))) == [0, 0, 1, 1]
    assert len({key.node for key in each.slices}) == 2
    finish(each)
    assert env_of(each) == [{"LEVEL": "debug"}] * 2


# Checks

CHECK = Check(nats="health", count=2)


def checked(each: World, outcome: CheckOutcome, times: int = 1) -> None:
    """The check that is wanted comes to this, so many times."""
    for _ in range(times):
        each.run_down()
        (service, run), *_ = each.outbox.checks.items()
        each.route(CheckResult(service, run.series, 0, CHECK, outcome, 0.0, "errors are up", each.now))
    each.run_down()


@pytest.mark.parametrize("instances", [1, 2, 5])
def test_checks_have_to_pass_with_the_first_new_instance_and_with_all(instances: int) -> None:
    """Of a rolling release, too: until then old instances serve, however long the checks say nothing."""
    each = running(instances)
    each.apply(NEXT_VERSION, blueprint(instances, rollout=RolloutSettings(source="1.0.0", checks=(CHECK,))))
    for _ in range(100):
        later(each, MIN_HEALTHY)
        assert phase(each) is RolloutPhase.ROLLING
        assert count(each, NEXT_VERSION) <= 1
        assert count(each, APP) >= max(instances - 1, 1)
    assert count(each, NEXT_VERSION) == 1
    assert condition(each, NEXT_VERSION) == (Condition.PROGRESSING, "NATS request health: no result yet")
    checked(each, CheckOutcome.PASS, 2)
    for _ in range(20):
        later(each, MIN_HEALTHY)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, instances)
    assert phase(each) is RolloutPhase.ROLLING
    assert condition(each, NEXT_VERSION) == (Condition.PROGRESSING, "NATS request health: no result yet")
    checked(each, CheckOutcome.PASS, 2)
    assert phase(each) is RolloutPhase.COMPLETE
    assert not each.outbox.checks, "nothing is checked any more"


def test_what_checks_said_before_new_instances_served_does_not_count() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", checks=(CHECK,))))
    checked(each, CheckOutcome.PASS, 2)
    for _ in range(10):
        later(each, MIN_HEALTHY)
    assert phase(each) is RolloutPhase.ROLLING
    assert condition(each, NEXT_VERSION)[1] == "NATS request health: no result yet"


def test_only_healthy_instances_are_asked_themselves() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", checks=(CHECK,))))
    each.run_down()
    (new,) = (key for key in each.slices if key.artifact == NEXT_VERSION)
    each.store(new, replace(each.slices[new].value, address="10.0.0.1", port=80))
    each.settle()
    (run,) = each.outbox.checks.values()
    assert run.instances == (), "it came up just now"
    later(each, MIN_HEALTHY)
    (run,) = each.outbox.checks.values()
    assert run.instances == (("10.0.0.1", 80),)


def test_checks_that_fail_take_a_canary_back_while_it_pauses() -> None:
    each = running()
    settings = RolloutSettings(source="1.0.0", kind=RolloutKind.CANARY, steps=steps(10, "approve"), checks=(CHECK,))
    each.apply(NEXT_VERSION, blueprint(rollout=settings))
    each.run_down()
    later(each, MIN_HEALTHY)
    checked(each, CheckOutcome.PASS, 2)
    assert phase(each) is RolloutPhase.PAUSED
    checked(each, CheckOutcome.FAIL, 2)
    finish(each)
    later(each, MIN_HEALTHY)
    assert condition(each, NEXT_VERSION)[0] is Condition.REVERTED
    assert "errors are up" in condition(each, NEXT_VERSION)[1]
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)
