"""What each command does first: it sets up logs, connects, and looks whether the server will do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
from cdm.cli.options import ConnectionOptions
from cdm.store.connection import Connection, connect
from cdm.store.tasks import ended

Result = TypeVar("Result")


def run_connected(
    options: ConnectionOptions,
    name: str,
    use: Callable[[Connection], Awaitable[Result]],
    *,
    level: LogLevel = LogLevel.WARNING,
) -> Result:
    """Connect, and run something with the connection.

    Args:
        options: where NATS is.
        name: of the connection, as the server's operators see it.
        use: what to run.
        level: the least severe level that is logged.

    Raises:
        UsageError: the options cannot be used.
        StoreError: there is no connection, or the server will not do; it may be in an exception group.
    """
    configure_logs(LogFormat.CONSOLE, level)
    access = options.access()

    async def run() -> Result:
        async with connect(access, name=name, prefix=options.prefix) as connection:
            await connection.check_server()
            return await use(connection)

    return asyncio.run(interruptible(run))


async def interruptible(run: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run something in a task of its own, so that Ctrl-C ends it for sure.

    Asyncio cancels the task that it was given, once. Before Python 3.12 `asyncio.wait_for`, of which the client makes
    much use, swallows a cancellation that comes in the moment in which what it waits for is there.
    """
    task = asyncio.create_task(run())
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await ended(task)
        raise
