"""Which edit of which blueprint each command comes to, as a service stands: refused where it makes no sense. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import Any

from msgspec import Struct

from cdm.cli.known import nearest
from cdm.cli.service import ServiceLook, VersionLook, parsed
from cdm.errors import EditRefused, UsageError
from cdm.manager.stages import stages_of
from cdm.model import edit
from cdm.model.artifact import Artifact, Service
from cdm.model.blueprint import Blueprint
from cdm.model.record import Rollout, RolloutPhase
from cdm.model.template import PLAIN, Template, template_of


class Goal(Enum):
    """What is waited for after an edit."""

    FORWARD = auto()
    """The version serves."""
    BACK = auto()
    """The rollout is taken back."""


class Edit(Struct, frozen=True):
    """One blueprint to be written."""

    version: VersionLook
    """Whose, as it was when this was decided."""
    raw: bytes
    said: str
    """What is done, for people."""
    goal: Goal = Goal.FORWARD
    source: str | None = None
    """The version that is replaced."""

    @property
    def changes(self) -> bool:
        """Whether anything is to be written."""
        return self.raw != self.version.raw


def service_of(text: str) -> Service:
    """Read ``group:name``; raises `UsageError` for an artifact, and `InvalidArtifact` for anything else."""
    if text.count(":") == 2:
        artifact = Artifact.parse(text)
        raise UsageError(f"{text} is one version; write the service, {artifact.service}")
    return Service.parse(text)


def artifact_of(text: str) -> Artifact:
    """Read ``group:name:version``; raises `UsageError` for a service, and `InvalidArtifact` for anything else."""
    if text.count(":") == 1:
        raise UsageError(f"{text} is a service; write the version too, {Service.parse(text)}:VERSION")
    return Artifact.parse(text)


# Deploying


def deploying(
    look: ServiceLook,
    artifact: Artifact,
    *,
    source: str | None = None,
    instances: int | None = None,
    way: Mapping[str, Any] | None = None,
) -> Edit:
    """A version is to take over, or to begin.

    Args:
        look: the service.
        artifact: the version.
        source: the version that it is to replace, as typed; None: whichever is in force.
        instances: how many; None: as many as that one has.
        way: ``kind`` and ``steps``; None: as in the blueprint whose settings it gets.
    """
    own = look.version(artifact)
    _refuse_going_back(look, own)
    record = look.under_way
    if record is not None and record.target.version == own.version and source in (None, record.source.version):
        return _put_itself(own, instances, way)
    replaced = _replaced(look, own, source)
    if replaced is None:
        return _put_itself(own, instances, way)
    # An older blueprint of the version has the settings that it was made for; the number is that of now.
    text = own.raw or own.last_text
    if text is None:
        text = edit.without_restart(_text_of(replaced))
    count = replaced.instances if instances is None else instances
    raw = edit.checked(edit.released(text, source=replaced.version, instances=count, way=way), artifact)
    said = f"{replaced.version} -> {own.version}, {_instances(raw)}"
    return Edit(own, raw, said, source=replaced.version)


def _put_itself(own: VersionLook, instances: int | None, way: Mapping[str, Any] | None) -> Edit:
    """It replaces nothing: it is the first version, or in force already."""
    if own.raw is None:
        text = own.last_text or b"1"
        raw = edit.released(text, source=None, instances=instances, way=way)
        return Edit(own, edit.checked(raw, own.artifact), f"{own.version}, {_instances(raw)}")
    raw = own.raw if instances is None else edit.scaled(own.raw, instances)
    raw = raw if way is None else edit.led(raw, way)
    return Edit(own, edit.checked(raw, own.artifact), f"{own.version}, {_instances(raw)}")


def _refuse_going_back(look: ServiceLook, own: VersionLook) -> None:
    record = look.under_way
    if record is not None and record.source.version == own.version != record.target.version:
        raise EditRefused(f"{look.way} is under way; `cdm rollback {look.service}` goes back to {own.version}")
    if own.reverted and own.replaced_by_another:
        why = own.status.reason if own.status else ""
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
                f"{_in_force(look.serving) or nearest(source, look.versions)}"
            )
        return found
    others = [each for each in look.serving if each.version != own.version]
    if own.serves or not others:
        return None
    if len(others) > 1:
        raise UsageError(
            f"several versions of {look.service} are in force: say which is replaced, --from VERSION{_in_force(others)}"
        )
    return others[0]


# Going back


def rolling_back(look: ServiceLook, to: str | None, stamp: str) -> Edit:
    """The version or the settings before are to serve again.

    Args:
        look: the service.
        to: a version; None: whatever was before.
        stamp: for ``restarted``, where it is a version that was taken back as it is.
    """
    record = look.record
    if record is not None and record.phase is RolloutPhase.REVERTING:
        raise EditRefused(f"{look.service} is going back to {record.source.version} already")
    if record is not None and record.phase.under_way:
        if to in (None, record.source.version):
            return aborting(look)
        return _again(look, look.version(look.service.version(record.target.version)), str(to), stamp)
    now = _one(look)
    if to is None or (record is not None and _leads_to(record, now) and to == record.source.version != now.version):
        return _before(look, now, stamp)
    return _again(look, now, to, stamp)


def _one(look: ServiceLook) -> VersionLook:
    serving = look.serving
    if not serving:
        raise EditRefused(f"no version of {look.service} is in force{_known(look)}")
    if len(serving) > 1:
        raise EditRefused(f"several versions of {look.service} are in force, each on its own{_in_force(serving)}")
    return serving[0]


def _leads_to(record: Rollout, now: VersionLook) -> bool:
    return record.phase is RolloutPhase.COMPLETE and record.target.version == now.version


def _before(look: ServiceLook, now: VersionLook, stamp: str) -> Edit:
    """Back to what the record of the last rollout says was before, or the history of the blueprint."""
    record, service = look.record, look.service
    if record is not None and record.phase is RolloutPhase.REVERTED:
        raise EditRefused(
            f"{record.target.version} was taken back already, and {now.version} serves; to go back further, "
            f"say to which version: --to VERSION{_known(look)}"
        )
    if record is not None and _leads_to(record, now):
        source, target = record.source, record.target
        if source.version != target.version:
            old = look.version(service.version(source.version))
            return aborting(look) if old.raw is not None else _again(look, now, source.version, stamp)
        if None not in (source.content, target.content) and source.content != target.content:
            return aborting(look)
        return _settings_back(now, source.template)
    own = _template(now.blueprint)
    for each in reversed(now.revisions):
        blueprint = parsed(each, now.artifact)
        if blueprint is not None and _template(blueprint).digest != own.digest:
            return _settings_back(now, _template(blueprint))
    before = now.blueprint.rollout.source if now.blueprint else None
    if before is None:
        raise EditRefused(
            f"what {service} was before {now.version} is not known; say to which version: --to VERSION{_known(look)}"
        )
    return _again(look, now, before, stamp)


def _settings_back(now: VersionLook, template: Template) -> Edit:
    raw = edit.checked(edit.with_template(_text_of(now), template), now.artifact)
    if _template(Blueprint.parse(raw)).digest == _template(now.blueprint).digest:
        raise EditRefused(f"{now.artifact} has the settings that it had before: there is nothing to go back to")
    return Edit(now, raw, f"{now.version} with the settings that it had before")


def _again(look: ServiceLook, now: VersionLook, to: str, stamp: str) -> Edit:
    """A version is put again, with the number of instances that there are now."""
    if to == now.version:
        raise EditRefused(f"{now.artifact} is in force already")
    old = look.version(look.service.version(to))
    text = old.raw if old.raw is not None else old.last_text
    if text is None:
        raise EditRefused(
            f"{old.artifact} has no blueprint, and none is kept{nearest(to, look.versions) or _known(look)}; "
            f"`cdm deploy {old.artifact}` makes one"
        )
    text = edit.retried(text, stamp) if old.reverted else text
    raw = edit.checked(edit.released(text, source=now.version, instances=now.instances), old.artifact)
    return Edit(old, raw, f"{now.version} -> {to}, {_instances(raw)}", source=now.version)


# The operator's hand


def pausing(look: ServiceLook, on: bool) -> Edit:
    """The rollout is to stop where it is, or to go on."""
    _, target = _rollout(look)
    text = _text_of(target)
    if not on and not Blueprint.parse(text).rollout.paused and (number := awaited(look)):
        raise EditRefused(f"{look.way} waits for approval {number}: `cdm rollout approve {look.service}`")
    return Edit(target, edit.paused(text, on), f"{look.way}: {'paused' if on else 'goes on'}")


def approving(look: ServiceLook) -> Edit:
    """The pause that the rollout is in is to end."""
    _, target = _rollout(look)
    if not awaited(look):
        why = target.status.rollout.why if target.status and target.status.rollout else ""
        raise EditRefused(f"{look.way} does not wait for an approval{f': {why}' if why else ''}")
    return Edit(target, edit.approved(_text_of(target)), f"{look.way}: approved")


def aborting(look: ServiceLook) -> Edit:
    """The rollout is to be taken back, also one that is complete."""
    record = look.record
    if record is None:
        raise EditRefused(f"there was no rollout of {look.service}")
    if record.phase is RolloutPhase.REVERTING:
        raise EditRefused(f"{look.service} is going back to {record.source.version} already")
    if record.phase is RolloutPhase.REVERTED:
        raise EditRefused(f"{look.way} was taken back already: {record.reason}")
    target = look.version(look.service.version(record.target.version))
    if record.phase is RolloutPhase.COMPLETE:
        if not target.serves:
            raise EditRefused(f"{look.way} is complete, and {target.version} is no longer in force")
        if look.version(look.service.version(record.source.version)).raw is None:
            raise EditRefused(
                f"{look.way} is complete, and the blueprint of {record.source.version} was deleted; "
                f"`cdm rollback {look.service}` puts it again"
            )
    raw = edit.aborted(_text_of(target))
    return Edit(target, raw, f"{look.way}: going back to {record.source.version}", Goal.BACK)


def retrying(look: ServiceLook, stamp: str) -> Edit:
    """What was taken back, or failed, is to be tried again."""
    record = look.record
    if record is None:
        raise EditRefused(f"there was no rollout of {look.service}")
    if record.phase not in (RolloutPhase.REVERTED, RolloutPhase.FAILED):
        raise EditRefused(
            f"the last rollout ({look.way}) is {record.phase}: only what was taken back, or failed, is tried again"
        )
    target = look.version(look.service.version(record.target.version))
    raw = edit.checked(edit.retried(_text_of(target), stamp), target.artifact)
    return Edit(target, raw, f"{look.way}: once more", source=record.source.version)


def awaited(look: ServiceLook) -> int:
    """The number of the approval that the rollout waits for, from 1; 0: it waits for none."""
    record = look.under_way
    if record is None or record.phase is not RolloutPhase.PAUSED:
        return 0
    blueprint = look.version(look.service.version(record.target.version)).blueprint
    if blueprint is None:
        return 0
    stages = stages_of(blueprint.rollout)
    number = stages[min(record.step, len(stages) - 1)].approval
    return number if blueprint.rollout.approved < number else 0


def _rollout(look: ServiceLook) -> tuple[Rollout, VersionLook]:
    record = look.under_way
    if record is None:
        last = f" (the last one, {look.way}, is {look.record.phase})" if look.record is not None else ""
        raise EditRefused(f"no rollout of {look.service} is under way{last}")
    if record.phase is RolloutPhase.REVERTING:
        raise EditRefused(f"{look.service} is going back to {record.source.version}")
    return record, look.version(look.service.version(record.target.version))


# One version


def scaling(look: ServiceLook, artifact: Artifact, instances: int) -> Edit:
    """A version is to have another number of instances."""
    own = _in_place(look, artifact)
    raw = edit.scaled(_text_of(own), instances)
    return Edit(own, raw, f"{own.instances} -> {_instances(raw)}")


def restarting(look: ServiceLook, artifact: Artifact, stamp: str) -> Edit:
    """Every instance of a version is to be replaced by a new one."""
    own = _in_place(look, artifact)
    if own.reverted:
        raise EditRefused(
            f"{artifact} was changed, and that was taken back: to restart it would try it again, "
            f"as `cdm rollout retry {look.service}` does"
        )
    raw = edit.restarted(_text_of(own), stamp)
    return Edit(own, raw, f"restarting {_instances(raw)}")


def _in_place(look: ServiceLook, artifact: Artifact) -> VersionLook:
    own = look.version(artifact)
    if own.raw is None:
        raise EditRefused(
            f"there is no blueprint of {artifact}{nearest(artifact.version, _living(look)) or _known(look)}; "
            f"`cdm deploy {artifact}` makes one"
        )
    if own.replaced_by_another:
        how = "is being replaced" if look.under_way else "was taken back" if own.reverted else "was replaced"
        raise EditRefused(f"{artifact} {how}{_in_force(look.serving)}; {_once_more(look, own)}")
    return own


# Words


def _once_more(look: ServiceLook, own: VersionLook) -> str:
    """Which command has a version serve after all."""
    record = look.record
    if record is not None and record.phase is RolloutPhase.REVERTED and record.target.version == own.version:
        return f"`cdm rollout retry {look.service}` tries it again"
    return f"`cdm rollback {look.service} --to {own.version}` has it serve again"


def _text_of(version: VersionLook) -> bytes:
    if version.raw is None:
        raise EditRefused(f"the blueprint of {version.artifact} was deleted")
    return version.raw


def _template(blueprint: Blueprint | None) -> Template:
    return PLAIN if blueprint is None else template_of(blueprint)


def _instances(raw: bytes) -> str:
    count = Blueprint.parse(raw).instances
    return f"{count} instance{'' if count == 1 else 's'}"


def _living(look: ServiceLook) -> list[str]:
    return [each.version for each in look.versions.values() if each.raw is not None]


def _in_force(versions: Iterable[VersionLook]) -> str:
    names = [each.version for each in versions]
    return f" (in force: {', '.join(names)})" if names else ""


def _known(look: ServiceLook) -> str:
    names = [each.version for each in look.versions.values() if each.last_text is not None]
    return f" (versions with a blueprint, or that had one: {', '.join(names)})" if names else ""
