"""Which processes live on this machine, read from /proc, and how to signal exactly one of them.

A pid is used again some time; a pid together with its start time is not, as long as the machine is up.

psutil was tried for the census and left. It tells neither process group nor session, gives start times as seconds
instead of ticks, and with both asked of the system a census of 500 processes takes 15 ms of CPU time instead of 4.5.
It would cost each keeper 1.1 MB and 8 ms at the start.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

PROC = "/proc"
_LISTENING = "0A"
KEEPER = "cdm.runtimes.keeper"
"""What a keeper is started as."""


class Process(NamedTuple):
    """One process. Zombies are included: a process whose other threads live on can be one."""

    pid: int
    parent: int
    group: int
    session: int
    start: int
    """When it started, in clock ticks since the machine did."""
    zombie: bool = False


def boot() -> str:
    """The id of this boot of the machine: pids and start times mean nothing in the next one."""
    with open(f"{PROC}/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _read(pid: int, name: str) -> bytes:
    """A file of a process in /proc; empty if the process is gone or may not be looked at."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # which says nothing about the process
            raise
        return b""


def look(pid: int) -> Process | None:
    """The process that has this pid now. Raises `OSError` as `census` does."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    if len(fields) < 20:
        return None
    return Process(pid, int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]), fields[0] == b"Z")


def census() -> dict[int, Process]:
    """All processes, by pid. It is not a snapshot: processes come and go while it is taken.

    Raises:
        OSError: no file descriptor or no memory is left to look with, so no process can be said to be gone.
    """
    found = (look(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process is not None}


def descendants(processes: Mapping[int, Process], root: int) -> list[Process]:
    """All descendants of the process, parents before their children, without itself."""
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
    """The value of a variable in the environment that the process was started with; None: not there, or not readable.

    A keeper hides its environment from all but root, so it is known by its arguments (`cdm.runtimes.keeper.__main__`).

    Raises `OSError` as `census` does.
    """
    environment = _read(pid, "environ")
    for variable in environment.split(b"\0"):
        key, _, value = variable.partition(b"=")
        if key == name:
            return value.decode(errors="replace")
    if not environment:
        _, module, arguments = _read(pid, "cmdline").partition(KEEPER.encode() + b"\0")
        if module and len(fields := arguments.split(b"\0")) > 2:
            return f"{fields[2].decode(errors='replace')}.keeper"
    return None


class Owner(NamedTuple):
    """Whose a process is."""

    uid: int
    """The real user: others than root cannot change it."""
    nested: bool
    """Whether it is in a container, or in another PID namespace for another reason: the uid may be another node's."""


def owner(pid: int) -> Owner | None:
    """Whose a process is; None: it is gone. Raises `OSError` as `census` does."""
    uid = levels = None
    for line in _read(pid, "status").splitlines():
        if line.startswith(b"Uid:"):
            uid = int(line.split()[1])
        elif line.startswith(b"NSpid:"):
            levels = len(line.split()) - 1
    return None if uid is None else Owner(uid, levels is not None and levels > 1)


def all_users() -> set[int]:
    """The users of all processes. Raises `OSError` as `census` does."""
    found = (owner(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {each.uid for each in found if each is not None}


def listening(port: int) -> dict[int, int]:
    """The inodes of the sockets that listen on a TCP port, with their users; empty where that cannot be told."""
    found = {}
    for table in ("tcp", "tcp6"):
        try:
            with open(f"{PROC}/self/net/{table}") as file:
                rows = file.read().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                found[int(fields[9])] = int(fields[7])
    return found


def sockets(pid: int) -> set[int] | None:
    """The inodes of a process's sockets; None: they may not be looked at."""
    found = set()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                target = os.readlink(f"/proc/{pid}/fd/{name}")
                if target.startswith("socket:["):
                    found.add(int(target[8:-1]))
    except (FileNotFoundError, ProcessLookupError):
        return found
    except OSError:
        return None
    return found


def send(process: Process, number: int) -> bool:
    """Signal this very process, never another one that has its pid by now. Returns whether it was there."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        now = look(process.pid)  # the handle pins the process: its pid is not given to another one
        if now is None or now.start != process.start:
            return False
        signal.pidfd_send_signal(handle, number)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(handle)


def childless() -> bool:
    """Reap all children that ended; returns whether no child is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


class RunRecord(NamedTuple):
    """What a run's program is known by, in a file, to whoever sweeps after its keeper: another process of the node."""

    boot: str
    """Of the machine, as the system names it: pids and times are those of one boot."""
    pid: int
    start: int
    """When it was started, in the system's ticks since that boot: another process that has the pid has another one."""

    def write(self, path: str | os.PathLike[str]) -> None:
        """Store it, with one write: a reader sees all of it or nothing."""
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(file, " ".join(map(str, self)).encode())
        finally:
            os.close(file)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> RunRecord | None:
        """None: the file is missing, cannot be read, or is no record."""
        try:
            with open(path) as file:
                name, pid, start = file.read().split()
            return cls(name, int(pid), int(start))
        except (OSError, ValueError):
            return None


def left_behind(
    processes: Mapping[int, Process], token: str, name: bytes, records: Iterable[RunRecord], users: Collection[int] = ()
) -> list[Process]:
    """Processes that a runtime with this token left: those with its mark, and the recorded ones with their sessions.

    A session counts only while the recorded process itself lives; after that, its number may be another's. Besides all
    processes of users that only its slices have: their marks may not be readable.
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
        or (users and (found := owner(process.pid)) is not None and found.uid in users and not found.nested)
    ]
