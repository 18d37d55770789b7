"""What the operator's hand on a rollout, and going back, come to as a service stands. Pure; see `cdm.cli.plans`."""

from __future__ import annotations

from cdm.cli.known import nearest
from cdm.cli.plans import Edit, Goal, in_force_shown, instances_in, text_of, versions_shown
from cdm.cli.service import ServiceLook, VersionLook, parsed
from cdm.errors import EditRefused, ServiceMissing
from cdm.explain.words import brief
from cdm.manager.stages import stages_of
from cdm.model import edit
from cdm.model.blueprint import Blueprint
from cdm.model.record import Rollout, RolloutPhase, Side
from cdm.model.template import PLAIN, Template, template_of

# Going back


def rolling_back(look: ServiceLook, to: str | None, stamp: str) -> Edit:
    """The version or the settings before are to serve again.

    Args:
        look: the service.
        to: a version; None: whatever was before.
        stamp: for ``restarted``, where it is a version that was taken back as it is.
    """
    check_known(look)
    record = look.record
    if record is not None and record.phase is RolloutPhase.REVERTING:
        raise EditRefused(f"{look.service} is going back to {record.source.version} already")
    if record is not None and record.phase.under_way:
        if to in (None, record.source.version):
            return aborting(look)
        return _again(look, look.version(look.service.version(record.target.version)), str(to), stamp)
    now = _one(look, to)
    if to is None or (record is not None and _leads_to(record, now) and to == record.source.version != now.version):
        return _before(look, now, stamp)
    return _again(look, now, to, stamp)


def _one(look: ServiceLook, to: str | None) -> VersionLook:
    serving = look.serving
    if not serving:
        raise EditRefused(f"no version of {look.service} is in force{versions_shown(look)}")
    if len(serving) > 1:
        last = max(serving, key=lambda each: (each.version == to, each.in_force_revision))
        other = next(each for each in serving if each is not last)
        raise EditRefused(
            f"several versions of {look.service} are in force, each on its own{in_force_shown(serving)}: "
            f"`cdm deploy {last.artifact} --from {other.version}` has one replace another, "
            f"`cdm scale {other.artifact} 0` ends one"
        )
    return serving[0]


def _leads_to(record: Rollout, now: VersionLook) -> bool:
    return record.phase is RolloutPhase.COMPLETE and record.target.version == now.version


def _before(look: ServiceLook, now: VersionLook, stamp: str) -> Edit:
    """Back to what the record of the last rollout says was before.

    A rollout that only restarted the instances changed nothing that could be gone back to: it is looked past. Where
    the record is of something else, or there is none, the history of the blueprint tells.
    """
    record, service = look.record, look.service
    if record is None or now.version not in (record.source.version, record.target.version):
        return _by_history(look, now, stamp)
    source, target = record.source, record.target
    if record.only_restarts:
        if record.before is None:
            raise EditRefused(_unknown(look, now))
        return _back_to(look, now, record.before, stamp)
    if record.phase is RolloutPhase.REVERTED:
        taken_back = target.version if source.version != target.version else f"what was changed of {now.version}"
        raise EditRefused(
            f"{taken_back} was taken back already, and {now.version} serves"
            f"{' as before' if source.version == target.version else ''}; to go back further, "
            f"say to which version: --to VERSION{versions_shown(look)}"
        )
    if not _leads_to(record, now):
        return _by_history(look, now, stamp)
    if source.version != target.version:
        by_abort = look.version(service.version(source.version)).raw is not None
    else:
        by_abort = record.other_content  # no blueprint says which
    if by_abort:
        return aborting(look)
    return _back_to(look, now, source, stamp)


def _back_to(look: ServiceLook, now: VersionLook, side: Side, stamp: str) -> Edit:
    """Back to what was healthy as a whole before: by a blueprint that says the same."""
    if side.version != now.version:
        return _again(look, now, side.version, stamp, side)
    if side.template.settings.digest == _settings(now.blueprint).digest:
        raise EditRefused(
            f"before it was restarted, {now.artifact} had other content, which is gone back to by pushing it again: "
            f"`cdm deploy {now.artifact} PATH --force`; to go back further, say to which version: --to VERSION"
            f"{versions_shown(look)}"
        )
    return _settings_back(look, now, side.template.settings, stamp)


