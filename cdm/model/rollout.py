"""How a new template or version takes over: what people write under ``rollout`` in a blueprint."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum, unique
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from cdm.errors import InvalidBlueprint
from cdm.model.duration import LONGEST, PATTERN, Duration, seconds

Bound = (
    Annotated[int, Meta(ge=0, le=100_000, description='a whole number, or a percentage like "25%"')]
    | Annotated[str, Meta(pattern=r"^(?:100|\d{1,2})%\Z", description='a whole number, or a percentage like "25%"')]
)
APPROVE = "approve"
_PAUSE = 'a duration (seconds, or a text like "5m"), or "approve"'
Pause = (
    Annotated[float, Meta(ge=0, le=LONGEST, description=_PAUSE)]
    | Annotated[str, Meta(pattern=rf"^(?:{APPROVE}|{PATTERN})\Z", description=_PAUSE)]
)


@unique
class RolloutKind(StrEnum):
    """The way in which a rollout goes."""

    ROLLING = "rolling"
    """One after another."""
    CANARY = "canary"
    """In steps."""
    BLUE_GREEN = "blue-green"
    """All new beside all old, then the switch."""


class RolloutStep(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One step: ``{"weight": 10}``, ``{"pause": "5m"}`` or ``{"pause": "approve"}``.

    Raises:
        InvalidBlueprint: it is none of these.
    """

    weight: Annotated[int, Meta(ge=1, le=100, description="per cent of the instances, from 1 to 100")] | None = None
    pause: Pause | None = None

    def __post_init__(self) -> None:
        if (self.weight is None) == (self.pause is None):
            raise InvalidBlueprint("rollout.steps", 'each step has either a "weight" or a "pause"')


class RolloutSettings(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The field ``rollout`` of a blueprint."""

    source: str | None = field(name="from", default=None)
    """The version of the same service that is replaced."""
    kind: RolloutKind = RolloutKind.ROLLING
    max_surge: Bound = 1
    max_unavailable: Bound | Literal["auto"] = "auto"
    steps: tuple[RolloutStep, ...] = ()
    deadline: Duration = "10m"
    auto_promote: bool = True
    auto_revert: bool = True
    if_stable_down: Literal["proceed", "hold"] = "proceed"
    keep_old: Duration = "30s"
    group: str | None = None
    paused: bool = False
    approved: Annotated[int, Meta(ge=0, le=1_000)] = 0
    abort: bool = False

    def surge(self, instances: int) -> int:
        """How many instances more than wanted there may be; percentages round up."""
        return _share(self.max_surge, instances, math.ceil)

    def unavailable(self, instances: int) -> int | None:
        """How many healthy instances fewer than wanted there may be; percentages round down. None: "auto"."""
        return None if self.max_unavailable == "auto" else _share(self.max_unavailable, instances, math.floor)

    @property
    def deadline_seconds(self) -> float:
        """Seconds without progress after which the rollout has failed."""
        return seconds(self.deadline)

    @property
    def keep_old_seconds(self) -> float:
        """Seconds for which the old instances of a blue-green rollout stay after the switch."""
        return seconds(self.keep_old)


def _share(bound: int | str, instances: int, rounded: Callable[[float], int]) -> int:
    if isinstance(bound, int):
        return bound
    return rounded(int(bound.removesuffix("%")) * instances / 100)
