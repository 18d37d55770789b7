"""Ends the processes that a dead keeper left behind. No parent of theirs is left to report their end, so we poll."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import anyio

from cdm import clock
from cdm.runtimes.keeper import cgroup
from cdm.runtimes.keeper.cgroup import Cgroups
from cdm.runtimes.keeper.processes import Process, RunRecord, census, left_behind, mark, send
from cdm.runtimes.keeper.protocol import MARK, OF_KEEPER

INTERVAL = 0.02
"""Seconds between two looks."""
LOOKS = 3
"""Looks in a row that must find nothing: each may miss a process that forks and exits."""
PATIENCE = 10.0
"""Seconds after which the processes that still live are reported."""


class Swept(NamedTuple):
    """What was found of a dead keeper's."""

    ended: int
    """How many processes of runs were ended; a keeper that was just ending is none."""
    left: tuple[Process, ...]
    """Those that live on after `PATIENCE`."""


async def sweep(folder: Path, token: str, users: Collection[int] = ()) -> Swept:
    """Send SIGKILL to every process that is marked or recorded as ours.

    Args:
        folder: the `RunRecord` files, which are deleted when none of the processes is left.
        token: what the runtime's runs are marked with.
        users: those that only slices of this runtime have.

    Raises:
        OSError: it cannot be told which processes live.
    """
    records = _records(folder)
    known = [record for record in records.values() if record is not None]
    groups = Cgroups.made(token)
    limit = clock.now() + PATIENCE
    found: dict[tuple[int, int], Process] = {}
    seen: set[int] = set()
    keeper = f"{token}.{OF_KEEPER}"
    empty = 0
    while True:
        for group in groups:
            seen |= cgroup.members(group)
            cgroup.kill(group)
        processes = census()
        # All processes of a recorded session are ours; they stay known when its first process is gone.
        found = {(each.pid, each.start): each for each in processes.values() if (each.pid, each.start) in found}
        # A zombie that was sent SIGKILL has no living threads: it only waits for its parent.
        left = [each for each in found.values() if not _reap(each) and not each.zombie]
        ours = left_behind(processes, token, MARK.encode(), known, users)
        new = [each for each in ours if (each.pid, each.start) not in found]
        found.update(((each.pid, each.start), each) for each in new)
        left += new
        seen |= {each.pid for each in new if not each.zombie and mark(each.pid, MARK.encode()) != keeper}
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
            with contextlib.suppress(OSError):  # a folder, for instance, that somebody put there
                os.unlink(path)
    return Swept(len(seen - {each.pid for each in left}), tuple(left))


def recorded(folder: Path) -> bool:
    """Whether there is anything in the folder with the `RunRecord` files."""
    return bool(_records(folder))


def _records(folder: Path) -> dict[str, RunRecord | None]:
    folder.mkdir(parents=True, exist_ok=True)
    return {path: RunRecord.read(path) for path in map(str, folder.iterdir())}


def _reap(process: Process) -> bool:
    """Reap an orphan if it is our child: we may be the first process of a container. Returns whether it is gone."""
    if process.parent != os.getpid():
        return False
    try:
        return os.waitpid(process.pid, os.WNOHANG)[0] == process.pid
    except ChildProcessError:
        return True
