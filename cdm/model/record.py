"""The record of a service's rollout, ``_rollout.{group}/{name}`` in ``slices``: from it any leader goes on."""

from __future__ import annotations

from enum import StrEnum, unique

from msgspec import Struct, field

from cdm.model.slice import Count
from cdm.model.template import Template


@unique
class RolloutPhase(StrEnum):
    """What a rollout is doing."""

    ROLLING = "rolling"
    """New instances come and old ones go until the step's share is reached."""
    PAUSED = "paused"
    """It waits for a time, or for an approval."""
    SWITCHED = "switched"
    """Blue-green: the new instances serve, and the old ones are kept for a while."""
    COMPLETE = "complete"
    REVERTING = "reverting"
    """The old template comes back."""
    REVERTED = "reverted"
    FAILED = "failed"
    """It failed and stays as it is, since it is not to go back by itself."""

    @property
    def under_way(self) -> bool:
        """Whether it goes on by itself, or may."""
        return self not in _OVER


_OVER = frozenset({RolloutPhase.COMPLETE, RolloutPhase.REVERTED})


class Side(Struct, frozen=True, omit_defaults=True):
    """What a rollout leads from, or to."""

    version: str
    revision: Count
    """Of the blueprint that said so."""
    template: Template = Template()
    content: str | None = None
    """Digest of the artifact's content; None: not known."""
    digest: str = ""
    """The template's; it may be known where the template is not."""

    @property
    def mark(self) -> str:
        """Tells this template and content from others of the same version."""
        return f"{self.digest}/{self.content}" if self.content else self.digest

    def has_mark(self, mark: str | None) -> bool:
        """Whether a mark is that of this template and content, as far as is known."""
        digest, _, content = (mark or "").partition("/")
        return digest == self.digest and (not content or self.content in (None, content))

    def same_as(self, other: Side) -> bool:
        """Whether an instance of one side is an instance of the other, as far as is known."""
        if self.version != other.version or self.digest != other.digest:
            return False
        return None in (self.content, other.content) or self.content == other.content


class Weights(Struct, frozen=True):
    """Per cent of the requests that each side is to be sent."""

    source: int = field(name="from", default=100)
    target: int = field(name="to", default=0)


class Rollout(Struct, frozen=True, omit_defaults=True):
    """The value of a service's record."""

    source: Side = field(name="from")
    """The stable side: the last that was healthy as a whole. A revert goes there."""
    target: Side = field(name="to")
    phase: RolloutPhase
    step: int = 0
    """Index of the step that is being taken."""
    since: float = 0.0
    """When the phase and the step began: server time, in seconds since 1970."""
    weights: Weights | None = None
    """None: each instance is sent as much as any other."""
    superseded: dict[str, Count] = {}
    """Versions that were replaced: the revision of their blueprint, for as long as it has that revision."""
    reverted: dict[str, str] = {}
    """Versions that were rolled out and taken back: the mark (`Side.mark`) of what is not tried again."""
    reason: str = ""
    """Why it was taken back, or failed."""
    term: Count = 0
