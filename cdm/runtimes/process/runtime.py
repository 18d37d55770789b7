"""The runtime that runs slices as processes of this machine.

Every program is started, read, stopped and reaped by the *keeper*, one small process beside the node (see
`cdm.runtimes.keeper.keeper`). What is promised:

- `deactivate` and `unload` return when nothing of the slice lives any more, or raise `SliceFailed`.
- After `close` nothing of any slice lives. After the node was killed, nothing does `ORPHAN_BOUND` seconds later.
- What outlived even that (node and keeper killed at once, and a program with children of its own) is ended by `start`,
  before anything is started. A pid is never trusted alone: a mark in the environment, or pid, start time and boot.
- When the keeper is killed, so is every slice; both are started again. That is no failure of the slices.

The folder holds ``logs/`` (one folder a slice; it stays after `unload` for the `KEPT` slices that wrote last),
``running/`` (records of what runs) and ``token``. No other living process may use it: its slices would be ended. The
node sees to that (see `cdm.node.folder`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio

from cdm import clock
from cdm.errors import SliceFailed
from cdm.log import Log
from cdm.model.artifact import Artifact
from cdm.model.keys import SliceKey
from cdm.model.manifest import Http, Liveness, Tcp, Up
from cdm.model.manifest import Line as ReadyLine
from cdm.output.reading import batches, folder_name, keys, prune, tail
from cdm.runtimes import OutputLine, Runtime, Surroundings, Work
from cdm.runtimes.keeper.protocol import MARK, Lapse, Spawn
from cdm.runtimes.process.checks import probe
from cdm.runtimes.process.command import prepare
from cdm.runtimes.process.restart import Again, decide
from cdm.runtimes.process.supervisor import LOST, Keeping, Run

log = Log("cdm.process")

ORPHAN_BOUND = 2.0
"""Seconds after the node's death, however it died, when nothing of its slices lives any more."""
KEPT = 20
"""How many unloaded slices' output is kept."""
CUT_OFF = "stopped: NATS took no heartbeat of this node for too long (stop_after)"
PROBE_TIMEOUT = 5.0
"""Seconds that one check for readiness may take."""


