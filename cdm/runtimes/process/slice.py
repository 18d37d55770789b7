"""The life of one slice: at most one run at a time, started again when it ends."""

from __future__ import annotations

import errno
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from pathlib import Path
from typing import Protocol

import anyio
from msgspec.structs import replace

from cdm import clock
from cdm.errors import SliceFailed
from cdm.log import Log
from cdm.model.keys import SliceKey
from cdm.model.manifest import Http, Line, Readiness, Tcp, Up
from cdm.runtimes import Surroundings, Work
from cdm.runtimes.process.checks import CannotAsk, probe
from cdm.runtimes.process.given import NO_SECRETS, Given
from cdm.runtimes.process.handle import RunHandle
from cdm.runtimes.process.life import Life, SlicePhase
from cdm.runtimes.process.liveness import until_dead
from cdm.runtimes.process.notes import RunNote
from cdm.runtimes.process.ports import fixed_ports, refusal
from cdm.runtimes.process.restart import Again, GiveUp, decide
from cdm.runtimes.process.supervising import Keeping

log = Log("cdm.process")

PROBE_TIMEOUT = 5.0
"""Seconds that one check for readiness may take."""
PORT_PATIENCE = 10.0
"""Seconds that a port which another slice of this node has is waited for. Longer would keep a slice from being started
on another node."""
PORT_INTERVAL = 0.05
FIRST_LOOK = 5.0
"""Seconds without the right answer after which it is looked who listens, at most; then after twice as long each time.
"""
STRANGERS = 2
"""Times in a row that another process was found to listen, after which the program is not waited for any longer."""
OTHER_PORTS = 2
"""Times that another port is chosen where somebody else was faster."""


class SliceHost(Protocol):
    """What a slice needs of its runtime."""

    @property
    def supervisor(self) -> Keeping:
        """Keeps what runs. Raises `SliceFailed` while the runtime is not started."""

    def ports(self, but: Slice) -> Collection[int]:
        """The ports that other slices have."""

    def output_folder(self, key: SliceKey) -> Path:
        """Where a slice's output goes."""

    def secrets_folder(self, run: str) -> Path:
        """Where the files with a run's secrets go."""

    @property
    def surroundings(self) -> Surroundings:
        """Whom it tells how slices fare."""


