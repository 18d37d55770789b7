"""A task group that lives from one call to another: what a runtime begins in `start` and ends in `close`."""

from __future__ import annotations

import asyncio

import anyio
import anyio.abc


class Background:
    """An open task group, hosted by a task of its own.

    Args:
        tasks: the group, to start tasks in.
        host: the task that it belongs to.
    """

    def __init__(self, tasks: anyio.abc.TaskGroup, host: asyncio.Task[None]) -> None:
        self.tasks = tasks
        self._host = host

    @classmethod
    async def open(cls) -> Background:
        """Open one."""
        opened: asyncio.Future[anyio.abc.TaskGroup] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            async with anyio.create_task_group() as tasks:
                opened.set_result(tasks)
                await anyio.sleep_forever()

        host = asyncio.create_task(run(), name="background")
        with anyio.CancelScope(shield=True):  # it takes no time
            await opened
        return cls(opened.result(), host)

    async def close(self) -> None:
        """Cancel what still runs in it, and wait until it has ended; raises what a task of it raised."""
        self.tasks.cancel_scope.cancel()
        await self._host
