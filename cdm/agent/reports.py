"""What an agent writes under a slice's key."""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from cdm.agent.lingering import GOING
from cdm.agent.program import Program
from cdm.errors import SliceFailed
from cdm.model.slice import Kind, SliceState, SliceValue

KEEPS_PORT = (SliceState.LOADED, SliceState.ACTIVATING, SliceState.DEACTIVATING, SliceState.UNLOADING)
"""States in which a slice tells a port that its manifest fixes: nothing else can have it on the same node."""

RUNS_LOADED = (SliceState.LOADED, SliceState.ACTIVATING, SliceState.ACTIVE)
"""States that tell the content that is loaded, where the command did not. In others it may be an earlier load's."""


class HeldUp(NamedTuple):
    """Why something does not begin yet."""

    deadline: float
    """Seconds that the state may take."""
    reason: str | None = None


def report(
    value: SliceValue,
    state: SliceState,
    program: Program,
    folder: str | None,
    error: SliceFailed | None,
    wait: HeldUp | None,
) -> SliceValue:
    """The value that tells of a state; what the command said stays in it.

    Args:
        value: what the key holds.
        state: which state.
        program: what the runtime has of the slice.
        folder: in which something of it may run, of one that must not run twice.
        error: why it is FAILED.
        wait: what it waits for.
    """
    active = state is SliceState.ACTIVE
    reason = str(error) if error else wait.reason if wait else None
    if reason is None and state is SliceState.ACTIVATING and program.interruption is not None:
        reason = program.interruption.reason
    elif reason is None and state.kind is Kind.REST:
        reason = program.warning
    serves_on = program.leaves_within() if program.serves else None
    return replace(
        value,
        state=state,
        reason=reason,
        fatal=error.fatal if error else False,
        lapsed=error.lapsed if error else False,
        port=program.port if active else program.fixed_port if state in KEEPS_PORT else None,
        address=program.address if active else None,
        restarts=program.restarts,
        stable=program.stable,
        loaded=None,
        content=value.content or (program.content if state in RUNS_LOADED else None),
        deadline=wait.deadline if wait else program.deadline(state),
        after=(serves_on or None) if state in GOING else None,
        folder=folder,
    )