class Slice(ABC):
    """One slice that is loaded.

    Args:
        work: what it runs.
        host: its runtime.
    """

    def __init__(self, work: Work, host: SliceHost) -> None:
        self.key = work.key
        self.work = work
        self.phase = SlicePhase.LOADED
        self.port: int | None = None
        """The port that it was given. It keeps it when it is started again by itself, for others know it, unless
        somebody else has it by then."""
        self._robbed = False
        """Whether somebody else has the port that was free when it was chosen."""
        self._host = host
        self._run: RunHandle | None = None
        """What may have living processes."""
        self._given = NO_SECRETS
        """The secrets of that run."""
        self._note: RunNote | None = None
        """What the next process of the node is to know of that run."""
        self._life = Life()
        """The present one, or the last."""

    @property
    def active(self) -> bool:
        """Whether it serves, or is started again without being asked."""
        return self.phase in (SlicePhase.ACTIVE, SlicePhase.RESTARTING)

    async def activate(self) -> int | None:
        """Start it, and wait until it is ready; returns its port. Raises `SliceFailed`."""
        if self.active:
            return self.port
        await self.deactivate()  # after a call that was cancelled
        life = self._begin_life(SlicePhase.STARTING, self._live)
        try:
            await life.settled.wait()
        except BaseException:
            life.scope.cancel()
            with anyio.CancelScope(shield=True):
                await life.over.wait()
            raise
        if life.failure is not None:
            raise life.failure
        return self.port

    def go_on(self, run: RunHandle, note: RunNote) -> None:
        """Go on with a run that was ready, and that an earlier process of this node began."""
        self._run, self.port, self._note = run, note.port, note
        self._given = Given.again(
            self._host.secrets_folder(run.name), self.work.secrets, self._host.surroundings.secrets
        )
        self._begin_life(SlicePhase.ACTIVE, self._live)

    async def deactivate(self) -> None:
        """Stop it. The stop goes on where the caller is cancelled. Raises `SliceFailed` where something lives on."""
        if self.phase is SlicePhase.LOADED:
            return
        life = self._begin_life(SlicePhase.STOPPING, self._finish) if self.phase is SlicePhase.STUCK else self._life
        self.phase = SlicePhase.STOPPING
        life.scope.cancel()
        await life.over.wait()
        if life.stuck is not None:
            raise life.stuck

    def _begin_life(self, phase: SlicePhase, run: Callable[[Life], Coroutine[object, object, None]]) -> Life:
        tasks = self._host.supervisor.tasks
        life = self._life = Life()
        self.phase = phase
        tasks.start_soon(run, life, name=f"slice {self.key}")
        return life

    async def _live(self, life: Life) -> None:
        """Start it, keep it going until that is no use or it is to be stopped, and stop it."""
        given_up: SliceFailed | None = None
        try:
            with life.scope:
                goes_on = self._run if self.phase is SlicePhase.ACTIVE else None
                run = goes_on or await self._begin()
                self.phase = SlicePhase.ACTIVE
                life.failure = None
                life.settled.set()
                if goes_on is None:
                    self._is_ready(None)
                given_up = await self._until_hopeless(run)
        except Exception as error:  # an error of ours must not look like a slice that runs
            failure = error if isinstance(error, SliceFailed) else SliceFailed(f"{type(error).__name__}: {error}")
            if failure is not error:
                log.exception("running a slice failed", slice=str(self.key))
            if life.settled.is_set():
                given_up = failure
            else:
                life.failure = failure
        finally:
            await self._finish(life)
        if given_up is not None and not life.scope.cancel_called:
            tell = self._host.surroundings
            if given_up.lapsed:
                tell.lapsed(self.key, str(given_up))
            else:
                tell.crashed(self.key, str(given_up), given_up.fatal)

    async def _finish(self, life: Life) -> None:
        self.phase = SlicePhase.STOPPING
        try:
            await self._stop()
        except SliceFailed as error:
            life.stuck = error
        finally:
            self.phase = SlicePhase.STUCK
            if self._run is None:
                self.phase, self.port = SlicePhase.LOADED, None
            life.over.set()
            life.settled.set()

    # Starting

    async def _begin(self) -> RunHandle:
        """Start a run, and wait until it is ready. Raises `SliceFailed` once it is stopped, if it can be."""
        until = anyio.current_time() + self.work.manifest.readiness.timeout
        if self._lost_its_port():
            self._give_up_port("it is in use by now")
        others = OTHER_PORTS if self.port is None else 0
        while True:
            try:
                return await self._begin_once(until)
            except SliceFailed as error:
                in_vain = error.fatal or error.lapsed or self._run is not None or anyio.current_time() >= until
                if in_vain or not others or not (self._robbed or self._lost_its_port()):
                    raise
                self._give_up_port(str(error))
                others -= 1

    async def _begin_once(self, until: float) -> RunHandle:
        readiness = self.work.manifest.readiness
        self._robbed = False
        hopeless: str | None = None
        with anyio.CancelScope(deadline=until) as scope:
            self._run = await self._spawn()
            hopeless = await self._until_ready(self._run)
        run = self._run
        if scope.cancelled_caught:
            lacking = run.lacking if run else ""
            problem = f"not ready within {readiness.timeout:g} s" + (f" ({lacking})" if lacking else "")
        else:
            assert run is not None
            if not run.over.is_set() and hopeless is None:
                return run
            problem = hopeless or run.ending
        lapsed = run is not None and run.lapsed
        raise SliceFailed(_reason(problem, await self._clear_up()), fatal=run is not None and run.unfit, lapsed=lapsed)

    def _give_up_port(self, reason: str) -> None:
        log.info("another port is chosen", slice=str(self.key), port=self.port, reason=reason)
        self.port = None

    @abstractmethod
    async def _spawn(self) -> RunHandle:
        """Start a run, and have it noted. Raises `SliceFailed`: it cannot be started."""

    def _is_ready(self, before: Again | None) -> None:
        """Note that the run is ready, and what was decided before it was started."""
        if self._run is not None and self._note is not None:
            failures, delay = (before.failures, before.delay) if before else (0, 0.0)
            self._note = replace(self._note, ready=clock.now(), failures=failures, delay=delay)
            self._host.supervisor.note(self._run, self._note)

    async def _wait_for_ports(self) -> None:
        """Wait a while for fixed ports that another slice of this node has: it may be about to stop."""
        wanted = fixed_ports(self.work.manifest, self.port)
        with anyio.move_on_after(PORT_PATIENCE):
            while not wanted.isdisjoint(self._host.ports(self)):  # noqa: ASYNC110  # seldom, and not for long
                await anyio.sleep(PORT_INTERVAL)

    @property
    def _stop_signal(self) -> signal.Signals:
        return signal.Signals[self.work.manifest.stop_signal]

    @property
    def _cut_off(self) -> bool:
        """Whether it must not run now: others may start it elsewhere."""
        return self.work.stop_after is not None and self._host.supervisor.silent_for() >= self.work.stop_after

    async def _until_ready(self, run: RunHandle) -> str | None:
        """Wait until the run is ready, or over. Returns why it never will be, if that is known."""
        await run.started.wait()
        readiness = self.work.manifest.readiness
        match readiness.check:
            case None:
                pass
            case Up(seconds):
                await run.unless_over(partial(anyio.sleep, seconds))
            case Line(text):
                run.lacking = f"the line {text!r} was not written"
                await run.unless_over(run.said.wait)
            case Tcp() | Http() as check:
                return await run.unless_over(partial(self._until_answered, run, check, readiness))
        return None

    async def _until_answered(self, run: RunHandle, check: Tcp | Http, readiness: Readiness) -> str | None:
        began, look_after, strangers = clock.now(), min(FIRST_LOOK, readiness.timeout / 4), 0
        while True:
            try:
                problem = await self._ask(run, check, PROBE_TIMEOUT)
            except CannotAsk as error:
                run.lacking = str(error)
                await anyio.sleep(readiness.interval)
                continue
            # A wrong answer, or none, may be somebody else's, too. To find out costs more than to ask.
            waited = clock.now() - began
            if problem is None or strangers or waited >= look_after:
                look_after = 2 * waited
                stranger = await self._taken_by_a_stranger(run, check)
                if problem is None and stranger is None:
                    return None
                strangers = strangers + 1 if stranger else 0
                problem = stranger or problem
                if strangers == STRANGERS:
                    self._robbed = True
                    return problem
            run.lacking = problem or ""
            await anyio.sleep(readiness.interval)

    async def _ask(self, run: RunHandle, check: Tcp | Http, timeout: float) -> str | None:
        """What is wrong when a check is made once; None: nothing. Raises `CannotAsk`."""
        return await probe(check, self.port or 0, timeout)

    async def _taken_by_a_stranger(self, run: RunHandle, check: Tcp | Http) -> str | None:
        """What is wrong where somebody else listens in the program's place; None: nobody does, as far as is known."""
        return None

    def _lost_its_port(self) -> bool:
        """Whether somebody else has the port that was chosen for it, now that it is stopped: most programs end then."""
        if self.work.manifest.port != "auto" or self.port is None:
            return False
        error = refusal(self.port)
        return error is not None and error.errno == errno.EADDRINUSE

    # Stopping

    async def _stop(self) -> None:
        """Stop the run, if there is one. Raises `SliceFailed`; then it stays the present run."""
        run = self._run
        if run is not None:
            # What is left of a program that ended by itself is not asked.
            grace = 0 if run.over.is_set() else self.work.manifest.stop_grace
            await self._host.supervisor.stop(run, self._stop_signal, grace)
            self._run = None
        self._given.remove()

    async def _clear_up(self) -> tuple[str, ...]:
        """Stop the run; returns its last lines, without secrets."""
        run, given = self._run, self._given
        try:
            await self._stop()
        except SliceFailed as error:
            log.error("slice is not stopped", slice=str(self.key), reason=str(error))
        return () if run is None else tuple(map(given.hide, run.last))

    # Keeping it running

    async def _until_hopeless(self, run: RunHandle) -> SliceFailed:
        """Start the slice again whenever it ends; returns why that is no use any more."""
        manifest, tell = self.work.manifest, self._host.surroundings
        noted = self._note
        before = noted.before if noted else None
        ready = (noted.ready if noted else None) or clock.now()
        verdict: Again | GiveUp
        while True:
            problem = await self._until_over(run)
            self.phase = SlicePhase.RESTARTING
            now = clock.now()
            reason = f"{problem or run.ending} after {now - run.begun:.1f} s"
            if run.excused:
                verdict = Again(0.0, before.failures if before else 0)
            else:
                verdict = decide(manifest.restart, before, now - ready, clean=run.clean and problem is None)
            if problem is not None and isinstance(verdict, Again):  # stopping it may take a while
                tell.restarting(self.key, reason, manifest.stop_grace + self._longest_start(verdict))
            reason = _reason(reason, await self._clear_up())
            if self._run is not None:  # never two of them
                return SliceFailed(f"{reason}; it cannot be stopped")
            if run.lapsed:
                return SliceFailed(reason, lapsed=True)
            told = problem is not None
            while isinstance(verdict, Again):
                if not told:
                    tell.restarting(self.key, reason, self._longest_start(verdict))
                log.warning("slice is started again", slice=str(self.key), reason=reason, delay=verdict.delay)
                await anyio.sleep(verdict.delay)
                try:
                    run = await self._begin()
                except SliceFailed as error:
                    reason, told = str(error), False
                    if error.fatal or self._run is not None or self._cut_off:
                        return SliceFailed(reason, fatal=error.fatal, lapsed=error.lapsed or self._cut_off)
                    verdict = decide(manifest.restart, verdict, 0.0, clean=False)
                else:
                    self.phase = SlicePhase.ACTIVE
                    ready, before = clock.now(), verdict
                    self._is_ready(before)
                    tell.restarted(self.key, self.port)
                    break
            else:
                return SliceFailed(f"{reason}; {verdict.why}")

    def _longest_start(self, verdict: Again) -> float:
        """Seconds that it may take until it is ready, or a failed start is stopped."""
        return verdict.delay + self.work.manifest.readiness.timeout + self.work.manifest.stop_grace

    async def _until_over(self, run: RunHandle) -> str | None:
        """Wait until the program ended, or is not alive; returns what was wrong in the second case."""
        liveness = self.work.manifest.liveness
        if liveness is None:
            await run.over.wait()
            return None
        ask = partial(self._ask, run, liveness.check)
        return await run.unless_over(partial(until_dead, self.key, liveness, ask))


def _reason(problem: str, last: tuple[str, ...]) -> str:
    lines = [line for line in last if line]
    return f"{problem}; last output: {' | '.join(lines)}" if lines else problem
