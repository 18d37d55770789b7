"""What blueprints that were written, changed or deleted make of a service's rollout. Pure.

A rollout begins when the template of a blueprint changes while instances of the old one run, or when a blueprint that
was written after another version's names that version in ``rollout.from``. Everything else that users can write in the
middle of one has one outcome, and `follow` has a branch for each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from msgspec.structs import replace

from cdm.manager.service import Facts, Version, governing, of_side, revert, serving
from cdm.manager.stages import stages_of
from cdm.model.blueprint import Blueprint, Overrides
from cdm.model.record import ALL_NEW, Rollout, RolloutPhase, Side
from cdm.model.slice import SliceState
from cdm.model.template import Template

MOST_EDITS = 8
"""More edits than can each make another record of a service, one after another, before a leader looks."""


def follow(facts: Facts) -> Rollout | None:
    """The service's record after all that users have written; None: there is to be none."""
    record = facts.record
    for _ in range(MOST_EDITS + len(facts.versions)):
        before, record = record, _pruned(facts, record)
        going_on = record is not None and record.phase.under_way
        record = _pruned(facts, _go_on(facts, record) if record is not None and going_on else _begin(facts, record))
        if record == before:
            break
    return record


def _blueprint(version: Version | None) -> Blueprint | None:
    """The blueprint in force."""
    return version.desired.blueprint if version is not None and version.desired is not None else None


def _says_abort(version: Version | None) -> bool:
    blueprint = _blueprint(version)
    return blueprint is not None and blueprint.rollout.abort


def _revision(version: Version | None) -> int:
    """The revision of the blueprint in force; 0: there is none."""
    return version.desired.in_force if _blueprint(version) and version and version.desired else 0


def _pruned(facts: Facts, record: Rollout | None) -> Rollout | None:
    """A record without what it remembers of blueprints that are gone, or were written anew."""
    if record is None:
        return None
    superseded = {
        name: revision
        for name, revision in record.superseded.items()
        if _revision(facts.versions.get(name)) == revision
    }
    reverted = {
        name: mark
        for name, mark in record.reverted.items()
        if (version := facts.versions.get(name)) and version.wanted and version.wanted.has_mark(mark)
    }
    reasons = {name: reason for name, reason in record.reasons.items() if name in reverted}
    target = record.target
    version = facts.versions.get(target.version)
    blueprint = _blueprint(version)
    # Approvals that were taken out of the blueprint do not count against those that are yet to come.
    approved = record.approved
    if record.phase.under_way and blueprint is not None:
        approved = min(approved, blueprint.rollout.approved)
    wanted = version.wanted if version is not None else None
    if target.content is None and wanted is not None and wanted.content is not None and wanted.same_as(target):
        target = replace(target, content=wanted.content)  # it was not known when the rollout began
    return replace(record, superseded=superseded, reverted=reverted, reasons=reasons, target=target, approved=approved)


def is_superseded(record: Rollout | None, name: str, revision: int) -> bool:
    """Whether another version has taken over from this one, or is about to."""
    return record is not None and record.superseded.get(name) == revision


def is_reverted(record: Rollout | None, wanted: Side) -> bool:
    """Whether what a blueprint wants was rolled out, and taken back."""
    return record is not None and wanted.has_mark(record.reverted.get(wanted.version))


def _begin(facts: Facts, record: Rollout | None) -> Rollout | None:
    """Begin a rollout, where something asks for one."""
    if record is not None and record.phase is RolloutPhase.COMPLETE and _aborts(facts, record):
        return revert(record, "aborted after it was complete", facts.now + facts.epoch)
    found = min(_candidates(facts, record), key=lambda each: each.target.revision, default=None)
    if found is None:
        if record is not None and not any(_blueprint(each) for each in facts.versions.values()):
            return record if any(each.group.slices for each in facts.versions.values()) else None
        return record
    return record if facts.waits_for else found


