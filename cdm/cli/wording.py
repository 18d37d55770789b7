"""Statuses and rollouts in words, as several commands show them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from msgspec import UNSET

from cdm.explain.words import brief
from cdm.manager.endings import kind_of
from cdm.model.artifact import Artifact
from cdm.model.record import RolloutPhase
from cdm.model.status import Condition, RolloutStatus, Status

CRASH_LOOP = r"(?s)(?P<what>.*\bcrash loop: (?P<instances>\d+) of (?P<wanted>\d+) instances): (?P<reasons>.*)"
"""What a status says of a crash loop, and its reasons."""


def in_words(status: Status | None, revision: int, versions: Mapping[Artifact, Status] | None = None) -> str:
    """How far it is, in a line for people.

    Args:
        status: what the leader says of a blueprint.
        revision: of that blueprint.
        versions: what the leader says of all versions of the service; their instances are counted.
    """
    if status is None or status.observed_revision < revision:
        return "waiting for the leader"
    rollout = status.rollout or None
    if rollout is None or rollout.phase in (RolloutPhase.COMPLETE, RolloutPhase.REVERTED):
        return f"{status.condition}: {brief(status.reason) or f'{status.active} of {status.desired} active'}"
    return brief(rollout_in_words(rollout)) + _counts(status, rollout, versions or {})


def serves_in_words(status: Status) -> str:
    """How many instances serve of what was gone back to, and why not more, where that is not about the rollout."""
    why = f": {brief(status.reason)}" if status.reason and status.condition is not Condition.REVERTED else ""
    return f"{status.active} of {status.desired} instances active{why}"


def alike(line: str, other: str) -> bool:
    """Whether two lines tell the same, but for durations and such."""
    return kind_of(line) == kind_of(other)


def rollout_in_words(rollout: RolloutStatus) -> str:
    """A rollout in a line, without its counts."""
    way = f" {rollout.source} -> {rollout.target}" if rollout.source != rollout.target else ""
    step = f", step {rollout.step} of {rollout.steps}" if rollout.steps > 1 else ""
    return f"{rollout.phase}{way}{step}{f': {rollout.why}' if rollout.why else ''}"


def _counts(status: Status, rollout: RolloutStatus, versions: Mapping[Artifact, Status]) -> str:
    """Of a rollout between versions how each of them fares, the new one first; else of the old and new instances."""
    if rollout.source != rollout.target:
        order = {rollout.target: 0, rollout.source: 1}
        named = sorted(
            ((order.get(artifact.version, 2), artifact.version, told) for artifact, told in versions.items()),
            key=lambda each: (each[0], natural(each[1])),
        )
        shown = [
            f"{version}: {_healthy(told)}" for place, version, told in named if place < 2 or told.active + told.pending
        ]
        return f" ({', '.join(shown)})" if shown else ""
    told = [
        f"{count} {what}"
        for count, what in ((status.up_to_date, "new"), (status.outdated, "old"), (status.healthy, "healthy"))
        if count is not UNSET
    ]
    return f" ({', '.join(told)})" if told else ""


def _healthy(status: Status) -> str:
    healthy = status.active if status.healthy is UNSET else status.healthy
    return f"{healthy} of {status.active + status.pending} healthy"


def natural(version: str) -> tuple[tuple[bool, int, str], ...]:
    """What versions are put in order by: numbers in them as numbers, so that 2 comes before 10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", version)
    return tuple((not each[0].isdigit(), int(each) if each[0].isdigit() else 0, each) for each in parts)


def ago(since: float) -> str:
    """How long ago a time is, in seconds since 1970."""
    return span(time.time() - since)


def until(at: float) -> str:
    """How long it is until a time, in seconds since 1970."""
    return span(at - time.time())


def span(seconds: float) -> str:
    """A span of time, in the largest unit of which there are two or more; what is negative is none."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def bytes_shown(count: int) -> str:
    """A number of bytes for people."""
    if count < 1000:
        return f"{count} byte{'' if count == 1 else 's'}"
    power = min((len(str(count)) - 1) // 3, 4)
    return f"{count / 1000**power:,.1f} {'kMGT'[power - 1]}B"
