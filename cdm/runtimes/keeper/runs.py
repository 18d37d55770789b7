"""The keeper's runs: what it knows of each, and which processes belong to it.

A process belongs to a run if it is in the run's cgroup, or has the user that only this slice has. Where there is
neither, it belongs to the run if it descends from the run's program, is in its session, or has its mark in the
environment. (A program that leaves its session, orphans itself and empties its environment is then stopped together
with the last run.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator

from cdm.output.files import OutputWriter
from cdm.runtimes.keeper import cgroup
from cdm.runtimes.keeper.ending import told_of_ending
from cdm.runtimes.keeper.processes import Process, census, descendants, listening, look, mark, send, sockets
from cdm.runtimes.keeper.processes import owner as owner_of
from cdm.runtimes.keeper.protocol import MARK, Exited, Spawn, Survivor

KILL_INTERVAL = 0.05
"""Seconds between SIGKILLs to what is still there: something may have been forked meanwhile."""
DOUBT = 1.0
"""Seconds after which a run without visible processes is gone, whatever else ends meanwhile."""


class Stopping:
    """A run is being stopped.

    Args:
        number: the stop signal, which is still to be sent; None: none is.
        deadline: when SIGKILL is due, on the monotonic clock.
    """

    def __init__(self, number: int | None, deadline: float) -> None:
        self.signal = number
        self.deadline = deadline
        self.killed: float | None = None
        """When SIGKILL was sent for the first time."""

    def is_due(self, now: float) -> bool:
        """Whether a signal is to be sent."""
        return self.signal is not None or self.deadline <= now


class Run:
    """One run, from fork until nothing of it lives.

    Args:
        spawn: the command.
        pid: of its program, and so the number of its process group and session.
        exec_pipe: tells whether exec succeeded.
        streams: its output: the pipes that are open, and what they are.
        output: keeps its output.
        group: its cgroup, if it has one.
    """

    def __init__(
        self, spawn: Spawn, pid: int, exec_pipe: int, streams: dict[int, str], output: OutputWriter, group: str | None
    ) -> None:
        self.name = spawn.run
        self.lapse = spawn.lapse
        self._limits = spawn.limits
        self.signal, self.grace = spawn.signal, spawn.grace
        """How it is stopped where its node does not say."""
        self.user = spawn.user
        self.own_uid = spawn.user.uid if spawn.user is not None and spawn.user.own else None
        """The user that nothing else has; None: there is none."""
        self.pid = pid
        self.exec_pipe: int | None = exec_pipe
        """None: exec succeeded or failed, and that was reported."""
        self.streams = streams
        self.output = output
        self.group = group
        self.said = False
        """Whether the line that is waited for was reported."""
        self.losing_told = float("-inf")
        """When it was last reported that its output is being lost, on the monotonic clock."""
        self.reaped = False
        """Whether the program itself was; until then its pid, and its group's and session's number, are its own."""
        self.note = b""
        """What its node wants to know of it when it comes back."""
        self.told_end: Exited | None = None
        """None: the program was not reaped."""
        self.ended = "with its node"
        """How the program ended; its node's keeper is the last to know of those that it ends itself."""
        self.stopping: Stopping | None = None

    @property
    def told(self) -> Survivor:
        """What the next process of the node is told of it."""
        whole = self.exec_pipe is None and self.stopping is None
        return Survivor(self.name, self.note, self.told_end, whole, self.said, self.signal, self.grace, self.user)

    def send(self, living: Iterable[Process], number: int) -> None:
        """Signal all processes of the run."""
        if not self.reaped:  # else the number of its group may be another's
            for each in (number, signal.SIGCONT):  # a halted process would not react
                with contextlib.suppress(OSError):
                    os.killpg(self.pid, each)
        for process in living:
            if self.reaped or process.group != self.pid:
                send(process, number)
                send(process, signal.SIGCONT)

    def exited(self, status: int) -> Exited:
        """The program ended with this exit status, or by minus this signal."""
        self.ended = told_of_ending(status, self._limits, self.group, asked=self.stopping is not None)
        self.told_end = Exited(self.name, status, self.ended)
        return self.told_end

    def kill(self, living: Iterable[Process]) -> None:
        """SIGKILL to all processes of the run."""
        if self.group is not None:
            cgroup.kill(self.group)
        self.send(living, signal.SIGKILL)


