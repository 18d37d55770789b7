"""Stops what a dead process of a node left running, where no other one is to go on with it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from cdm.errors import FolderTaken, UsageError
from cdm.model.artifact import NodeId
from cdm.node.folder import LOCK, RUNTIME
from cdm.runtimes.abandoned import Abandoned
from cdm.runtimes.container import end_containers
from cdm.runtimes.process.kept import end_kept
from cdm.runtimes.systemd import end_units


async def nothing_else(_ended: Abandoned) -> None:
    """Do no more."""


async def end_left(
    folder: Path,
    node: NodeId,
    afterwards: Callable[[Abandoned], Awaitable[None]] = nothing_else,
    *,
    orderly: bool = False,
) -> Abandoned:
    """Stop all slices, each in its own way.

    Args:
        folder: the node's.
        node: the node.
        afterwards: what is to be done about what came of it, before another process of the node can use the folder.
        orderly: whether the last process has left in good order. Then nothing is asked without need that it may have
            asked elsewhere, as another container engine than this process's.

    Raises:
        FolderTaken: a process of the node uses it.
        UsageError: it cannot be used.
        SliceFailed: what there is cannot be told.
    """
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return Abandoned()
    except OSError as error:
        raise _unusable(folder, error) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        runtime = folder / RUNTIME
        each = (
            await end_kept(runtime),
            await end_units(node, runtime, orderly=orderly),
            await end_containers(node, runtime, orderly=orderly),
        )
        ended = Abandoned(
            sum(one.slices for one in each),
            sum(one.strays for one in each),
            tuple(problem for one in each for problem in one.problems),
        )
        await afterwards(ended)
        return ended
    except BlockingIOError:
        raise FolderTaken(f"a process of the node has just begun to use {folder}") from None
    except OSError as error:
        raise _unusable(folder, error) from None
    finally:
        os.close(lock)


def _unusable(folder: Path, error: OSError) -> UsageError:
    return UsageError(f"folder {folder} cannot be used: {error.strerror or error}")
