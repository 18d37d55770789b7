"""The part of a node that takes part in elections and, while it leads, serves the blueprints.

It mirrors every bucket whether it leads or not, so that any of the candidates can lead at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

import anyio
from msgspec.structs import replace

from cdm import clock
from cdm.checks.asking import Asker
from cdm.checks.checker import Checker
from cdm.dispatch.messages import MESSAGES, Tick
from cdm.errors import StoreError, innermost
from cdm.leader.election import Election
from cdm.leader.event_writer import EventWriter, Telling
from cdm.leader.leadership import Leadership
from cdm.leader.records import Timing
from cdm.leader.seen_writer import SeenWriter
from cdm.leader.status_writer import StatusWriter
from cdm.leader.writer import CommandWriter
from cdm.log import Log
from cdm.manager.active import Active
from cdm.manager.journal import Journal
from cdm.manager.manager import ClusterDeploymentManager
from cdm.manager.outbox import Outbox
from cdm.manager.pulse import PERIOD, Pulse
from cdm.manager.topology import Registered, Topology
from cdm.model.node import Vitals
from cdm.node.buckets import provide_buckets
from cdm.node.changeover import Changeover
from cdm.node.contents import ContentsWatch
from cdm.node.last_word import LastWord
from cdm.node.part import WHOLE, Ground, Part
from cdm.store.batch import MAX_BATCH
from cdm.store.bucket import Bucket
from cdm.store.events import EventStream
from cdm.store.intake import TURNS_OF_OTHERS
from cdm.store.lending import Lender
from cdm.store.watch import Watch
from cdm.wakeup import Wakeup

log = Log("cdm.node")

LONG_BACKLOG = 500
"""Artifacts to decide about, above which slices are not taken in for a while: the last ones of them could wait, too."""
LAST_WORD_PAUSE = 0.02
"""Seconds between two looks at whether it is told."""


class Managing(Part):
    """Topology, election, manager and writers."""

    sends = MESSAGES

    def __init__(self, ground: Ground) -> None:
        settings, slices = ground.settings, ground.buckets["slices"]
        self._ground = ground
        self._due = Wakeup()
        self._orders = Wakeup()
        self._statuses = Wakeup()
        self._seen = Wakeup()
        self._checks = Wakeup()
        self._events = Wakeup()
        self.election = Election(
            settings.node, ground.incarnation, Timing(ttl=settings.lease_ttl), random.SystemRandom().random
        )
        self.topology = Topology(ground.route, settings.node_ttl)
        self.outbox = Outbox(self._on_orders, self._statuses.set, self._seen.set, self._checks.set)
        self.manager = ClusterDeploymentManager(
            settings.node,
            self.topology,
            self.outbox,
            clock.now,
            self._due.set,
            settings.policy,
            settings.reconcile_interval,
            self._epoch,
            Journal(self._events.set),
        )
        self.writer = CommandWriter(
            slices,
            self.outbox,
            self._orders,
            ground.backpressure,
            self.election,
            self._wake_leadership,
            ground.route,
        )
        self._status_writer = StatusWriter(
            ground.buckets["status"], self.outbox, self._statuses, self.election, ground.backpressure
        )
        ground.backpressure.much = self._is_busy
        self._pulse: Pulse | None = None
        self._seen_writer = SeenWriter(ground.buckets["nodes"], self.outbox, self._seen, self.election)
        self._checker = Checker(self.outbox, self._checks, Asker(ground.connection), ground.route)
        self._event_writer = EventWriter(
            EventStream(ground.connection),
            self.manager.journal,
            self._events,
            self.election,
            self._has_to_do,
            self._epoch,
            Telling(
                settings.node,
                ground.incarnation,
                settings.create,
                settings.replicas,
                settings.reconcile_interval,
                self.manager.cluster.removed,
                settings.told,
            ),
        )
        self.leadership = Leadership(
            slices,
            self.election,
            barrier=self.caught_up,
            route=ground.route,
            drained=self.writer.drained,
            on_fence_lost=self._list_anew,
            candidates=lambda: self.topology.candidates,
        )
        self.mirrors = dict.fromkeys(ground.buckets, WHOLE)
        self.contents = ContentsWatch(ground)
        self._changeover = Changeover(ground.buckets.values(), self.topology)
        # The topology first: what the manager makes of a message depends on it.
        self.receivers = (self.topology, self.leadership.hearsay, self.manager)
        writers = (self.writer.run, self._status_writer.run, self._seen_writer.run, self._checker.run)
        lender = Lender(slices)
        self.tallies = (lender.tally,)
        looks = (self._check_buckets, self.contents.run, lender.run)
        self.work = (*writers, self._tick, *looks, self._keep_pulse, self.leadership.run, self._event_writer.run)

    async def prepare(self) -> None:
        """Check the buckets, or make them. Raises as `provide_buckets`."""
        await provide_buckets(self._ground)

    async def provide(self, bucket: Bucket) -> None:
        """Create it, where nodes may create buckets; adapt one that somebody else created."""
        settings = self._ground.settings
        await bucket.ensure(create=settings.create, replicas=settings.replicas)

    @property
    def slices(self) -> int:
        """How many keys of slices of this node there are."""
        return len(self.manager.cluster.on_node.get(self._ground.settings.node, ()))

    def vitals(self, of_node: Vitals) -> Vitals:
        """Add how long its lease would last."""
        return replace(of_node, lease_ttl=self._ground.settings.lease_ttl)

    @property
    def figures(self) -> Mapping[str, object]:
        """Whether it leads, and what waits to be decided and to be written."""
        state = self.manager.state
        if not isinstance(state, Active):
            return {"leads": False}
        return {"leads": True, "term": state.term, "undecided": state.backlog, "unwritten": self.writer.waiting}

    def wake(self) -> None:
        """Look at the clock."""
        self._due.set()

    def reset(self, reason: str) -> None:
        """The lease and the fence are gone with the stream."""
        self.leadership.reset(reason)

    async def resign(self) -> None:
        """Lead no more, and stop writing; but lead on where nobody else could."""
        if self.topology.candidates - {self._ground.settings.node}:
            await self.leadership.resign()

    async def caught_up(self) -> None:
        """Wait until it knows all that the buckets hold at the time of the call; raises a `StoreError`."""
        failed: BaseException | None = None
        try:
            async with anyio.create_task_group() as tasks:
                for watch in self._followed:
                    tasks.start_soon(watch.caught_up)
        except* StoreError as errors:
            failed = innermost(errors)
        # Not from within: early releases of Python 3.11 make a group of what is raised there.
        if failed is not None:
            raise failed

    async def know_nodes(self) -> None:
        """As far as its mirror goes."""
        await self._ground.watches["nodes"].caught_up()

    async def give_back(self) -> None:
        """Let a successor begin at once; the last node of all first tells that nothing runs any more.

        Of nodes that leave at the same time, whichever is the last one in the bucket is sure to find no other.
        """
        word = LastWord(clock.now())
        try:
            with anyio.move_on_after(word.until - clock.now()) as scope:
                await self.know_nodes()
                if self._is_last:
                    await self._tell_the_end(word, scope)
            if scope.cancelled_caught and self._is_last:
                log.warning("statuses may tell of what runs no more", reason="the server, or this process, is too slow")
        except StoreError as error:
            log.debug("not told that nothing runs any more", reason=str(error))
        await self._event_writer.all_told()
        await self.leadership.resign()
        await self.leadership.give_back()

    @property
    def _is_last(self) -> bool:
        return not any(isinstance(each, Registered) for each in self.topology.nodes.values())

    async def _tell_the_end(self, word: LastWord, scope: anyio.CancelScope) -> None:
        """Lead until statuses say what is left, which is nothing; ``scope`` is given the time that there is for it."""
        if self.election.withdrawn:  # in favour of nodes that have left since
            self.leadership.stand_again()
        await self.caught_up()
        while True:
            if isinstance(self.manager.state, Active):
                if self.manager.state.at_rest:
                    return
                word.leads(self.manager.state.term, clock.now())
                scope.deadline = anyio.current_time() + word.until - clock.now()
            await anyio.sleep(LAST_WORD_PAUSE)

    @property
    def _followed(self) -> list[Watch | ContentsWatch]:
        return [*self._ground.watches.values(), self.contents]

    def _on_orders(self) -> None:
        self._ground.backpressure.hold()
        self._orders.set()

    def _is_busy(self) -> bool:
        """Whether a leader's own writes may come back to it later."""
        state = self.manager.state
        return isinstance(state, Active) and (self.writer.waiting > MAX_BATCH or state.backlog > LONG_BACKLOG)

    def _has_to_do(self) -> bool:
        """Whether anything is to be decided or written."""
        state = self.manager.state
        return self.writer.waiting > 0 or (isinstance(state, Active) and state.backlog > 0)

    def _epoch(self) -> float:
        return self._ground.watches["slices"].epoch

    def _wake_leadership(self) -> None:
        self.leadership.wake()

    def _list_anew(self) -> None:
        for watch in self._ground.watches.values():
            watch.relist()

    async def _check_buckets(self) -> None:
        """Look at the buckets in every round: the leader for all nodes, and each where nobody leads."""
        while True:
            await anyio.sleep(self._ground.settings.reconcile_interval)
            leader = self.election.leader
            if leader is None or leader.node == self._ground.settings.node:
                for watch in self._followed:
                    await watch.check()
            if isinstance(self.manager.state, Active):  # what it knows of managers is complete
                await self._changeover.look()

    async def _keep_pulse(self) -> None:
        while True:
            await anyio.sleep(PERIOD)
            self._beat()

    def _beat(self) -> float:
        """Take note that this process runs; returns the time."""
        now = clock.now()
        if self._pulse is None:
            self._pulse = Pulse(now)
        if gap := self._pulse.beat(now):
            log.warning("this process was not running, and has heard nobody meanwhile", seconds=round(gap, 1))
            self.topology.was_stopped(now)
        return now

    async def _tick(self) -> None:
        """Route a `Tick` whenever there is work or something is due."""
        while True:
            pause = self._pause()
            if pause == 0:  # no time-out of nothing, which costs three times as much
                for _ in range(TURNS_OF_OTHERS):
                    await asyncio.sleep(0)
                self._due.forget()
            else:
                with anyio.move_on_after(pause):
                    await self._due.wait()
            self._ground.route(Tick(self._beat()))

    def _pause(self) -> float | None:
        """Seconds until something is due, unless there is work before; None: nothing will be."""
        if self._due.is_set:
            return 0
        due = [at for at in (self.manager.wake_at(), self.topology.wake_at()) if at is not None]
        return max(min(due) - clock.now(), 0) if due else None
