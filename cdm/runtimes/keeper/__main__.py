"""Starts the keeper: ``python -m cdm.runtimes.keeper SOCKET FOLDER TOKEN yes|no`` (whether to use cgroups)."""

from __future__ import annotations

import signal
import socket
import sys

# A megabyte, an eighth of this process, in which msgspec looks first for what the standard library has, too.
sys.modules["typing_extensions"] = None  # type: ignore[assignment]  # as if it were not installed

from cdm.runtimes.keeper.cgroup import Cgroups  # noqa: E402
from cdm.runtimes.keeper.identity import adopt_orphans, hide  # noqa: E402
from cdm.runtimes.keeper.keeper import Keeper  # noqa: E402


def main(descriptor: int, folder: str, token: str, grouped: bool) -> None:
    """Serve the node until it is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Sent to all processes of a service or a terminal: the node hears it too, and stops us when it is done.
        signal.signal(number, signal.SIG_IGN)
    hide()
    adopt_orphans()
    node = socket.socket(fileno=descriptor)
    node.set_inheritable(False)
    Keeper(node, folder, token, Cgroups.make(token) if grouped else None).run()


main(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "yes")
