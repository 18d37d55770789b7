"""Statuses and rollouts in words, as several commands show them."""

from __future__ import annotations

import time

from msgspec import UNSET

from cdm.model.record import RolloutPhase
from cdm.model.status import RolloutStatus, Status


def in_words(status: Status | None, revision: int) -> str:
    """How far it is, in a line for people."""
    if status is None or status.observed_revision < revision:
        return "waiting for the leader"
    rollout = status.rollout or None
    if rollout is None or rollout.phase in (RolloutPhase.COMPLETE, RolloutPhase.REVERTED):
        reason = status.reason or f"{status.active} of {status.desired} active"
        return f"{status.condition}: {reason}"
    return f"{rollout_in_words(rollout)}{_counts(status)}"


def rollout_in_words(rollout: RolloutStatus) -> str:
    """A rollout in a line, without its counts."""
    way = f" {rollout.source} -> {rollout.target}" if rollout.source != rollout.target else ""
    step = f", step {rollout.step} of {rollout.steps}" if rollout.steps > 1 else ""
    return f"{rollout.phase}{way}{step}{f': {rollout.why}' if rollout.why else ''}"


def _counts(status: Status) -> str:
    told = [
        f"{count} {what}"
        for count, what in ((status.healthy, "healthy"), (status.up_to_date, "new"), (status.outdated, "old"))
        if count is not UNSET
    ]
    return f" ({', '.join(told)})" if told else ""


def ago(since: float) -> str:
    """How long ago a time is, in seconds since 1970."""
    seconds = max(time.time() - since, 0)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"
