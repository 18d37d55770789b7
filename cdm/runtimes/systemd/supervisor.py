"""Has runs started and stopped by systemd, follows them, and finds those of an earlier process of the node.

Of each run there is a unit ``cdm-{token}-{run}.service``. In the folder ``units`` of the runtime's own there are its
note (``{run}.json``), written before the unit is asked for, and what the program wrote: see `RawOutput`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL, Signals

import anyio

from cdm import clock
from cdm.errors import SliceFailed
from cdm.log import Lasting, Log
from cdm.model.keys import SliceKey, encode
from cdm.model.manifest import Manifest
from cdm.output.reading import folder_name
from cdm.runtimes.keeper.protocol import KILL_PATIENCE, Gone, Spawn, SpawnRefused, Started, Survivor
from cdm.runtimes.process.background import Background
from cdm.runtimes.process.given import SECRETS
from cdm.runtimes.process.handle import RunHandle
from cdm.runtimes.process.notes import RunNote, manifest_of
from cdm.runtimes.process.slice_runtime import LOGS
from cdm.runtimes.process.supervising import FoundRun, Supervising
from cdm.runtimes.systemd import HEARD, UNITS
from cdm.runtimes.systemd.bus import RefusedBySystemd, SystemdBus, UnitState, path_of
from cdm.runtimes.systemd.output import RawOutput
from cdm.runtimes.systemd.runs import UnitRun, stranger, write_note
from cdm.runtimes.systemd.unit import UnitFiles, environment_file, state_of, unit_name, unit_properties
from cdm.runtimes.systemd.watchdog import ALONE, TICK, Watchdog, remaining

log = Log("cdm.systemd")

POLL = 0.1
"""Seconds between two looks for output."""
LOOK = 5.0
"""Seconds after which a unit is looked at although nothing was told of it."""
PAUSE = 0.5
"""Seconds until another try to reach systemd."""
SLOW = 10.0
"""Seconds that systemd may take to end what it was told to kill, until that counts as impossible."""


class SystemdSupervisor(Supervising):
    """The units of one runtime; made by `start`.

    Args:
        folder: the runtime's own.
        token: marks its units.
        background: where units are followed, and slices live.
        outlive: for how many seconds slices outlive the node's process; None: not at all.
        content_of: tells the folder of a slice's artifact.
    """

    limits_processes = True  # the runtime asks systemd's control groups

    def __init__(
        self,
        folder: Path,
        token: str,
        background: Background,
        outlive: float | None,
        content_of: Callable[[SliceKey], Path],
    ) -> None:
        super().__init__(background)
        self._folder = folder
        self._records = folder / UNITS
        self._heard_file = folder / HEARD
        self._token = token
        self._outlive = outlive
        self._content_of = content_of
        self._late = False
        """Whether the leader may have replaced what was found, as nothing of this node has been heard for so long."""
        self._left = False
        """Whether what runs is the next process's."""
        self._runs: dict[str, UnitRun] = {}
        self._watchdog = Watchdog()
        self._bus = SystemdBus(self._on_changed)
        self._reached = asyncio.Event()

    @classmethod
    async def start(
        cls, folder: Path, token: str, outlive: float | None, content_of: Callable[[SliceKey], Path]
    ) -> SystemdSupervisor:
        """Find what a predecessor left, and stop what nobody knows.

        Raises:
            RefusedBySystemd: it cannot be asked.
        """
        keeping = cls(folder, token, await Background.open(), outlive, content_of)
        try:
            keeping._records.mkdir(mode=0o700, exist_ok=True)
            await keeping._bus.connect()
            keeping._reached.set()
            await keeping._find()
            keeping._late = keeping.silent_for() >= max(outlive or 0.0, ALONE)
            for work in (keeping._stay_connected, keeping._read, keeping._tell):
                keeping.tasks.start_soon(work)
        except BaseException:
            await keeping.detach()
            raise
        return keeping

    @property
    def pid(self) -> int | None:
        """That of systemd."""
        return 1

    async def ready(self) -> None:
        """Wait until systemd can be asked."""
        await self._reached.wait()

    def mark(self, run: str) -> dict[str, str]:
        """None is needed: a unit's processes are known by its control group."""
        return {}

    def spawn(self, spawn: Spawn, key: SliceKey) -> RunHandle:
        """Start a slice's program. Raises `SliceFailed` where what it needs cannot be written."""
        handle = RunHandle(spawn.run, key)
        state = state_of(self._token, folder_name(key))
        path = self._records / spawn.run
        environment = path.with_suffix(".env")
        variables = environment_file(spawn.environment)
        try:
            environment.touch(0o600)
            environment.write_text(variables)
            output = RawOutput(path, Path(spawn.output), spawn.logs, spawn.line)
        except OSError as error:
            raise SliceFailed(f"cannot be started: {error.strerror}") from None
        run = self._runs[spawn.run] = UnitRun(spawn.run, unit_name(self._token, spawn.run), handle, output)
        of_secrets = self._folder / SECRETS / spawn.run
        seen = (self._content_of(key), self._folder.parent)
        files = UnitFiles(*seen, environment, of_secrets, output.out, output.err, state)
        self.tasks.start_soon(self._begin, run, spawn, files)
        return handle

    def note(self, run: RunHandle, note: RunNote) -> None:
        """Note what the next process of the node is to know of a run."""
        if (found := self._runs.get(run.name)) is not None:
            found.note = note
            try:
                write_note(self._records / f"{run.name}.json", note)
            except OSError as error:
                log.warning("a slice will be started anew when this node is", slice=note.key, reason=str(error))

    async def stranger(self, run: RunHandle, port: int) -> int | None:
        """The process that listens on a port although it does not belong to the run, if the system tells of one."""
        found = self._runs.get(run.name)
        if found is None:
            return None
        try:
            return await asyncio.to_thread(stranger, port, await self._bus.processes(found.unit))
        except (RefusedBySystemd, OSError, RuntimeError):
            return None

    def heard(self, at: float) -> None:
        """NATS accepted a heartbeat that was sent at this time, in seconds on `cdm.clock`."""
        if at > self._heard:
            super().heard(at)
            self._late = False
            with contextlib.suppress(OSError):  # then slices are started anew when this node is
                self._heard_file.write_text(repr(at))
        for run in self._runs.values():
            self._allow(run)

    async def stop(self, run: RunHandle, number: int, grace: float) -> None:
        """Stop all processes of a run: as its unit says, or at once where there is no grace.

        Raises:
            SliceFailed: a process cannot be ended, or systemd cannot be asked.
        """
        found = self._runs.get(run.name)
        if found is None or run.stopped:
            return
        if self._left:
            raise SliceFailed("it is left to the next process of this node")
        run.expect_end()
        found.stopped = found.stopped or not run.over.is_set()
        problem = "SIGKILL does not end it"
        for patience, at_once in ((grace + KILL_PATIENCE, not grace), (SLOW, True)):
            with anyio.move_on_after(patience + KILL_PATIENCE):
                try:
                    await found.asked.wait()
                    if at_once:
                        await self._bus.kill(found.unit, SIGKILL)
                    await self._bus.stop(found.unit)
                except RefusedBySystemd as error:
                    problem = str(error)
                    await anyio.sleep(PAUSE)  # else the second try is over before systemd has changed its mind
                    await self._reached.wait()
                    continue
                found.changed.set()
                await run.gone.wait()
                run.check_stopped()
                return
        raise SliceFailed(f"cannot be stopped: {problem}")

    def outlive(self, seconds: float | None) -> None:
        """See `cdm.runtimes.process.supervising`; no sooner than systemd's watchdog ends what has no node."""
        self._outlive = seconds

    async def close(self) -> None:
        """Cancel all tasks, and leave nothing running."""
        async with anyio.create_task_group() as tasks:
            for run in list(self._runs.values()):
                tasks.start_soon(self._end, run)
        await self.detach()

    async def detach(self) -> None:
        """Cancel all tasks, and leave what runs to the next process of the node."""
        self._left = True
        await self._background.close()
        for run in self._runs.values():
            await run.leave()
        self._runs.clear()
        self._bus.disconnect()
        self._watchdog.close()

    async def _end(self, run: UnitRun) -> None:
        try:
            await self.stop(run.handle, SIGKILL, 0.0)
        except SliceFailed as error:
            log.error("processes cannot be ended", unit=run.unit, reason=str(error))

    # Beginning, and finding again

    async def _begin(self, run: UnitRun, spawn: Spawn, files: UnitFiles) -> None:
        try:
            await self._bus.follow(run.unit, on=True)
            after = run.stop_after
            allowed = remaining(after, self._outlive, self.silent_for())
            until = None if after is None else self._heard + after
            shown = f"{encode(run.handle.key)} of cdm" if run.handle.key is not None else run.unit
            await self._bus.begin(run.unit, unit_properties(spawn, shown, files, allowed, until))
        except RefusedBySystemd as error:
            # It may have begun all the same, where the answer was lost.
            run.handle.on_event(SpawnRefused(run.name, str(error), error.is_unfit))
            if error.is_unfit:
                await self._bury(run, None)
                return
        finally:
            run.asked.set()
        self.tasks.start_soon(self._follow, run)

    async def _find(self) -> None:
        units = await self._bus.units(unit_name(self._token, "*"))
        notes = {each.stem: each for each in self._records.glob("*.json")}
        before, after = unit_name(self._token, "*").split("*")
        names = {unit.removeprefix(before).removesuffix(after) for unit in units} | notes.keys()
        if units:  # so it is the same boot
            with contextlib.suppress(OSError, ValueError):
                self._heard = float(self._heard_file.read_text())
        found: dict[SliceKey, FoundRun] = {}
        for name in sorted(names):
            text = await asyncio.to_thread(notes[name].read_bytes) if name in notes else b""
            note = RunNote.read(text)
            run = await self._meet(name, note)
            if note is None or note.slice in found:
                self.tasks.start_soon(self._end, run)  # nobody could say later what it is
            else:
                state, manifest = await self._bus.state(run.unit), manifest_of(note) or Manifest()
                whole = state is None or state.status is not None or state.active == "active"
                number, grace = Signals[manifest.stop_signal], manifest.stop_grace
                told = Survivor(name, text, None, whole, said=True, signal=number, grace=grace)
                found[note.slice] = FoundRun(run.handle, note, told)
        self.found = list(found.values())
        for stray in self._records.iterdir():  # of runs that were never begun, or whose end was cut short
            if stray.stem not in names:
                stray.unlink(missing_ok=True)
        if self.found:
            log.info("units of an earlier process are found", runs=len(self.found))

    async def _meet(self, name: str, note: RunNote | None) -> UnitRun:
        key, begun = (note.slice, note.begun) if note is not None else (None, None)
        output = None
        if key is not None and (manifest := manifest_of(note)) is not None:
            output = RawOutput(self._records / name, self._folder / LOGS / folder_name(key), manifest.logs)
            output.writer.go_on()
        run = self._runs[name] = UnitRun(name, unit_name(self._token, name), RunHandle(name, key, begun), output, note)
        run.asked.set()
        run.handle.started.set()
        run.handle.said.set()
        await self._bus.follow(run.unit, on=True)
        self.tasks.start_soon(self._follow, run)
        return run

    # Following

    def _on_changed(self, path: str) -> None:
        for run in self._runs.values():
            if path == path_of(run.unit):
                run.changed.set()

    async def _follow(self, run: UnitRun) -> None:
        """Tell the slice what becomes of a unit, until nothing of it runs."""
        unseen = Lasting(log, "the unit can be looked at again", level="error")
        while True:
            run.changed.clear()
            try:
                state = await self._bus.state(run.unit)
                left = await self._bus.processes(run.unit) if state is not None and state.over else []
            except RefusedBySystemd as error:
                if error.name:
                    unseen.goes_on(clock.now(), "a unit cannot be looked at", unit=run.unit, reason=str(error))
                await anyio.sleep(PAUSE)
                continue
            unseen.over(clock.now(), unit=run.unit)
            self._see(run, state)
            if state is None or state.over:
                if not left:
                    await self._bury(run, state)
                    return
                run.handle.on_event(Gone(run.name, (), tuple(left)))
            with anyio.move_on_after(LOOK):
                await run.changed.wait()

    def _see(self, run: UnitRun, state: UnitState | None) -> None:
        handle = run.handle
        run.pid = state.pid if state is not None else 0
        if state is not None and state.ran and not handle.started.is_set():
            handle.on_event(Started(run.name, state.pid))
            (self._records / f"{run.name}.env").unlink(missing_ok=True)
        self._allow(run)
        if state is not None and state.result in ("watchdog", "exec-condition") and not handle.lapsed:
            handle.lapsed = run.stop_after is not None
        if not handle.over.is_set() and (ended := run.ended(state)) is not None:
            handle.on_event(ended)

    async def _bury(self, run: UnitRun, state: UnitState | None) -> None:
        """Nothing of it runs: forget it, but for what it wrote."""
        last = await run.read_to_its_end()
        for suffix in (".json", ".env"):
            (self._records / run.name).with_suffix(suffix).unlink(missing_ok=True)
        with contextlib.suppress(RefusedBySystemd):
            await self._bus.follow(run.unit, on=False)
            if state is not None:
                await self._bus.forget(run.unit)
        self._runs.pop(run.name, None)
        run.handle.on_event(Gone(run.name, last))

    # What goes on all the time

    async def _stay_connected(self) -> None:
        away = Lasting(log, "connected to systemd again")
        while True:
            await self._bus.lost()
            self._reached.clear()
            away.goes_on(clock.now(), "the connection to systemd is lost")
            while not self._reached.is_set():
                await anyio.sleep(PAUSE)
                try:
                    await self._bus.connect()
                    for run in list(self._runs.values()):
                        await self._bus.follow(run.unit, on=True)
                        run.changed.set()
                    self._reached.set()
                except RefusedBySystemd as error:
                    away.goes_on(clock.now(), "systemd cannot be reached", reason=str(error))
            away.over(clock.now())

    async def _read(self) -> None:
        """Take what programs wrote."""
        while True:
            await anyio.sleep(POLL)
            for run in list(self._runs.values()):
                await run.read()

    async def _tell(self) -> None:
        """Tell systemd that this node lives."""
        while True:
            for run in self._runs.values():
                self._allow(run)
            await anyio.sleep(TICK)

    def _allow(self, run: UnitRun) -> None:
        if self._late and run.stop_after is None:
            return
        if run.pid and run.known and not run.handle.over.is_set():
            try:
                self._watchdog.allow(run.pid, remaining(run.stop_after, self._outlive, self.silent_for()))
            except OSError as error:
                if not isinstance(error, (BlockingIOError, ProcessLookupError)):
                    told = {"unit": run.unit, "reason": str(error)}
                    run.unwatched.goes_on(clock.now(), "systemd cannot be told that the node lives", **told)
            else:
                run.unwatched.over(clock.now(), unit=run.unit)
