"""The record of a service's rollout, ``_rollout.{group}/{name}`` in ``slices``: from it any leader goes on."""

from __future__ import annotations

from enum import StrEnum, unique
from typing import Annotated

from msgspec import Meta, Struct, field

from cdm.errors import InvalidArtifact, InvalidValue
from cdm.model.artifact import Service
from cdm.model.slice import Count
from cdm.model.template import Template

Moment = Annotated[float, Meta(ge=0, le=253_402_300_799)]
"""Server time, in seconds since 1970; up to the year 9999, so that it can be shown."""
Percent = Annotated[int, Meta(ge=0, le=100)]


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
    """What a rollout leads from, or to.

    Raises:
        InvalidValue: the version cannot be one.
    """

    version: str
    revision: Count
    """Of the blueprint that said so."""
    template: Template = Template()
    content: str | None = None
    """Digest of the artifact's content; None: not known."""
    digest: str = ""
    """The template's; it may be known where the template is not."""

    def __post_init__(self) -> None:
        _check_version(self.version)

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

    source: Percent = field(name="from", default=100)
    target: Percent = field(name="to", default=0)


ALL_NEW = Weights(0, 100)
"""Everything goes to the new side."""


class Rollout(Struct, frozen=True, omit_defaults=True):
    """The value of a service's record.

    Raises:
        InvalidValue: what names a version cannot be one: the record was not written by a leader.
    """

    source: Side = field(name="from")
    """The stable side: the last that was healthy as a whole. A revert goes there."""
    target: Side = field(name="to")
    phase: RolloutPhase
    step: Count = 0
    """Index of the step that is being taken."""
    since: Moment = 0.0
    """When the phase and the step began: server time, in seconds since 1970."""
    weights: Weights | None = None
    """None: each instance is sent as much as any other. When it is complete, all goes to the new side."""
    superseded: dict[str, Count] = {}
    """Versions that were replaced: the revision of their blueprint, for as long as it has that revision."""
    reverted: dict[str, str] = {}
    """Versions that were rolled out and taken back: the mark (`Side.mark`) of what is not tried again."""
    reasons: dict[str, str] = {}
    """Why each of these was taken back, where that is known."""
    approved: Count = 0
    """How many approvals the blueprint said already when the rollout began: they were for an earlier one."""
    group: str | None = None
    """Rollouts of one group advance together, and go back together."""
    reason: str = ""
    """Why it was taken back, or failed."""
    before: Side | None = None
    """What was healthy as a whole before the stable side, restarts left aside; None: nothing was, or it is not known.

    It is what is gone back to once the stable side was only restarted."""
    term: Count = 0

    def __post_init__(self) -> None:
        for version in (*self.superseded, *self.reverted):
            _check_version(version)

    @property
    def other_content(self) -> bool:
        """Whether the content is known of both sides, and differs."""
        contents = (self.source.content, self.target.content)
        return None not in contents and contents[0] != contents[1]

    @property
    def only_restarts(self) -> bool:
        """Whether both sides are the same version with the same settings and content."""
        alike = self.source.version == self.target.version and not self.other_content
        return alike and self.source.template.settings.digest == self.target.template.settings.digest

    def whole_before(self, side: Side) -> Side | None:
        """What was healthy as a whole before the side that the next rollout leads from.

        That is not always what a blueprint names: what it replaced in the middle of a rollout never was.
        """
        if self.phase is RolloutPhase.COMPLETE and side.same_as(self.target):
            return self.before if self.only_restarts else self.source
        return self.before if side.same_as(self.source) else None


def _check_version(version: str) -> None:
    try:
        Service("g", "n").version(version)
    except InvalidArtifact as error:
        raise InvalidValue(str(error).removeprefix("artifact ")) from None
