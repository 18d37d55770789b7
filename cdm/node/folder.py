"""A node's folder: where it is, and the lock that keeps it to one process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from cdm.errors import FolderTaken
from cdm.model.artifact import NodeId
from cdm.model.keys import encode_node


def state_folder(prefix: str, node: NodeId) -> Path:
    """Where a node keeps what it fetched and what its slices wrote, unless it is told."""
    base = Path("/var/lib") if os.geteuid() == 0 else Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state")
    return base.expanduser() / "cdm" / (prefix or "default") / encode_node(node)


def lock(folder: Path) -> int:
    """Lock a node's folder, and make it where it is missing. It is free when the file that this returns is closed.

    Raises:
        FolderTaken: another process holds it.
        OSError: it cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise FolderTaken(
            f"{folder} is used by another process; if that is not a node of this name, choose another --folder"
        ) from None
    except OSError:
        os.close(file)
        raise
    return file
