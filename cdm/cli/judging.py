"""What has become of an edit, according to the statuses that the leader writes. Pure."""

from __future__ import annotations

import re
from enum import StrEnum, unique

from msgspec import UNSET, Struct

from cdm.cli.plans import Goal
from cdm.cli.wording import CRASH_LOOP
from cdm.model.artifact import Artifact
from cdm.model.record import RolloutPhase
from cdm.model.status import Condition, RolloutStatus, Status

_RAN = re.compile(
    r"\bcrash loop\b|\bexit status \d|\bkilled(?: by|:)|\bnot ready within\b|\bnot alive \(|; last output: "
)

"""What the leader's reasons are like where programs ran and did not come up."""


@unique
class End(StrEnum):
    """How it ended."""

    COMPLETE = "complete"
    REVERTED = "reverted"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    DELETED = "deleted"
    REFUSED = "refused"
    TIMED_OUT = "timed out"


class Ended(Struct, frozen=True):
    """How it ended, and why."""

    end: End
    reason: str = ""
    culprit: Artifact | None = None
    """What the reason is about, where that is another artifact."""

    def hint(self, artifact: Artifact) -> str:
        """Which command tells more of why it failed; empty: none does."""
        if self.end not in (End.FAILED, End.REVERTED):
            return ""
        culprit = self.culprit or artifact
        if _RAN.search(self.reason):
            return f"`cdm logs {culprit}` shows what its instances wrote"
        return f"`cdm explain {culprit}` tells more"

    def code(self, goal: Goal) -> int:
        """The exit code of the command that waited for it."""
        wanted = End.REVERTED if goal is Goal.BACK else End.COMPLETE
        if self.end is wanted:
            return 0
        return 4 if self.end in (End.SUPERSEDED, End.DELETED) else 3


def under_way(status: Status) -> bool:
    """Whether a rollout goes on, so that nothing is decided yet."""
    phases = (RolloutPhase.ROLLING, RolloutPhase.PAUSED, RolloutPhase.SWITCHED, RolloutPhase.REVERTING)
    rollout = status.rollout or None
    return rollout is not None and rollout.phase in phases


def judged(
    revision: int, status: Status | None, goal: Goal, *, hopeless: bool = False, serving: Status | None = None
) -> Ended | None:
    """How an edit ended according to the status of its blueprint; None: it is not over.

    Args:
        revision: of the blueprint.
        status: what the leader says of it; None: nothing so far.
        goal: what is waited for.
        hopeless: whether its instances do not come up (`Failures`).
        serving: what the leader says of the version that is gone back to, where that is another one; None: nothing.
    """
    if status is None or status.observed_revision < revision:
        return None
    rollout = status.rollout or None
    if rollout is not None and rollout.phase == RolloutPhase.FAILED:
        return Ended(End.FAILED, status.reason or rollout.why)
    if rollout is not None and under_way(status):
        return Ended(End.FAILED, rollout.why) if rollout.stuck else None
    if (end := _end(status, goal, hopeless=hopeless)) is None:
        return None
    if end is End.REVERTED and goal is Goal.BACK:
        return _back(status, serving if elsewhere(rollout) else status)
    return Ended(end, "" if end is End.COMPLETE else status.reason)


def gone_back_to(status: Status | None) -> str | None:
    """The version that serves instead, once a rollout was taken back; None: none does, or it is the same version."""
    rollout = status.rollout or None if status is not None else None
    back = rollout is not None and rollout.phase == RolloutPhase.REVERTED and elsewhere(rollout)
    return rollout.source if rollout is not None and back else None


def _back(status: Status, serving: Status | None) -> Ended | None:
    """How a rollout that was taken back ended: what it went back to has to serve, or turns out not to come up."""
    if serving is None or (all_serve(serving) and serving.condition is not Condition.DEGRADED):
        return Ended(End.REVERTED, status.reason)
    hopeless = serving.condition is Condition.DEGRADED and Failures(None).decided(serving)
    return (
        Ended(End.FAILED, f"taken back, but what it went back to does not come up: {serving.reason}")
        if hopeless
        else None
    )


def _end(status: Status, goal: Goal, *, hopeless: bool) -> End | None:
    """How it ended where no rollout is under way."""
    phase = status.rollout.phase if status.rollout else ""
    match status.condition:
        case Condition.INVALID:
            return End.REFUSED
        case Condition.SUPERSEDED:
            return End.SUPERSEDED
        case Condition.REVERTED if goal is not Goal.COUNT or elsewhere(status.rollout or None):
            return End.REVERTED
        case Condition.REVERTED if all_serve(status):
            return End.COMPLETE
        case Condition.READY if goal is not Goal.BACK:
            return End.COMPLETE
        case Condition.DEGRADED if goal is Goal.BACK and phase == RolloutPhase.REVERTED:
            return End.REVERTED  # of the same version: its settings were taken back, and those before do not serve
        case Condition.DEGRADED if hopeless:
            return End.FAILED
        case _:
            return None


def elsewhere(rollout: RolloutStatus | None) -> bool:
    """Whether another version serves after a rollout was taken back."""
    return rollout is not None and rollout.source != rollout.target


def all_serve(status: Status) -> bool:
    """Whether there are as many instances as are wanted, and all are healthy."""
    healthy = status.active if status.healthy is UNSET else status.healthy
    return status.pending == 0 and status.active == healthy == status.desired


class Failures:
    """Tells whether the instances that an edit asks for do not come up, where no rollout watches over them.

    Args:
        before: the status before the edit. What failed then fails until the leader has tried it again, and that it
            ended again and again is remembered for longer.
    """

    def __init__(self, before: Status | None) -> None:
        self._failed_before = before is not None and (_in_crash_loop(before) or _all_failed(before))
        self._tried_again = not self._failed_before

    def decided(self, status: Status) -> bool:
        """Whether that is so by the next status of the edit: all end again and again, or none is up and most failed."""
        if _all_failed(status):
            return self._tried_again
        self._tried_again = True
        return not self._failed_before and _in_crash_loop(status)


def _in_crash_loop(status: Status) -> bool:
    loop = re.match(CRASH_LOOP, status.reason)
    return loop is not None and loop["instances"] == loop["wanted"]


def _all_failed(status: Status) -> bool:
    """Each is tried again and again, so many are seldom all FAILED at once."""
    return status.desired > 0 and status.active == 0 and status.failed > status.pending
