"""From the keeper to a program: fork, set up, exec. The keeper has one thread, so Python may run between the two."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import signal
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

import msgspec

from cdm.model.limits import Limits
from cdm.runtimes.keeper import cgroup
from cdm.runtimes.keeper.cgroup import Cgroups
from cdm.runtimes.keeper.identity import become, bind, die_with_parent, shown
from cdm.runtimes.keeper.protocol import RunUser, Spawn

RESERVE = 16
"""File descriptors that runs cannot use up."""
FILES_A_RUN = 3
FILES_BESIDES = RESERVE + 14
"""File descriptors that a keeper needs for a run, and besides: some of them only while a program is started."""
OOM_SCORE = 200
"""How much sooner the kernel ends a program than the keeper when memory is short, in thousandths of all memory. It ends
the largest process, and of a program that forks without end each process is smaller than the node."""

LASTING = frozenset(
    {
        *(errno.EPERM, errno.ENOENT, errno.E2BIG, errno.ENOEXEC, errno.EACCES),
        *(errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
    }
)
"""Errors of chdir and exec that trying again soon does not mend."""


class SpawnProblem(NamedTuple):
    """Why a program could not be run; the child writes it to its parent."""

    text: str
    fatal: bool
    """Whether trying again soon would fail the same way."""


class RunBounds(NamedTuple):
    """What holds for all runs of a keeper."""

    files: tuple[int, int]
    """RLIMIT_NOFILE of programs, unless their limits say otherwise."""
    processes: int
    """Most processes of a user that only one slice has, unless its limits say otherwise."""
    controllers: frozenset[str]
    """Those of the runs' cgroups."""
    oom_score: bytes = b""
    """How soon the kernel ends a program when memory is short: see `OOM_SCORE`. Empty: as soon as the keeper."""
    ignored: tuple[int, ...] = ()
    """Signals that this process ignores, and programs are not to. (Those that it handles exec resets.)"""

    @classmethod
    def found(cls, cgroups: Cgroups | None) -> RunBounds:
        """What holds on this machine. The keeper's own limit of open files is raised."""
        controllers = frozenset[str]() if cgroups is None else cgroups.controllers
        ignored = (each for each in signal.valid_signals() if signal.getsignal(each) == signal.SIG_IGN)
        most = cgroup.most_processes()
        return cls(raise_open_files(), most, controllers, _oom_score(), tuple(map(int, ignored)))


class Launched(NamedTuple):
    """A process that was forked, and is about to become the program."""

    pid: int
    exec_pipe: int
    """It ends when exec has succeeded; else a `SpawnProblem` comes out of it."""


def raise_open_files() -> tuple[int, int]:
    """Raise this process's limit of open files (a run takes three), less a `reserve`; returns the limits before."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[1] - RESERVE, before[1] // 2), before[1]))
    return before


@contextlib.contextmanager
def reserve() -> Iterator[None]:
    """Allow the last descriptors too: stopping a run takes some, to see which processes live."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def limits_processes() -> bool:
    """Whether the system holds the children of this process to RLIMIT_NPROC: it does not for root. We try."""
    try:
        pid = os.fork()
    except OSError:
        return os.geteuid() != 0
    if pid == 0:
        limited = False
        try:
            resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
            os.fork()  # both end below
        except BlockingIOError:
            limited = True
        finally:
            os._exit(0 if limited else 1)
    return os.waitpid(pid, 0)[1] == 0


def rlimits(limits: Limits, *, grouped: frozenset[str] = frozenset()) -> dict[int, int]:
    """The rlimits of each process of a run.

    Memory is RLIMIT_DATA: RLIMIT_AS would count address space that is only reserved. RLIMIT_NPROC counts all processes
    of the user, whatever slice they belong to, so it is used only where no cgroup limits processes.

    Args:
        limits: the manifest's.
        grouped: the controllers of the run's cgroup.
    """
    wanted = {
        resource.RLIMIT_DATA: limits.memory,
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_NPROC: None if "pids" in grouped else limits.processes,
        resource.RLIMIT_FSIZE: limits.file_size,
    }
    return {what: value for what, value in wanted.items() if value is not None}


def launch(spawn: Spawn, out: int, err: int, bounds: RunBounds, group: str | None) -> Launched:
    """Fork, and exec in the child.

    Args:
        spawn: what to run.
        out, err: pipes for its standard output and standard error.
        bounds: what holds for all runs.
        group: its cgroup.
    """
    if spawn.user is not None:
        bind()
        for descriptor in (out, err):  # programs open /dev/stdout anew, as a file of theirs
            os.fchown(descriptor, spawn.user.uid, spawn.user.gid)
    keeper, limits = os.getpid(), [*_limits(spawn, bounds)]
    entrance = None if group is None else cgroup.entrance(group)
    read, write = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(read)
        os.close(write)
        raise
    if pid == 0:
        _turn_into(spawn, (out, err), limits, bounds, entrance, write, keeper)
    os.close(write)
    return Launched(pid, read)


