"""Stops what a node left that has no process, and will have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import anyio

from cdm.errors import SliceFailed
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey
from cdm.runtimes import Runtime, Surroundings


class Abandoned(NamedTuple):
    """What such a node left."""

    slices: int = 0
    """How many slices there were."""
    strays: int = 0
    """How many processes were ended besides, that no keeper kept any more."""
    problems: tuple[str, ...] = ()
    """What of them may run on, and why, in words; none: all are stopped."""


async def end_abandoned(make: Callable[[Surroundings], Runtime], node: NodeId, folder: Path) -> Abandoned:
    """Stop all slices that such a runtime finds, each in its own way. The node has left.

    Args:
        make: makes the runtime.
        node: the node.
        folder: the runtime's own; the caller has locked the node's.

    Raises:
        UsageError: the runtime cannot be had on this machine.
        SliceFailed: what there is cannot be told.
    """
    runtime = make(Surroundings(node, folder, lambda *_: None))
    await runtime.start()
    found = list(runtime.found)
    runtime.end_with_node()
    problems: list[str] = []

    async def end(key: SliceKey) -> None:
        try:
            await runtime.unload(key)
        except SliceFailed as error:
            problems.append(f"{key}: {error}")

    try:
        async with anyio.create_task_group() as tasks:
            for key in found:
                tasks.start_soon(end, key)
    finally:
        try:
            await runtime.close()
        except SliceFailed as error:
            problems.append(str(error))
    return Abandoned(len(found), problems=tuple(sorted(problems)))


def is_noted(notes: Path) -> bool:
    """Whether a node noted there anything that it has not stopped. Raises `OSError`."""
    return notes.is_dir() and any(notes.iterdir())