def _by_history(look: ServiceLook, now: VersionLook, stamp: str) -> Edit:
    found = _earlier(now)
    if isinstance(found, Template):
        return _settings_back(look, now, found, stamp)
    if found is not None:
        return _again(look, now, found, stamp)
    raise EditRefused(_unknown(look, now))


def _unknown(look: ServiceLook, now: VersionLook) -> str:
    if not any(each.last_text for each in look.versions.values() if each.version != now.version):
        return (
            f"there is nothing to go back to: {now.version} is the only version of {look.service}, and none of the "
            f"revisions that are kept of its blueprint has other settings"
        )
    return (
        f"what {look.service} was before {now.version} is not known; say to which version: --to VERSION"
        f"{versions_shown(look)}"
    )


def _earlier(now: VersionLook) -> Template | str | None:
    """The latest other settings of its blueprint, or the version that it took over from, whichever is later."""
    own, source = _settings(now.blueprint), now.blueprint.rollout.source if now.blueprint else None
    for each in reversed(now.revisions):
        blueprint = parsed(each, now.artifact)
        if blueprint is None:
            continue
        if source is not None and blueprint.rollout.source != source:
            return source
        if _settings(blueprint).digest != own.digest:
            return _settings(blueprint)
        source = blueprint.rollout.source
    return source


def _settings_back(look: ServiceLook, now: VersionLook, settings: Template, stamp: str) -> Edit:
    raw = edit.with_settings(text_of(now), settings)
    if _settings(Blueprint.parse(raw)).digest == _settings(now.blueprint).digest:
        raise EditRefused(f"{now.artifact} has the settings that it had before: there is nothing to go back to")
    digest = template_of(Blueprint.parse(raw)).digest
    if look.record is not None and digest == look.record.reverted.get(now.version, "").partition("/")[0]:
        raw = edit.restarted(raw, stamp)  # taken back before as it is: this is another try
    told = ", ".join(
        each for each in edit.changes_between(now.raw, raw) if not each.startswith(("rollout", "restarted"))
    )
    said = f"{now.version} with the settings that it had before: {told}"
    return Edit(now, edit.checked(raw, now.artifact), said, source=now.version)


def _again(look: ServiceLook, now: VersionLook, to: str, stamp: str, was: Side | None = None) -> Edit:
    """A version is put again, with the number of instances that there are now, and the settings that it was with."""
    if to == now.version:
        raise EditRefused(f"{now.artifact} is in force already")
    old = look.version(look.service.version(to))
    text = old.last_text if old.raw is None else text_of(old)
    if text is None:
        raise EditRefused(
            f"{old.artifact} has no blueprint, and none is kept{nearest(to, look.versions) or versions_shown(look)}; "
            f"`cdm deploy {old.artifact} PATH` pushes a program and makes one"
        )
    text = edit.restarted(text, stamp) if old.reverted else text
    if was is not None and was.digest == was.template.digest:  # its settings are known
        text = edit.with_settings(text, was.template)
    raw = edit.checked(edit.released(text, source=now.version, instances=now.instances), old.artifact)
    return Edit(old, raw, f"{now.version} -> {to}, {instances_in(raw)}", source=now.version, anew=True)


# The operator's hand


def pausing(look: ServiceLook, on: bool) -> Edit:
    """The rollout is to stop where it is, or to go on."""
    record, target = _rollout(look)
    text = text_of(target)
    if not on and not Blueprint.parse(text).rollout.paused and (number := awaited(look)):
        raise EditRefused(f"{look.way} waits for approval {number}: `cdm rollout approve {look.service}`")
    said = f"{look.way}: {'paused' if on else 'goes on'}"
    return Edit(target, edit.paused(text, on), said, source=record.source.version)


def approving(look: ServiceLook) -> Edit:
    """The pause that the rollout is in is to end."""
    record, target = _rollout(look)
    if not awaited(look):
        why = target.status.rollout.why if target.status and target.status.rollout else ""
        raise EditRefused(f"{look.way} does not wait for an approval{f': {why}' if why else ''}")
    return Edit(target, edit.approved(text_of(target)), f"{look.way}: approved", source=record.source.version)