def _aborts(facts: Facts, record: Rollout) -> bool:
    """Whether the operator wants to go back from what the record leads to."""
    version = facts.versions.get(record.target.version)
    blueprint = _blueprint(version)
    return (
        blueprint is not None
        and blueprint.rollout.abort
        and version is not None
        and version.wanted is not None
        and version.wanted.same_as(record.target)
        and not record.source.same_as(record.target)
    )


def _candidates(facts: Facts, record: Rollout | None) -> Iterator[Rollout]:
    """Every rollout that could begin."""
    for name, version in facts.versions.items():
        blueprint, wanted = _blueprint(version), version.wanted
        if blueprint is None or wanted is None or blueprint.rollout.abort:
            continue
        if is_superseded(record, name, wanted.revision) or is_reverted(record, wanted):
            continue
        own, known = _outdated(record, version, wanted), record
        if source := _replaced(facts, record, name, blueprint, wanted):
            known = _started(facts, record, source, wanted, blueprint)
            if own is None or _runs(facts, source.version):
                yield known
                continue
            # Nothing runs of what it replaces, but instances of an earlier template of its own do.
        if own is not None:
            yield _started(facts, known, own, wanted, blueprint)


def would_begin(facts: Facts, record: Rollout | None, name: str) -> bool:
    """Whether a rollout to this version could begin, if nothing were waited for."""
    return any(each.target.version == name for each in _candidates(facts, record))


def _replaced(
    facts: Facts, record: Rollout | None, name: str, blueprint: Blueprint, wanted: Side, *, ever: bool = False
) -> Side | None:
    """The version that a blueprint replaces; None: none that is in force, and was written before it.

    Where the one that it names was taken back, that is the one that serves instead. ``ever``: also one that was
    written after it.
    """
    other = blueprint.rollout.source
    version = facts.versions.get(other) if other is not None else None
    if record is not None and version is not None and version.wanted and is_reverted(record, version.wanted):
        other = serving(record).version
        version = facts.versions.get(other)
    revision = _revision(version)
    if version is None or other is None or other == name or revision == 0:
        return None
    if revision > wanted.revision and not ever:
        return None
    if is_superseded(record, other, revision) or version.wanted is None:
        return None
    return _known(record, other) or version.wanted


def _known(record: Rollout | None, name: str) -> Side | None:
    """What serves of a version according to the record of the last rollout."""
    if record is None:
        return None
    side = serving(record)
    return side if side.version == name else None


def _outdated(record: Rollout | None, version: Version, wanted: Side) -> Side | None:
    """The template that live instances were started with, where it is another than the wanted one."""
    old = [put for put in version.group.slices.values() if put.value.state.live and not of_side(put, wanted)]
    if not old:
        return None
    known = _known(record, wanted.version)
    if known is not None and any(of_side(put, known) for put in old):
        return known
    (digest, content), _ = Counter((put.value.template, put.value.content) for put in old).most_common(1)[0]
    one = next(put for put in old if (put.value.template, put.value.content) == (digest, content))
    template = Template(one.value.overrides or Overrides(), needs=one.value.needs)
    return Side(wanted.version, one.value.blueprint or 0, template, content, digest or "")


def _started(facts: Facts, record: Rollout | None, source: Side, target: Side, blueprint: Blueprint) -> Rollout:
    """The record of a rollout that begins. Where nothing of the old version runs, it is complete at once."""
    superseded = dict(record.superseded) if record is not None else {}
    reverted = dict(record.reverted) if record is not None else {}
    reasons = dict(record.reasons) if record is not None else {}
    superseded.pop(target.version, None)
    reverted.pop(target.version, None)
    reasons.pop(target.version, None)
    runs = True
    if source.version != target.version:
        superseded[source.version] = _revision(facts.versions.get(source.version))
        runs = _runs(facts, source.version) or _runs(facts, target.version, other_than=target)
        if record is not None and record.phase.under_way:
            # What took over from the old version, as far as it came, serves until this one does.
            serves = {record.target.version, *superseded, *reverted} - {target.version}
            runs = runs or any(_runs(facts, name) for name in serves)
    stages = stages_of(blueprint.rollout)
    return Rollout(
        source,
        target,
        RolloutPhase.ROLLING if runs else RolloutPhase.COMPLETE,
        step=0 if runs else len(stages),
        since=facts.now + facts.epoch,
        weights=stages[0].weights if runs else ALL_NEW,
        superseded=superseded,
        reverted=reverted,
        reasons=reasons,
        approved=blueprint.rollout.approved,
        group=blueprint.rollout.group,
        before=record.whole_before(source) if record is not None else None,
        term=facts.term,
    )


