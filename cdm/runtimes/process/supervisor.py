"""Supervises the keeper: commands go through it, and a keeper that died is replaced.

A keeper that dies takes all programs with it: what it leaves is killed, every run is over, and a new one is started.
One that outlived an earlier process of the node is taken over, with its runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import anyio

from cdm import clock
from cdm.errors import SliceFailed
from cdm.log import Lasting, Log
from cdm.model.keys import SliceKey
from cdm.model.manifest import Manifest
from cdm.output.files import OutputWriter
from cdm.output.reading import folder_name
from cdm.runtimes.keeper.leftovers import PATIENCE, recorded, sweep
from cdm.runtimes.keeper.processes import Process
from cdm.runtimes.keeper.protocol import (
    KILL_PATIENCE,
    MARK,
    RECORDS,
    Command,
    EndAll,
    Event,
    Gone,
    Heard,
    Hello,
    Losing,
    NotKept,
    Outlive,
    Remember,
    Spawn,
    SpawnRefused,
    Stop,
    Survivor,
    WhoListens,
)
from cdm.runtimes.process.background import Background
from cdm.runtimes.process.handle import LOST, LOST_HERE, RunHandle
from cdm.runtimes.process.link import KeeperLink, Met, meet
from cdm.runtimes.process.notes import RunNote, manifest_of
from cdm.runtimes.process.slice_runtime import LOGS
from cdm.runtimes.process.supervising import FoundRun, Supervising

log = Log("cdm.process")

HUNG = KILL_PATIENCE + 5.0
"""Seconds past the grace of a stop after which a keeper that does not answer is killed."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds until the next keeper is started if one died, or could not be started, soon after the one before: doubled
each time. What kills every keeper must not keep the node busy with starting and ending all of its slices."""
SICK = 4.0
"""When the pause has reached so many seconds, keepers died too often for their slices to be excused: these are then
started again by their restart policies, so that in the end they are FAILED and run elsewhere."""
STABLE = 60.0
"""Seconds after which a keeper's death is not counted as a consequence of the last one."""


