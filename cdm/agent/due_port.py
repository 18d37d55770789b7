"""A slice that demands a port of its own waits for it, and says for which other slice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cdm import clock
from cdm.agent.ports import INTERVAL, PATIENCE, Ports
from cdm.agent.program import Program
from cdm.agent.reports import HeldUp
from cdm.errors import SliceFailed
from cdm.model.slice import SliceState


async def has_its_port(program: Program, taken: Ports, tell: Callable[[HeldUp], Awaitable[bool]]) -> bool:
    """Wait until no other slice of this node has the port that this one demands, and tell what it waits for.

    Returns whether it can begin now.

    Args:
        program: the slice's.
        taken: the node's ports.
        tell: reports what it waits for; returns False where the slice is to do something else by now.

    Raises:
        SliceFailed: the other slice keeps it.
    """
    port, told = program.fixed_port, ""
    give_up_at = clock.now() + PATIENCE
    while port is not None and (holder := taken.holder(port, program.key)) is not None:
        within, left = holder.leaves_within(), give_up_at - clock.now()
        if within is not None:
            give_up_at = clock.now() + PATIENCE
        elif left <= 0:
            raise SliceFailed(f"port {port} is in use by another slice on this node: {holder.key}")
        how = "still has" if within is None else "has until it is stopped"
        reason = f"waits for port {port}, which {holder.key} {how}"
        if reason != told:
            told = reason
            own = program.deadline(SliceState.ACTIVATING) or 0.0
            if not await tell(HeldUp((within or 0.0) + PATIENCE + own, reason)):
                return False
        await taken.until_one_is_free(min(INTERVAL, left) if within is None else INTERVAL)
    program.take_port()
    return True
