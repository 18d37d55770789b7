"""What the leader makes of a blueprint, as it is written to the ``status`` bucket."""

from __future__ import annotations

from enum import StrEnum, unique

from msgspec import UNSET, Struct, UnsetType, json, to_builtins
from msgspec.structs import replace

from cdm.model.blueprint import Blueprint, Overrides


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
    overrides: Overrides | UnsetType = UNSET
    """What the blueprint that is served wants otherwise than the manifest, where it does: with ``desired`` all of it.

    A new leader has it from here where refused blueprints have pushed the valid one out of the history.
    """

    @property
    def blueprint(self) -> Blueprint:
        """The blueprint that is served.

        Raises:
            InvalidBlueprint: somebody wrote nonsense here.
        """
        overrides = to_builtins(self.overrides) if self.overrides else {}
        return Blueprint.parse(json.encode({"instances": self.desired, **overrides}))

    def same_as(self, other: Status | None) -> bool:
        """Whether both say the same, whoever said it: a new leader alone is no news."""
        return other is not None and replace(other, term=self.term) == self
