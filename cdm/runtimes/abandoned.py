"""Stops what a node left that has no process, and will have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cdm.model.artifact import NodeId
from cdm.runtimes import Runtime, Surroundings


async def end_abandoned(make: Callable[[Surroundings], Runtime], node: NodeId, folder: Path) -> int:
    """Stop all slices that such a runtime finds, each in its own way; returns how many there were. The node has left.

    Args:
        make: makes the runtime.
        node: the node.
        folder: the runtime's own; the caller has locked the node's.

    Raises:
        UsageError: the runtime cannot be had on this machine.
        SliceFailed: a slice cannot be stopped.
    """
    runtime = make(Surroundings(node, folder, lambda *_: None))
    await runtime.start()
    count = len(runtime.found)
    runtime.end_with_node()
    await runtime.close()
    return count
