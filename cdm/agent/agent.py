"""The agent of one node: it obeys the commands under the node's slice keys, with a runtime that runs things.

Each slice has a worker, which looks at what its key holds and at what the runtime has of it, takes the step that
`cdm.agent.steps` names, and looks again; where nothing is to be done it sleeps until either changes. What it reports is
written by compare-and-set on the revision that it acted on: when the leader wrote in between, the write is refused,
the mirror brings the newer command, and the worker obeys that. A command that arrives while something is being begun
for an older one interrupts it.

Without NATS everything keeps running and nothing new begins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import anyio
import anyio.abc
from msgspec.structs import replace

from cdm.agent.steps import Condition, Do, Report, may_fail, next_step
from cdm.dispatch.messages import Connected, Disconnected, ValuePut, ValueRemove
from cdm.dispatch.router import receiver
from cdm.errors import Conflict, InvalidManifest, SliceFailed, StoreError
from cdm.log import Log
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import LONGEST_LAST_GRACE, Overrides
from cdm.model.keys import SliceKey
from cdm.model.manifest import Manifest
from cdm.model.slice import SliceState, SliceValue
from cdm.runtimes import Runtime, Work
from cdm.store.bucket import Bucket
from cdm.store.wire import dump
from cdm.wakeup import Wakeup

log = Log("cdm.agent")

RESIGN_MARGIN = 6.0
"""Seconds for SIGKILL to have its effect, for what is not stopped within its grace."""
RETRY_PAUSE = 0.5
"""Seconds after which a write that was not stored, or a stop that failed, is tried again."""
LOADS = 16
"""Slices that are loaded at the same time; others wait for their turn."""
ACTIVATIONS = 64
"""The same of slices that are activated: most of that time they only get ready by themselves."""


class Fetched(Protocol):
    """An artifact's content on this node."""

    @property
    def folder(self) -> Path:
        """Where it is."""

    @property
    def manifest(self) -> Manifest:
        """How it is run."""

    @property
    def digest(self) -> str:
        """Which content it is."""


class Content(Protocol):
    """Where artifacts' content comes from."""

    async def get(self, artifact: Artifact) -> Fetched:
        """Fetch and verify it, unless it is there; raises `SliceFailed`."""

    def hold(self, digest: str) -> None:
        """A slice uses this content: it is not to be removed."""

    def release(self, digest: str) -> None:
        """A slice uses it no more."""


FORGOTTEN = 0
"""Stands for the revision of a value that was read in another stream."""
_UNKNOWN: tuple[int, SliceValue | None] = (0, None)


class Agent:
    """Keeps what runs on a node as its slice keys want it.

    Args:
        node: this node; other nodes' slices are passed over.
        slices: the bucket, to report to.
        runtime: runs slices.
        content: fetches artifacts.
        least_stop_after: seconds that ``stop_after`` must be at least, so that one lost heartbeat stops nothing.
    """

    def __init__(
        self, node: NodeId, slices: Bucket, runtime: Runtime, content: Content, least_stop_after: float = 0.0
    ) -> None:
        self.node = node
        self.slices = slices
        self.runtime = runtime
        self.content = content
        self.hearing = False
        """Whether the mirror is up to date: without NATS it is not."""
        self.least_stop_after = least_stop_after
        self.resigned = False
        """Whether the node stops: nothing new is begun."""
        self.turns = {Do.LOAD: anyio.Semaphore(LOADS), Do.ACTIVATE: anyio.Semaphore(ACTIVATIONS)}
        self.known: dict[SliceKey, tuple[int, SliceValue | None]] = {}
        """What the keys hold: revision and value; None: deleted here, and the mirror does not show it yet."""
        self.held: dict[SliceKey, str] = {}
        """The content that slices hold on to."""
        self._workers: dict[SliceKey, Worker] = {}
        self._unattended = Wakeup()

    # What happens

    @receiver
    def on_slice(self, put: ValuePut[SliceKey, SliceValue]) -> None:
        """A command came, or the echo of a report."""
        if put.key.node == self.node:
            self.learn(put.key, put.revision, put.value)

    @receiver
    def on_slice_removed(self, remove: ValueRemove[SliceKey, SliceValue]) -> None:
        """What runs under this key is to run no more."""
        known = self.known.get(remove.key)
        if known is not None and remove.revision >= known[0]:
            del self.known[remove.key]
            self._worker(remove.key).wake()

    @receiver
    def on_connection(self, change: Connected | Disconnected) -> None:
        """Commands can be heard, or not."""
        self.hearing = isinstance(change, Connected)
        self._wake_all()

    def may_begin(self) -> bool:
        """Whether anything new may come to run."""
        return self.hearing and not self.resigned

    def crashed(self, key: SliceKey, reason: str, fatal: bool) -> None:
        """A slice that was active ended, and the runtime has given it up."""
        log.warning("slice ended", slice=str(key), reason=reason, fatal=fatal or None)
        worker = self._worker(key)
        worker.crash = SliceFailed(reason, fatal=fatal)
        worker.wake()

    def forget(self) -> None:
        """The stream of ``slices`` is another one than before: its revisions say nothing about the old ones."""
        self.known = {key: (FORGOTTEN, value) for key, (_, value) in self.known.items() if value is not None}

    def learn(self, key: SliceKey, revision: int, value: SliceValue | None) -> None:
        """Take note of what a key holds; what is older than what is known is passed over."""
        before = self.known.get(key)
        if before is None or revision > before[0]:
            self.known[key] = (revision, value)
            self._worker(key).wake()

    # What is done about it

    async def run(self) -> None:
        """Work until cancelled. The runtime must be started."""
        async with anyio.create_task_group() as tasks:
            while True:
                for worker in list(self._workers.values()):
                    if not worker.started:
                        worker.started = True
                        tasks.start_soon(self._attend, worker)
                await self._unattended.wait()

    async def resign(self) -> None:
        """Begin nothing new from now on, and stop the slices that must not run twice."""
        self.resigned = True
        alone = [worker for worker in self._workers.values() if worker.alone]
        with anyio.move_on_after(LONGEST_LAST_GRACE + RESIGN_MARGIN) as scope:
            for worker in alone:
                worker.wake()
            for worker in alone:
                await worker.at_rest.wait()
        if scope.cancelled_caught:
            running = [str(worker.key) for worker in alone if not worker.at_rest.is_set()]
            log.error("slices that must not run twice are not stopped", slices=running)

    async def _attend(self, worker: Worker) -> None:
        await worker.run()
        del self._workers[worker.key]

    def _worker(self, key: SliceKey) -> Worker:
        worker = self._workers.get(key)
        if worker is None:
            worker = self._workers[key] = Worker(self, key)
            self._unattended.set()
        return worker

    def _wake_all(self) -> None:
        for worker in self._workers.values():
            worker.wake()


