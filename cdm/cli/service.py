"""What a service's versions are: blueprints with all revisions that are kept, statuses, the rollout's record. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import msgspec
from msgspec import Struct

from cdm.cli.wording import natural
from cdm.errors import EditRefused, InvalidBlueprint, InvalidKey
from cdm.model.artifact import Artifact, Service
from cdm.model.blueprint import Blueprint
from cdm.model.keys import decode_artifact
from cdm.model.last_valid import LastValid
from cdm.model.record import Rollout, RolloutPhase, Side
from cdm.model.status import Condition, Status
from cdm.store.revisions import Revision


class VersionLook(Struct, frozen=True):
    """One version of a service."""

    artifact: Artifact
    revisions: tuple[Revision, ...] = ()
    """Of its blueprint, the oldest that is kept first."""
    status: Status | None = None
    record: Rollout | None = None
    """The service's."""
    copy: LastValid | None = None
    """Of the blueprint in force, where refused ones have pushed it out of the bucket's history."""

    @property
    def raw(self) -> bytes | None:
        """The blueprint as it stands there, valid or not; None: there is none."""
        return self.revisions[-1].payload if self.revisions else None

    @property
    def revision(self) -> int:
        """Its revision, or that of its removal; 0: it was never written."""
        return self.revisions[-1].number if self.revisions else 0

    @property
    def owner(self) -> str:
        """Who looks after its blueprint; empty: nobody in particular."""
        return self.revisions[-1].owner if self.raw is not None else ""

    @property
    def valid(self) -> Revision | None:
        """The revision in force: the last valid one since it was last removed, as far as is kept."""
        for each in reversed(self.revisions):
            if each.payload is None:
                return None
            if parsed(each, self.artifact) is not None:
                return each
        return None

    @property
    def last_text(self) -> bytes | None:
        """The last valid blueprint that is kept, also where it was deleted since."""
        found = (each.payload for each in reversed(self.revisions) if parsed(each, self.artifact) is not None)
        return next(found, None)

    @property
    def blueprint(self) -> Blueprint | None:
        """The blueprint in force."""
        if self.raw is None:
            return None
        if self.valid is not None:
            return parsed(self.valid, self.artifact)
        with suppress(InvalidBlueprint):
            if self.copy is not None and self.copy.revision >= (self.status.in_force_revision if self.status else 0):
                return self.copy.read()
            if self.status is not None and self.status.in_force_revision:
                return self.status.blueprint  # of an earlier version, or a number
        return None

    @property
    def instances(self) -> int | str:
        """How many instances its blueprint asks for, or "each"."""
        return self.blueprint.asked if self.blueprint else 0

    @property
    def in_force_revision(self) -> int:
        """Revision of the blueprint in force; 0: none is."""
        if self.valid is not None:
            return self.valid.number
        return self.status.in_force_revision if self.status is not None and self.raw is not None else 0

    @property
    def superseded(self) -> bool:
        """Whether another version has taken over, or is about to."""
        if self.record is not None:
            return self.in_force_revision > 0 and self.record.superseded.get(self.version) == self.in_force_revision
        return self._is(Condition.SUPERSEDED)

    @property
    def unread(self) -> bool:
        """Whether no leader has read its newest blueprint so far."""
        return self.status is None or self.status.observed_revision < self.revision

    @property
    def reverted(self) -> bool:
        """Whether what is in force of it was rolled out, and taken back.

        Where its newest blueprint is refused, the status says that instead: then none are wanted of what is in force.
        """
        if self._is(Condition.REVERTED):
            return True
        wanted = self.blueprint is not None and self.blueprint.wants_any
        none = self.status is not None and self.status.desired == 0
        return wanted and none and self._is(Condition.INVALID) and not self.superseded

    def _is(self, condition: Condition) -> bool:
        status = self.status
        return (
            status is not None and status.condition is condition and status.in_force_revision == self.in_force_revision
        )

    @property
    def serves_instead(self) -> Side | None:
        """What serves of this version, where something else of it was taken back; None: another version serves."""
        record = self.record
        if record is None or self.replaced_by_another:
            return None
        side = record.target if record.phase is RolloutPhase.COMPLETE else record.source
        return side if side.version == self.version else None

    @property
    def replaced_by_another(self) -> bool:
        """Whether another version serves in its place."""
        record = self.record
        source = record.source.version if record is not None else None
        if (
            record is not None
            and record.phase is RolloutPhase.REVERTING
            and source != record.target.version == self.version
        ):
            return True
        wanted = self.status.desired if self.status is not None else 0
        return self.superseded or (self.reverted and source != self.version and not wanted)

    @property
    def serves(self) -> bool:
        """Whether its blueprint is in force, and wants instances."""
        return self.blueprint is not None and self.blueprint.wants_any and not self.replaced_by_another

    @property
    def version(self) -> str:
        """The version alone."""
        return self.artifact.version


