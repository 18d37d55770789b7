"""What users are told of a blueprint: its status, made from what is wanted and what there is. Pure."""

from __future__ import annotations

from collections.abc import Collection
from math import inf
from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from cdm.manager.cluster import Desired
from cdm.manager.dependencies import told_of_waiting
from cdm.manager.endings import kind_of
from cdm.manager.group import Group
from cdm.manager.plan import Plan
from cdm.manager.releases import UNTOLD, Told
from cdm.manager.wanted import Wanted, is_other, is_outdated
from cdm.model.blueprint import MIN_HEALTHY, Blueprint
from cdm.model.slice import Kind, SliceState
from cdm.model.status import Condition, Status

REASONS = 480
"""Most characters of the reasons why slices failed that a status has."""
NO_REASON = "no reason given"
LATER = "; tried again within 5 minutes, or at once by `cdm restart`"
"""Of what failed in a way that trying again soon does not mend (`Policy.retry_limit`)."""


Judgement = tuple[Condition, str, float | None]
"""Condition, reason, and when it may be something else although nothing happens, in seconds on this node's clock."""


def status_of(
    desired: Desired,
    group: Group,
    plan: Plan,
    term: int,
    now: float,
    *,
    any_nodes: bool = True,
    told: Told = UNTOLD,
) -> tuple[Status, float | None]:
    """What to tell users of a blueprint, and when to look again although nothing happens.

    Args:
        desired: what is wanted.
        group: what there is.
        plan: what the latest decision could not do.
        term: the leadership's number.
        now: seconds on the clock that the slices' ``at`` are on.
        any_nodes: whether there is any node at all.
        told: what there is to tell of rollouts.
    """
    wanted = (desired.instances or 0) if told.instances is None else told.instances
    if any_nodes or desired.problem is not None or not wanted:
        condition, reason, until = _judge(desired, group, plan, now, wanted, told)
    else:
        condition, reason, until = Condition.DEGRADED, "no nodes", None
    blueprint, active = desired.blueprint, group.active
    status = Status(
        condition,
        reason,
        desired.observed,
        desired.in_force,
        wanted,
        active,
        group.live - active,
        group.failed,
        term,
        (blueprint and blueprint.overrides) or UNSET,
        blueprint.min_healthy if blueprint and blueprint.min_healthy != MIN_HEALTHY else UNSET,
        _settings(blueprint, wanted) or UNSET,
        rollout=told.rollout or UNSET,
    )
    return status, until


def _settings(blueprint: Blueprint | None, wanted: int) -> dict[str, Any]:
    """What a new leader needs, beside the other fields, to know the whole blueprint."""
    if blueprint is None:
        return {}
    if blueprint.each or blueprint.instances == wanted:
        return blueprint.settings
    return {**blueprint.settings, "instances": blueprint.instances}


def with_counts(status: Status, group: Group, wanted: Wanted, now: float) -> tuple[Status, float]:
    """The status with how many instances are up to date, and healthy; and when one more will be healthy (inf: none).

    Args:
        status: without them.
        group: the slices.
        wanted: what instances are to be started with.
        now: seconds on the clock that the slices' ``at`` are on.
    """
    outdated, healthy, next_at = 0, group.active, inf
    if is_outdated(group, wanted):
        live = (put.value for put in group.slices.values() if put.value.state.live)
        outdated = sum(is_other(value.template, value.content, wanted) for value in live)
    if group.youngest + wanted.min_healthy > now:
        active = (put for put in group.slices.values() if put.value.state is SliceState.ACTIVE)
        to_come = [at for put in active if (at := put.at + wanted.min_healthy) > now]
        healthy -= len(to_come)
        next_at = min(to_come, default=inf)
    return replace(status, up_to_date=group.live - outdated, healthy=healthy, outdated=outdated), next_at


def _judge(desired: Desired, group: Group, plan: Plan, now: float, wanted: int, told: Told) -> Judgement:
    """The condition and its reason: the worst that there is to say, and what troubles the blueprint in force."""
    condition, reason, until = _judge_release(desired, group, plan, now, wanted, told)
    if desired.problem is None:
        return condition, reason, until
    if desired.blueprint is None or condition not in (Condition.DEGRADED, Condition.UNSCHEDULABLE):
        return Condition.INVALID, desired.problem, None
    return Condition.INVALID, f"{desired.problem}; in force: {reason}", until


def _judge_release(desired: Desired, group: Group, plan: Plan, now: float, wanted: int, told: Told) -> Judgement:
    """What a rollout, or the last one, makes of it; otherwise how its instances are."""
    if told.superseded:
        return Condition.SUPERSEDED, told.superseded, None
    if told.failed:
        return Condition.DEGRADED, told.failed, None
    if told.circle and wanted:
        return Condition.DEGRADED, told.circle, None
    if told.progressing:
        waits = f"; {plan.why}" if plan.unplaced and plan.why else ""
        waits += f"; {told_of_waiting(plan.waits_for)}" if plan.waits_for else ""
        return Condition.PROGRESSING, told.progressing + waits, None
    condition, reason, until = _judge_in_force(desired, group, plan, now, wanted)
    if told.reverted:
        if condition in (Condition.DEGRADED, Condition.UNSCHEDULABLE) and wanted:
            return condition, f"{reason}; reverted before: {told.reverted}", until
        return Condition.REVERTED, told.reverted, until
    if told.note:
        return condition, f"{reason}; {told.note}" if reason else told.note, until
    return condition, reason, until


