"""How a new template or version takes over: what people write under ``rollout`` in a blueprint."""

from __future__ import annotations

from enum import StrEnum, unique
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from cdm.errors import InvalidArtifact, InvalidBlueprint
from cdm.model.artifact import MAX_PART, Service
from cdm.model.check import Check
from cdm.model.duration import LONGEST, PATTERN, Duration, check_duration, seconds
from cdm.model.problems import cut

APPROVE = "approve"
"""A pause that ends with the operator's approval."""
AUTO = "auto"
MAX_STEPS = 100
MAX_CHECKS = 20
LEAST_DEADLINE = 0.1
"""Seconds; before this nothing can have become healthy."""

_PERCENTAGE = r"(?:100|\d{1,2})%"
_BOUND = 'a whole number, or a percentage like "25%" (at most 100%)'
_BOUND_OR_AUTO = 'a whole number, a percentage like "25%" (at most 100%), or "auto"'
_PAUSE = 'a duration (seconds, or a text like "5m"), or "approve"'
_Number = Meta(ge=0, le=100_000)
Surge = (
    Annotated[int, _Number, Meta(description=_BOUND)]
    | Annotated[str, Meta(pattern=rf"^{_PERCENTAGE}\Z", description=_BOUND)]
)
Unavailable = (
    Annotated[int, _Number, Meta(description=_BOUND_OR_AUTO)]
    | Annotated[str, Meta(pattern=rf"^(?:{AUTO}|{_PERCENTAGE})\Z", description=_BOUND_OR_AUTO)]
)
Pause = (
    Annotated[float, Meta(ge=0, le=LONGEST, description=_PAUSE)]
    | Annotated[str, Meta(pattern=rf"^(?:{APPROVE}|{PATTERN})\Z", description=_PAUSE)]
)
Version = Annotated[
    str, Meta(max_length=MAX_PART, description=f'a version like "1.0.0" (at most {MAX_PART} characters)')
]
GroupName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z",
        description='a short name of letters, digits, ".", "-" and "_" (at most 63 characters)',
    ),
]


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
        if self.weight is not None and self.pause is not None:
            raise InvalidBlueprint("", 'has both a "weight" and a "pause"; write them as two steps')
        if self.weight is None and self.pause is None:
            raise InvalidBlueprint("", 'must have a "weight" or a "pause"')
        if self.pause is not None and self.pause != APPROVE:
            check_duration("pause", self.pause)


class RolloutSettings(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The field ``rollout`` of a blueprint.

    Raises:
        InvalidBlueprint: fields that contradict each other, or a value that its type alone does not rule out. The
            field's name is relative to ``rollout``.
    """

    source: Version | None = field(name="from", default=None)
    """The version of the same service that is replaced."""
    kind: RolloutKind = RolloutKind.ROLLING
    max_surge: Surge = 1
    max_unavailable: Unavailable = AUTO
    steps: Annotated[
        tuple[RolloutStep, ...], Meta(max_length=MAX_STEPS, description=f"a list of at most {MAX_STEPS} steps")
    ] = ()
    deadline: Duration = "10m"
    auto_promote: bool = True
    auto_revert: bool = True
    if_stable_down: Literal["proceed", "hold"] = "proceed"
    keep_old: Duration = "30s"
    checks: Annotated[
        tuple[Check, ...], Meta(max_length=MAX_CHECKS, description=f"a list of at most {MAX_CHECKS} checks")
    ] = ()
    """What has to be well for the rollout to go on."""
    group: GroupName | None = None
    paused: bool = False
    approved: Annotated[int, Meta(ge=0, le=1_000)] = 0
    abort: bool = False

    def __post_init__(self) -> None:
        if self.source is not None:
            try:
                Service("g", "n").version(self.source)
            except InvalidArtifact as error:
                raise InvalidBlueprint("from", cut(str(error).removeprefix("artifact "))) from None
        if _nothing(self.max_surge) and _nothing(self.max_unavailable):
            raise InvalidBlueprint("max_surge", "is 0, and so is max_unavailable: then nothing could ever be replaced")
        check_duration("deadline", self.deadline, LEAST_DEADLINE)
        check_duration("keep_old", self.keep_old)
        self._check_steps()

    def _check_steps(self) -> None:
        if self.kind is not RolloutKind.CANARY:
            if self.steps:
                raise InvalidBlueprint("steps", f'only a canary has steps, and kind is "{self.kind}"')
            return
        highest = 0
        for number, step in enumerate(self.steps):
            if step.weight is None:
                continue
            if step.weight <= highest:
                raise InvalidBlueprint(
                    f"steps[{number}].weight", f"must be more than {highest}, the weight of an earlier step"
                )
            highest = step.weight
        if not highest:
            raise InvalidBlueprint("steps", 'a canary needs at least one step with a "weight"')

    def surge(self, instances: int) -> int:
        """How many instances more than wanted there may be; percentages round up."""
        if isinstance(self.max_surge, int):
            return self.max_surge
        return -(-_percent(self.max_surge) * instances // 100)

    def unavailable(self, instances: int) -> int | None:
        """How many healthy instances fewer than wanted there may be; percentages round down. None: "auto".

        Where there is to be no surge and a percentage comes to nothing, it is 1: else nothing could be replaced.
        """
        if self.max_unavailable == AUTO:
            return None
        if isinstance(self.max_unavailable, int):
            return self.max_unavailable
        share = _percent(self.max_unavailable) * instances // 100
        return share or int(_nothing(self.max_surge))

    @property
    def deadline_seconds(self) -> float:
        """Seconds without progress after which the rollout has failed."""
        return seconds(self.deadline)

    @property
    def keep_old_seconds(self) -> float:
        """Seconds for which the old instances of a blue-green rollout stay after the switch."""
        return seconds(self.keep_old)


def _percent(bound: str) -> int:
    return int(bound.removesuffix("%"))


def _nothing(bound: int | str) -> bool:
    return bound == 0 if isinstance(bound, int) else bound in ("0%", "00%")


NO_ROLLOUT = RolloutSettings()
"""What holds where a blueprint says nothing of it."""
