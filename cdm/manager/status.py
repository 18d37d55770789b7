"""What users are told of a blueprint: its status, made from what is wanted and what there is. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from cdm.manager.cluster import Desired, Group, SlicePut
from cdm.manager.reconciliation import Plan
from cdm.model.slice import SliceState
from cdm.model.status import Condition, Status

REASONS = 480
"""Most characters of the reasons why slices failed that a status has."""
NO_REASON = "no reason given"


def status_of(desired: Desired, group: Group, plan: Plan, term: int, *, open_nodes: bool) -> Status:
    """What to tell users of a blueprint.

    Args:
        desired: what is wanted.
        group: what there is.
        plan: what the latest decision could not do.
        term: the leadership's number.
        open_nodes: whether any node takes new slices.
    """
    wanted, active, failed = desired.instances or 0, group.active, group.failed
    pending = group.live - active
    condition, reason = _judge(desired, group, plan, wanted, open_nodes=open_nodes)
    overrides = (desired.blueprint and desired.blueprint.overrides) or UNSET
    return Status(
        condition, reason, desired.observed, desired.in_force, wanted, active, pending, failed, term, overrides
    )


def _judge(desired: Desired, group: Group, plan: Plan, wanted: int, *, open_nodes: bool) -> tuple[Condition, str]:
    """The condition and its reason: the worst that there is to say."""
    if desired.problem is not None:
        return Condition.INVALID, desired.problem
    if plan.unplaced:
        what = "no node that takes new slices has room" if open_nodes else "no node takes new slices"
        return Condition.UNSCHEDULABLE, f"{_unplaced(plan.unplaced, wanted, group.live)}: {what}"
    if group.failed:
        return Condition.DEGRADED, f"{group.failed} failed: {_reasons(_failed(group))}"
    if plan.lingering:
        instances = "instance" if plan.lingering == 1 else "instances"
        return Condition.PROGRESSING, f"waiting for {plan.lingering} exclusive {instances} to stop"
    if group.active == group.live == wanted:
        return Condition.READY, ""
    return Condition.PROGRESSING, _progress(wanted, group.active, group.live - group.active)


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


def refused_status(problem: str, revision: int, term: int) -> Status:
    """The status of a blueprint whose key does not parse."""
    return Status(Condition.INVALID, problem, observed_revision=revision, term=term)


def _failed(group: Group) -> list[SlicePut]:
    return [group.slices[key] for key in group.owed if group.slices[key].value.state is SliceState.FAILED]


def _reasons(failed: Sequence[SlicePut]) -> str:
    """Why slices failed: three different reasons at most, each cut to its share of the room."""
    found = sorted({put.value.reason or NO_REASON for put in failed}) or [NO_REASON]
    shown = found[:3]
    room = REASONS // len(shown) - 3
    return "; ".join(each if len(each) <= room else f"{each[:room]}…" for each in shown) + ("; …" if found[3:] else "")