class Supervisor(Supervising):
    """The keepers of one runtime, one at a time; made by `start`.

    Args:
        folder: the runtime's own.
        token: marks this runtime's runs.
        background: where dead keepers are replaced, and slices live.
        users: tells the users that only slices of this runtime have.
        outlive: for how many seconds runs outlive this process, since the last accepted heartbeat; None: not at all.
        grouped: whether to use cgroups where they are available.
    """

    def __init__(
        self,
        folder: Path,
        token: str,
        background: Background,
        users: Callable[[], Collection[int]],
        outlive: float | None,
        *,
        grouped: bool,
    ) -> None:
        super().__init__(background)
        self._folder = folder
        self._users = users
        self._token = token
        self._outlive = Outlive(outlive)
        self._grouped = grouped
        self._runs: dict[str, RunHandle] = {}
        self._link: KeeperLink | None = None
        """To the present keeper, or to one that died and whose programs may live."""
        self._ready = asyncio.Event()
        """Set from the present keeper's `Hello` until its death."""
        self._launched = float("-inf")
        """When the present keeper was started."""
        self._pause = 0.0
        """Seconds to wait before the next one is."""

    @classmethod
    async def start(
        cls,
        folder: Path,
        token: str,
        users: Callable[[], Collection[int]],
        outlive: float | None = None,
        *,
        grouped: bool,
        is_new: bool = False,
    ) -> Supervisor:
        """Take over what a predecessor left, where that can be; else end it, and start the keeper.

        Args:
            folder: the runtime's own.
            token: what its runs are marked with.
            users: tells those that only its slices have.
            outlive: for how many seconds runs outlive this process; None: not at all.
            grouped: whether runs are put into cgroups.
            is_new: whether the token is: nothing is marked with it; what can be left is recorded, or has such a user.

        Raises:
            SliceFailed: something cannot be ended, or it cannot be told whether a keeper is there.
        """
        try:
            met = await meet(folder, outlive or 0.0)
        except OSError as error:  # what it keeps may go on, once it is reached
            problem = error.strerror or error
            raise SliceFailed(f"it cannot be told whether a keeper of an earlier process runs: {problem}") from None
        nothing = is_new and not users() and not recorded(folder / RECORDS)
        if met is None and not nothing and (left := (await sweep(folder / RECORDS, token, users())).left):
            raise SliceFailed(f"processes of an earlier run of this node cannot be ended: {_pids(left)}")
        keeping = cls(folder, token, await Background.open(), users, outlive, grouped=grouped)
        try:
            if met is None:
                keeping._launch()
            else:
                await keeping._take_over(met)
        except BaseException:
            await keeping.close()
            raise
        return keeping

    @property
    def pid(self) -> int | None:
        """The keeper's pid; None: there is none now."""
        return None if self._link is None else self._link.pid

    def spawn(self, spawn: Spawn, key: SliceKey) -> RunHandle:
        """Start a slice's program. Raises `SliceFailed` where the keeper cannot even be asked."""
        if self._link is None or not self._ready.is_set():
            raise SliceFailed(LOST)
        run = RunHandle(spawn.run, key)
        run.logs = spawn.logs
        try:
            self._link.send(spawn)
        except OSError as error:
            raise SliceFailed(f"cannot be started: {error.strerror}", fatal=True) from None
        self._runs[run.name] = run
        return run

    def heard(self, at: float) -> None:
        """NATS accepted a heartbeat that was sent at this time, in seconds on `cdm.clock`."""
        super().heard(at)
        self._say(Heard(self._heard))

    def outlive(self, seconds: float | None) -> None:
        """From now on runs outlive this process for so long, since the last accepted heartbeat; None: not at all."""
        self._outlive = Outlive(seconds)
        self._say(self._outlive)

    def note(self, run: RunHandle, note: RunNote) -> None:
        """Have it noted what the next process of the node is to know of a run."""
        self._say(Remember(run.name, note.write()))

    def mark(self, run: str) -> dict[str, str]:
        """The variable that all processes of a run have."""
        return {MARK: f"{self._token}.{run}"}

    async def ready(self) -> None:
        """Wait until there is a keeper."""
        await self._ready.wait()

    async def stranger(self, run: RunHandle, port: int) -> int | None:
        """The process that listens on a port although it does not belong to the run, if the system tells of one."""
        run.listener_told.clear()
        if self._link is not None and self._ready.is_set():
            self._link.send(WhoListens(run.name, port))
            await run.listener_told.wait()
        return run.stranger

    async def stop(self, run: RunHandle, number: int, grace: float) -> None:
        """Stop all processes of a run; returns when none lives.

        Raises:
            SliceFailed: a process cannot be ended, not even by SIGKILL.
        """
        if run.stopped:
            return
        run.expect_end()
        if self._link is not None and self._ready.is_set():
            with contextlib.suppress(OSError):
                self._link.send(Stop(run.name, number, grace))
        with anyio.move_on_after(grace + HUNG) as scope:
            await run.gone.wait()
        if scope.cancelled_caught:
            log.error("the keeper of processes does not answer: it is killed", pid=self.pid)
            if self._link is not None:
                self._link.kill()
            with anyio.move_on_after(PATIENCE + HUNG) as scope:
                await run.gone.wait()
            if scope.cancelled_caught:
                raise SliceFailed("cannot be stopped: its keeper is gone, and what it left cannot be ended")
        run.check_stopped()

    async def close(self) -> None:
        """Cancel all tasks, and end the keeper, which leaves nothing running."""
        self._ready.clear()
        self._dismiss()
        await self._background.close()
        if self._link is not None:  # perhaps a new one, started in the last moment
            self._dismiss()
            await self._link.wait(KILL_PATIENCE + 5.0)
            self._link = None
        try:
            if left := (await sweep(self._folder / RECORDS, self._token, self._users())).left:
                log.error("processes cannot be ended", pids=_pids(left))
        except OSError as error:
            log.error("cannot look for processes that are left", reason=str(error))
        for run in self._runs.values():
            run.end()
        self._runs.clear()

    async def detach(self) -> None:
        """Cancel all tasks, and leave the keeper and what runs to the next process of the node."""
        self._ready.clear()
        self._let_go()
        await self._background.close()
        self._let_go()  # of a new one, started in the last moment, which has no runs

    async def _take_over(self, met: Met) -> None:
        self._link = KeeperLink(met.process, met.end, self._on_event, self._on_lost)
        self._launched = clock.now()
        self._heard = met.hello.heard
        self._on_event(met.hello)
        found: dict[SliceKey, FoundRun] = {}
        nameless: list[Survivor] = []
        for told in met.running:
            note = RunNote.read(told.note)
            if note is None or note.slice in found:
                nameless.append(told)
                continue
            found[note.slice] = FoundRun(self._found(told, note), note, told)
        self.found = list(found.values())
        log.info("the keeper of an earlier process is taken over", pid=self.pid, runs=len(met.running))
        for told in nameless:  # nobody could say later what they are
            run = self._runs[told.run] = RunHandle(told.run, None)
            await self.stop(run, told.signal, told.grace)

    def _found(self, told: Survivor, note: RunNote) -> RunHandle:
        run = self._runs[told.run] = RunHandle(told.run, note.slice, note.begun)
        run.logs = (manifest_of(note) or Manifest()).logs
        run.started.set()
        if told.said:
            run.said.set()
        if told.ended is not None:
            run.on_event(told.ended)
        return run

    def _say(self, command: Command) -> None:
        if self._link is not None and self._ready.is_set():
            with contextlib.suppress(OSError):
                self._link.send(command)

    def _dismiss(self) -> None:
        if self._link is not None:
            with contextlib.suppress(OSError):
                self._link.send(EndAll())
            self._link.disconnect()

    def _let_go(self) -> None:
        if self._link is not None:
            self._link.leave()
            self._link = None

    def _launch(self) -> None:
        self._link = KeeperLink.open(self._folder, self._token, self._on_event, self._on_lost, grouped=self._grouped)
        self._launched = clock.now()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Hello):
            self.limits_processes = event.limits_processes
            self._ready.set()
            self._say(Heard(self._heard))
            self._say(self._outlive)
            return
        if isinstance(event, NotKept):
            log.warning("slices end with this process: its keeper cannot wait for the next one", reason=event.reason)
            return
        if isinstance(event, Survivor):  # which `meet` has read
            return
        run = self._runs.get(event.run)
        if run is not None:
            if isinstance(event, Losing):
                log.warning("output is being lost", slice=str(run.key), reason=event.problem, bytes=event.lost)
            run.on_event(event)
            if isinstance(event, Gone) and not event.left:
                del self._runs[event.run]

    def _on_lost(self) -> None:
        self._ready.clear()
        log.error("the keeper of processes died: all slices of this node are started again", pid=self.pid)
        self.tasks.start_soon(self._replace)

    async def _replace(self) -> None:
        """Try until there is a keeper again, whatever is in the way: without one nothing of this node runs."""
        pause = 0.0 if clock.now() - self._launched >= STABLE else self._pause
        fails = Lasting(log, "the keeper of processes is started again", level="exception")
        while True:
            self._pause = min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE)
            try:
                await self._bury(excused=pause < SICK)
                await anyio.sleep(pause)
                self._launch()
            except Exception as error:  # noqa: BLE001  # another error of ours is no reason to give up
                fails.goes_on(clock.now(), "the keeper of processes cannot be started again", reason=str(error))
                await anyio.sleep(FIRST_PAUSE)  # the error may have come before the pause
                pause = self._pause
            else:
                fails.over(clock.now())
                return

    async def _bury(self, *, excused: bool) -> None:
        """End what a dead keeper left, and end its runs."""
        if self._link is not None:
            self._link.disconnect()
            self._link.kill()
            await self._link.wait(None)
            self._link = None
        stays = Lasting(log, "no process is left", level="error")
        while left := (await sweep(self._folder / RECORDS, self._token, self._users())).left:
            stays.goes_on(clock.now(), "processes cannot be ended", pids=_pids(left))
        stays.over(clock.now())
        with contextlib.suppress(RuntimeError):  # no thread can be started now: the next run's writer notes it
            await asyncio.to_thread(self._note_ends, list(self._runs.values()))
        lost, self._runs = self._runs, {}
        for run in lost.values():
            run.excused = excused and not run.over.is_set()
            run.left = ()  # none lives: the next keeper, which does not know the run, must not be asked for it
            run.end()

    def _note_ends(self, lost: Iterable[RunHandle]) -> None:
        """Tell in their output how runs ended whose keeper did not live to do it."""
        for run in lost:
            if run.key is not None:
                writer = OutputWriter(self._folder / LOGS / folder_name(run.key), run.logs)
                ran = run.started.is_set() and not isinstance(run.ended, SpawnRefused)
                writer.end_for_another(LOST_HERE if run.ended is None else run.ending, ran=ran)


def _pids(processes: Iterable[Process]) -> str:
    return "pid " + ", ".join(str(each.pid) for each in processes)
