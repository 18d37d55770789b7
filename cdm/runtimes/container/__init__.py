"""Runs slices as containers of an engine with the API of Docker, which Podman has, too.

`runtime.py` is the runtime; `slice.py` what is different of a slice that is a container; `containers.py` starts, finds
and removes them, `run.py` is one of them, `configuration.py` says what is asked for; `images.py` brings images to the
engine; `engine.py` is the engine's API. All of these are imported only where a node has this runtime.
"""

from __future__ import annotations

from pathlib import Path

from cdm.model.artifact import NodeId
from cdm.runtimes import Runtime, Surroundings
from cdm.runtimes.abandoned import Abandoned, end_abandoned, is_noted

NOTES = "containers"
"""The folder, inside the runtime's own, with a note on each container."""


def made(surroundings: Surroundings) -> Runtime:
    """Make the runtime. Raises `UsageError`: there is no container engine on this machine."""
    from cdm.runtimes.container.runtime import ContainerRuntime  # noqa: PLC0415  # its library takes its time

    return ContainerRuntime(surroundings)


async def end_containers(node: NodeId, folder: Path, *, orderly: bool = False) -> Abandoned:
    """Stop what is left of a node that has no process. Raises as `end_abandoned`.

    Args:
        node: the node.
        folder: the runtime's own; the caller has locked the node's.
        orderly: whether the node has left in good order: only about what it could not stop is the engine asked.
    """
    notes = folder / NOTES
    there = is_noted(notes) if orderly else notes.exists()
    return await end_abandoned(made, node, folder) if there else Abandoned()
