"""Whether a program that was ready still is alive, as its manifest has it checked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from cdm.model.manifest import Liveness


async def until_dead(liveness: Liveness, ask: Callable[[float], Awaitable[str | None]]) -> str:
    """Check again and again, until so many checks in a row have failed that it counts as dead; returns why.

    Args:
        liveness: how often, how many, and how long one may take.
        ask: checks once, within so many seconds; returns what is wrong, None: nothing.
    """
    failed = 0
    while True:
        await anyio.sleep(liveness.interval)
        problem = await ask(liveness.timeout)
        failed = failed + 1 if problem else 0
        if failed >= liveness.failures:
            return f"not alive ({problem}, {failed} times in a row)"
