"""Whether a program that was ready still is alive, as its manifest has it checked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from cdm import clock
from cdm.log import Lasting, Log
from cdm.model.keys import SliceKey
from cdm.model.manifest import Liveness
from cdm.runtimes.process.checks import CannotAsk

log = Log("cdm.process")


async def until_dead(key: SliceKey, liveness: Liveness, ask: Callable[[float], Awaitable[str | None]]) -> str:
    """Check again and again, until so many checks in a row have failed that it counts as dead; returns why.

    Args:
        key: the slice.
        liveness: how often, how many, and how long one may take.
        ask: checks once, within so many seconds; returns what is wrong, None: nothing.
            Raises `CannotAsk`, which counts neither way.
    """
    failed = 0
    unasked = Lasting(log, "the slice is asked again whether it is alive")
    while True:
        await anyio.sleep(liveness.interval)
        try:
            problem = await ask(liveness.timeout)
        except CannotAsk as error:
            about = {"slice": str(key), "reason": str(error)}
            unasked.goes_on(clock.now(), "it cannot be told whether the slice is alive", **about)
            continue
        unasked.over(clock.now(), slice=str(key))
        failed = failed + 1 if problem else 0
        if failed >= liveness.failures:
            return f"not alive ({problem}, {failed} times in a row)"
