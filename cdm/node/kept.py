"""Stops what a dead process of a node left running, where no other one is to go on with it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from cdm.errors import FolderTaken, UsageError
from cdm.model.artifact import NodeId
from cdm.node.folder import LOCK, RUNTIME
from cdm.runtimes.container import end_containers
from cdm.runtimes.process.kept import end_kept
from cdm.runtimes.systemd import end_units


async def nothing_else() -> None:
    """Do no more."""


async def end_left(folder: Path, node: NodeId, afterwards: Callable[[], Awaitable[None]] = nothing_else) -> int:
    """Stop all slices, each in its own way; returns how many there were.

    Args:
        folder: the node's.
        node: the node.
        afterwards: what is to be done when they are stopped, before another process of the node can use the folder.

    Raises:
        FolderTaken: a process of the node uses it.
        UsageError: it cannot be used.
    """
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise UsageError(f"folder {folder} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        runtime = folder / RUNTIME
        count = await end_kept(runtime) + await end_units(node, runtime) + await end_containers(node, runtime)
        await afterwards()
        return count
    except BlockingIOError:
        raise FolderTaken(f"a process of the node has just begun to use {folder}") from None
    finally:
        os.close(lock)
