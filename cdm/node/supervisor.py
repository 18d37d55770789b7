"""What systemd gives a node's process, where it runs it: how long it may take to stop."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import anyio

from cdm.log import Log

log = Log("cdm.node")

PATIENCE = 2.0
"""Seconds that systemd has to answer."""
OURS = Path("/proc/self/cgroup")
"""Where the system says in which cgroup this process is; systemd names it after the unit."""
_UNIT = re.compile(r"/([^/\s]+\.service)(?=/|$)", re.MULTILINE)
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(y|month|w|d|h|min|s|ms|us)")
_SECONDS = {
    "y": 31_557_600.0,
    "month": 2_629_800.0,
    "w": 604_800.0,
    "d": 86_400.0,
    "h": 3600.0,
    "min": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
}


async def stop_limit(environment: Mapping[str, str] = os.environ, cgroup: Path = OURS) -> float | None:
    """Seconds after which systemd kills this process when it is told to stop.

    None: systemd does not run it, sets no limit, or does not say.
    """
    if "INVOCATION_ID" not in environment:
        return None  # whoever runs it, it is not systemd
    try:
        path = await anyio.Path(cgroup).read_text(encoding="utf-8")
        unit = unit_of(path)
        if not unit:
            return None
        whose = ("--user",) if "/user@" in path.partition(unit)[0] else ()
        command = ("systemctl", *whose, "show", "--property=TimeoutStopUSec", "--value", unit)
        with anyio.fail_after(PATIENCE):
            asked = await anyio.run_process(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return seconds_of(asked.stdout.decode())
    except (OSError, ValueError, TimeoutError, subprocess.CalledProcessError) as error:
        log.debug("systemd does not say how long this node may take to stop", reason=str(error))
        return None


def unit_of(cgroups: str) -> str:
    """The service that a process belongs to, innermost first, from the text of its ``cgroup`` file; empty: none."""
    return next(reversed(_UNIT.findall(cgroups)), "")


def seconds_of(span: str) -> float | None:
    """Read a time as systemd shows it (``1min 30s``); None: it is infinite, or not understood."""
    text = span.strip()
    parts = _SPAN.findall(text)
    if not parts or " ".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)
