"""Artifacts that could not be decided on: a fault of cdm's own in one of them must not stop all others."""

from __future__ import annotations

from msgspec.structs import replace

from cdm.log import Log
from cdm.manager.cluster import Desired
from cdm.model.artifact import Artifact
from cdm.model.status import Condition, Status

log = Log("cdm.manager")


class LeftAlone:
    """The artifacts whose latest decision raised an exception. Their instances are left as they are."""

    def __init__(self) -> None:
        self.errors: dict[Artifact, Exception] = {}
        """What was raised."""

    def note(self, artifact: Artifact, error: Exception) -> None:
        """The decision raised this; it is logged once, with where that was."""
        known, self.errors[artifact] = self.errors.get(artifact), error
        if repr(known) != repr(error):
            log.exception(  # noqa: LOG004  # called where it was caught
                "an artifact could not be decided on, and is left as it is", artifact=str(artifact)
            )

    def forget(self, artifact: Artifact) -> None:
        """It was decided on."""
        if self.errors:
            self.errors.pop(artifact, None)


def status_of_undecided(desired: Desired, known: Status | None, error: Exception, term: int) -> Status:
    """What users are told: the latest status, and that it is out of date.

    Args:
        desired: what is wanted.
        known: the latest status; None: there is none.
        error: what the decision raised.
        term: the leadership's number.
    """
    what = f"{type(error).__name__}: {error}"[:200]
    reason = f"cannot be decided on, and is left as it is: {what} (a fault of cdm's; the leader's log says where)"
    counts = known or Status(Condition.DEGRADED, in_force_revision=desired.in_force, desired=desired.instances or 0)
    return replace(counts, condition=Condition.DEGRADED, reason=reason, observed_revision=desired.observed, term=term)