class Runs:
    """The runs of one keeper. Used in the keeper's own process only: it is the parent of every orphan.

    Args:
        token: tells the marks of this runtime's runs from those of others.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self._runs: dict[str, Run] = {}
        self._by_pid: dict[int, Run] = {}
        """By the pid of the program, which is the number of its session too."""
        self._by_uid: dict[int, Run] = {}
        """Those with a user of their own: a slice has one run at a time."""
        self._stopping: dict[str, Run] = {}
        self._lapsing: dict[str, Run] = {}
        """Those with a `Lapse`. While it has a node, the keeper looks only at these and the stopping ones."""
        self._known: dict[tuple[int, int], str] = {}
        """Processes, by pid and start time, that were seen to belong to a run: some empty their environment later."""
        self._missed: dict[str, float] = {}
        """Since when no process of a run was seen, though one may be there."""

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs.values()))

    def __len__(self) -> int:
        return len(self._runs)

    def named(self, name: str) -> Run | None:
        """The run with this name, as long as something of it may live."""
        return self._runs.get(name)

    def of_program(self, pid: int) -> Run | None:
        """The run whose program has this pid."""
        return self._by_pid.get(pid)

    def add(self, run: Run) -> None:
        """A run's program was started."""
        self._runs[run.name] = self._by_pid[run.pid] = run
        if run.own_uid is not None:
            self._by_uid[run.own_uid] = run
        if run.lapse is not None:
            self._lapsing[run.name] = run

    def remove(self, run: Run) -> None:
        """Nothing of the run lives."""
        del self._runs[run.name]
        self._stopping.pop(run.name, None)
        self._lapsing.pop(run.name, None)
        if self._by_pid.get(run.pid) is run:  # else the pid is another program's by now
            del self._by_pid[run.pid]
        if run.own_uid is not None and self._by_uid.get(run.own_uid) is run:
            del self._by_uid[run.own_uid]

    def begin_stop(self, run: Run, stopping: Stopping) -> Stopping:
        """It is being stopped, in this way; returns that."""
        self._stopping[run.name] = run
        run.stopping = stopping
        return stopping

    def give_up(self, run: Run) -> None:
        """It cannot be stopped, and is being stopped no more."""
        del self._stopping[run.name]
        run.stopping = None

    @property
    def stopping(self) -> list[tuple[Run, Stopping]]:
        """Those that are being stopped, and how."""
        return [(run, run.stopping) for run in self._stopping.values() if run.stopping]

    @property
    def lapsing(self) -> list[Run]:
        """Those with a `Lapse` of their own."""
        return list(self._lapsing.values())

    def program(self, run: Run) -> Process | None:
        """The program just started, known from now on. Raises `OSError` where it cannot be looked at."""
        if process := look(run.pid):
            self._known[run.pid, process.start] = run.name
        return process

    def living(self) -> dict[str, list[Process]]:
        """The living processes, by run. An empty list: it cannot be said that none lives.

        A process that forks and exits is in no list for long, and what is forked while a list is made may be in none.
        But then its parent, or a parent of that, is a child of ours that ended while we looked, for it is we who reap.
        Where there was such a child that belongs to no known run, no run is said to be gone.

        Raises:
            OSError: it cannot be told.
        """
        ours = descendants(census(), os.getpid())
        known: dict[tuple[int, int], str] = {}
        found: dict[str, list[Process]] = {}
        owner: dict[int, str] = {}
        for run in self:
            if run.group is not None:
                owner.update(dict.fromkeys(cgroup.members(run.group), run.name))
        ended = False
        for process in ours:  # parents come before their children
            name = self._owner(process, owner)
            if name is not None:
                owner[process.pid] = known[process.pid, process.start] = name
                found.setdefault(name, []).append(process)
            elif process.parent == os.getpid() and not ended:
                latest = process if process.zombie else look(process.pid)
                ended = latest is None or latest.zombie
        self._known = known
        now = time.monotonic()
        doubtful = [run.name for run in self if ended and run.group is None and run.name not in found]
        self._missed = {name: self._missed.get(name, now) for name in doubtful}
        found.update({name: [] for name, since in self._missed.items() if now - since < DOUBT})
        for name in set(owner.values()):  # in its cgroup only since the list was made
            found.setdefault(name, [])
        return found

    def stranger(self, run: Run, port: int) -> int | None:
        """A process that listens on a port and certainly does not belong to the run; None: there is none.

        Raises:
            OSError: it cannot be told.
        """
        wanted = listening(port)
        if not wanted:
            return None
        if run.own_uid is not None and run.own_uid in wanted.values():
            return None
        owner = {process.pid: name for name, found in self.living().items() for process in found}
        ours = [sockets(pid) for pid, name in owner.items() if name == run.name]
        # With a user of its own it would have been known by that, whether its sockets may be looked at or not.
        if run.own_uid is None and any(found is None or found & wanted.keys() for found in ours):
            return None
        processes = census()
        unknown = {process.pid for process in descendants(processes, os.getpid())} - owner.keys()
        others = (pid for pid in processes if pid not in unknown)
        return next((pid for pid in others if (sockets(pid) or set()) & wanted.keys()), None)

    def _owner(self, process: Process, owner: dict[int, str]) -> str | None:
        name = owner.get(process.pid) or owner.get(process.parent) or self._known.get((process.pid, process.start))
        if name is None and (run := self._by_pid.get(process.session)):
            name = run.name
        if name is None and self._by_uid and (found := owner_of(process.pid)) and (run := self._by_uid.get(found.uid)):
            name = run.name
        if name is None:
            token, _, name = (mark(process.pid, MARK.encode()) or "").partition(".")
            name = name if token == self._token else None
        return name if name in self._runs else None
