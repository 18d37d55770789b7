"""What has become of an edit, according to the statuses that the leader writes. Pure."""

from __future__ import annotations

import re
from enum import StrEnum, unique

from msgspec import UNSET, Struct

from cdm.cli.plans import Goal
from cdm.cli.wording import CRASH_LOOP
from cdm.model.record import RolloutPhase
from cdm.model.status import Condition, RolloutStatus, Status

_STUCK = re.compile(r"; \d+ of \d+ instances healthy.*; \d+ old instances? failed or restarted", re.DOTALL)
"""What a rollout says that is going back to what does not come up."""
_INSTANCES = re.compile(
    r"\bcrash loop\b|\bfailed or restarted\b|\b\d+ failed: |\bbecame healthy\b|\bnot Ready within\b"
)
"""What the leader's reasons are like where instances did not come up."""


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

    @property
    def of_instances(self) -> bool:
        """Whether instances failed, so that their output may tell why."""
        return self.end in (End.FAILED, End.REVERTED) and _INSTANCES.search(self.reason) is not None

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


def judged(revision: int, status: Status | None, goal: Goal, *, hopeless: bool = False) -> Ended | None:
    """How an edit ended according to the status of its blueprint; None: it is not over.

    Args:
        revision: of the blueprint.
        status: what the leader says of it; None: nothing so far.
        goal: what is waited for.
        hopeless: whether its instances do not come up (`Failures`).
    """
    if status is None or status.observed_revision < revision:
        return None
    rollout = status.rollout or None
    if rollout is not None and rollout.phase == RolloutPhase.FAILED:
        return Ended(End.FAILED, status.reason or rollout.why)
    if rollout is not None and under_way(status):
        stuck = rollout.phase == RolloutPhase.REVERTING and _STUCK.search(rollout.why)
        return Ended(End.FAILED, rollout.why) if stuck else None
    if (end := _end(status, goal, hopeless=hopeless)) is None:
        return None
    return Ended(end, "" if end is End.COMPLETE else status.reason)


def _end(status: Status, goal: Goal, *, hopeless: bool) -> End | None:
    """How it ended where no rollout is under way."""
    match status.condition:
        case Condition.INVALID:
            return End.REFUSED
        case Condition.SUPERSEDED:
            return End.SUPERSEDED
        case Condition.REVERTED if goal is not Goal.COUNT or _elsewhere(status.rollout or None):
            return End.REVERTED
        case Condition.REVERTED if all_serve(status):
            return End.COMPLETE
        case Condition.READY if goal is not Goal.BACK:
            return End.COMPLETE
        case Condition.DEGRADED if hopeless:
            return End.FAILED
        case _:
            return None


def _elsewhere(rollout: RolloutStatus | None) -> bool:
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
    loop = CRASH_LOOP.match(status.reason)
    return loop is not None and loop["instances"] == loop["wanted"]


def _all_failed(status: Status) -> bool:
    """Each is tried again and again, so many are seldom all FAILED at once."""
    return status.desired > 0 and status.active == 0 and status.failed > status.pending
