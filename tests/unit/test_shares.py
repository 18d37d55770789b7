"""How many instances each side of a rollout is to have, and the stages that a rollout goes through: their bounds."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.manager.health import SideHealth
from cdm.manager.shares import Bounds, Share, targets
from cdm.manager.stages import Stage, StageKind, new_instances, stages_of
from cdm.model.rollout import RolloutKind, RolloutSettings, RolloutStep

pytestmark = pytest.mark.quick
few = st.integers(0, 8)


@st.composite
def shares(draw: st.DrawFn) -> Share:
    live = draw(few)
    active = draw(st.integers(0, live))
    healthy = draw(st.integers(0, active))
    return Share(draw(few), SideHealth(live, active, healthy, lingering=draw(st.sampled_from([0, 0, 0, 1, 3]))))


sides = st.lists(shares(), min_size=1, max_size=3)


@given(sides, few, few)
def test_sides_move_towards_their_goals_within_the_bounds(found: list[Share], most: int, fewest: int) -> None:
    counts = targets(found, Bounds(most, fewest))
    assert len(counts) == len(found)
    for (goal, health), count in zip(found, counts, strict=True):
        assert min(goal, health.live) <= count <= max(goal, health.live)
    total = sum(health.live + health.lingering for _, health in found)
    grown = sum(max(count - health.live, 0) for (_, health), count in zip(found, counts, strict=True))
    assert grown == 0 or total + grown <= most

    # Those that do not serve go first, then those that have not served for long.
    remaining = sum(min(health.healthy, count) for (_, health), count in zip(found, counts, strict=True))
    assert remaining >= min(sum(health.healthy for _, health in found), fewest)
    serving = sum(min(health.active, count) for (_, health), count in zip(found, counts, strict=True))
    assert serving >= min(sum(health.active for _, health in found), fewest)


@given(st.lists(st.tuples(few, few), min_size=1, max_size=3), st.integers(0, 3), st.integers(0, 3))
def test_something_moves_while_all_are_healthy_and_not_all_goals_are_reached(
    given_sides: list[tuple[int, int]], surge: int, unavailable: int
) -> None:
    found = [Share(goal, SideHealth(live, live, live)) for goal, live in given_sides]
    wanted = sum(goal for goal, _ in given_sides)
    counts = targets(found, Bounds(wanted + surge, wanted - unavailable))
    done = all(goal == live for goal, live in given_sides)
    if done or surge + unavailable:
        assert (counts == [live for _, live in given_sides]) == done


def test_young_instances_are_not_passed_over_for_healthy_ones() -> None:
    found = [Share(0, SideHealth(live=3, active=3, healthy=2)), Share(3, SideHealth())]
    assert targets(found, Bounds(3, 2)) == [2, 0]


# Stages

PAUSES = [RolloutStep(pause=0.0), RolloutStep(pause=5.0), RolloutStep(pause="approve")]


@st.composite
def settings(draw: st.DrawFn) -> RolloutSettings:
    kind = draw(st.sampled_from(RolloutKind))
    fields: dict[str, Any] = {"kind": kind, "auto_promote": draw(st.booleans())}
    if kind is RolloutKind.CANARY:
        weights = draw(st.lists(st.integers(1, 100), min_size=1, max_size=4, unique=True).map(sorted))
        steps: list[RolloutStep] = []
        for weight in weights:
            steps += draw(st.lists(st.sampled_from(PAUSES), max_size=2))
            steps.append(RolloutStep(weight=weight))
        if draw(st.booleans()):
            steps.append(RolloutStep(pause="approve"))
        fields["steps"] = tuple(steps)
    return RolloutSettings(**fields)


@given(settings())
def test_stages_lead_from_nothing_to_everything(one: RolloutSettings) -> None:
    stages = stages_of(one)
    assert all(before.weight <= after.weight for before, after in pairwise(stages))
    shares = [stage.weight for stage in stages if stage.kind is StageKind.SHARE]
    assert shares[-1] == 100
    assert len(set(shares)) == len(shares) or one.steps
    approvals = [stage.approval for stage in stages if stage.kind is StageKind.APPROVAL]
    assert approvals == list(range(1, len(approvals) + 1))
    asked = sum(step.pause == "approve" for step in one.steps)
    assert len(approvals) >= asked
    if not one.auto_promote:
        assert approvals, "nothing is promoted by itself"
    assert [stage.seconds for stage in stages if stage.kind is StageKind.PAUSE] == [
        step.pause for step in one.steps if step.pause not in (None, "approve")
    ]
    for stage in stages:
        assert stage.weights is None or stage.weights.source + stage.weights.target == 100
    with_switch = [stage.kind for stage in stages if stage.kind in (StageKind.BESIDE, StageKind.SWITCH)]
    assert with_switch == ([StageKind.BESIDE, StageKind.SWITCH] if one.kind is RolloutKind.BLUE_GREEN else [])


@given(st.integers(1, 100), st.integers(1, 100), st.integers(0, 1_000))
def test_a_share_is_at_least_one_instance_and_grows_with_its_weight(low: int, high: int, instances: int) -> None:
    low, high = sorted((low, high))
    first, second = (new_instances(Stage(StageKind.SHARE, weight), instances) for weight in (low, high))
    assert min(1, instances) <= first <= second <= instances
    assert new_instances(Stage(StageKind.SHARE, 100), instances) == instances
    assert new_instances(Stage(StageKind.PAUSE, 0), instances) == 0, "before the first share there is none"
