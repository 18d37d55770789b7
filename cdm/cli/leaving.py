"""``cdm node leave``: this machine's node is given up for good, whatever its ``--on-stop`` says."""

from __future__ import annotations

import os
import select
import signal
import socket
from pathlib import Path
from typing import Annotated

import anyio
from cyclopts import Parameter

from cdm.cli.context import expanded
from cdm.cli.node_process import LEAVE
from cdm.cli.options import check_prefix
from cdm.cli.rows import PLAIN, show
from cdm.errors import NodeUnknown, UsageError
from cdm.model.artifact import node_id
from cdm.node.folder import chosen_folder, holder
from cdm.node.kept import end_left


def leave(
    *,
    id: Annotated[str | None, Parameter(name="--id", env_var="CDM_ID")] = None,  # noqa: A002
    prefix: Annotated[str, Parameter(env_var="CDM_PREFIX", show_default=False)] = "",
    folder: Annotated[Path | None, Parameter(env_var="CDM_FOLDER")] = None,
) -> int:
    """Have this machine's node leave for good.

    Parameters
    ----------
    id
        The node's name. [default: the host name]
    prefix
        The node's prefix of buckets and subjects.
    folder
        The node's folder. [default: /var/lib/cdm/… for root, else ~/.local/state/cdm/…]
    """
    check_prefix(prefix)
    name = node_id(id or socket.gethostname())
    path = chosen_folder(folder and expanded(folder), prefix, name)
    pid = holder(path)
    if pid is not None:
        _tell(pid)
        show([PLAIN(f"{name} has left")])
        return 0
    count = anyio.run(end_left, path, name)
    if not count:
        raise NodeUnknown(f"no process of node {name} runs here, and no slice of it ({path}); see --id and --folder")
    show([PLAIN(f"{name}: no process of it runs here; {count} of its slices did, and are stopped")])
    return 0


def _tell(pid: int) -> None:
    """Have the process leave, and wait for its end."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:  # it has just ended
        return
    try:
        signal.pidfd_send_signal(handle, LEAVE)
        select.select([handle], [], [])
    except PermissionError:
        raise UsageError(f"the node's process (pid {pid}) is another user's") from None
    finally:
        os.close(handle)
