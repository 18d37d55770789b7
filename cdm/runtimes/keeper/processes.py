"""Who lives on this machine, as /proc tells, and how to end exactly one of them.

A pid is used again some time; a pid with the time at which its process started is not, as long as the machine is up.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")


class Process(NamedTuple):
    """One process, zombies included: the leader of a living group of threads can be one."""

    pid: int
    parent: int
    group: int
    session: int
    start: int
    """When it started, in clock ticks since the machine did."""
    zombie: bool = False


def boot() -> str:
    """Names this start of the machine: pids and start times mean nothing after the next one."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def _read(pid: int, name: str) -> bytes:
    """A file of a process in /proc; empty where it is gone, or none of our business."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:  # noqa: PTH123  # hundreds at a time: a Path takes as long again
            return file.read()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # which says nothing about the process
            raise
        return b""


def look(pid: int) -> Process | None:
    """The process with this pid now. Raises `OSError` where that cannot be told: see `census`."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    if len(fields) < 20:
        return None
    return Process(pid, int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]), fields[0] == b"Z")


def census() -> dict[int, Process]:
    """All processes, by pid. Not one instant's picture: a process may come or go while it is taken.

    Raises:
        OSError: there is no file descriptor or no memory to look with, and nobody can be said to be gone.
    """
    found = (look(int(name)) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208  # see `_read`
    return {process.pid: process for process in found if process is not None}


def descendants(processes: Mapping[int, Process], root: int) -> list[Process]:
    """All that descend from the process, parents before their children; itself not included."""
    children = defaultdict(list)
    for process in processes.values():
        children[process.parent].append(process)
    found: list[Process] = []
    queue = [root]
    while queue:
        born = children.pop(queue.pop(), [])
        found += born
        queue += [process.pid for process in born]
    return found


def mark(pid: int, name: bytes) -> str | None:
    """The value of a variable in the environment that the process was started with; None: not there, or not ours.

    Raises `OSError` as `census` does.
    """
    for variable in _read(pid, "environ").split(b"\0"):
        key, _, value = variable.partition(b"=")
        if key == name:
            return value.decode(errors="replace")
    return None


def send(process: Process, number: int) -> bool:
    """Signal this very process, never one that has its pid by now. Returns whether it was there."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        now = look(process.pid)  # the handle pins the process: what is true of it now stays true
        if now is None or now.start != process.start:
            return False
        signal.pidfd_send_signal(handle, number)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(handle)


class Record(NamedTuple):
    """What is written down of a process, so that a later process of the node can tell whether it is that one."""

    boot: str
    pid: int
    start: int

    def write(self, path: Path) -> None:
        """Store it; a reader sees all of it or nothing."""
        draft = path.with_suffix(".new")
        draft.write_text(" ".join(map(str, self)))
        draft.replace(path)

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """None: there is none that can be read."""
        try:
            name, pid, start = path.read_text().split()
            return cls(name, int(pid), int(start))
        except (OSError, ValueError):
            return None


def relics(processes: Mapping[int, Process], token: str, name: bytes, records: Iterable[Record]) -> list[Process]:
    """Processes that a runtime with this token left: those with its mark, and the recorded ones with their sessions.

    A session counts only while the recorded process itself lives: without it, its number may be another's.
    """
    now = boot()
    sessions = {
        record.pid
        for record in records
        if record.boot == now and record.pid in processes and processes[record.pid].start == record.start
    }
    return [
        process
        for process in processes.values()
        if process.pid in sessions
        or process.session in sessions
        or (mark(process.pid, name) or "").startswith(token + ".")
    ]