class Worker:
    """Sees to one slice, until there is nothing left to see to."""

    def __init__(self, agent: Agent, key: SliceKey) -> None:
        self.key = key
        self.started = False
        self.crash: SliceFailed | None = None
        """Why the slice that was active is not any more, until that is reported."""
        self.at_rest = anyio.Event()
        """Set once the node stops and nothing of the slice runs."""
        self._agent = agent
        self._news = Wakeup()
        self._beginning: anyio.CancelScope | None = None
        """What is being begun, and for which state of the key."""
        self._beginning_for: SliceState | None = None
        self._port: int | None = None
        self._loaded_with: Overrides | None = None

    def wake(self) -> None:
        """The key or the connection is another than before: what was begun for another state is not wanted now."""
        unwanted = self._agent.resigned or self._state is not self._beginning_for
        if self._beginning is not None and unwanted:
            self._beginning.cancel()
        self._news.set()

    @property
    def alone(self) -> bool:
        """Whether what is loaded must not run twice."""
        return self._loaded_with is not None and self._loaded_with.stop_after is not None

    @property
    def _state(self) -> SliceState | None:
        value = self._agent.known.get(self.key, _UNKNOWN)[1]
        return value.state if value is not None else None

    @property
    def _overrides(self) -> Overrides | None:
        value = self._agent.known.get(self.key, _UNKNOWN)[1]
        return value.overrides if value is not None else None

    @property
    def _told_port(self) -> int | None:
        value = self._agent.known.get(self.key, _UNKNOWN)[1]
        return value.port if value is not None else None

    @property
    def _condition(self) -> Condition:
        active = self._agent.runtime.slices.get(self.key)
        if active is None:
            return Condition.NOTHING
        return Condition.ACTIVE if active else Condition.LOADED

    async def run(self) -> None:
        """Take step after step; returns when the key is gone and nothing runs."""
        while True:
            state = self._state
            if state is not SliceState.ACTIVE:
                self.crash = None
            elif self.crash is not None:
                await self._failed(self.crash)
                continue
            if self._agent.resigned and self.alone and not self.at_rest.is_set():
                if await self._is_stopped():
                    self.at_rest.set()
                continue
            step = next_step(state, self._condition)
            if step is None:
                if state is None and not self._news.is_set:
                    self._let_go()  # of what was fetched, and never came to be loaded
                    return
                await self._news.wait()
            elif isinstance(step, Report):
                await self._report(step.state)
            elif step.begins:
                await self._begin(step, state)
            else:
                await self._end(step)

    async def _begin(self, step: Do, state: SliceState | None) -> None:
        agent = self._agent
        if not agent.may_begin():
            await self._news.wait()
            return
        failure: SliceFailed | None = None
        if self._loaded_with != self._overrides:
            step = Do.LOAD
        with anyio.CancelScope() as scope:
            self._beginning, self._beginning_for = scope, state
            try:
                async with agent.turns[step]:
                    if not agent.may_begin():
                        return  # NATS was lost while it waited for its turn
                    if step is Do.LOAD:
                        await self._load()
                    else:
                        self._port = await agent.runtime.activate(self.key)
            except SliceFailed as error:
                failure = error
            finally:
                self._beginning = None
        if failure is not None:
            await self._failed(failure)
        elif state is self._state is SliceState.ACTIVE and step is Do.ACTIVATE and self._port != self._told_port:
            await self._report(SliceState.ACTIVE)  # it serves again, elsewhere than it said

    async def _load(self) -> None:
        agent = self._agent
        stop_after = self._overrides.stop_after if self._overrides else None
        if stop_after is not None:
            self._refuse_unless_it_can_lapse(stop_after)
        fetched = await agent.content.get(self.key.artifact)
        overrides = self._overrides
        try:
            manifest = _overridden(fetched.manifest, overrides)
        except InvalidManifest as error:
            raise SliceFailed(f"overrides: {error}", fatal=True) from None
        agent.content.hold(fetched.digest)
        self._let_go()
        agent.held[self.key] = fetched.digest
        await agent.runtime.load(Work(self.key, fetched.folder, manifest, stop_after))
        self._loaded_with = overrides

    def _refuse_unless_it_can_lapse(self, stop_after: float) -> None:
        agent = self._agent
        if not agent.runtime.lapses:
            raise SliceFailed("stop_after: this node's runtime does not stop slices by itself", fatal=True)
        if stop_after < agent.least_stop_after:
            raise SliceFailed(
                f"stop_after: {stop_after:g} s is too short for this node's heartbeats;"
                f" at least {agent.least_stop_after:g} s (--node-ttl)",
                fatal=True,
            )

    def _let_go(self) -> None:
        if (digest := self._agent.held.pop(self.key, None)) is not None:
            self._agent.content.release(digest)

    async def _end(self, step: Do) -> None:
        agent = self._agent
        if self._state is None:
            log.info("its key is gone: stopping", slice=str(self.key))
        try:
            if step is Do.DEACTIVATE:
                await agent.runtime.deactivate(self.key)
            else:
                await agent.runtime.unload(self.key)
                self._let_go()
        except SliceFailed as error:
            await self._failed(error)

    async def _failed(self, error: SliceFailed) -> None:
        """Report it where it may be reported; elsewhere it is tried again."""
        if self.alone and not await self._is_stopped():
            return
        if may_fail(self._state):
            await self._report(SliceState.FAILED, error)
        else:
            log.warning("slice fails", slice=str(self.key), reason=str(error))
            await self._pause()

    async def _is_stopped(self) -> bool:
        """Whether nothing of it runs. Others take what is FAILED for stopped, and this slice must not run twice."""
        if self._condition is Condition.NOTHING:
            return True
        try:
            await self._agent.runtime.deactivate(self.key)
        except SliceFailed as error:
            log.warning("slice must not run twice, and is not stopped", slice=str(self.key), reason=str(error))
            await self._pause()
            return False
        return True

    async def _report(self, state: SliceState | None, error: SliceFailed | None = None) -> None:
        agent = self._agent
        known = agent.known.get(self.key, _UNKNOWN)
        revision, value = known
        if value is None:
            return
        if revision == FORGOTTEN:
            await self._pause()  # the mirror tells first whether there is such a key
            return
        said = None if state is None else _reported(value, state, error, self._port)
        try:
            if said is None:
                revision = await agent.slices.delete(self.key, expect=revision)
            else:
                revision = await agent.slices.put(self.key, dump(said), expect=revision)
            # Where the mirror was faster it has told of this write, and maybe that the key is gone since.
            if agent.known.get(self.key) is known:
                agent.learn(self.key, revision, said)
        except Conflict:
            # The leader wrote in between: the mirror brings it, if it has not yet.
            if agent.known.get(self.key, _UNKNOWN) == known:
                await self._pause()
        except StoreError as problem:
            log.debug("not reported yet", slice=str(self.key), reason=str(problem))
            await self._pause()
        else:
            say = log.warning if error else log.info
            say(str(state or "unloaded"), slice=str(self.key), reason=str(error) if error else None)

    async def _pause(self) -> None:
        """Wait for news, but not for ever."""
        with anyio.move_on_after(RETRY_PAUSE):
            await self._news.wait()


def _reported(value: SliceValue, state: SliceState, error: SliceFailed | None, port: int | None) -> SliceValue:
    """The value that tells of this state: what the command said goes with it."""
    return replace(
        value,
        state=state,
        reason=str(error) if error else None,
        fatal=error.fatal if error else False,
        port=port if state is SliceState.ACTIVE else None,
    )


def _overridden(manifest: Manifest, overrides: Overrides | None) -> Manifest:
    if overrides is None:
        return manifest
    args = manifest.args if overrides.args is None else overrides.args
    grace = manifest.stop_grace if overrides.stop_after is None else min(manifest.stop_grace, LONGEST_LAST_GRACE)
    return replace(manifest, env={**manifest.env, **overrides.env}, args=args, stop_grace=grace)