def _judge_in_force(desired: Desired, group: Group, plan: Plan, now: float, wanted: int) -> Judgement:
    if plan.unplaced:
        what = plan.why or "no node takes new slices"
        return Condition.UNSCHEDULABLE, f"{_unplaced(plan.unplaced, wanted, group.live)}: {what}", None
    if group.failed:
        failed = [put.value for key in group.owed if (put := group.slices[key]).value.state is SliceState.FAILED]
        reasons = _reasons({value.reason or NO_REASON for value in failed})
        later = LATER if any(value.fatal for value in failed) else ""
        return Condition.DEGRADED, f"{group.failed} failed: {reasons}{later}", None
    if group.endings and (loop := group.endings.crash_loop(group.slices, now)):
        reason = f"crash loop: {loop.instances} of {wanted} instances: {_reasons(loop.reasons)}"
        return Condition.DEGRADED, reason, loop.until
    waiting, until = _awaited(desired, group, plan, now, wanted)
    return (Condition.PROGRESSING if waiting else Condition.READY), waiting, until


def _awaited(desired: Desired, group: Group, plan: Plan, now: float, wanted: int) -> tuple[str, float | None]:
    """What is to happen yet until the blueprint is Ready, and when it will have; nothing: it is."""
    if plan.held:
        return f"{plan.held} of {wanted} instances not placed yet; waiting for nodes to register", None
    if plan.lingering:
        instances = "instance" if plan.lingering == 1 else "instances"
        return f"waiting for {plan.lingering} exclusive {instances} to stop", None
    if plan.waits_for:
        return told_of_waiting(plan.waits_for), None
    if plan.moving:
        return f"an instance is being {plan.moving}", None
    if not group.active == group.live == wanted:
        told = _unanswered(group) or _failed_before(group)
        return _progress(wanted, group.active, group.live - group.active) + told, None
    min_healthy = desired.blueprint.min_healthy if desired.blueprint else 0.0
    if group.youngest + min_healthy > now and (healthy_at := _last_up(group) + min_healthy) > now:
        return f"{wanted} of {wanted} active, but not all of them for {min_healthy:g} s yet", healthy_at
    return "", None


def _last_up(group: Group) -> float:
    """When the last ACTIVE slice became so."""
    return max((put.at for put in group.slices.values() if put.value.state is SliceState.ACTIVE), default=-inf)


def _unplaced(unplaced: int, wanted: int, live: int) -> str:
    missing = min(unplaced, max(wanted - live, 0))
    said = [f"{missing} of {wanted} instances cannot be placed"] if missing else []
    if staying := unplaced - missing:  # on draining nodes, or stuck
        said.append(f"{staying} cannot be moved")
    return ", and ".join(said)


def _progress(wanted: int, active: int, pending: int) -> str:
    if active > wanted:
        return f"{active - wanted} more than {wanted} active; unloading"
    if active == wanted:
        return f"{active} of {wanted} active; replacing {pending}"
    return f"{active} of {wanted} active"


def _unanswered(group: Group) -> str:
    """A hint about nodes that are waited for, and did not answer before."""
    if not group.unanswered:
        return ""
    asked = {key.node for key, put in group.slices.items() if put.value.state.kind is Kind.COMMAND}
    silent = sorted(asked & group.unanswered.keys())
    if not silent:
        return ""
    state, within = group.unanswered[silent[0]]
    more = f" (and {len(silent) - 1} more)" if len(silent) > 1 else ""
    return f"; {state} was not answered within {within:.0f} s on {silent[0]}{more}; does its agent run?"


def _failed_before(group: Group) -> str:
    """Why instances failed that are tried again now: while they are, nothing else tells of it."""
    why = group.why_failed
    if not why:
        return ""
    coming = (put.value for put in group.slices.values() if put.value.state is not SliceState.ACTIVE)
    count = max((value.failures or 0 for value in coming if value.state.live), default=0)
    times = "once" if count == 1 else f"{count} times"
    return f"; failed {times} before: {_cut(why, REASONS)}" if count else ""


def refused_status(problem: str, revision: int, term: int) -> Status:
    """The status of a blueprint whose key does not parse."""
    return Status(Condition.INVALID, problem, observed_revision=revision, term=term)


def _reasons(found: Collection[str]) -> str:
    """Three reasons of different kinds at most, each cut to its share of the room."""
    kinds: dict[tuple[str, str], str] = {}
    for each in sorted(found):
        kinds.setdefault(kind_of(each), each)
    shown = list(kinds.values())[:3] or [NO_REASON]
    room = REASONS // len(shown) - 3
    more = "; …" if len(kinds) > len(shown) else ""
    return "; ".join(_cut(each, room) for each in shown) + more


def _cut(reason: str, room: int) -> str:
    """Cut out of the middle: a reason begins with how it ended, and ends with the last line of output."""
    start = room // 4
    return reason if len(reason) <= room else f"{reason[:start]}…{reason[start - room :]}"
