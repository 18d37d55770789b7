"""Slices as transient units of the machine's systemd.

The life of a slice is that of ``cdm.runtimes.process``; here, in place of a keeper, systemd starts and stops programs.
``bus`` is the connection to it, ``unit`` what it is asked for, ``output`` takes what programs wrote out of its files,
``watchdog`` bounds how long a unit runs without its node, ``runs`` is what is known of a unit, and ``supervisor`` and
``runtime`` join these.
"""

from __future__ import annotations

from pathlib import Path

from cdm.errors import UsageError
from cdm.model.artifact import NodeId
from cdm.runtimes import Runtime, Surroundings
from cdm.runtimes.abandoned import Abandoned, end_abandoned, is_noted

HEARD = "heard"
"""The file, inside the runtime's own folder, with the time of the last heartbeat that NATS accepted."""
UNITS = "units"
"""The folder, beside it, with what each unit is given, writes, and is known by."""


def made(surroundings: Surroundings) -> Runtime:
    """Make the runtime. Raises `UsageError` where what it needs is not installed."""
    try:
        from cdm.runtimes.systemd.runtime import SystemdRuntime  # noqa: PLC0415  # optional
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] != "dbus_fast":
            raise
        raise UsageError("--runtime systemd (CDM_RUNTIME) needs dbus-fast: pip install 'cdm[systemd]'") from None
    return SystemdRuntime(surroundings)


async def end_units(node: NodeId, folder: Path, *, orderly: bool = False) -> Abandoned:
    """Stop what is left of a node that has no process. Raises as `end_abandoned`.

    Args:
        node: the node.
        folder: the runtime's own; the caller has locked the node's.
        orderly: whether the node has left in good order: only about what it could not stop is systemd asked.
    """
    there = is_noted(folder / UNITS) if orderly else (folder / HEARD).exists()
    return await end_abandoned(made, node, folder) if there else Abandoned()
