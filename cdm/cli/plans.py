"""Which edit of which blueprint each command comes to, as a service stands: refused where it makes no sense. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any

from msgspec import Struct

from cdm.cli.known import nearest
from cdm.cli.service import ServiceLook, VersionLook
from cdm.errors import EditRefused, InvalidBlueprint, UsageError
from cdm.explain.words import brief
from cdm.model import edit
from cdm.model.artifact import Artifact
from cdm.model.blueprint import Blueprint
from cdm.model.keys import encode_artifact
from cdm.model.record import RolloutPhase


class Goal(Enum):
    """What is waited for after an edit."""

    FORWARD = auto()
    """The version serves."""
    BACK = auto()
    """The rollout is taken back."""
    COUNT = auto()
    """There are as many instances as asked for, of whatever is in force."""


class Edit(Struct, frozen=True):
    """One blueprint to be written."""

    version: VersionLook
    """Whose, as it was when this was decided."""
    raw: bytes
    said: str
    """What is done, for people."""
    goal: Goal = Goal.FORWARD
    source: str | None = None
    """The version that the rollout leads from, whether it goes on or back; None: there is none."""
    anew: bool = False
    """Whether it is written also where it says what it said before: ``from`` acts once with each revision."""

    @property
    def changes(self) -> bool:
        """Whether anything is to be written."""
        return self.anew or self.raw != self.version.raw


def stamp() -> str:
    """The time, as what is written into ``restarted``."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


# Deploying


def deploying(
    look: ServiceLook,
    artifact: Artifact,
    *,
    source: str | None = None,
    instances: int | None = None,
    way: Mapping[str, Any] | None = None,
    restarted: str | None = None,
) -> Edit:
    """A version is to take over, or to begin.

    Args:
        look: the service.
        artifact: the version.
        source: the version that it is to replace, as typed; None: whichever is in force.
        instances: how many; None: as many as that one has.
        way: ``kind`` and ``steps``; None: as in the blueprint whose settings it gets.
        restarted: for ``restarted``, where it is in force and something else was pushed over it; None: nothing was.
    """
    own = look.version(artifact)
    _refuse_going_back(look, own)
    record = look.under_way
    if record is not None and record.target.version == own.version and source in (None, record.source.version):
        return _put_itself(look, own, instances, way, restarted)
    replaced = _replaced(look, own, source)
    if replaced is None:
        return _put_itself(look, own, instances, way, restarted)
    # An older blueprint of the version has the settings that it was made for; the number is that of now.
    text = own.last_text if own.raw is None else text_of(own)
    if text is None:
        text = edit.without_stamps(text_of(replaced))
    count = replaced.instances if instances is None else instances
    raw = edit.checked(edit.released(text, source=replaced.version, instances=count, way=way), artifact)
    said = f"{replaced.version} -> {own.version}, {instances_in(raw)}"
    return Edit(own, raw, said, source=replaced.version, anew=True)


def _put_itself(
    look: ServiceLook, own: VersionLook, instances: int | None, way: Mapping[str, Any] | None, restarted: str | None
) -> Edit:
    """It replaces nothing: it is the first version, or in force already."""
    if own.raw is None:
        raw = edit.released(own.last_text or b"1", source=None, instances=instances, way=way)
    else:
        raw = text_of(own)
        raw = raw if instances is None else edit.scaled(raw, instances)
        raw = raw if way is None else edit.led(raw, way)
        raw = raw if restarted is None else edit.restarted(raw, restarted)
        raw = _beside(look, own, raw)
    return Edit(own, edit.checked(raw, own.artifact), f"{own.version}, {instances_in(raw)}")


def _refuse_going_back(look: ServiceLook, own: VersionLook) -> None:
    record = look.under_way
    if record is not None and record.source.version == own.version != record.target.version:
        raise EditRefused(f"{look.way} is under way; `cdm rollback {look.service}` goes back to {own.version}")
    if own.reverted and own.replaced_by_another:
        text_of(own)  # where it is refused, that is what is wrong with it
        why = brief(own.status.reason) if own.status else ""
        raise EditRefused(f"{own.artifact} was rolled out and taken back: {why}; {_once_more(look, own)}")


def _replaced(look: ServiceLook, own: VersionLook, source: str | None) -> VersionLook | None:
    """The version that is to be replaced; None: there is none."""
    if source is not None:
        if source == own.version:
            raise UsageError(f"--from {source}: that is the version itself")
        found = look.versions.get(source)
        if found is None or not found.serves:
            raise UsageError(
                f"--from {source}: {look.service.version(source)} is not in force"
                f"{in_force_shown(look.serving) or nearest(source, look.versions)}"
            )
        return found
    others = [each for each in look.serving if each.version != own.version]
    if own.serves or not others:
        return None
    if len(others) > 1:
        raise EditRefused(
            f"several versions of {look.service} are in force: say which is replaced, --from VERSION"
            f"{in_force_shown(others)}"
        )
    return others[0]


