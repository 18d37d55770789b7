"""Rollouts of services of one group, in virtual time: they advance, end and go back together."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cdm.model.artifact import Artifact
from cdm.model.record import RolloutPhase
from cdm.model.rollout import RolloutKind, RolloutSettings
from cdm.model.status import Condition
from tests.unit.rollout_world import (
    FROM,
    MIN_HEALTHY,
    NEXT_VERSION,
    blueprint,
    condition,
    count,
    fail_new,
    finish,
    later,
    phase,
    record,
    running,
    steps,
)
from tests.unit.support import APP, S
from tests.unit.world import World

pytestmark = pytest.mark.quick
FRIEND = Artifact("org.example", "friend", "1.0.0")
NEXT_FRIEND = Artifact("org.example", "friend", "1.1.0")
TOGETHER = RolloutSettings(source="1.0.0", kind=RolloutKind.CANARY, steps=steps(34, "approve"), group="shop")


def both(rollout: RolloutSettings = TOGETHER) -> World:
    """Two services of one group, each with a rollout under way."""
    each = running()
    each.apply(FRIEND, blueprint())
    each.run_down()
    later(each, MIN_HEALTHY)
    each.apply(NEXT_VERSION, blueprint(rollout=rollout))
    each.apply(NEXT_FRIEND, blueprint(rollout=rollout))
    each.run_down()
    return each


def test_services_of_a_group_advance_together() -> None:
    each = both()
    friend = next(key for key in each.slices if key.artifact == NEXT_FRIEND)
    each.end(friend)
    each.settle()  # it has to come up again, and the other one is not to go on before it is healthy
    later(each, MIN_HEALTHY - 1.0)
    assert (phase(each), record(each, FRIEND).phase) == (RolloutPhase.ROLLING,) * 2  # type: ignore[union-attr]
    for _ in range(4):
        later(each, MIN_HEALTHY)
    assert (phase(each), record(each, FRIEND).phase) == (RolloutPhase.PAUSED,) * 2  # type: ignore[union-attr]
    together = [order for order in each.decided if len(order.records) == 2]
    assert {each.phase for order in together for each in order.records.values() if each} >= {RolloutPhase.PAUSED}
    each.apply(NEXT_VERSION, blueprint(rollout=replace(TOGETHER, approved=1)))
    later(each, 60.0)
    assert phase(each) is RolloutPhase.PAUSED, "the other one is not approved"
    assert condition(each, NEXT_VERSION) == (Condition.PROGRESSING, "waiting for org.example:friend of its group")
    each.apply(NEXT_FRIEND, blueprint(rollout=replace(TOGETHER, approved=1)))
    finish(each)
    later(each, MIN_HEALTHY)
    assert [count(each, one) for one in (APP, FRIEND, NEXT_VERSION, NEXT_FRIEND)] == [0, 0, 3, 3]


def test_a_step_of_a_group_that_is_approved_before_is_not_gone_ahead_to() -> None:
    each = both()
    each.apply(NEXT_VERSION, blueprint(rollout=replace(TOGETHER, approved=1)))
    for _ in range(5):
        later(each, MIN_HEALTHY)
    assert (phase(each), record(each, FRIEND).phase) == (RolloutPhase.PAUSED,) * 2  # type: ignore[union-attr]
    assert (count(each, APP), count(each, NEXT_VERSION)) == (2, 1)
    each.apply(NEXT_FRIEND, blueprint(rollout=replace(TOGETHER, approved=1)))
    finish(each)
    later(each, MIN_HEALTHY)
    assert [count(each, one) for one in (APP, FRIEND, NEXT_VERSION, NEXT_FRIEND)] == [0, 0, 3, 3]


def test_services_of_a_group_end_together_although_one_has_fewer_steps() -> None:
    each = both(replace(FROM, group="shop"))
    each.apply(NEXT_FRIEND, blueprint(rollout=TOGETHER))
    for _ in range(10):
        later(each, MIN_HEALTHY)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)
    assert condition(each, NEXT_VERSION) == (Condition.PROGRESSING, "waiting for org.example:friend of its group")
    friend = next(key for key in each.slices if key.artifact == NEXT_FRIEND)
    each.report(friend, S.FAILED, fatal=True)
    each.settle()
    finish(each)
    later(each, MIN_HEALTHY)
    assert [count(each, one) for one in (APP, FRIEND, NEXT_VERSION, NEXT_FRIEND)] == [3, 3, 0, 0]


def test_services_of_a_group_go_back_together() -> None:
    each = both()
    later(each, MIN_HEALTHY)
    fail_new(each, fatal=True)
    finish(each)
    later(each, MIN_HEALTHY)
    assert [count(each, one) for one in (APP, FRIEND, NEXT_VERSION, NEXT_FRIEND)] == [3, 3, 0, 0]
    assert condition(each, NEXT_VERSION)[0] is Condition.REVERTED
    assert condition(each, NEXT_FRIEND) == (
        Condition.REVERTED,
        "org.example:slice of its group goes back: 1 new instance failed or restarted: it broke",
    )


def test_a_new_blueprint_that_is_deleted_takes_its_whole_group_back() -> None:
    each = both()
    later(each, MIN_HEALTHY)
    each.drop(NEXT_VERSION)
    finish(each)
    later(each, MIN_HEALTHY)
    assert [count(each, one) for one in (APP, FRIEND, NEXT_VERSION, NEXT_FRIEND)] == [3, 3, 0, 0]
    assert condition(each, NEXT_FRIEND)[0] is Condition.REVERTED