class ServiceLook(Struct, frozen=True):
    """A service as it stands."""

    service: Service
    versions: dict[str, VersionLook]
    record: Rollout | None = None

    def version(self, artifact: Artifact) -> VersionLook:
        """One version, also one of which nothing is known."""
        return self.versions.get(artifact.version) or VersionLook(artifact, record=self.record)

    @property
    def serving(self) -> list[VersionLook]:
        """The versions in force, and not about to be replaced by a blueprint that the leader has yet to read."""
        unread = [each for each in self.versions.values() if each.serves and each.unread]
        going = {each.blueprint.rollout.source: each.in_force_revision for each in unread if each.blueprint is not None}
        found = [each for each in self.versions.values() if each.serves]
        return [each for each in found if going.get(each.version, 0) <= each.in_force_revision]

    @property
    def under_way(self) -> Rollout | None:
        """The record of a rollout that is not over."""
        return self.record if self.record is not None and self.record.phase.under_way else None

    @property
    def way(self) -> str:
        """From which version to which the rollout leads, for people."""
        if self.record is None:
            return "no rollout"
        source, target = self.record.source, self.record.target
        if source.version != target.version:
            return f"{source.version} -> {target.version}"
        again = source.template.restarted != target.template.restarted
        changed = source.template.settings.digest != target.template.settings.digest
        content = self.record.other_content
        if again and not changed and not content:
            return f"restart of {target.version}"
        what = " and ".join((*(["settings"] if changed or not content else []), *(["content"] if content else [])))
        return f"new {what} of {target.version}"


def parsed(revision: Revision, artifact: Artifact) -> Blueprint | None:
    """The blueprint of a revision; None: it was removed, or is refused."""
    try:
        return None if revision.payload is None else _checked(revision.payload, artifact)
    except InvalidBlueprint:
        return None


def refusal(revision: Revision, artifact: Artifact) -> str:
    """Why the blueprint of a revision is refused; empty: it is not, or it was removed."""
    try:
        if revision.payload is not None:
            _checked(revision.payload, artifact)
    except InvalidBlueprint as error:
        return str(error)
    return ""


def _checked(payload: bytes, artifact: Artifact) -> Blueprint:
    blueprint = Blueprint.parse(payload)
    blueprint.check_for(artifact)
    return blueprint


def look_of(
    service: Service, blueprints: Iterable[Revision], statuses: Iterable[Revision], record: bytes | None
) -> ServiceLook:
    """Put together what was read; what is of other services is left out.

    Raises:
        EditRefused: the record cannot be read: a later cdm wrote it.
    """
    rollout: Rollout | None = None
    if record is not None:
        try:
            rollout = msgspec.json.decode(record, type=Rollout)
        except msgspec.MsgspecError as error:
            raise EditRefused(f"the record of the rollout of {service} cannot be read: {error}") from None
    kept: dict[Artifact, list[Revision]] = {}
    for each in blueprints:
        if (artifact := _artifact_of(each, service)) is not None:
            kept.setdefault(artifact, []).append(each)
    told: dict[Artifact, Status] = {}
    for each in statuses:
        artifact = _artifact_of(each, service)
        if artifact is not None and each.payload is not None:
            with suppress(msgspec.MsgspecError):
                told[artifact] = msgspec.json.decode(each.payload, type=Status)
    versions = {
        artifact.version: VersionLook(artifact, tuple(kept.get(artifact, ())), told.get(artifact), rollout)
        for artifact in sorted({*kept, *told}, key=lambda each: natural(each.version))
    }
    return ServiceLook(service, versions, rollout)


def _artifact_of(revision: Revision, service: Service) -> Artifact | None:
    try:
        artifact = decode_artifact(revision.name)
    except InvalidKey:
        return None
    return artifact if artifact.service == service else None
