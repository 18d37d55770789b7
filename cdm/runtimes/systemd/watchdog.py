"""How long a unit runs without its node: systemd's watchdog of the unit, which the node speaks to in its place.

A unit that must not run twice (``stop_after``) is told of heartbeats that NATS accepted, and of nothing else. So
systemd, which nothing of ours can hold up, stops it when there was none for too long, whether the node is cut off,
frozen or dead. Any other unit is told that the node lives.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from cdm.runtimes.systemd.unit import micros

NOTIFY = Path("/run/systemd/notify")
ALONE = 15.0
"""Seconds that a slice without `stop_after` has when its node's process is gone or frozen, where no slice outlives it;
and at least so many where one does."""
TICK = 1.0
"""Seconds between two words of a node that lives."""


def remaining(after: float | None, outlive: float | None, silent: float) -> float:
    """For how many seconds a unit may go on from now without another word; 0: it must stop.

    Args:
        after: its ``stop_after``; None: it has none.
        outlive: for how long slices outlive the node's process since the last accepted heartbeat; None: not at all.
        silent: seconds since that was sent.
    """
    if after is not None:
        return max(after - silent, 0.0)
    return max((outlive or 0.0) - silent, ALONE)


class Watchdog:
    """Speaks to systemd for the programs of units, as ``sd_pid_notify`` does; that takes root's privileges."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def allow(self, pid: int, seconds: float) -> None:
        """Let the unit whose program has this pid go on for so long from now; 0: have it stopped. Raises `OSError`."""
        sender = struct.pack("3i", pid, os.geteuid(), os.getegid())
        ancillary = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, sender)]
        self._socket.sendmsg([f"WATCHDOG_USEC={micros(seconds)}\n".encode()], ancillary, 0, str(NOTIFY))

    def close(self) -> None:
        """Nothing more is said."""
        self._socket.close()
