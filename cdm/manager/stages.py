"""The stages that a rollout goes through, made from what its blueprint says. Pure."""

from __future__ import annotations

from enum import StrEnum, unique
from typing import NamedTuple

from cdm.model.duration import seconds
from cdm.model.record import Weights
from cdm.model.rollout import APPROVE, RolloutKind, RolloutSettings

LEAST_WEIGHT = 1
"""Share, in per cent, of the first new instances of a rolling rollout that has checks: at least one instance."""


@unique
class StageKind(StrEnum):
    """What a stage is about."""

    SHARE = "share"
    """The new side comes to a share of the instances, and the old side gives way."""
    BESIDE = "beside"
    """All new instances come up beside all old ones."""
    PAUSE = "pause"
    APPROVAL = "approval"
    SWITCH = "switch"
    """The new side is sent all requests, and the old one is kept for a while."""


class Stage(NamedTuple):
    """One stage."""

    kind: StageKind
    weight: int
    """Share of the new side during the stage, in per cent."""
    seconds: float = 0.0
    """How long a pause or a switch lasts."""
    approval: int = 0
    """Which approval it waits for, from 1."""
    weights: Weights | None = None
    """What each side is to be sent; None: each instance as much as any other."""

    @property
    def waits(self) -> bool:
        """Whether it is passed by waiting, and not by what the instances do."""
        return self.kind in (StageKind.PAUSE, StageKind.APPROVAL)


def stages_of(settings: RolloutSettings) -> list[Stage]:
    """The stages, of which the last one ends with no old instance left."""
    match settings.kind:
        case RolloutKind.ROLLING:
            stages = [Stage(StageKind.SHARE, 100)]
            if settings.checks:  # they are to pass with the first new instances before more of the old ones go
                stages.insert(0, Stage(StageKind.SHARE, LEAST_WEIGHT))
            if not settings.auto_promote:
                stages.append(Stage(StageKind.APPROVAL, 100, approval=1))
            return stages
        case RolloutKind.CANARY:
            return _canary(settings)
        case RolloutKind.BLUE_GREEN:
            before, after = Weights(100, 0), Weights(0, 100)
            stages = [Stage(StageKind.BESIDE, 100, weights=before)]
            if not settings.auto_promote:
                stages.append(Stage(StageKind.APPROVAL, 100, approval=1, weights=before))
            switch = Stage(StageKind.SWITCH, 100, seconds=settings.keep_old_seconds, weights=after)
            return [*stages, switch, Stage(StageKind.SHARE, 100, weights=after)]


def _canary(settings: RolloutSettings) -> list[Stage]:
    stages: list[Stage] = []
    weight, weights, approvals = 0, None, 0
    for step in settings.steps:
        if step.weight is not None:
            weight, weights = step.weight, Weights(100 - step.weight, step.weight)
            stages.append(Stage(StageKind.SHARE, weight, weights=weights))
        elif step.pause == APPROVE:
            approvals += 1
            stages.append(Stage(StageKind.APPROVAL, weight, approval=approvals, weights=weights))
        else:
            stages.append(Stage(StageKind.PAUSE, weight, seconds=seconds(step.pause or 0), weights=weights))
    if not settings.auto_promote and not (stages and stages[-1].kind is StageKind.APPROVAL):
        stages.append(Stage(StageKind.APPROVAL, weight, approval=approvals + 1, weights=weights))
    if weight < 100 or not stages or stages[-1].kind is not StageKind.SHARE:
        stages.append(Stage(StageKind.SHARE, 100, weights=weights))
    return stages


def new_instances(stage: Stage, instances: int) -> int:
    """How many instances the stage's share is: the nearest number, at least one, and with less than 100 % not all."""
    if stage.weight == 0:
        return 0  # a pause before the first share
    nearest = (instances * stage.weight + 50) // 100
    most = instances if stage.weight == 100 else max(instances - 1, 1)
    return min(max(nearest, 1), most, instances)
