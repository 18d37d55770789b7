"""What users are told of a blueprint: its status, made from what is wanted and what there is. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import UNSET

from cdm.manager.cluster import Desired, Group, SlicePut
from cdm.model.slice import SliceState
from cdm.model.status import Condition, Status

REASONS = 480
"""Most characters of the reasons why slices failed that a status has."""


def status_of(desired: Desired, group: Group, unplaced: int, open_nodes: int, term: int, lingering: int = 0) -> Status:
    """What to tell users of a blueprint."""
    wanted = desired.instances or 0
    active, failed = group.active, group.failed
    pending = group.live - active
    if desired.problem is not None:
        condition, reason = Condition.INVALID, desired.problem
    elif unplaced:
        condition = Condition.UNSCHEDULABLE
        what = "no node takes new slices" if open_nodes == 0 else "no node that takes new slices has room"
        reason = f"{_unplaced(unplaced, wanted, group.live)}: {what}"
    elif failed:
        condition, reason = Condition.DEGRADED, f"{failed} failed: {_reasons(_failed(group))}"
    elif lingering:
        condition = Condition.PROGRESSING
        reason = f"{lingering} must not run twice and may still run; to be replaced once it cannot"
    elif active == wanted and pending == 0:
        condition, reason = Condition.READY, ""
    else:
        condition, reason = Condition.PROGRESSING, _progress(wanted, active, pending)
    overrides = (desired.blueprint and desired.blueprint.overrides) or UNSET
    return Status(
        condition, reason, desired.observed, desired.in_force, wanted, active, pending, failed, term, overrides
    )


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


def _reasons(failed: Iterable[SlicePut]) -> str:
    """Why slices failed: three different reasons at most, and each cut to its share of the room."""
    found = sorted({put.value.reason or "no reason given" for put in failed})
    shown = found[:3]
    room = REASONS // len(shown) - 3
    return "; ".join(each if len(each) <= room else f"{each[:room]}…" for each in shown) + ("; …" if found[3:] else "")
