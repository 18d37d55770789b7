"""What the leader makes of a blueprint, as it is written to the ``status`` bucket."""

from __future__ import annotations

from enum import StrEnum, unique

from msgspec import Struct
from msgspec.structs import astuple


@unique
class Condition(StrEnum):
    """The one-word summary of a blueprint."""

    READY = "Ready"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    UNSCHEDULABLE = "Unschedulable"
    INVALID = "Invalid"


class Status(Struct, frozen=True):
    """The value under ``status/{blueprint key}``."""

    condition: Condition
    reason: str = ""
    observed_revision: int = 0
    """Revision of the newest blueprint that was looked at, valid or not."""
    in_force_revision: int = 0
    """Revision of the blueprint that is served; 0 if none is."""
    desired: int = 0
    active: int = 0
    pending: int = 0
    failed: int = 0
    term: int = 0
    """Term in which this was last changed."""

    def same_as(self, other: Status | None) -> bool:
        """Whether both say the same, whoever said it: a new leader alone is no news."""
        return other is not None and astuple(self)[:-1] == astuple(other)[:-1]
