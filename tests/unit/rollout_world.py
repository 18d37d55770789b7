"""A world in which one service is rolled out, for tests: what it begins with, how time passes, and what to look at."""

from __future__ import annotations

from typing import Any

from cdm.model.artifact import Artifact
from cdm.model.blueprint import Blueprint, Overrides
from cdm.model.keys import RolloutKey, encode_artifact
from cdm.model.node import Registration
from cdm.model.record import Rollout, RolloutPhase
from cdm.model.rollout import RolloutSettings, RolloutStep
from cdm.model.slice import SliceState
from cdm.model.status import Condition, Status
from tests.unit.support import APP, S, n
from tests.unit.world import World

NEXT_VERSION = Artifact("org.example", "slice", "1.1.0")
THIRD_VERSION = Artifact("org.example", "slice", "1.2.0")
MIN_HEALTHY = 5.0
FROM = RolloutSettings(source="1.0.0")


def blueprint(instances: int = 3, *, rollout: RolloutSettings | None = None, **env: Any) -> Blueprint:
    return Blueprint(instances, Overrides(env) if env else None, MIN_HEALTHY, rollout=rollout or RolloutSettings())


def running(instances: int = 3, nodes: int = 3, *, capacity: int | None = None, **env: Any) -> World:
    """A world in which `APP` runs and is healthy."""
    each = World()
    for number in range(1, nodes + 1):
        each.join(n(number), Registration(capacity=capacity))
    each.lead()
    each.apply(APP, blueprint(instances, **env))
    each.run_down()
    later(each, MIN_HEALTHY)
    return each


def later(each: World, seconds: float) -> None:
    """So much time passes, and everybody goes on."""
    each.tick(seconds)
    each.run_down()


def finish(each: World, most: float = 120.0, artifact: Artifact = APP) -> None:
    """Time passes until the rollout is over."""
    each.run_down()
    until = each.now + most
    while (found := record(each, artifact)) is not None and found.phase.under_way and each.now < until:
        later(each, MIN_HEALTHY)


def record(each: World, artifact: Artifact = APP) -> Rollout | None:
    put = each.records.get(RolloutKey(artifact.service))
    return put.value if put else None


def phase(each: World, artifact: Artifact = APP) -> RolloutPhase:
    found = record(each, artifact)
    assert found is not None
    return found.phase


def status(each: World, artifact: Artifact = APP) -> Status:
    return each.statuses[encode_artifact(artifact)]


def condition(each: World, artifact: Artifact = APP) -> tuple[Condition, str]:
    found = status(each, artifact)
    return found.condition, found.reason


def count(each: World, artifact: Artifact, state: SliceState = S.ACTIVE) -> int:
    return sum(1 for each in each.states(artifact).values() if each is state)


def env_of(each: World, artifact: Artifact = APP) -> list[dict[str, Any]]:
    puts = [put for key, put in each.slices.items() if key.artifact == artifact]
    return [dict(put.value.overrides.env) if put.value.overrides else {} for put in puts]


def steps(*given: float | str) -> tuple[RolloutStep, ...]:
    """Whole numbers are shares of the new side; seconds and "approve" are pauses."""
    return tuple(RolloutStep(weight=one) if isinstance(one, int) else RolloutStep(pause=one) for one in given)


def fail_new(each: World, *, fatal: bool = False) -> None:
    """One of the instances of `NEXT_VERSION` that serve fails."""
    key = next(key for key, put in each.slices.items() if key.artifact == NEXT_VERSION and put.value.state is S.ACTIVE)
    each.report(key, S.FAILED, fatal=fatal)
    each.settle()