def _runs(facts: Facts, name: str, other_than: Side | None = None) -> bool:
    """Whether there are instances of a version that are to stay, though they may have failed."""
    version = facts.versions.get(name)
    puts = version.group.slices.values() if version is not None else ()
    staying = (put for put in puts if put.value.state not in (SliceState.UNLOAD, SliceState.UNLOADING))
    return any(not (other_than and of_side(put, other_than)) for put in staying)


def _go_on(facts: Facts, record: Rollout) -> Rollout | None:
    """What users have written in the middle of a rollout."""
    new, old = facts.versions.get(record.target.version), facts.versions.get(record.source.version)
    now = facts.now + facts.epoch
    if _blueprint(new) is None and _blueprint(old) is None:
        # Both are gone: nothing is wanted, and a version that was replaced before does not come back.
        return replace(record, phase=RolloutPhase.REVERTED, since=now) if record.superseded else None
    if third := _third(facts, record):
        return third
    again, reason = _put_again(record, new, old)
    if reason or again is not record:
        return again if record.phase is RolloutPhase.REVERTING else revert(again, reason, now)
    return _changed(facts, _named_anew(record, new, old), new)


def _named_anew(record: Rollout, new: Version | None, old: Version | None) -> Rollout:
    """The record, where the old version was put again, and then the new one, which still says that it replaces it."""
    source, blueprint, revision = record.source.version, _blueprint(new), _revision(old)
    if record.phase is RolloutPhase.REVERTING or source == record.target.version or blueprint is None:
        return record
    if blueprint.rollout.source != source or not 0 < revision < _revision(new):
        return record
    return replace(record, superseded={**record.superseded, source: revision})


def _put_again(record: Rollout, new: Version | None, old: Version | None) -> tuple[Rollout, str]:
    """The record with the side to go back to, and why that is gone back to; no reason: it is not."""
    source, target = record.source, record.target
    if source.version == target.version:
        return record, ""
    if _blueprint(new) is None:
        return record, f"the blueprint of {target.version} was deleted"
    wanted = old.wanted if old is not None else None
    if wanted is not None and wanted.revision > _revision(new) and wanted.revision != source.revision:
        # What the new blueprint said last is what is taken back.
        latest = new.wanted if new is not None and new.wanted is not None else target
        # A template that comes with an abort never begins: what was there before comes back as it was.
        stable = source if _says_abort(old) else wanted
        return replace(record, source=stable, target=latest), f"{source.version} was put again"
    return record, ""


def _changed(facts: Facts, record: Rollout, new: Version | None) -> Rollout:
    """What the blueprint that is rolled out says by now."""
    source, target, now = record.source, record.target, facts.now + facts.epoch
    reverting = record.phase is RolloutPhase.REVERTING
    blueprint, wanted = _blueprint(new), new.wanted if new is not None else None
    if blueprint is None or wanted is None or (reverting and wanted.revision < source.revision):
        return record
    if wanted.same_as(target) or (reverting and wanted.same_as(source)):
        return revert(record, "aborted", now) if not reverting and _aborts(facts, record) else record
    if wanted.same_as(source):
        return revert(record, "the blueprint was changed back", now)
    return record if facts.waits_for else _started(facts, record, source, wanted, blueprint)


