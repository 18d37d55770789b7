"""Rollouts under attack, in virtual time: nodes emptied in the middle, blueprints put in turn, records by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from cdm.model.blueprint import Blueprint, Overrides
from cdm.model.node import Schedule
from cdm.model.record import Rollout, RolloutPhase, Weights
from cdm.model.rollout import RolloutKind, RolloutSettings, RolloutStep
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
    status,
)
from tests.unit.support import APP, S, n

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("order", ["2+2+1+++212+", "12+1+++2+++2+2"])
def test_blueprints_that_replace_each_other_in_turn_leave_one_version_that_serves(order: str) -> None:
    each = running()
    for what in order:
        if what == "+":
            later(each, MIN_HEALTHY)
        elif what == "1":
            each.apply(APP, blueprint(rollout=RolloutSettings(source="1.1.0")))
        else:
            each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    there = {artifact: count(each, artifact) for artifact in (APP, NEXT_VERSION)}
    assert sorted(there.values()) == [0, 3]
    (serves,) = (artifact for artifact, instances in there.items() if instances)
    assert condition(each, serves) == (Condition.READY, "")


@pytest.mark.parametrize("how", [Schedule.CORDON, Schedule.DRAIN])
@pytest.mark.parametrize("stop_after", [None, 30.0])
@pytest.mark.parametrize("instances", [1, 3])
def test_nothing_is_stopped_where_nothing_could_take_its_place(
    how: Schedule, stop_after: float | None, instances: int
) -> None:
    each = running(0)
    each.apply(APP, Blueprint(instances, Overrides({}, stop_after=stop_after), MIN_HEALTHY))
    each.run_down()
    for number in (1, 2, 3):
        each.intend(n(number), how)
    each.apply(APP, Blueprint(instances, Overrides({"LEVEL": "debug"}, stop_after=stop_after), MIN_HEALTHY))
    for _ in range(3):
        later(each, MIN_HEALTHY)
    assert (phase(each), count(each, APP)) == (RolloutPhase.ROLLING, instances)
    for number in (1, 2, 3):
        each.intend(n(number), Schedule.NORMAL)
    finish(each)
    assert (phase(each), count(each, APP)) == (RolloutPhase.COMPLETE, instances)
    assert env_of(each) == [{"LEVEL": "debug"}] * instances


@pytest.mark.parametrize("stopped", [{"paused": True}, {}])
def test_a_node_that_is_drained_in_the_middle_has_each_instance_replaced_once(stopped: dict[str, Any]) -> None:
    each = running()
    steps = (RolloutStep(weight=34), RolloutStep(pause="approve"))
    canary: dict[str, Any] = {"source": "1.0.0", "kind": RolloutKind.CANARY, "steps": steps}
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(**canary)))
    for _ in range(3):
        later(each, MIN_HEALTHY)
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(**{**canary, **stopped})))
    each.run_down()
    there = (count(each, APP), count(each, NEXT_VERSION))
    before = len(each.decided)
    for number in (1, 2):
        each.intend(n(number), Schedule.DRAIN)
        for _ in range(3):
            later(each, MIN_HEALTHY)
    loads = [one for order in each.decided[before:] for one in order.commands if one.state is S.LOAD]
    assert len(loads) <= 2 * sum(there)
    assert (count(each, APP), count(each, NEXT_VERSION)) == there
    assert {key.node for key in each.slices} == {n(3)}


def test_nothing_more_is_stopped_when_all_nodes_are_drained_in_the_middle() -> None:
    each = running(nodes=2)
    steps = (RolloutStep(weight=34), RolloutStep(pause="approve"))
    canary = RolloutSettings(source="1.0.0", kind=RolloutKind.CANARY, steps=steps)
    each.apply(NEXT_VERSION, blueprint(rollout=canary))
    for _ in range(3):
        later(each, MIN_HEALTHY)
    for number in (1, 2):
        each.intend(n(number), Schedule.DRAIN)
    each.apply(NEXT_VERSION, blueprint(rollout=replace(canary, approved=1)))
    for _ in range(3):
        later(each, MIN_HEALTHY)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (2, 1)


def test_what_is_taken_back_is_not_started_again_where_its_node_is_drained_meanwhile() -> None:
    each = running(nodes=4)
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    each.apply(NEXT_VERSION, blueprint(rollout=replace(FROM, abort=True)))
    each.settle()
    assert (phase(each), count(each, NEXT_VERSION)) == (RolloutPhase.REVERTING, 3)
    before = len(each.decided)
    for node in sorted({key.node for key in each.slices if key.artifact == NEXT_VERSION}):
        each.intend(node, Schedule.DRAIN)
        each.settle()
    finish(each)
    loaded = [one.key.artifact for order in each.decided[before:] for one in order.commands if one.state is S.LOAD]
    assert NEXT_VERSION not in loaded
    assert (phase(each), count(each, APP), count(each, NEXT_VERSION)) == (RolloutPhase.REVERTED, 3, 0)


def test_what_is_gone_back_to_has_the_number_that_was_written_last_and_says_so() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(4, rollout=FROM))
    each.run_down()
    each.apply(NEXT_VERSION, blueprint(4, rollout=replace(FROM, abort=True)))
    finish(each)
    for _ in range(2):
        later(each, MIN_HEALTHY)
    assert (phase(each), count(each, APP)) == (RolloutPhase.REVERTED, 4)
    why = "as many instances as the blueprint of 1.1.0 says, which was written last"
    assert condition(each) == (Condition.READY, why)


def test_what_is_gone_back_to_serves_although_its_blueprint_says_abort() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.run_down()
    each.apply(THIRD_VERSION, blueprint(rollout=RolloutSettings(source="1.1.0", abort=True)))
    each.run_down()
    each.apply(APP, blueprint(rollout=RolloutSettings(source="1.2.0", abort=True)))
    finish(each)
    assert (phase(each), count(each, APP)) == (RolloutPhase.REVERTED, 3)


# What no leader wrote


@pytest.mark.parametrize(
    "fields",
    [
        {"step": -1},
        {"since": -1.0},
        {"since": 1e300},
        {"weights": {"from": -5, "to": 10**12}},
        {"from": {"version": "", "revision": 1}},
        {"to": {"version": "no version", "revision": 2}},
        {"superseded": {"a/b": 3}},
        {"reverted": {"": "digest"}},
    ],
)
def test_a_record_that_no_leader_can_have_written_is_refused(fields: dict[str, Any]) -> None:
    sides = {"from": {"version": "1.0.0", "revision": 1}, "to": {"version": "1.1.0", "revision": 2}}
    value = {**sides, "phase": "rolling", "step": 1, "since": 1_000.0}
    assert msgspec.convert(value, Rollout).step == 1
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**value, **fields}, Rollout)


@pytest.mark.parametrize("source", ["1.0.0", "1.1.0"])
def test_a_third_version_replaces_what_serves_one_by_one_also_where_nothing_of_the_first_is_left(source: str) -> None:
    """All of the second had been unloaded at once, before any of the third was up."""
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=replace(FROM, auto_promote=False, if_stable_down="hold")))
    later(each, MIN_HEALTHY)
    while count(each, APP):
        later(each, MIN_HEALTHY)
    each.apply(THIRD_VERSION, blueprint(rollout=RolloutSettings(source=source)))
    for _ in range(40):
        each.settle()
        assert sum(put.value.state is S.ACTIVE for put in each.slices.values()) >= 3
        if not each.answer():
            each.tick(MIN_HEALTHY)
    assert phase(each) is RolloutPhase.COMPLETE
    assert (count(each, THIRD_VERSION), count(each, NEXT_VERSION), count(each, APP)) == (3, 0, 0)


def test_what_comes_up_on_a_node_that_is_emptied_is_replaced_once() -> None:
    """Each replacement had been taken for one more that was to be replaced, beyond what ``max_surge`` allows."""
    each = running(4, 6)
    each.apply(NEXT_VERSION, blueprint(4, rollout=FROM))
    finish(each)
    assert phase(each) is RolloutPhase.COMPLETE
    each.apply(NEXT_VERSION, blueprint(4, rollout=replace(FROM, abort=True)))
    each.run_down()
    assert count(each, APP) == 1
    (first,) = (key for key in each.slices if key.artifact == APP)
    each.intend(first.node, Schedule.DRAIN)
    for _ in range(100):
        each.settle()
        assert sum(put.value.state.live for put in each.slices.values()) <= 4 + 1 + 1
        if not each.answer():
            each.tick(MIN_HEALTHY)
    assert phase(each) is RolloutPhase.REVERTED
    assert (count(each, APP), count(each, NEXT_VERSION)) == (4, 0)


@pytest.mark.parametrize(
    "one_by_one", [{"overrides": Overrides(stop_after=5.0)}, {"rollout": RolloutSettings(max_surge=0)}]
)
def test_a_revert_one_by_one_says_that_no_node_takes_the_old_ones(one_by_one: dict[str, Any]) -> None:
    each = running(1, 1)
    each.apply(NEXT_VERSION, blueprint(1, rollout=RolloutSettings(source="1.0.0", paused=True)))
    each.run_down()
    each.intend(n(1), Schedule.CORDON)
    each.apply(APP, replace(blueprint(1, LEVEL="debug"), **one_by_one))
    later(each, 60.0)
    why = "going back to 1.0.0: 1.0.0 was put again; 0 of 1 old instances healthy"
    assert condition(each)[1] == f"{why}; no room for an old one beside the new ones"
    each.intend(n(1), Schedule.NORMAL)
    finish(each)
    assert (phase(each), count(each, APP)) == (RolloutPhase.REVERTED, 1)


def test_of_a_rolling_release_that_failed_the_new_ones_get_no_requests_as_soon_as_the_old_ones_can_take_them() -> None:
    each = running(4)
    each.apply(NEXT_VERSION, blueprint(4, rollout=FROM))
    while count(each, NEXT_VERSION) == 0:
        later(each, 1.0)
    abort = replace(FROM, abort=True)
    each.apply(NEXT_VERSION, blueprint(4, rollout=abort))
    each.settle()
    found = record(each)
    assert found is not None
    assert found.phase in (RolloutPhase.REVERTING, RolloutPhase.REVERTED)
    assert found.weights == Weights(100, 0), "an old one for each new one serves"


def test_where_most_are_new_already_they_serve_until_as_many_old_ones_do() -> None:
    each = running(4)
    each.apply(NEXT_VERSION, blueprint(4, rollout=FROM))
    finish(each)
    each.apply(NEXT_VERSION, blueprint(4, rollout=replace(FROM, abort=True)))
    seen = []
    while phase(each) is not RolloutPhase.REVERTED:
        later(each, 1.0)
        found = record(each)
        assert found is not None
        seen.append((found.weights, count(each, APP) < count(each, NEXT_VERSION)))
    assert seen[0] == (None, True)
    assert not any(weights is not None and fewer for weights, fewer in seen)
    assert (Weights(100, 0), False) in seen


def test_where_the_old_ones_are_lost_on_the_way_back_whatever_serves_is_sent_requests() -> None:
    each = running(2, nodes=4)
    each.apply(NEXT_VERSION, blueprint(2, rollout=FROM))
    finish(each)
    each.apply(NEXT_VERSION, blueprint(2, rollout=replace(FROM, abort=True)))
    while not ((found := record(each)) and found.weights):
        later(each, 1.0)
    for key in [key for key in each.slices if key.artifact == APP]:
        each.report(key, S.FAILED)
    each.settle()
    found = record(each)
    assert found is not None
    assert (found.phase, found.weights) == (RolloutPhase.REVERTING, None)


def test_more_new_instances_than_are_wanted_are_all_of_them() -> None:
    each = running(4)
    kept = RolloutSettings(source="1.0.0", kind=RolloutKind.BLUE_GREEN, keep_old="10m")
    each.apply(NEXT_VERSION, blueprint(4, rollout=kept))
    each.run_down()
    while phase(each) is not RolloutPhase.SWITCHED:
        later(each, 1.0)
    each.apply(NEXT_VERSION, blueprint(3, rollout=replace(kept, paused=True)))
    later(each, 1.0)
    told = status(each, NEXT_VERSION).rollout
    assert told
    assert told.share == 100
