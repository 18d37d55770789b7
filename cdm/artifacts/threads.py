"""Work in threads, also on a machine where no thread can be started: a slice that forks without end may see to that."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from anyio import to_thread

T = TypeVar("T")


async def in_thread(call: Callable[..., T], *args: object) -> T:
    """Call it in a thread. Raises `OSError` (EAGAIN) where none can be started, besides what it raises."""
    try:
        return await to_thread.run_sync(call, *args)
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        problem = "no thread can be started now (pid_max, TasksMax or RLIMIT_NPROC)"
        raise OSError(errno.EAGAIN, problem) from None


async def cleaned_up(call: Callable[..., object], *args: object) -> None:
    """Call what must not be left out, in a thread if there is one."""
    try:
        await in_thread(call, *args)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
        call(*args)