def _limits(spawn: Spawn, bounds: RunBounds) -> Iterator[tuple[int, tuple[int, int]]]:
    """What is limited, and to how much, in this order."""
    yield resource.RLIMIT_NOFILE, bounds.files
    hard = {resource.RLIMIT_NOFILE: bounds.files[1]}
    alone = spawn.user is not None and spawn.user.own
    if (most := _most_pids(bounds.processes if alone else None)) is not None:
        hard[resource.RLIMIT_NPROC] = most
        yield resource.RLIMIT_NPROC, (most, most)
    for what, value in rlimits(spawn.limits, grouped=bounds.controllers).items():
        limit = hard[what] if what in hard else resource.getrlimit(what)[1]
        most = value if limit == resource.RLIM_INFINITY else min(value, limit)
        # The CPU's soft limit is SIGXCPU, and the hard one, a second later, SIGKILL.
        yield what, (most, most + 1 if what == resource.RLIMIT_CPU and most != limit else most)


def _turn_into(
    spawn: Spawn,
    output: tuple[int, int],
    limits: list[tuple[int, tuple[int, int]]],
    bounds: RunBounds,
    entrance: str | None,
    problem: int,
    keeper: int,
) -> NoReturn:
    """Be the program. Each page of memory that is written to here is copied, so what could be worked out before was."""
    step = "session"
    try:
        gc.disable()
        signal.set_wakeup_fd(-1)
        os.setsid()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # until exec closes what is the keeper's
        if entrance is not None:
            step = "cgroup"
            cgroup.enter(entrance)
        step = "output"
        null = os.open(os.devnull, os.O_RDONLY)
        for number, descriptor in enumerate((null, *output)):
            os.dup2(descriptor, number)
        step = "limits"
        _prefer_for_oom_kill(bounds.oom_score)
        for what, most in limits:
            resource.setrlimit(what, most)
        if spawn.user is not None:
            step = f"user {spawn.user.uid}"
            become(spawn.user.uid, spawn.user.gid)
            os.umask(0o077)
        step = spawn.directory
        os.chdir(spawn.directory)
        step = "signals"
        for number in bounds.ignored:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        die_with_parent(signal.SIGKILL)
        if os.getppid() != keeper:  # it died before that
            os._exit(127)
        step = spawn.program
        os.execve(spawn.program, spawn.arguments, spawn.environment)  # noqa: S606  # no shell
    except BaseException as error:  # noqa: BLE001  # this process must not go on as a second keeper
        number = error.errno if isinstance(error, OSError) and error.errno else 0
        reason = os.strerror(number) if number else f"{type(error).__name__}: {error}"
        if step == spawn.program:
            reason = _why_not(spawn.program, number, spawn.user) or reason
        fatal = number in LASTING and step in (spawn.program, spawn.directory)
        os.write(problem, msgspec.json.encode(SpawnProblem(f"{step}: {reason}", fatal)))
    finally:
        os._exit(127)


def _oom_score() -> bytes:
    """What programs have: what this process has, and `OOM_SCORE` more."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj") as file:
        return b"%d" % min(int(file.read()) + OOM_SCORE, 1000)
    return b""


def _prefer_for_oom_kill(score: bytes) -> None:
    try:
        if os.geteuid() == 0:  # who may write there although it is hidden
            _write_oom_score(score)
        else:
            with shown():
                _write_oom_score(score)
    except OSError:  # `suppress` would have more of the keeper's memory copied
        pass


def _write_oom_score(score: bytes) -> None:
    os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), score)  # exec closes it


def _most_pids(room: int | None) -> int | None:
    """What keeps a program from using up the processes of its user, or, where that is no other's, of the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    limits = [] if room is None else [room]
    if soft != resource.RLIM_INFINITY:
        limits.append(max(soft - cgroup.PIDS_RESERVE, soft // 2))
    if not limits:
        return None
    return min(limits) if hard == resource.RLIM_INFINITY else min(*limits, hard)


def _why_not(program: str, number: int, user: RunUser | None) -> str | None:
    """A clearer text for errors of exec whose own text misleads."""
    if number == errno.EACCES and user is not None:
        return f"user {user.uid}, which this slice runs as, may not run it or enter a folder above it; see --run-as"
    if number == errno.EAGAIN and user is not None:
        return f"user {user.uid}, which this slice runs as, may have no more processes (limits.processes)"
    if number == errno.ENOEXEC:
        return "is neither a program for this machine nor a script that begins with #!"
    if number == errno.ENOENT:
        with contextlib.suppress(OSError), open(program, "rb") as file:
            first = file.readline(256).decode(errors="replace")
            if first.startswith("#!"):
                return f"its interpreter is missing: {first.removesuffix(chr(10))!r}"
    return None


def shortage(error: OSError, files: tuple[int, int], runs: int) -> str:
    """Why one more program could not be started, in words.

    Args:
        error: what the system said.
        files: RLIMIT_NOFILE as `raise_open_files` found it.
        runs: how many programs run.
    """
    match error.errno:
        case errno.EMFILE:
            needed = FILES_BESIDES + FILES_A_RUN * (runs + 1)
            return (
                f"this node has no file descriptors left for one more program: {runs + 1} need about {needed},"
                f" and its limit (ulimit -n, LimitNOFILE) is {files[1]}"
            )
        case errno.EAGAIN:
            return "this node has no processes left for one more program (pid_max, TasksMax or RLIMIT_NPROC)"
    return str(error)


def problem_of(data: bytes) -> SpawnProblem:
    """Read what a child wrote to its exec pipe."""
    try:
        return msgspec.json.decode(data, type=SpawnProblem)
    except msgspec.DecodeError:
        return SpawnProblem("ended before it could be run", fatal=False)
