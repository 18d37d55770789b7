"""The state of a blueprint according to the leader, as it is written to the ``status`` bucket."""

from __future__ import annotations

from enum import StrEnum, unique
from typing import Any

from msgspec import UNSET, Struct, UnsetType, field, json, to_builtins
from msgspec.structs import replace

from cdm.model.blueprint import Blueprint, Overrides

FORBIDDEN = "where a rule forbids it"
"""In the reason of a status, where that names the rules that instances violate."""


@unique
class Condition(StrEnum):
    """The state of a blueprint in one word."""

    READY = "Ready"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    UNSCHEDULABLE = "Unschedulable"
    INVALID = "Invalid"
    SUPERSEDED = "Superseded"
    """Another version of the service has taken over, or is about to."""
    REVERTED = "Reverted"
    """It was rolled out and taken back; the one before serves."""


class RolloutStatus(Struct, frozen=True, omit_defaults=True):
    """How far a rollout is."""

    phase: str
    """One of `cdm.model.record.RolloutPhase`."""
    kind: str
    source: str = field(name="from", default="")
    """The version that is replaced."""
    target: str = field(name="to", default="")
    """The version that takes over."""
    step: int = 0
    """Number of the step that is being taken, from 1; 0: there are none."""
    steps: int = 0
    since: float = 0.0
    """When this step began: server time, in seconds since 1970."""
    why: str = ""
    """What it waits for, or why it was taken back."""
    share: float = 0.0
    """Healthy new instances in per cent of all instances that are wanted."""
    stuck: bool = False
    """Whether it goes back to instances that do not come up: it goes on only once they do."""


class Status(Struct, frozen=True):
    """The value under ``status/{blueprint key}``."""

    condition: Condition
    reason: str = ""
    observed_revision: int = 0
    """Revision of the newest blueprint that the leader has read, valid or not."""
    in_force_revision: int = 0
    """Revision of the blueprint that is served; 0: none is."""
    desired: int = 0
    active: int = 0
    pending: int = 0
    failed: int = 0
    term: int = 0
    """Term in which this was last changed."""
    overrides: Overrides | UnsetType = UNSET
    """Where the blueprint that is served differs from the manifest.

    With ``desired``, ``min_healthy`` and ``settings`` this is all of that blueprint. A new leader reads it here if
    refused blueprints have pushed the valid one out of the bucket's history.
    """
    min_healthy: float | UnsetType = UNSET
    """That of the blueprint that is served, where it is not the usual one."""
    settings: dict[str, Any] | UnsetType = UNSET
    """All other fields of the blueprint that is served, as people type them; usual ones are left out.

    With ``instances`` where another number is wanted, since another version has taken over.
    """
    up_to_date: int | UnsetType = UNSET
    """Live instances of the wanted template."""
    healthy: int | UnsetType = UNSET
    """Instances that have been ACTIVE for ``min_healthy``."""
    outdated: int | UnsetType = UNSET
    """Live instances of another template than the wanted one."""
    violations: int | UnsetType = UNSET
    """Live instances for which a hard rule does not hold any more where they run."""
    rebalanced: str | UnsetType = UNSET
    """The blueprint's ``rebalanced``, once that is done."""
    rollout: RolloutStatus | UnsetType = UNSET
    """The rollout that the blueprint takes part in."""

    @property
    def blueprint(self) -> Blueprint:
        """The blueprint that is served.

        Raises:
            InvalidBlueprint: the status was not written by cdm.
        """
        fields = {**(self.settings or {}), **(to_builtins(self.overrides) if self.overrides else {})}
        if self.min_healthy is not UNSET:
            fields["min_healthy"] = self.min_healthy
        return Blueprint.parse(json.encode({"instances": self.desired, **fields}))

    def same_as(self, other: Status | None) -> bool:
        """Whether both say the same, apart from the term: a new leader alone changes nothing."""
        return other is not None and replace(other, term=self.term) == self
