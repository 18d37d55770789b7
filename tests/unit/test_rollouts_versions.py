"""Rollouts of another version, in virtual time: which of several serves, whichever blueprints are put or deleted."""

from __future__ import annotations

import pytest

from cdm.model.record import RolloutPhase
from cdm.model.rollout import RolloutSettings
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
    finish,
    later,
    phase,
    record,
    running,
)
from tests.unit.support import APP, S, n
from tests.unit.world import World

pytestmark = pytest.mark.quick


def test_a_new_version_takes_over() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.run_down()
    assert condition(each)[0] is Condition.SUPERSEDED
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 1)
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)
    assert condition(each) == (Condition.SUPERSEDED, "replaced by 1.1.0")
    assert condition(each, NEXT_VERSION) == (Condition.READY, "")
    each.apply(NEXT_VERSION, blueprint(2, rollout=FROM))
    each.run_down()
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 2)


def test_without_instances_of_the_replaced_version_it_is_complete_at_once() -> None:
    each = World()
    each.join(n(1))
    each.apply(APP, blueprint())
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.lead()
    each.run_down()
    assert phase(each) is RolloutPhase.COMPLETE
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)


def test_a_version_that_replaces_one_that_failed_is_rolled_out_all_the_same() -> None:
    """It is complete once it is healthy, and not before: nobody knows yet whether it comes up."""
    each = running()
    for key in list(each.slices):
        each.report(key, S.FAILED, fatal=True)
    each.settle()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.settle()
    assert phase(each) is RolloutPhase.ROLLING
    finish(each)
    assert (phase(each), count(each, APP), count(each, NEXT_VERSION)) == (RolloutPhase.COMPLETE, 0, 3)


def test_the_last_of_the_old_instances_is_no_sign_of_a_version_that_is_down() -> None:
    """With the old ones gone, as they are to be, the approval that ends a rolling release is waited for."""
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", auto_promote=False)))
    for _ in range(10):
        later(each, MIN_HEALTHY)
    assert (phase(each), count(each, APP), count(each, NEXT_VERSION)) == (RolloutPhase.PAUSED, 0, 3)
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", auto_promote=False, approved=1)))
    finish(each)
    assert phase(each) is RolloutPhase.COMPLETE


def test_the_old_version_put_again_after_the_end_runs_beside_the_new_one() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    each.apply(APP, blueprint(1))
    each.run_down()
    assert (count(each, APP), count(each, NEXT_VERSION)) == (1, 3)


def test_the_old_version_put_again_in_the_middle_is_an_abort() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    later(each, MIN_HEALTHY)
    each.apply(APP, blueprint(2))
    finish(each)
    later(each, MIN_HEALTHY)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (2, 0)
    assert condition(each) == (Condition.READY, "")
    assert condition(each, NEXT_VERSION) == (Condition.REVERTED, "1.0.0 was put again")


def test_of_both_blueprints_written_in_the_middle_the_later_one_decides() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    later(each, MIN_HEALTHY)
    each.apply(NEXT_VERSION, blueprint(rollout=FROM, LEVEL="debug"))
    each.apply(APP, blueprint(2))
    finish(each)
    later(each, 60.0)
    assert phase(each) is RolloutPhase.REVERTED
    assert (count(each, APP), count(each, NEXT_VERSION)) == (2, 0)
    assert condition(each, NEXT_VERSION) == (Condition.REVERTED, "1.0.0 was put again")


def test_the_new_blueprint_deleted_in_the_middle_is_an_abort() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    later(each, MIN_HEALTHY)
    each.drop(NEXT_VERSION)
    finish(each)
    later(each, MIN_HEALTHY)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)
    assert condition(each) == (Condition.READY, "")


def test_the_new_blueprint_deleted_after_the_end_brings_nothing_back() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    each.drop(NEXT_VERSION)
    each.run_down()
    later(each, 30.0)
    assert not each.slices
    assert condition(each)[0] is Condition.SUPERSEDED


def test_the_old_blueprint_deleted_in_the_middle_changes_nothing() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    later(each, MIN_HEALTHY)
    each.drop(APP)
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)


def test_a_third_version_replaces_the_second_and_the_first_stays_the_one_to_go_back_to() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    later(each, MIN_HEALTHY)
    each.apply(THIRD_VERSION, blueprint(rollout=RolloutSettings(source="1.1.0")))
    each.run_down()
    found = record(each)
    assert found is not None
    assert (found.source.version, found.target.version) == ("1.0.0", "1.2.0")
    finish(each)
    assert [count(each, one) for one in (APP, NEXT_VERSION, THIRD_VERSION)] == [0, 0, 3]
    assert condition(each, NEXT_VERSION)[0] is Condition.SUPERSEDED


def test_a_version_that_replaces_what_does_not_run_replaces_its_own_earlier_template() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(0))
    each.apply(APP, blueprint(rollout=RolloutSettings(source="1.1.0"), LEVEL="debug"))
    each.settle()
    found = record(each)
    assert found is not None
    assert (found.source.version, found.phase) == ("1.0.0", RolloutPhase.ROLLING)
    assert condition(each, NEXT_VERSION)[0] is Condition.SUPERSEDED
    finish(each)
    assert env_of(each) == [{"LEVEL": "debug"}] * 3


def test_what_was_replaced_before_is_told_which_version_serves_though_a_later_one_was_taken_back() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    each.apply(THIRD_VERSION, blueprint(rollout=RolloutSettings(source="1.1.0")))
    later(each, MIN_HEALTHY)
    assert condition(each) == (Condition.SUPERSEDED, "replaced by 1.2.0")
    each.apply(THIRD_VERSION, blueprint(rollout=RolloutSettings(source="1.1.0", abort=True)))
    finish(each)
    assert phase(each) is RolloutPhase.REVERTED
    assert condition(each) == (Condition.SUPERSEDED, "replaced by 1.1.0")


def test_what_serves_of_several_older_versions_stays_until_the_new_one_does() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    each.apply(APP, blueprint(LEVEL="debug"))
    each.settle()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", abort=True)))
    each.apply(THIRD_VERSION, blueprint(rollout=RolloutSettings(source="1.1.0")))
    each.settle()
    assert count(each, NEXT_VERSION) == 3, "those that do not serve yet go, and not those that do"
    for _ in range(30):
        later(each, 1.0)
        assert sum(count(each, one) for one in (APP, NEXT_VERSION, THIRD_VERSION)) >= 3
    finish(each)
    assert [count(each, one) for one in (APP, NEXT_VERSION, THIRD_VERSION)] == [0, 0, 3]
