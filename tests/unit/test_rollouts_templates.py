"""Rollouts of another template or content, in virtual time: what is changed reaches every instance."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from cdm.model.blueprint import Blueprint
from cdm.model.node import Registration
from cdm.model.record import RolloutPhase
from cdm.model.rollout import RolloutSettings
from cdm.model.rules import Needs, Rules
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
    record,
    running,
)
from tests.unit.support import APP, n
from tests.unit.world import World

pytestmark = pytest.mark.quick


# Another template


def test_a_changed_variable_reaches_every_instance_one_after_another() -> None:
    each = running()
    each.apply(APP, blueprint(LEVEL="debug"))
    each.run_down()
    assert phase(each) is RolloutPhase.ROLLING
    assert count(each, APP) == 4, "a new one comes up beside the old ones"
    assert condition(each) == (Condition.PROGRESSING, "0 of 3 new instances healthy")
    later(each, MIN_HEALTHY)
    assert sorted(map(len, env_of(each))) == [0, 0, 1, 1]
    finish(each)
    assert phase(each) is RolloutPhase.COMPLETE
    assert env_of(each) == [{"LEVEL": "debug"}] * 3
    assert condition(each) == (Condition.READY, "")


def test_another_number_of_instances_is_no_rollout() -> None:
    each = running()
    each.apply(APP, blueprint(5))
    each.run_down()
    assert record(each) is None
    assert count(each, APP) == 5


def test_what_changes_back_in_the_middle_goes_back() -> None:
    each = running()
    each.apply(APP, blueprint(LEVEL="debug"))
    later(each, MIN_HEALTHY)
    each.apply(APP, blueprint())
    finish(each)
    assert env_of(each) == [{}] * 3
    later(each, MIN_HEALTHY)
    assert condition(each) == (Condition.READY, "")


def needing(cpu: float | None, **given: Any) -> Blueprint:
    """A blueprint whose instances reserve so many cores."""
    return replace(blueprint(**given), rules=Rules(needs=None if cpu is None else Needs(cpu)))


def reserving(cpu: float) -> World:
    """A world in which `APP` runs, and reserves so much, and no rollout was before."""
    each = World()
    for number in (1, 2, 3):
        each.join(n(number), Registration(cpu=4.0))
    each.lead()
    each.apply(APP, needing(cpu))
    each.run_down()
    later(each, MIN_HEALTHY)
    return each


@pytest.mark.parametrize("then", [0.5, 0.25, None])
def test_what_old_instances_reserve_is_theirs_when_one_is_made_up_for_and_when_they_come_back(
    then: float | None,
) -> None:
    each = reserving(0.5)
    each.apply(APP, needing(then, LEVEL="debug"))
    later(each, MIN_HEALTHY)
    each.store(next(key for key, put in each.slices.items() if put.value.overrides is None), None)
    later(each, 0.0)
    assert {put.value.needs for put in each.slices.values() if put.value.overrides is None} == {Needs(0.5)}
    each.apply(APP, needing(then, LEVEL="debug", rollout=RolloutSettings(abort=True)))
    finish(each)
    later(each, MIN_HEALTHY)
    assert phase(each) is RolloutPhase.REVERTED
    assert [(put.value.needs, put.value.overrides) for put in each.slices.values()] == [(Needs(0.5), None)] * 3


def test_a_restart_of_what_reserves_something_is_only_a_restart() -> None:
    each = reserving(0.5)
    each.apply(APP, replace(needing(0.5), restarted="now"))
    finish(each)
    known = record(each)
    assert known is not None
    assert known.only_restarts


# Contents


def test_what_is_pushed_over_replaces_what_runs() -> None:
    each = running()
    for key in list(each.slices):
        each.store(key, replace(each.slices[key].value, content="old"))  # as agents tell
    each.run_down()
    each.manager.cluster.contents[APP] = "new"
    each.manager.state.touch(APP)
    finish(each)
    assert {put.value.content for put in each.slices.values()} == {"new"}
    assert phase(each) is RolloutPhase.COMPLETE


def test_a_version_whose_content_became_known_late_is_taken_back_all_the_same_and_not_tried_again() -> None:
    each = running()
    each.manager.cluster.contents[APP] = "old"
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.run_down()
    each.manager.cluster.contents[NEXT_VERSION] = "old"  # the same bytes, under another name and with another manifest
    fail_new(each, fatal=True)
    finish(each)
    later(each, MIN_HEALTHY)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)
    assert condition(each, NEXT_VERSION)[0] is Condition.REVERTED
    later(each, 60.0)
    assert phase(each) is RolloutPhase.REVERTED
