"""What a change of blueprints leads to, as the leader decides: in lines for people, and for ``--json``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum, unique
from typing import Any

from msgspec import Struct

from cdm.cli.changes import Change
from cdm.manager.cluster import Desired
from cdm.manager.foresight import Foreseen
from cdm.manager.plan import Command
from cdm.manager.service import BACK
from cdm.manager.topology import Registered
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.keys import encode
from cdm.model.record import Rollout
from cdm.model.rollout import RolloutKind, RolloutSettings
from cdm.model.slice import SliceState
from cdm.model.status import Condition, Status

MOST_COMMANDS = 20
"""Most commands of a kind that are shown of one artifact."""
_NOT_STORED = "is not in the store{}; only agents that bring it themselves can run it"
_TROUBLE = (Condition.UNSCHEDULABLE, Condition.DEGRADED, Condition.INVALID)


@unique
class EffectKind(StrEnum):
    """What kind of effect it is."""

    PLACED = "+"
    STOPPED = "-"
    ROLLED = "~"
    TROUBLE = "!"


class Effect(Struct, frozen=True):
    """One thing that happens."""

    kind: EffectKind
    artifact: str
    what: str
    slice: str | None = None
    """Its key, where it is about one."""


def effects_of(seen: Foreseen, changes: Sequence[Change], lacking: Mapping[Artifact, str]) -> list[Effect]:
    """What happens.

    Args:
        seen: what the leader decides.
        changes: the blueprints that are other ones.
        lacking: artifacts that are not stored, and which ones may have been meant.
    """
    changed = {each.artifact: each for each in changes}
    return [
        *_rollouts(seen, changed),
        *(_of_command(seen, each, changed.get(each.key.artifact)) for each in seen.commands),
        *(Effect(EffectKind.TROUBLE, str(artifact), _NOT_STORED.format(meant)) for artifact, meant in lacking.items()),
        *_troubles(seen, changed),
    ]


def _of_command(seen: Foreseen, command: Command, change: Change | None) -> Effect:
    key, artifact = command.key, command.key.artifact
    placed = command.state in (SliceState.LOAD, SliceState.ACTIVATE)
    blueprint = change.blueprint if change is not None else _in_force(seen, artifact)
    where = _where(seen, key.node, blueprint) if placed else ""
    state = command.state or "forget"
    name = str(key).removeprefix("slices/")
    return Effect(
        EffectKind.PLACED if placed else EffectKind.STOPPED,
        str(artifact),
        f"{state} {name}  {command.reason}{where}",
        encode(key),
    )


def _in_force(seen: Foreseen, artifact: Artifact) -> Blueprint | None:
    desired: Desired | None = seen.look.cluster.desired.get(artifact)
    return desired.blueprint if desired is not None else None


def _where(seen: Foreseen, node: NodeId, blueprint: Blueprint | None) -> str:
    """The labels of a node that the spreads of a blueprint look at."""
    presence = seen.look.topology.nodes.get(node)
    if blueprint is None or not isinstance(presence, Registered):
        return ""
    labels = presence.registration.labels
    shown = [f"{each.by}={labels.get(each.by, '(none)')}" for each in blueprint.rules.spread if each.by != "node"]
    return f", spread {' '.join(shown)}" if shown else ""


def _rollouts(seen: Foreseen, changed: Mapping[Artifact, Change]) -> Iterator[Effect]:
    for service, record in seen.rollouts.items():
        target = service.version(record.target.version)
        change = changed.get(target)
        blueprint = change.blueprint if change is not None else _in_force(seen, target)
        settings = blueprint.rollout if blueprint is not None else RolloutSettings()
        put = seen.look.cluster.rollouts.get(service)
        if put is not None and not record.phase.under_way and put.value.target.version == record.target.version:
            continue  # what was replaced long ago is remembered differently: that is nothing to look at
        source = service.version(record.source.version)
        count = seen.look.cluster.group(source).live
        yield Effect(EffectKind.ROLLED, str(target), _rolled(record, settings, count))


def _rolled(record: Rollout, settings: RolloutSettings, count: int) -> str:
    way = f" {record.source.version} -> {record.target.version}"
    if record.source.version == record.target.version:
        way = " to what it says now"
    instances = "1 instance" if count == 1 else f"{count:,} instances"
    if record.phase in BACK:
        return f"take back {record.source.version} -> {record.target.version}: {record.reason}"
    if not count or not record.phase.under_way:
        return f"{record.target.version} takes over{f' from {record.source.version}' if way[1] != 't' else ''} at once"
    match settings.kind:
        case RolloutKind.BLUE_GREEN:
            how = "all new ones beside the old ones, then the switch"
        case RolloutKind.CANARY:
            how = f"in steps: {', '.join(map(_step, settings.steps))}"
        case RolloutKind.ROLLING:
            at_once = settings.surge(count) + (settings.unavailable(count) or 0)
            how = f"{max(min(at_once, count), 1):,} at a time"
    return f"roll {instances}{way}, {how}"


def _step(step: Any) -> str:
    return f"{step.weight} %" if step.weight is not None else f"pause {step.pause}"


def _troubles(seen: Foreseen, changed: Mapping[Artifact, Change]) -> Iterator[Effect]:
    for artifact, status in seen.statuses.items():
        known = seen.statuses_before.get(artifact)
        news = known is None or (status.condition, status.reason) != (known.condition, known.reason)
        if (status.condition in _TROUBLE and (news or artifact in changed)) or (artifact in changed and _waits(status)):
            yield Effect(EffectKind.TROUBLE, str(artifact), status.reason)


def _waits(status: Status) -> bool:
    """Whether nothing happens until something else does."""
    return status.condition is Condition.PROGRESSING and status.reason.startswith("waiting for")


def shortened(effects: Sequence[Effect]) -> Iterator[Effect]:
    """The same for people: of many commands alike some, and how many more there are."""
    shown, left = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    last: dict[tuple[str, str], Effect] = {}
    for each in effects:
        alike = (each.artifact, each.what.partition(" ")[0] if each.slice else each.what)
        if each.slice is None or shown[alike] < MOST_COMMANDS:
            shown[alike] += 1
            yield each
        else:
            left[alike] += 1
            last[alike] = each
    for alike, each in last.items():
        yield Effect(each.kind, each.artifact, f"{alike[1]} and {left[alike]:,} more")
