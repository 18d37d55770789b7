"""Signals that tell a command to stop."""

from __future__ import annotations

import asyncio
import atexit
import math
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import anyio
import anyio.abc
from anyio.streams.memory import MemoryObjectReceiveStream

from cdm import clock
from cdm.cli.streams import discard_output

HELD_UP = 1.0
"""Seconds after which a command that is told to stop once more, and has nothing left to do, is ended."""


@contextmanager
def open_signals(*numbers: signal.Signals) -> Iterator[MemoryObjectReceiveStream[signal.Signals]]:
    """Receive signals, and hold them off from now until the process ends.

    `anyio.open_signal_receiver` restores the handlers at its end: a signal that came while the command was shutting
    down became a KeyboardInterrupt somewhere in there, or killed it. Here later ones have no effect, unless something
    holds the end up: a thread, once the event loop is closed, whose reader takes nothing.
    """
    loop = asyncio.get_running_loop()
    send, receive = anyio.create_memory_object_stream[signal.Signals](math.inf)
    ended = math.inf

    def deliver(number: int) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            send.send_nowait(signal.Signals(number))

    def take(number: int, _frame: FrameType | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver, number)
        elif clock.now() - ended > HELD_UP:
            os._exit(128 + number)

    for number in numbers:
        signal.signal(number, take)
        # Python gives up its own handlers while it still has much to clear away. By then all threads have ended.
        atexit.register(signal.signal, number, signal.SIG_IGN)
    try:
        with send, receive:
            yield receive
    finally:
        ended = clock.now()


async def until_stopped(work: Callable[[anyio.abc.TaskGroup], Awaitable[None]]) -> int:
    """Do something until it is done, until SIGINT or SIGTERM, or until nobody reads the output any more.

    Args:
        work: what to do; tasks that it starts in the group end with it.

    Returns:
        The number of the signal; 0: there was none.
    """
    stopped = 0
    try:
        async with anyio.create_task_group() as tasks:

            async def stop_on_signal(*, task_status: anyio.abc.TaskStatus[None]) -> None:
                nonlocal stopped
                with open_signals(signal.SIGINT, signal.SIGTERM) as signals:
                    task_status.started()
                    async for number in signals:
                        stopped = stopped or number
                        tasks.cancel_scope.cancel()

            await tasks.start(stop_on_signal)
            await work(tasks)
            tasks.cancel_scope.cancel()
    except* BrokenPipeError:
        discard_output()  # whoever read it has seen enough
    return stopped
