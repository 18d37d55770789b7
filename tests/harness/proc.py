"""An eye of the tests' own on /proc."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cdm.runtimes.keeper.processes import census, descendants

PTRACE_DETACH, PTRACE_SEIZE, PTRACE_O_TRACEEXIT = 17, 0x4206, 0x40


def exists(pid: int) -> bool:
    """Whether there is a process with this pid, or a zombie, unless that is left to the machine's first process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z" or fields[1] != "1"


def all_pids() -> list[str]:
    """Of all processes."""
    return [each.name for each in Path("/proc").iterdir() if each.name.isdigit()]


@contextmanager
def unkillable(pid: int) -> Iterator[None]:
    """SIGKILL does not end this process, of the test's own user, within the block; at its end it takes effect.

    As with one that waits for a disk which does not answer. It is traced by this thread, and halted where it exits.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    if libc.ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACEEXIT):
        pytest.skip(f"no process may be traced here: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)  # else it is not halted, and cannot be let go
        os.waitpid(pid, 0)
        libc.ptrace(PTRACE_DETACH, pid, 0, 0)


def read(path: str) -> bytes:
    """What is in a file of /proc."""
    return Path(path).read_bytes()


def resident(pid: int) -> int:
    """Resident memory of a process, in kB."""
    return int(read(f"/proc/{pid}/statm").split()[1]) * resource.getpagesize() // 1024


def descriptors(pid: int) -> int:
    """How many a process has open. Nodes and keepers show that to root alone: the test is skipped for others."""
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except PermissionError:
        pytest.skip("only root can look into nodes and keepers")


def children(pid: int) -> list[int]:
    """Pids of a process's children, zombies included."""
    found = []
    for name in all_pids():
        try:
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(name))
    return found


def keepers(parent: int | None = None) -> list[int]:
    """Keepers that a process has started; None: this one."""
    return [
        pid for pid in children(os.getpid() if parent is None else parent) if b"cdm.runtimes.keeper" in _command(pid)
    ]


def left_keepers(folder: Path) -> list[int]:
    """Keepers of nodes with this folder, or with folders in it, whoever their parents are."""
    inside, found = os.fsencode(folder) + b"/", []
    for name in all_pids():
        command = _command(int(name))
        if b"cdm.runtimes.keeper" in command and inside in command:
            found.append(int(name))
    forked = {each for pid in found for each in children(pid)}  # which looks like its keeper for a moment
    return [pid for pid in found if pid not in forked]


def end_keepers(*pids: int) -> None:
    """Kill these keepers, and all that they keep."""
    living = census()
    for pid in pids:
        # A child of a program outlives the keeper's death, which ends the program.
        for each in (pid, *(process.pid for process in descendants(living, pid))):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextmanager
def stranger(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is none of ours, in a session of its own."""
    with subprocess.Popen(command or ("sleep", "600"), stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()