# One version


def scaling(look: ServiceLook, artifact: Artifact, instances: int) -> Edit:
    """A version is to have another number of instances."""
    own = _in_place(look, artifact)
    raw = _beside(look, own, edit.scaled(text_of(own), instances))
    return Edit(own, raw, f"{own.instances} -> {instances_in(raw)}", Goal.COUNT)


def restarting(look: ServiceLook, artifact: Artifact, stamp: str) -> Edit:
    """Every instance of a version is to be replaced by a new one."""
    own = _in_place(look, artifact)
    if own.reverted:
        raise EditRefused(
            f"{artifact} was changed, and that was taken back: to restart it would try it again, "
            f"as `cdm rollout retry {look.service}` does"
        )
    raw = _beside(look, own, edit.restarted(text_of(own), stamp))
    return Edit(own, raw, f"restarting {instances_in(raw)}")


def rebalancing(look: ServiceLook, artifact: Artifact, stamp: str) -> Edit:
    """The instances of a version are to be moved to where they are placed best."""
    own = _in_place(look, artifact)
    return Edit(own, _beside(look, own, edit.rebalanced(text_of(own), stamp)), "rebalancing", Goal.COUNT)


def _in_place(look: ServiceLook, artifact: Artifact) -> VersionLook:
    own = look.version(artifact)
    if own.raw is None:
        raise EditRefused(
            f"there is no blueprint of {artifact}{nearest(artifact.version, _living(look)) or versions_shown(look)}; "
            f"`cdm deploy {artifact} PATH` pushes a program and makes one"
        )
    about_to_go = own.serves and own not in look.serving
    if own.replaced_by_another or about_to_go:
        how = (
            "is being replaced"
            if look.under_way or about_to_go
            else "was taken back"
            if own.reverted
            else "was replaced"
        )
        raise EditRefused(f"{artifact} {how}{in_force_shown(look.serving)}; {_once_more(look, own)}")
    return own


# Words


def _once_more(look: ServiceLook, own: VersionLook) -> str:
    """Which command has a version serve after all."""
    record = look.record
    if record is not None and record.phase is RolloutPhase.REVERTED and record.target.version == own.version:
        return f"`cdm rollout retry {look.service}` tries it again"
    return f"`cdm rollback {look.service} --to {own.version}` has it serve again"


def text_of(version: VersionLook) -> bytes:
    """A version's blueprint as it stands there; raises `EditRefused` where there is none, or none that is valid."""
    if version.raw is None:
        raise EditRefused(f"the blueprint of {version.artifact} was deleted")
    try:
        edit.checked(version.raw, version.artifact)
    except InvalidBlueprint as error:
        raise EditRefused(
            f"the newest blueprint of {version.artifact} is refused, so it is not edited, and none gets its "
            f"settings: {error}; write a valid one first: nats kv put blueprints {encode_artifact(version.artifact)} … "
            f"(`cdm history {version.artifact.service}` shows which ones there were)"
        ) from None
    return version.raw


def _beside(look: ServiceLook, own: VersionLook, raw: bytes) -> bytes:
    """An edited blueprint under which what the version replaced once, and is in force again, stays beside it."""
    record, source = look.record, Blueprint.parse(raw).rollout.source
    acted = record is not None and record.phase is RolloutPhase.COMPLETE and record.target.version == own.version
    if raw != own.raw and acted and any(each.version == source for each in look.serving):
        return edit.without_source(raw)
    return raw


def instances_in(raw: bytes) -> str:
    """How many instances a blueprint asks for, in words."""
    blueprint = Blueprint.parse(raw)
    if blueprint.each:
        return "one instance on each node"
    return f"{blueprint.instances} instance{'' if blueprint.instances == 1 else 's'}"


def _living(look: ServiceLook) -> list[str]:
    return [each.version for each in look.versions.values() if each.raw is not None]


def in_force_shown(versions: Iterable[VersionLook]) -> str:
    """These versions, as those in force, in brackets."""
    names = [each.version for each in versions]
    return f" (in force: {', '.join(names)})" if names else ""


def versions_shown(look: ServiceLook) -> str:
    """The versions that could be gone back to, in brackets."""
    names = [each.version for each in look.versions.values() if each.last_text is not None]
    return f" (versions with a blueprint, or that had one: {', '.join(names)})" if names else ""
