"""Rollouts without room for a new instance beside the old ones: full nodes, fixed ports, what must not run twice."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cdm.manager.standing import MAY_RUN
from cdm.model.artifact import Artifact
from cdm.model.blueprint import Blueprint, Overrides
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
    finish,
    later,
    phase,
    running,
)
from tests.unit.support import APP, S
from tests.unit.world import NEXT, World

pytestmark = pytest.mark.quick


def test_on_full_nodes_one_is_stopped_first_and_an_abort_after_the_end_comes_back_in_the_same_way() -> None:
    each = running(3, 3, capacity=1)
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", abort=True)))
    each.run_down()
    assert (count(each, APP), count(each, NEXT_VERSION)) == (1, 2)
    finish(each)
    assert phase(each) is RolloutPhase.REVERTED
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)


def test_what_there_is_no_room_for_does_not_keep_a_revert_from_its_end() -> None:
    each = running(1, 1, capacity=1)
    each.apply(NEXT_VERSION, blueprint(2, rollout=RolloutSettings(source="1.0.0", deadline=60.0)))
    finish(each)
    assert phase(each) is RolloutPhase.REVERTED
    assert condition(each)[0] is Condition.UNSCHEDULABLE
    found, why = condition(each, NEXT_VERSION)
    assert found is Condition.REVERTED
    assert why.startswith("no instance became healthy for 60 s: 1 has no place, and counts as unavailable")


def test_what_must_not_run_twice_and_has_no_room_says_so() -> None:
    each = running(2, 1, capacity=1)
    exclusive = Blueprint(2, Overrides(stop_after=5.0), MIN_HEALTHY)
    each.apply(APP, exclusive)
    later(each, 60.0)
    assert condition(each)[1] == (
        "0 of 2 new instances healthy; 1 has no place, and counts as unavailable, so that no other one goes: "
        "make room, or raise max_unavailable; 0 of 1 node takes it: 1 full (1 of 1 slices)"
    )


def test_blue_green_that_replaces_what_must_not_run_twice_says_so() -> None:
    """The new blueprint cannot be refused for what the old one says."""
    each = running(2, 3)
    each.apply(APP, Blueprint(2, Overrides(stop_after=5.0), MIN_HEALTHY))
    finish(each)
    settings = RolloutSettings(source="1.0.0", kind=RolloutKind.BLUE_GREEN, deadline=60.0)
    each.apply(NEXT_VERSION, blueprint(2, rollout=settings))
    each.run_down()
    waits = "with stop_after none comes up beside another, and blue-green needs that"
    assert condition(each, NEXT_VERSION)[1] == f"0 of 2 new instances healthy; {waits}"
    finish(each)
    assert condition(each, NEXT_VERSION) == (Condition.REVERTED, f"no instance became healthy for 60 s: {waits}")


def on_port(each: World, *artifacts: Artifact, port: int = 80) -> None:
    """The instances of these have this port, as agents tell of a fixed one, and of what they have loaded."""
    for key, put in list(each.slices.items()):
        if key.artifact in artifacts and put.value.state in (S.LOADED, S.ACTIVATE, S.ACTIVATING, S.ACTIVE, S.UNLOADING):
            each.store(key, replace(put.value, port=port))


def go_on_with_one_port(each: World) -> None:
    """Agents answer, but nothing is started while something else has the port of its node."""
    for _ in range(20):
        each.settle()
        on_port(each, APP, NEXT_VERSION)
        held = any(put.value.state in (S.ACTIVE, S.UNLOADING) for put in each.slices.values())
        for key, put in list(each.slices.items()):
            if put.value.state in NEXT and not (put.value.state is S.ACTIVATING and held):
                each.report(key, NEXT[put.value.state])
        each.tick(1.0)


def test_on_a_fixed_port_one_is_stopped_first_both_ways() -> None:
    each = running(1, 1)
    on_port(each, APP)
    each.apply(NEXT_VERSION, blueprint(1, rollout=FROM))
    for _ in range(3):
        go_on_with_one_port(each)
    assert phase(each) is RolloutPhase.COMPLETE
    each.apply(NEXT_VERSION, blueprint(1, rollout=RolloutSettings(source="1.0.0", abort=True)))
    for _ in range(3):
        go_on_with_one_port(each)
    assert phase(each) is RolloutPhase.REVERTED
    assert (count(each, APP), count(each, NEXT_VERSION)) == (1, 0)


def test_what_must_not_run_twice_from_now_on_waits_until_what_it_replaces_has_stopped() -> None:
    """Also where that was started without ``stop_after``, and drains."""
    each = running(2, 2)
    each.apply(APP, Blueprint(2, Overrides(stop_after=5.0), MIN_HEALTHY))
    for _ in range(60):
        each.settle()
        states = [put.value.state for put in each.slices.values()]
        assert sum(state in MAY_RUN for state in states) <= 2, states
        # Of those that are to stop, one serves on for a while.
        for key, put in list(each.slices.items()):
            if put.value.state in NEXT and (put.value.state is not S.UNLOADING or put.at + 3.0 <= each.now):
                each.report(key, NEXT[put.value.state])
        each.tick(1.0)
    assert phase(each) is RolloutPhase.COMPLETE
    assert count(each, APP) == 2


def test_a_revert_that_waits_says_for_what() -> None:
    each = running(3, 3, capacity=1)
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    stays = RolloutSettings(source="1.0.0", max_unavailable=0, abort=True)
    each.apply(NEXT_VERSION, blueprint(rollout=stays))
    later(each, 600.0)
    assert phase(each) is RolloutPhase.REVERTING
    found, why = condition(each, NEXT_VERSION)
    assert found is Condition.PROGRESSING
    assert why.startswith("going back to 1.0.0: aborted after it was complete; 0 of 3 old instances healthy; ")
    assert why.endswith("no room for an old one beside the new ones")
