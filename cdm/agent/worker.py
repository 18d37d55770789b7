"""Sees to one slice: compares its key with what the runtime has of it, and takes the step that `next_step` names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import anyio

from cdm import clock
from cdm.agent.due_port import has_its_port
from cdm.agent.elsewhere import Doubt
from cdm.agent.holding import Holding
from cdm.agent.known import Current, is_late
from cdm.agent.lingering import COMMANDS_TO_GO, GOING, Lingering
from cdm.agent.own_key import OwnKey
from cdm.agent.program import Program
from cdm.agent.reporter import PROMPT, Reporter
from cdm.agent.reports import HeldUp
from cdm.agent.shared import Shared
from cdm.agent.steps import Do, LocalState, StateReport, may_fail, next_step
from cdm.agent.undone import Undone
from cdm.errors import SliceFailed
from cdm.log import Log
from cdm.model.blueprint import Overrides
from cdm.model.keys import SliceKey
from cdm.model.slice import SliceState, SliceValue
from cdm.wakeup import Moment, Wakeup

log = Log("cdm.agent")

_UP = (SliceState.ACTIVATING, SliceState.ACTIVE)

TURN_DEADLINE = 86_400.0
"""Seconds that are told of a slice that waits for its turn: the most that a leader believes."""


class _Beginning(NamedTuple):
    """What is being loaded or activated, and for which state of the key."""

    scope: anyio.CancelScope
    state: SliceState | None


class Worker:
    """Sees to one slice: `take_step` until it `is_finished`."""

    def __init__(self, shared: Shared, key: SliceKey) -> None:
        self.key = key
        self.at_rest = Moment()
        """Set once the node stops and nothing of the slice runs."""
        self.withdrawn = Moment()
        """Set once the node leaves and there is no key that it may delete."""
        self._shared = shared
        self.program = Program(shared, key, self._leaves_within)
        self._lingering = Lingering()
        self._news = Wakeup()
        self._key = OwnKey(shared.slices, key)
        self._holding = Holding(shared, self._key, self.program)
        self._crash: SliceFailed | None = None
        """Why the slice that was active is not any more, until that is reported."""
        self._refusal: SliceFailed | None = None
        """Why the last command that came is not obeyed, until that is reported."""
        self._beginning: _Beginning | None = None
        self._undone = Undone(key)
        self._reporter = Reporter(shared, self._key, self.program, self._holding, self._news, self.wake)

    # What it is told

    def learn(self, revision: int, value: SliceValue, at: float) -> None:
        """The key holds this; what is older than what is known is passed over.

        Args:
            revision: of this.
            value: what it holds.
            at: when that was stored, in seconds on `cdm.clock`.
        """
        if self._key.is_news(revision):
            if value.state is not SliceState.ACTIVATING:  # which may be the echo of what follows a refused command
                active = self.program.local_state is LocalState.ACTIVE
                late = self._shared.listed and not active and is_late(self._key.known, value)
                self._refusal = SliceFailed("a late ACTIVATE, which answers an earlier LOADED") if late else None
            if value.state is SliceState.LOAD:
                self.program.count_anew()
            self._key.learn(Current(revision, value))
            self.program.cores = value.needs.cpu if value.needs else 0.0
            self._lingering.learn(value, at)
            self.wake()

    def removed(self, revision: int) -> None:
        """The key is gone, since this revision."""
        if self._key.removed(revision):
            self.wake()

    def forget(self) -> None:
        """The stream of ``slices`` is another one than before: its revisions say nothing about the old ones."""
        if self._key.forget():
            self.wake()

    def crashed(self, failure: SliceFailed) -> None:
        """The slice that was active ended, and the runtime has given it up."""
        self._crash = failure
        self.program.free_port()
        self.wake()

    def restarting(self, reason: str, within: float) -> None:
        """The slice that was active ended, and the runtime starts it again."""
        self.program.restarting(reason, within)
        self.wake()

    def restarted(self, port: int | None) -> None:
        """It is ready again."""
        self.program.restarted(port)
        self.wake()

    def wake(self) -> None:
        """The key or the connection has changed: what was begun for another state is cancelled."""
        begun = self._beginning
        if begun and (self._shared.resigned or self._key.state is not begun.state or self.may_run_elsewhere):
            begun.scope.cancel()
        self._news.set()

    # What it knows

    @property
    def is_finished(self) -> bool:
        """Whether there is no key, nothing runs under it, and nothing happened that was not looked at."""
        return self._key.known is None and self.program.nothing_runs and not self._news.is_set

    @property
    def may_withdraw(self) -> bool:
        """Whether its key may be deleted when the node leaves: what has no key counts as stopped."""
        return (self.at_rest.is_set() or not self.program.exclusive) and not self.may_run_elsewhere

    @property
    def may_run_elsewhere(self) -> bool:
        """Whether another process of this node may still run it, and it must not run twice."""
        return self._holding.doubt is not None

    @property
    def _wanted(self) -> tuple[Overrides | None, str | None]:
        """What it is to be loaded with: overrides, and the digest of its content."""
        value = self._key.value
        return (value.overrides, value.content) if value is not None else (None, None)

    def _leaves_within(self) -> float | None:
        """Seconds that it goes on serving; None: it is not told to go."""
        state = self._key.state
        if state is None:
            return 0.0
        return self._lingering.left(clock.now()) if state in GOING else None

    @property
    def _untold(self) -> bool:
        """Whether the key tells of another start than the last one, or of an address that this node had before."""
        value = self._key.value
        if value is None or value.state not in _UP:
            return False
        if value.state is SliceState.ACTIVE and self._shared.address() not in (None, value.address):
            return True
        started = self.program.local_state in (LocalState.RESTARTING, LocalState.ACTIVE)
        return started and value.restarts != self.program.restarts

    # What it does

    async def take_step(self) -> None:
        """Do one thing about the slice; where nothing is to be done, wait until something changes."""
        if self._shared.leaving:
            await self._withdraw()
            return
        state = self._key.state
        if state is not None and (doubtful := self._holding.doubt) is not None:
            await self._hold_back(state, doubtful)
            return
        if state not in _UP:
            self._crash = None
        elif self._crash is not None:
            await self._failed(self._crash, state)
            return
        if self._shared.resigned and self.program.exclusive and not self.at_rest.is_set():
            if await self._is_stopped():
                self.at_rest.set()
            return
        if self.program.found and state not in COMMANDS_TO_GO:  # which are answered first
            await self._see_to_found(state)
        else:
            await self._take_next(state)

    async def _hold_back(self, state: SliceState, doubtful: Doubt) -> None:
        """Neither begin it nor say that it is stopped, until nothing of it can run elsewhere."""
        if not self.program.nothing_runs:  # somebody else has begun it since
            try:
                await self.program.unload()
            except SliceFailed as error:
                self._undone.tell("slice may run elsewhere, and is not stopped", error)
                await self._reporter.pause()
            else:
                self._undone.over()
            return
        if (untold := self._holding.untold(state, doubtful)) is not None:
            if await self._reporter.report(untold[0], wait=untold[1]):
                self._holding.told(doubtful)
            return
        within = doubtful.until - clock.now()
        with anyio.move_on_after(within if within > 0 else None):  # else for a heartbeat that NATS takes
            await self._news.wait()

    async def _take_next(self, state: SliceState | None) -> None:
        lingers = self._lingering.left(clock.now())
        step = next_step(state, self.program.local_state, lingers=lingers > 0)
        if step is None and self._untold:
            await self._reporter.report(state)
        elif step is None and lingers:
            with anyio.move_on_after(lingers):
                await self._news.wait()
        elif step is None:
            await self._news.wait()
        elif isinstance(step, StateReport):
            if self._shared.resigned and step.begins:
                await self._news.wait()
            else:
                await self._reporter.report(step.state)
        elif step.begins:
            await self._begin(step, state)
        else:
            await self._end(step, state)

    def finish(self) -> None:
        """Nothing is left to be done."""
        self.program.release()
        self.withdrawn.set()

    async def _withdraw(self) -> None:
        if isinstance(self._key.known, Current) and self.may_withdraw:
            await self._reporter.report(None)
        else:
            self.withdrawn.set()
            await self._news.wait()

    async def _see_to_found(self, state: SliceState | None) -> None:
        """Go on with what an earlier process of the node left, where the key says that it runs; else stop it."""
        shared, lingers = self._shared, self._lingering.left(clock.now())
        held_up = not shared.listed or (state in _UP and not shared.may_begin())
        if held_up or lingers:
            with anyio.move_on_after(None if held_up else lingers):
                await self._news.wait()
            return
        if state in _UP:
            try:
                async with shared.turns[Do.LOAD]:
                    if (value := self._key.value) is not None and value.state is state:
                        await self.program.adopt(*self._wanted, value.restarts)
                        log.info("goes on since an earlier process of the node", slice=str(self.key))
                return
            except SliceFailed as error:
                log.warning("does not go on", slice=str(self.key), reason=str(error))
                if self.program.found and not error.fatal:  # NATS was away just now
                    await self._reporter.pause()
                    return
        await self._end(Do.UNLOAD, state)

    async def _begin(self, step: Do, state: SliceState | None) -> None:
        shared = self._shared
        if self._refusal is not None:
            await self._failed(self._refusal, state)
            return
        if not shared.may_begin():
            await self._news.wait()
            return
        failure: SliceFailed | None = None
        if not self.program.is_loaded_with(*self._wanted):
            step = Do.LOAD
        with anyio.CancelScope() as scope:
            self._beginning = _Beginning(scope, state)
            try:
                if step is Do.ACTIVATE and not await has_its_port(
                    self.program, shared.ports, partial(self._reporter.tell_on, state)
                ):
                    return
                async with self._turn(step, state):
                    if not shared.may_begin() or not await self._reporter.counts_from_now(state):
                        return  # NATS was lost, or the leader wrote in between
                    if step is Do.LOAD:
                        await self.program.load(*self._wanted, partial(self._reporter.counts_from_now, state))
                    else:
                        await self.program.activate()
            except SliceFailed as error:
                failure = error
            finally:
                self._beginning = None
                self.program.free_port()
        if failure is not None:
            await self._failed(failure, state)

    @asynccontextmanager
    async def _turn(self, step: Do, state: SliceState | None) -> AsyncIterator[None]:
        """Wait for a turn. What waits for longer than a moment tells so: waiting is not being stuck."""
        turns = self._shared.turns[step]
        with anyio.move_on_after(PROMPT / 2) as moment:
            await turns.acquire()
        if moment.cancelled_caught:
            if self._key.value is not None and self._key.value.deadline != TURN_DEADLINE:
                await self._reporter.tell_on(state, HeldUp(TURN_DEADLINE))
            await turns.acquire()
        try:
            yield
        finally:
            turns.release()

    async def _end(self, step: Do, state: SliceState | None) -> None:
        if self._key.state is None:
            log.info("its key is gone: stopping", slice=str(self.key))
        try:
            if step is Do.DEACTIVATE:
                await self.program.deactivate()
            else:
                await self.program.unload()
        except SliceFailed as error:
            await self._failed(error, state)
        else:
            self._undone.over()

    async def _failed(self, error: SliceFailed, state: SliceState | None) -> None:
        """Report what failed in this state where the key still has it and may say FAILED; else the step is retried."""
        if self.program.exclusive and not await self._is_stopped():
            return
        if self._key.state is not state:
            return  # that is answered next
        if may_fail(state):
            await self._reporter.report(SliceState.FAILED, error)
        else:
            self._undone.tell("slice fails", error)
            await self._reporter.pause()

    async def _is_stopped(self) -> bool:
        """Stop it, and tell whether nothing of it runs: others take what is FAILED for stopped."""
        if self.program.nothing_runs:
            return True
        try:
            await self.program.deactivate()
        except SliceFailed as error:
            self._undone.tell("slice must not run twice, and is not stopped", error)
            await self._reporter.pause()
            return False
        self._undone.over()
        return True
