"""Stops what a keeper keeps whose node's process is gone, and will not come back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio

from cdm.runtimes.keeper.protocol import KILL_PATIENCE, EndAll, Event, Gone, Stop
from cdm.runtimes.process.link import KeeperLink, meet


async def end_kept(folder: Path) -> int:
    """Stop all runs, each in its own way, and the keeper, if there is one; returns how many there were.

    Args:
        folder: the runtime's own; the caller has locked the node's.
    """
    met = await meet(folder)
    if met is None:
        return 0
    left = {told.run for told in met.running}
    over = asyncio.Event()

    def on_event(event: Event) -> None:
        if isinstance(event, Gone):
            left.discard(event.run)
            if not left:
                over.set()

    link = KeeperLink(met.process, met.end, on_event, over.set)
    for told in met.running:
        link.send(Stop(told.run, told.signal, told.grace))
    longest = max((told.grace for told in met.running), default=0.0)
    if left:
        with anyio.move_on_after(longest + KILL_PATIENCE):
            await over.wait()
    link.send(EndAll())
    link.disconnect()
    await link.wait(KILL_PATIENCE)
    return len(met.running)
