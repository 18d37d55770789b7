"""Rollouts that an operator aborts or pauses, in virtual time, also before they begin and after their end."""

from __future__ import annotations

import pytest

from cdm.model.record import RolloutPhase
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
    finish,
    later,
    phase,
    running,
)
from tests.unit.support import APP, n

pytestmark = pytest.mark.quick


# The operator's hand


def test_an_abort_goes_back_in_the_middle_and_after_the_end() -> None:
    for late in (False, True):
        each = running()
        each.apply(NEXT_VERSION, blueprint(rollout=FROM))
        finish(each) if late else later(each, MIN_HEALTHY)
        each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", abort=True)))
        each.run_down()
        finish(each)
        later(each, MIN_HEALTHY)
        assert phase(each) is RolloutPhase.REVERTED
        assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0), late
        assert condition(each)[0] is Condition.READY
        assert condition(each, NEXT_VERSION)[0] is Condition.REVERTED


def test_an_abort_goes_back_to_the_same_bytes_under_another_name() -> None:
    each = running()
    for artifact in (APP, NEXT_VERSION):
        each.manager.cluster.contents[artifact] = "c0ffee"
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", abort=True)))
    finish(each)
    later(each, MIN_HEALTHY)
    assert phase(each) is RolloutPhase.REVERTED, "their manifests may differ"
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)


def test_a_paused_rollout_stays_and_goes_on_when_it_is_resumed() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    later(each, MIN_HEALTHY)
    stopped = RolloutSettings(source="1.0.0", paused=True)
    each.apply(NEXT_VERSION, blueprint(rollout=stopped))
    each.run_down()
    before = (count(each, APP), count(each, NEXT_VERSION))
    later(each, 3_600.0)
    assert phase(each) is RolloutPhase.PAUSED
    assert (count(each, APP), count(each, NEXT_VERSION)) == before
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)


# Without the old blueprint, and aborted before it begins


def test_what_was_gone_back_to_stays_although_its_blueprint_was_deleted() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    later(each, MIN_HEALTHY)
    each.drop(APP)
    each.run_down()
    each.apply(NEXT_VERSION, blueprint(4, rollout=RolloutSettings(source="1.0.0", abort=True)))
    finish(each)
    later(each, 60.0)
    assert phase(each) is RolloutPhase.REVERTED
    assert (count(each, APP), count(each, NEXT_VERSION)) == (4, 0)
    for node in (n(1), n(2), n(3)):
        each.expire(node)
        each.join(n(4))
        later(each, 60.0)
    assert count(each, APP) == 4, "also where every instance was lost in between"
    each.drop(NEXT_VERSION)
    later(each, 60.0)
    assert not each.slices


def test_a_template_that_is_written_with_abort_never_begins_and_takes_nothing_away() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", abort=True), LEVEL="debug"))
    later(each, 60.0)
    assert env_of(each, NEXT_VERSION) == [{}] * 3
    assert condition(each, NEXT_VERSION) == (Condition.REVERTED, "aborted before it began")


def test_a_version_that_is_written_with_abort_never_begins() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", abort=True)))
    later(each, 60.0)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)
    assert condition(each, NEXT_VERSION) == (Condition.REVERTED, "aborted before it began")
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)
