"""Tasks of asyncio that end together, or for sure.

Anyio's task groups would do, but commands that end soon should not wait until anyio is imported. Asyncio's own, before
Python 3.12, leave the task that waits for one that failed marked as being cancelled, which misleads anyio.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from cdm import clock

CANCELLED_ANEW = 0.05
"""Seconds after which a task that goes on though it was cancelled is cancelled again."""


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task until it has ended; how it ended is nobody's business any more.

    Once is not always enough: before Python 3.12 `asyncio.wait_for`, of which the client makes much use, swallows a
    cancellation that comes in the moment in which what it waits for is there.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=CANCELLED_ANEW)
    _heard(task)


async def together(*work: Coroutine[Any, Any, None]) -> None:
    """Do all of this at the same time. Where one fails, or this is cancelled, all end.

    Raises:
        BaseExceptionGroup: of what they raised.
    """
    tasks = [asyncio.create_task(each) for each in work]
    cancelled: asyncio.CancelledError | None = None
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    except asyncio.CancelledError as error:
        cancelled = error
    anew = clock.now()
    while left := [each for each in tasks if not each.done()]:
        if clock.now() >= anew:
            anew = clock.now() + CANCELLED_ANEW
            for each in left:
                each.cancel()
        try:
            await asyncio.wait(left, timeout=CANCELLED_ANEW)
        except asyncio.CancelledError as error:  # where anyio cancels, it does so again and again
            cancelled = error
    errors = [wrong for each in tasks if not each.cancelled() and (wrong := each.exception()) is not None]
    if errors:
        raise BaseExceptionGroup("unhandled errors", errors)
    if cancelled is not None:
        raise cancelled


async def finish(work: Coroutine[Any, Any, None], timeout: float) -> None:
    """Do something in so many seconds, also when cancelled meanwhile; what is not done by then is cancelled."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait((task,), timeout=timeout)
    except asyncio.CancelledError:
        import anyio  # noqa: PLC0415  # slow to import, and short commands end otherwise

        with anyio.CancelScope(shield=True):  # where anyio cancels, it does so again and again
            await asyncio.wait((task,), timeout=timeout)
        raise
    finally:
        dismiss(task)


def dismiss(task: asyncio.Task[Any]) -> None:
    """Cancel a task that nobody waits for any more; should it fail instead, asyncio prints no traceback of it."""
    task.cancel()
    task.add_done_callback(_heard)


def _heard(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
