"""Ends what a keeper that died left behind: nobody is its parent who could tell when it is gone."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import anyio

from cdm import clock
from cdm.runtimes.keeper import cgroup
from cdm.runtimes.keeper.cgroup import Cgroups
from cdm.runtimes.keeper.processes import Process, Record, census, relics, send
from cdm.runtimes.keeper.protocol import MARK

INTERVAL = 0.02
"""Seconds between two looks at what was killed and is no child of ours: nothing tells when it is gone."""
LOOKS = 3
"""Looks in a row that must find nothing: one that forks and exits may be missed by any."""
PATIENCE = 10.0
"""Seconds after which what is left is reported."""


async def sweep(folder: Path, token: str) -> list[Process]:
    """SIGKILL to all that is marked or recorded as ours, until none is left; returns what is nevertheless.

    Args:
        folder: the records of what runs; they are deleted when nothing of it is left.
        token: what the runtime's runs are marked with.

    Raises:
        OSError: it cannot be told what lives.
    """
    records = _records(folder)
    known = [record for record in records.values() if record is not None]
    groups = [group for group in Cgroups.candidates(token) if group.exists()]
    limit = clock.now() + PATIENCE
    found: dict[tuple[int, int], Process] = {}
    empty = 0
    while True:
        for group in groups:
            cgroup.kill(group)
        processes = census()
        # Of a session whose first process was ours, all were: they stay known when the first one is gone.
        found = {(each.pid, each.start): each for each in processes.values() if (each.pid, each.start) in found}
        # A zombie that was sent SIGKILL has no threads that live on: it only waits for its parent.
        left = [each for each in found.values() if not _reap(each) and not each.zombie]
        new = [each for each in relics(processes, token, MARK.encode(), known) if (each.pid, each.start) not in found]
        found.update(((each.pid, each.start), each) for each in new)
        left += new
        empty = 0 if left or any(map(cgroup.members, groups)) else empty + 1
        if empty == LOOKS or clock.now() > limit:
            break
        for process in left:
            send(process, signal.SIGKILL)
        await anyio.sleep(INTERVAL)
    for group in groups:
        cgroup.remove(group)
    if not left:
        for path in records:
            with contextlib.suppress(OSError):  # something else than a record: it is read as none
                path.unlink()
    return left


def _records(folder: Path) -> dict[Path, Record | None]:
    folder.mkdir(parents=True, exist_ok=True)
    return {path: Record.read(path) for path in folder.iterdir()}


def _reap(process: Process) -> bool:
    """Reap a killed orphan that came to us: we may be the first process of a container. Returns whether it is gone."""
    if process.parent != os.getpid():
        return False
    try:
        return os.waitpid(process.pid, os.WNOHANG)[0] == process.pid
    except ChildProcessError:
        return True