def _third(facts: Facts, record: Rollout) -> Rollout | None:
    """A rollout to another version that takes the place of the one under way; it goes back to the same."""
    ends = (record.source.version, record.target.version)
    latest = max(_revision(facts.versions.get(end)) for end in ends)
    # In the order in which they were written: each takes the place of the one before.
    for name, version in sorted(facts.versions.items(), key=lambda each: _revision(each[1])):
        blueprint, wanted = _blueprint(version), version.wanted
        if name in ends or blueprint is None or wanted is None or blueprint.rollout.source not in ends:
            continue
        if wanted.revision < latest or blueprint.rollout.abort or is_reverted(record, wanted):
            continue
        if is_superseded(record, name, wanted.revision) or facts.waits_for:
            continue
        started = _started(facts, record, record.source, wanted, blueprint)
        superseded = dict(started.superseded)
        for end in ends:
            if revision := _revision(facts.versions.get(end)):
                superseded[end] = revision
        return replace(started, superseded=superseded)
    return None


def at_rest(facts: Facts, record: Rollout | None, version: Version) -> tuple[Side | None, int | None]:
    """What instances of a version are while no rollout of the service is under way, and how many there are.

    None: as its blueprint says, in both places.
    """
    wanted, name = version.wanted, version.artifact.version
    back = record is not None and record.phase is RolloutPhase.REVERTED and record.source.version == name
    if wanted is None:
        # Its blueprint was deleted, and yet it is what was gone back to, as many as the one taken back says.
        target = facts.versions.get(record.target.version) if record is not None and back else None
        if record is not None and target is not None and target.wanted and is_reverted(record, target.wanted):
            return record.source, target.desired.instances if target.desired else None
        return None, None
    if is_superseded(record, name, wanted.revision):
        return None, 0
    desired = governing(facts, record) if record is not None and back else None
    count = desired.instances if desired is not None else None
    if record is not None and is_reverted(record, wanted):
        side = serving(record)
        return (side, count) if side.version == name else (None, 0)
    if held := withheld(facts, record, version):
        return held.serves, count if held.serves is not None else 0
    return None, count


class Withheld(NamedTuple):
    """What a blueprint comes to that asks for a rollout which is not to begin yet, or was aborted before it began."""

    serves: Side | None
    """What stays of this version; None: nothing was there, and nothing comes."""


def withheld(facts: Facts, record: Rollout | None, version: Version) -> Withheld | None:
    """What stays instead of what a blueprint asks for; None: what it asks for is there, or may come."""
    blueprint, wanted = _blueprint(version), version.wanted
    if blueprint is None or wanted is None or not (facts.waits_for or blueprint.rollout.abort):
        return None
    name = version.artifact.version
    if before := _before(record, version, wanted):
        return Withheld(before)
    if record is not None and serving(record).version == name:
        return None  # whatever it says that it replaces
    if _replaced(facts, record, name, blueprint, wanted, ever=blueprint.rollout.abort):
        return Withheld(None)
    # What never began does not begin later either, when what it names is put again, or is replaced by another version.
    others = record is not None or len(facts.versions) > 1
    never = blueprint.rollout.abort and blueprint.rollout.source is not None and not version.group.live
    return Withheld(None) if never and others else None


def _before(record: Rollout | None, version: Version, wanted: Side) -> Side | None:
    """What runs of a version although its blueprint says something else, or ran when it had instances."""
    if old := _outdated(record, version, wanted):
        return old
    known = _known(record, wanted.version)
    return None if known is None or known.same_as(wanted) or version.group.live else known


def passed_over(facts: Facts, record: Rollout | None, version: Version) -> str:
    """Why the version that a blueprint names in ``rollout.from`` is not replaced, for people; empty: it is, or was."""
    blueprint, name = _blueprint(version), version.artifact.version
    source = blueprint.rollout.source if blueprint is not None else None
    if source is None or (record is not None and name in _known_versions(record)):
        return ""
    revision = _revision(facts.versions.get(source))
    if revision and not is_superseded(record, source, revision):
        if revision < _revision(version):
            return ""
        return f"rollout.from: {source} was written later, so it is not replaced; write this one again to replace it"
    instead = f" ({serving(record).version} is)" if record is not None else ""
    return f"rollout.from: {source} is not in force{instead}, so nothing is replaced"


def _known_versions(record: Rollout) -> set[str]:
    """Versions that a rollout was about, this one or one before."""
    return {record.source.version, record.target.version, *record.superseded, *record.reverted}