class ProcessRuntime(Runtime):
    """Runs slices as processes. All methods are called from one event loop.

    Args:
        surroundings: what the agent gives it.
        cgroups: whether to put every slice into a cgroup where that is possible.
    """

    def __init__(self, surroundings: Surroundings, *, cgroups: bool = True) -> None:
        self._node = surroundings.node
        self._folder = surroundings.folder
        self._crashed = surroundings.crashed
        self._cgroups = cgroups
        self._slices: dict[SliceKey, _Slice] = {}
        self._keeping: Keeping | None = None
        self._heard = float("-inf")
        self._token = ""

    @property
    def slices(self) -> Mapping[SliceKey, bool]:
        """All slices that are loaded; True: it is active, also while it is being started again after a crash."""
        return {key: each.active for key, each in self._slices.items()}

    @property
    def keeper(self) -> int | None:
        """The keeper's pid; None: there is none."""
        return None if self._keeping is None else self._keeping.pid

    async def start(self) -> None:
        """End what an earlier process of this node left running.

        Raises:
            SliceFailed: something cannot be ended.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._token = self._read_token()
        keeping = Keeping(self._folder, self._token, grouped=self._cgroups)
        await keeping.start()
        self._keeping = keeping
        self.heard(self._heard)

    def heard(self, at: float) -> None:
        """NATS took a heartbeat of this node, sent at this time on `cdm.clock`: what may lapse goes on."""
        self._heard = at
        if self._keeping is not None:
            self._keeping.heard(at)

    async def load(self, work: Work) -> None:
        """Take note of it. What was loaded under the key, and may run, is stopped first."""
        await self.unload(work.key)
        self._slices[work.key] = _Slice(work, self)

    async def activate(self, key: SliceKey) -> int | None:
        """Start it, and wait until it is ready. Returns its port, if it has one.

        Cancelled, or failed, it leaves nothing running.

        Raises:
            SliceFailed: it is not loaded, ended, or was not ready in time; fatal where it cannot be run at all.
        """
        each = self._slices.get(key)
        if each is None:
            raise SliceFailed(f"{key} is not loaded")
        return await each.activate()

    async def deactivate(self, key: SliceKey) -> None:
        """Stop it; returns when nothing of it runs any more.

        Raises:
            SliceFailed: something of it cannot be ended.
        """
        if each := self._slices.get(key):
            await each.deactivate()

    async def unload(self, key: SliceKey) -> None:
        """Stop it, and forget it; its output stays for a while.

        Raises:
            SliceFailed: something of it cannot be ended; it stays loaded.
        """
        await self.deactivate(key)
        if self._slices.pop(key, None) is not None:
            names = {folder_name(each) for each in self._slices}
            await asyncio.to_thread(prune, self._folder / "logs", names, KEPT)

    async def close(self) -> None:
        """Stop all slices at once, each in its own way, and then the keeper, which leaves nothing running."""
        try:
            async with anyio.create_task_group() as tasks:
                for each in self._slices.values():
                    tasks.start_soon(self._close, each)
        finally:
            if self._keeping is not None:
                with anyio.CancelScope(shield=True):
                    await self._keeping.close()
                self._keeping = None

    def output(
        self, key: SliceKey, *, lines: int | None = None, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[OutputLine]:
        """What the slice wrote, also in earlier runs: see `cdm.output.reading.tail`."""
        return tail(self.output_folder(key), lines=lines, since=since, follow=follow)

    def written(self, artifact: Artifact) -> Sequence[SliceKey]:
        """This node's slices of the artifact that are loaded, or that there is output of."""
        found = set(keys(self._folder / "logs", artifact)).union(
            key for key in self._slices if key.artifact == artifact
        )
        return sorted(key for key in found if key.node == self._node)

    def read(
        self, key: SliceKey, *, lines: int | None = None, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[Sequence[OutputLine]]:
        """The same as `output`, a little at a time: see `cdm.output.reading.batches`."""
        return batches(self.output_folder(key), lines=lines, since=since, follow=follow)

    def output_folder(self, key: SliceKey) -> Path:
        """Where the slice's output is."""
        return self._folder / "logs" / folder_name(key)

    @property
    def keeping(self) -> Keeping:
        """Who starts and stops programs. Raises `SliceFailed` before `start` and after `close`."""
        if self._keeping is None:
            raise SliceFailed("the runtime is not started")
        return self._keeping

    def ports(self, but: _Slice) -> set[int]:
        """The ports that other slices have."""
        return {each.port for each in self._slices.values() if each.port is not None and each is not but}

    def silent_for(self) -> float:
        """Seconds since the last heartbeat was sent that NATS took."""
        return clock.now() - self._heard

    def crashed(self, key: SliceKey, reason: str, fatal: bool) -> None:
        """Tell the agent."""
        self._crashed(key, reason, fatal)

    def mark(self, run: str) -> dict[str, str]:
        """The variable that all processes of a run have."""
        return {MARK: f"{self._token}.{run}"}

    async def _close(self, each: _Slice) -> None:
        try:
            await each.deactivate()
        except SliceFailed as error:
            log.error("slice is not stopped", slice=str(each.key), reason=str(error))

    def _read_token(self) -> str:
        path = self._folder / "token"
        with contextlib.suppress(OSError, ValueError):
            token = path.read_text().strip()
            if len(bytes.fromhex(token)) == 8:
                return token
        token = secrets.token_hex(8)
        draft = path.with_suffix(".new")
        draft.write_text(token)
        draft.replace(path)
        return token


class _Slice:
    """One slice: at most one run at a time, and a guard while it is active."""

    def __init__(self, work: Work, runtime: ProcessRuntime) -> None:
        self.key = work.key
        self.work = work
        self.active = False
        self.port: int | None = None
        """The port that it was given; it keeps it when it is started again by itself, for others know it."""
        self._runtime = runtime
        self._run: Run | None = None
        self._ending: asyncio.Task[None] | None = None
        self._guard: asyncio.Task[None] | None = None

    async def activate(self) -> int | None:
        if not self.active:
            await self._end(self._stop_grace)  # of one that a cancelled call left
            self.port = None
            await self._begin()
            self.active = True
            self._guard = asyncio.get_running_loop().create_task(self._watch(), name=f"guard {self.key}")
        return self.port

    async def deactivate(self) -> None:
        self.active, self.port = False, None
        guard, self._guard = self._guard, None
        if guard is not None:
            run = self._run
            # Not after the wait: a caller that is cancelled meanwhile would leave running what counts as stopped.
            guard.add_done_callback(lambda _: self._begin_ending(self._stop_grace) if self._run is run else None)
            guard.cancel()
            await asyncio.wait([guard])
        await self._end(self._stop_grace)
        await self._finish_ending()

    @property
    def _stop_grace(self) -> float:
        return self.work.manifest.stop_grace

    async def _begin(self) -> None:
        """Start a run, and wait until it is ready. If that fails, nothing of it is left."""
        readiness = self.work.manifest.readiness
        problem: str | None = None
        try:
            with anyio.move_on_after(readiness.timeout) as scope:
                run = self._run = await self._spawn()
                problem = await self._until_ready(run)
            if scope.cancelled_caught:
                problem = f"not ready within {readiness.timeout:g} s" + (f" ({self._missing})" if self._missing else "")
        except BaseException:
            await self._clean_up()
            raise
        if problem is None and run.over.is_set():
            problem = _ending_of(run)
        if problem is not None:
            refused = None if self._run is None else self._run.refused
            last = await self._clean_up()
            raise SliceFailed(_reason(problem, last), fatal=refused is not None and refused.fatal)

    async def _spawn(self) -> Run:
        if self._cut_off:
            raise SliceFailed(CUT_OFF)
        keeping = self._runtime.keeping
        await keeping.ready()
        name = keeping.name()
        program = prepare(self.work, self._runtime.mark(name), os.environ, self._runtime.ports(self), self.port)
        check = self.work.manifest.readiness.check
        self.port = program.port
        self._missing = ""
        return keeping.spawn(
            Spawn(
                name,
                program.path,
                program.arguments,
                program.environment,
                program.directory,
                str(self._runtime.output_folder(self.key)),
                self.work.manifest.limits,
                self.work.manifest.logs,
                check.text if isinstance(check, ReadyLine) else None,
                self._lapse,
            )
        )

    @property
    def _lapse(self) -> Lapse | None:
        if self.work.stop_after is None:
            return None
        return Lapse(self.work.stop_after, signal.Signals[self.work.manifest.stop_signal], self._stop_grace)

    @property
    def _cut_off(self) -> bool:
        """Whether it must not run now."""
        return self.work.stop_after is not None and self._runtime.silent_for() >= self.work.stop_after

    async def _until_ready(self, run: Run) -> str | None:
        """Wait until the run is ready; returns what is wrong when it ended before."""
        await run.started.wait()
        readiness = self.work.manifest.readiness
        match readiness.check:
            case None:
                pass
            case Up(seconds):
                await _unless_over(run, partial(anyio.sleep, seconds))
            case ReadyLine(text):
                self._missing = f"the line {text!r} was not written"
                await _unless_over(run, run.said.wait)
            case Tcp() | Http() as check:
                await _unless_over(run, partial(self._until_answered, check, readiness.interval))
        return _ending_of(run) if run.over.is_set() else None

    async def _until_answered(self, check: Tcp | Http, interval: float) -> None:
        while problem := await probe(check, self.port or 0, PROBE_TIMEOUT):
            self._missing = problem
            await anyio.sleep(interval)

    async def _clean_up(self) -> tuple[str, ...]:
        """Stop the run, even where the caller is cancelled; returns its last lines."""
        run = self._run
        with anyio.CancelScope(shield=True):
            try:
                await self._end(self._stop_grace)
            except SliceFailed as error:
                log.error("slice is not stopped", slice=str(self.key), reason=str(error))
        return () if run is None else run.last

    async def _end(self, grace: float) -> None:
        """Stop the run. Once begun this goes on, whatever becomes of the caller."""
        self._begin_ending(grace)
        await self._finish_ending()

    def _begin_ending(self, grace: float) -> None:
        if self._ending is None and self._run is not None:
            ending = self._ending = asyncio.get_running_loop().create_task(self._stop(self._run, grace))
            ending.add_done_callback(_look)

    async def _finish_ending(self) -> None:
        if self._ending is not None:
            await asyncio.shield(self._ending)

    async def _stop(self, run: Run, grace: float) -> None:
        try:
            number = signal.Signals[self.work.manifest.stop_signal]
            await self._runtime.keeping.stop(run, number, 0 if run.over.is_set() else grace)
            self._run = None
        finally:
            self._ending = None

    async def _watch(self) -> None:
        """Guard an active slice: start it again when it ends, and tell when that is no use."""
        try:
            reason, fatal = await self._until_hopeless()
        except Exception as error:  # an error of ours must not look like a slice that runs
            log.exception("guarding a slice failed", slice=str(self.key))
            await self._clean_up()
            reason, fatal = f"{type(error).__name__}: {error}", False
        self.active = False
        self._guard = None
        self._runtime.crashed(self.key, reason, fatal)

    async def _until_hopeless(self) -> tuple[str, bool]:
        restart = self.work.manifest.restart
        failures = 0
        while True:
            run = self._run
            assert run is not None
            problem = await self._until_over(run)
            uptime = clock.now() - run.begun
            clean = run.over.is_set() and run.status == 0 and problem is None
            problem = problem or _ending_of(run)
            # What is left of a program that ended by itself is not asked; a hung one is.
            reason = _reason(f"{problem} after {uptime:.1f} s", await self._clean_up())
            if self._run is not None:  # never two of them
                return f"{reason}; it cannot be stopped", False
            if run.lapsed:
                return reason, False
            while True:
                if run.lost:
                    delay = 0.0  # not its fault
                    run.lost = False
                else:
                    verdict = decide(restart, failures, uptime, clean=clean)
                    if not isinstance(verdict, Again):
                        return f"{reason}; {verdict.why}", False
                    delay, failures = verdict
                log.warning("slice is started again", slice=str(self.key), reason=reason, delay=delay)
                await anyio.sleep(delay)
                uptime, clean = 0.0, False
                try:
                    await self._begin()
                except SliceFailed as error:
                    reason = str(error)
                    if error.fatal or self._run is not None or self._cut_off:
                        return reason, error.fatal
                else:
                    break

    async def _until_over(self, run: Run) -> str | None:
        """Wait until the program ended, or is not alive; returns what was wrong in the second case."""
        liveness = self.work.manifest.liveness
        if liveness is None:
            await run.over.wait()
            return None
        return await _unless_over(run, partial(self._until_dead, liveness))

    async def _until_dead(self, liveness: Liveness) -> str:
        failed = 0
        while True:
            await anyio.sleep(liveness.interval)
            problem = await probe(liveness.check, self.port or 0, liveness.timeout)
            failed = failed + 1 if problem else 0
            if failed >= liveness.failures:
                return f"not alive ({problem}, {failed} times in a row)"

    _missing = ""
    """What a program that is not ready yet lacks."""


T = TypeVar("T")


async def _unless_over(run: Run, wait: Callable[[], Coroutine[object, object, T]]) -> T | None:
    """Wait for something as long as the program runs; returns None when that ended first."""
    result: T | None = None
    async with anyio.create_task_group() as tasks:

        async def over() -> None:
            await run.over.wait()
            tasks.cancel_scope.cancel()

        tasks.start_soon(over)
        result = await wait()
        tasks.cancel_scope.cancel()
    return result


def _ending_of(run: Run) -> str:
    if run.lapsed:
        return CUT_OFF
    if run.refused is not None:
        return run.refused.problem
    if run.status is None:
        return LOST
    if run.status >= 0:
        return f"exit status {run.status}"
    try:
        return f"killed by {signal.Signals(-run.status).name}"
    except ValueError:
        return f"killed by signal {-run.status}"


def _reason(problem: str, last: tuple[str, ...]) -> str:
    lines = [line for line in last if line]
    return f"{problem}; last output: {' | '.join(lines)}" if lines else problem


def _look(task: asyncio.Task[None]) -> None:
    """An ending that failed is told to who waits for it; if nobody does any more, that is no news."""
    if not task.cancelled():
        task.exception()