def aborting(look: ServiceLook) -> Edit:
    """The rollout is to be taken back, also one that is complete."""
    check_known(look)
    record = look.record
    if record is None:
        raise EditRefused(f"there was no rollout of {look.service}")
    if record.phase is RolloutPhase.REVERTING:
        raise EditRefused(f"{look.service} is going back to {record.source.version} already")
    if record.phase is RolloutPhase.REVERTED:
        raise EditRefused(f"{look.way} was taken back already: {brief(record.reason)}")
    target = look.version(look.service.version(record.target.version))
    if record.phase is RolloutPhase.COMPLETE:
        if not target.serves:
            raise EditRefused(f"{look.way} is complete, and {target.version} is no longer in force")
        if look.version(look.service.version(record.source.version)).raw is None:
            raise EditRefused(
                f"{look.way} is complete, and the blueprint of {record.source.version} was deleted; "
                f"`cdm rollback {look.service}` puts it again"
            )
    raw, source = edit.aborted(text_of(target)), record.source.version
    return Edit(target, raw, f"{look.way}: going back to {source}", Goal.BACK, source=source)


def retrying(look: ServiceLook, stamp: str) -> Edit:
    """What was taken back, or failed, is to be tried again."""
    check_known(look)
    record, taken_back = look.record, taken_back_last(look)
    if taken_back is None:
        if record is None:
            raise EditRefused(f"there was no rollout of {look.service}, so there is none to try again{_way_on(look)}")
        raise EditRefused(
            f"the last rollout ({look.way}) is {record.phase}: only what was taken back, or failed, is tried again"
        )
    raw = edit.checked(edit.restarted(text_of(taken_back), stamp), taken_back.artifact)
    way, source = look.way, record.source.version if record is not None else None
    if record is None or taken_back.version != record.target.version:
        source = Blueprint.parse(raw).rollout.source
        way = f"{source} -> {taken_back.version}" if source else f"new settings of {taken_back.version}"
    return Edit(taken_back, raw, f"{way}: once more", source=source)


def taken_back_last(look: ServiceLook) -> VersionLook | None:
    """The version that failed, or was taken back, after everything else; None: none was.

    One that was aborted before it began has no rollout: its blueprint was written after that of the last rollout.
    """
    record = look.record
    if record is not None and record.phase.under_way and record.phase is not RolloutPhase.FAILED:
        return None
    last = look.version(look.service.version(record.target.version)) if record is not None else None
    if record is not None and record.phase is RolloutPhase.FAILED:
        return last
    never = [each for each in look.versions.values() if each.reverted and each is not last]
    later = [each for each in never if last is None or each.in_force_revision > last.in_force_revision]
    if later:
        return max(later, key=lambda each: each.in_force_revision)
    if last is None or record is None:
        return None
    return last if record.phase is RolloutPhase.REVERTED or last.reverted else None


def _way_on(look: ServiceLook) -> str:
    """What to do where the only version there ever was does not come up."""
    if len(serving := look.serving) != 1:
        return ""
    first = serving[0].artifact
    return f"; `cdm deploy {first} PATH --force` has a mended program run, `cdm restart {first}` the same once more"


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
    return number if blueprint.rollout.approved - record.approved < number else 0


def _rollout(look: ServiceLook) -> tuple[Rollout, VersionLook]:
    check_known(look)
    record = look.under_way
    if record is None:
        last = f" (the last one, {look.way}, is {look.record.phase})" if look.record is not None else ""
        raise EditRefused(f"no rollout of {look.service} is under way{last}")
    if record.phase is RolloutPhase.REVERTING:
        raise EditRefused(f"{look.service} is going back to {record.source.version}")
    return record, look.version(look.service.version(record.target.version))


def check_known(look: ServiceLook) -> None:
    """Raise `ServiceMissing` where nothing is known of a service."""
    if not look.versions and look.record is None:
        raise ServiceMissing(f"there is no blueprint of {look.service}")


def _settings(blueprint: Blueprint | None) -> Template:
    """What instances are started with, but for when they were restarted."""
    return template_of(blueprint).settings if blueprint is not None else PLAIN
