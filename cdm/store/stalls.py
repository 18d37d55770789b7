"""Reading that may take as long as it needs, for as long as something comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from cdm.errors import Uncertain

_OF_PATIENCE = 0.05
"""Part of the patience after which it begins anew with what came: a timer a message would be most of the work."""


@asynccontextmanager
async def while_it_comes(what: str, patience: float) -> AsyncIterator[Callable[[], None]]:
    """End a block that reads when nothing came for some time; yields what the block calls for all that comes.

    How long a bucket takes to be read depends on how much there is, and on the way to it: a million keys over a slow
    line are no fault.

    Args:
        what: what is read, for people.
        patience: seconds.

    Raises:
        Uncertain: nothing came for so long, so that not everything is read.
    """
    loop = asyncio.get_running_loop()
    reading = True
    counted = loop.time()

    def came() -> None:
        nonlocal counted
        now = loop.time()
        if reading and now >= counted + _OF_PATIENCE * patience and not limit.expired():
            counted = now
            limit.reschedule(now + patience)

    try:
        async with asyncio.timeout(patience) as limit:
            try:
                yield came
            finally:
                reading = False
    except TimeoutError:
        raise Uncertain(f"{what} could not be read: nothing more came for {patience:g} s") from None
