"""Stops what a keeper keeps whose node's process is gone, and will not come back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio

from cdm.runtimes.abandoned import Abandoned
from cdm.runtimes.keeper.leftovers import sweep
from cdm.runtimes.keeper.processes import look
from cdm.runtimes.keeper.protocol import KILL_PATIENCE, RECORDS, EndAll, Event, Gone, Stop
from cdm.runtimes.process.claims import REGISTRY
from cdm.runtimes.process.link import KeeperLink, Met, meet
from cdm.runtimes.process.token import token_of
from cdm.runtimes.process.users import taken_in

ANSWER = 2.0
"""Seconds for a keeper to tell what it could not end."""


async def end_kept(folder: Path, registry: Path = REGISTRY) -> Abandoned:
    """Stop all runs, each in its own way, and the keeper, if there is one, and then whatever is left of them.

    Args:
        folder: the runtime's own; the caller has locked the node's.
        registry: where it is noted which slice has which user.

    Raises:
        OSError: it cannot be told what is left.
    """
    token = token_of(folder)
    if token is None:
        return Abandoned()
    met = await meet(folder)
    stubborn = set() if met is None else await _end(met)
    # The mark of such a process may be gone, which its keeper did not need.
    alive = {pid for pid in stubborn if (found := look(pid)) is not None and not found.zombie}
    swept = await sweep(folder / RECORDS, token, taken_in(folder, registry))
    alive |= {process.pid for process in swept.left}
    problems = (f"SIGKILL does not end pid {', '.join(map(str, sorted(alive)))}",) if alive else ()
    return Abandoned(0 if met is None else len(met.running), swept.ended, problems)


async def _end(met: Met) -> set[int]:
    """Have the keeper end all, and itself; returns the processes that it could not end."""
    left = {told.run for told in met.running}
    stubborn: set[int] = set()
    over = asyncio.Event()

    def on_event(event: Event) -> None:
        if isinstance(event, Gone):
            stubborn.update(event.left)
            left.discard(event.run)
            if not left:
                over.set()

    link = KeeperLink(met.process, met.end, on_event, over.set)
    for told in met.running:
        link.send(Stop(told.run, told.signal, told.grace))
    longest = max((told.grace for told in met.running), default=0.0)
    if left:
        with anyio.move_on_after(longest + KILL_PATIENCE + ANSWER):
            await over.wait()
    link.send(EndAll())
    link.disconnect()
    await link.wait(KILL_PATIENCE)
    return stubborn
