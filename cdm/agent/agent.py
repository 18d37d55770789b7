"""The agent of one node: it obeys the commands under the node's slice keys, with a runtime that runs things.

Each slice has a worker, which looks at what its key holds and at what the runtime has of it, takes the step that
`cdm.agent.steps` names, and looks again; where nothing is to be done it sleeps until either changes. What it reports is
written by compare-and-set on the revision that it acted on: when the leader wrote in between, the write is refused,
the mirror tells of the newer command, and the worker obeys that. A command that arrives while something is being begun
for an older one interrupts it.

Without NATS everything keeps running and nothing new begins.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

from cdm.agent.shared import Shared
from cdm.agent.terms import Terms
from cdm.agent.trust import Trust
from cdm.agent.worker import Worker
from cdm.artifacts.cache import Cache
from cdm.dispatch.messages import Connected, Disconnected, ValuePut, ValueRemove
from cdm.dispatch.router import receiver
from cdm.errors import SliceFailed
from cdm.log import Log
from cdm.model.artifact import NodeId
from cdm.model.blueprint import LONGEST_LAST_GRACE
from cdm.model.keys import SliceKey
from cdm.model.slice import SliceValue
from cdm.runtimes import Secrets, Surroundings, adapted
from cdm.store.bucket import Bucket
from cdm.wakeup import Wakeup

log = Log("cdm.agent")

ANY_TERMS = Terms()
RESIGN_MARGIN = 6.0
"""Seconds for SIGKILL to have its effect, for what is not stopped within its grace."""
WITHDRAWAL_PATIENCE = 5.0
"""Seconds for the keys of all slices to be deleted when the node leaves."""


class Agent:
    """Makes what runs on a node match its slice keys.

    Args:
        node: this node; other nodes' slices are passed over.
        slices: the bucket, to report to.
        make_runtime: makes what runs slices; see `runtime_named`.
        folder: the runtime's own.
        cache: fetches artifacts.
        least_stop_after: see `Shared`.
        address: tells where this node's slices are reached; None: that is not known.
        terms: on which slices run.
    """

    def __init__(
        self,
        node: NodeId,
        slices: Bucket,
        make_runtime: Callable[[Surroundings], Any],
        folder: Path,
        cache: Cache,
        least_stop_after: float = 0.0,
        *,
        address: Callable[[], str | None] = lambda: None,
        terms: Terms = ANY_TERMS,
    ) -> None:
        self.node = node
        secrets, happens = terms.secrets or Secrets(node), (self.crashed, self.restarting, self.restarted)
        told = Surroundings(
            node, folder, *happens, terms.enforce_limits, secrets, terms.run_as, terms.outlive, self.lapsed
        )
        self.runtime = adapted(make_runtime(told))
        self._shared = Shared(slices, self.runtime, cache, least_stop_after, address, Trust(node, terms.trust))
        self._workers: dict[SliceKey, Worker] = {}
        """One for every key that there is, and for every slice that the runtime has."""
        self._unattended: list[Worker] = []
        self._news = Wakeup()

    @property
    def slices(self) -> int:
        """How many slices there are: those that have a key, and those that the runtime has."""
        return len(self._workers)

    @property
    def leaves_doubt(self) -> bool:
        """Whether a slice that must not run twice may still run where an earlier process of the node began it."""
        return any(worker.may_run_elsewhere for worker in self._workers.values())

    @property
    def is_settled(self) -> bool:
        """Whether it knows all its slices, and that none of them may run there."""
        return self._shared.listed and not self.leaves_doubt

    @property
    def stopping_takes(self) -> float:
        """Seconds that its slices have to stop: first those that must not run twice (`resign`), then all others."""
        graces = {True: 0.0, False: 0.0}
        for worker in self._workers.values():
            exclusive = worker.program.exclusive
            graces[exclusive] = max(graces[exclusive], worker.program.grace)
        return sum(graces.values())

    # What happens

    @receiver
    def on_slice(self, put: ValuePut[SliceKey, SliceValue]) -> None:
        """A command came, or the echo of a report."""
        if put.key.node == self.node:
            self._worker(put.key).learn(put.revision, put.value, put.at)

    @receiver
    def on_slice_removed(self, remove: ValueRemove[SliceKey, SliceValue]) -> None:
        """What runs under this key must stop."""
        if (worker := self._workers.get(remove.key)) is not None:
            worker.removed(remove.revision)

    @receiver
    def on_connection(self, change: Connected | Disconnected) -> None:
        """Commands can be heard, or not."""
        self._shared.hearing = isinstance(change, Connected)
        if self._shared.hearing and not self._shared.listed:
            self._attend_found()
            self.runtime.listed(list(self._workers))
        self._shared.listed = self._shared.listed or self._shared.hearing
        self.wake()

    def crashed(self, key: SliceKey, reason: str, fatal: bool) -> None:
        """A slice that was active ended, and the runtime has given it up."""
        log.warning("slice ended", slice=str(key), reason=reason, fatal=fatal or None)
        self._worker(key).crashed(SliceFailed(reason, fatal=fatal))

    def lapsed(self, key: SliceKey, reason: str) -> None:
        """A slice that was active is stopped on purpose: see `Surroundings.lapsed`."""
        log.warning("slice is stopped: its node is cut off", slice=str(key), reason=reason)
        self._worker(key).crashed(SliceFailed(reason, lapsed=True))

    def restarting(self, key: SliceKey, reason: str, within: float) -> None:
        """A slice that was active ended, and the runtime starts it again: see `Surroundings.restarting`."""
        self._worker(key).restarting(reason, within)

    def restarted(self, key: SliceKey, port: int | None) -> None:
        """It is ready again."""
        self._worker(key).restarted(port)

    def lives_in(self, folder: str) -> None:
        """This tells the node's folder from all others: to be told before `run`."""
        self._shared.own = self._shared.own._replace(folder=folder)

    def succeeds(self, until: float) -> None:
        """This process took the node's id over; NATS may have heard others that had it until then (`cdm.clock`)."""
        self._shared.own = self._shared.own._replace(others_until=until)

    def heard(self, at: float) -> None:
        """NATS took a heartbeat of the node that was sent then (`cdm.clock`)."""
        self.runtime.heard(at)
        doubtful = [worker for worker in self._workers.values() if worker.may_run_elsewhere]
        self._shared.own = self._shared.own._replace(heard=at)
        for worker in doubtful:
            worker.wake()

    def forget(self) -> None:
        """The stream of ``slices`` is another one than before."""
        self._shared.listed = False
        for worker in self._workers.values():
            worker.forget()

    def wake(self) -> None:
        """Have every worker look again."""
        for worker in self._workers.values():
            worker.wake()

    # What is done about it

    async def run(self) -> None:
        """Work until cancelled. The runtime must be started."""
        self._attend_found()
        async with anyio.create_task_group() as tasks:
            while True:
                for worker in self._unattended:
                    tasks.start_soon(self._attend, worker)
                self._unattended.clear()
                await self._news.wait()

    async def resign(self) -> None:
        """Begin nothing new from now on, and stop the slices that must not run twice."""
        self._shared.resigned = True
        self._attend_found()
        exclusive = [worker for worker in self._workers.values() if worker.program.exclusive]
        with anyio.move_on_after(LONGEST_LAST_GRACE + RESIGN_MARGIN) as scope:
            for worker in exclusive:
                worker.wake()
            for worker in exclusive:
                await worker.at_rest.wait()
        if scope.cancelled_caught:
            running = [str(worker.key) for worker in exclusive if not worker.at_rest.is_set()]
            log.error("slices that must not run twice are not stopped", slices=running)

    async def withdraw(self) -> None:
        """Delete the keys of all slices: the node leaves, and what still runs ends with it. Resign first."""
        self._shared.leaving = True
        workers = [worker for worker in self._workers.values() if worker.may_withdraw]
        with anyio.move_on_after(WITHDRAWAL_PATIENCE) as scope:
            for worker in workers:
                worker.wake()
            for worker in workers:
                await worker.withdrawn.wait()
        if scope.cancelled_caught:
            left = [str(worker.key) for worker in workers if not worker.withdrawn.is_set()]
            log.warning("keys of slices are not deleted", slices=left)

    def _attend_found(self) -> None:
        """Have a worker for all that an earlier process of the node left: what has no key is to be stopped."""
        for key in self.runtime.found:
            self._worker(key)

    async def _attend(self, worker: Worker) -> None:
        while not worker.is_finished:
            await worker.take_step()
        # No await from here on: what is told of the key later finds no worker, and makes another one.
        worker.finish()
        del self._workers[worker.key]

    def _worker(self, key: SliceKey) -> Worker:
        worker = self._workers.get(key)
        if worker is None:
            worker = self._workers[key] = Worker(self._shared, key)
            self._unattended.append(worker)
            self._news.set()
        return worker
