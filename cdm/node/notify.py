"""Tells systemd how the node's process stands, where it wants to know: the service is then of ``Type=notify``."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

import anyio

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"
_MICROSECONDS = 1e6


def reloading() -> str:
    """The process makes way for another one that has its pid: as `READY` tells again in the end."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def notify(state: str, environment: Mapping[str, str] = os.environ) -> None:
    """Tell it, unless nobody wants to know."""
    address = environment.get("NOTIFY_SOCKET", "")
    if address.startswith(("/", "@")):
        # Who supervises us is not to be able to hold us up.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as us,
        ):
            us.connect("\0" + address[1:] if address[0] == "@" else address)
            us.send(state.encode())


def watchdog_interval(environment: Mapping[str, str] = os.environ, pid: int | None = None) -> float | None:
    """Seconds between two signs of life; None: nobody waits for any.

    Args:
        environment: where systemd says it.
        pid: of this process; None: ask.
    """
    try:
        if int(environment.get("WATCHDOG_PID") or 0) in (0, os.getpid() if pid is None else pid):
            return int(environment.get("WATCHDOG_USEC") or 0) / _MICROSECONDS / 2 or None
    except ValueError:  # which systemd did not write
        pass
    return None


async def keep_alive() -> None:
    """Give signs of life for as long as the event loop runs, if they are waited for."""
    if interval := watchdog_interval():
        while True:
            notify(ALIVE)
            await anyio.sleep(interval)
