"""Which processes belong to which run, as the keeper sees them.

What belongs to a run is what is in its cgroup; without one, what descends from its program or is in its session, and
what has its mark in its environment. (A program that leaves its session, orphans itself and empties its environment is
stopped with the last run.)
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from cdm.runtimes.keeper import cgroup
from cdm.runtimes.keeper.processes import Process, census, descendants, look, mark
from cdm.runtimes.keeper.protocol import MARK

DOUBT = 1.0
"""Seconds after which nobody is there who could not be seen, whatever else ends meanwhile."""


class Kin:
    """The runs of one keeper, which calls this in its own process: it is the parent of every orphan.

    Args:
        token: tells the marks of this runtime's runs from those of others.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self._groups: dict[str, Path | None] = {}
        """The runs, and the cgroup of each that has one."""
        self._sessions: dict[int, str] = {}
        """Runs by the pid of their program, which is its session too."""
        self._known: dict[tuple[int, int], str] = {}
        """Whose processes were once found out to be, by pid and start time: some empty their environment later."""
        self._missed: dict[str, float] = {}
        """Since when nobody of a run was seen, though somebody may be there."""

    def add(self, run: str, pid: int, group: Path | None) -> None:
        """A run's program was started."""
        self._groups[run] = group
        self._sessions[pid] = run

    def remove(self, run: str) -> None:
        """Nothing of the run lives."""
        del self._groups[run]
        self._sessions = {pid: name for pid, name in self._sessions.items() if name != run}

    def recognise(self, run: str, pid: int) -> Process | None:
        """The program just started, known for the run's from now on. Raises `OSError` where it cannot be looked at."""
        if process := look(pid):
            self._known[pid, process.start] = run
        return process

    def living(self) -> dict[str, list[Process]]:
        """Who lives, by run. Nobody of a run that is there: somebody may.

        One that forks and exits is in no list for long, and what is forked meanwhile may be in none. But its parent, or
        a parent of that, is then a child of ours that ended while we looked, for it is we who reap. Where there was
        one whose it was nobody can say, no run is said to be gone.

        Raises:
            OSError: it cannot be told.
        """
        mine = descendants(census(), os.getpid())
        known: dict[tuple[int, int], str] = {}
        found: dict[str, list[Process]] = {}
        of: dict[int, str] = {}
        for run, group in self._groups.items():
            if group is not None:
                of.update(dict.fromkeys(cgroup.members(group), run))
        ended = False
        for process in mine:  # parents come before their children
            name = self._whose(process, of)
            if name is not None:
                of[process.pid] = known[process.pid, process.start] = name
                found.setdefault(name, []).append(process)
            elif process.parent == os.getpid() and not ended:
                latest = process if process.zombie else look(process.pid)
                ended = latest is None or latest.zombie
        self._known = known
        now = time.monotonic()
        doubtful = [run for run, group in self._groups.items() if ended and group is None and run not in found]
        self._missed = {run: self._missed.get(run, now) for run in doubtful}
        found.update({run: [] for run, since in self._missed.items() if now - since < DOUBT})
        for run in set(of.values()):  # in its cgroup only since the list was made
            found.setdefault(run, [])
        return found

    def _whose(self, process: Process, of: dict[int, str]) -> str | None:
        name = of.get(process.pid) or of.get(process.parent) or self._known.get((process.pid, process.start))
        if name is None:
            name = self._sessions.get(process.session)
        if name is None:
            token, _, name = (mark(process.pid, MARK.encode()) or "").partition(".")
            name = name if token == self._token else None
        return name if name in self._groups else None
