"""One node, wired: connection, watches, router, topology, manager, election, writers, in one task group.

Everything runs on one event loop and every receiver is synchronous, so there are no locks. A task that fails ends the
node: the supervisor is the task group.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import anyio
import anyio.abc
import anyio.lowlevel
from msgspec import Struct

from cdm import clock
from cdm.election import Election, Timing
from cdm.errors import AccessDenied, BucketMissing, StoreError, Unsuitable
from cdm.log import Log
from cdm.manager import ClusterDeploymentManager
from cdm.messages import (
    Connected,
    Disconnected,
    IntentChanged,
    KeyRejected,
    LeaderChange,
    Message,
    NodeDied,
    NodeJoined,
    NodeLeft,
    NodeMissing,
    RejectedKeyRemoved,
    Tick,
    ValuePut,
    ValueRejected,
    ValueRemove,
    WriteFailed,
    Written,
)
from cdm.model.artifact import NodeId
from cdm.model.keys import LAYOUTS, NODES, SLICES
from cdm.model.node import Registration
from cdm.outbox import Outbox
from cdm.reconciliation import Policy
from cdm.router import Router
from cdm.store.bucket import Bucket, buckets
from cdm.store.connection import Access, Connection, connect
from cdm.store.lease import Leadership
from cdm.store.registration import Presence
from cdm.store.signal import Signal
from cdm.store.watch import RELIST_INTERVAL, Watch
from cdm.store.writer import CommandWriter, StatusWriter
from cdm.topology import Topology
from cdm.version import VERSION

log = Log("cdm.node")

BUCKET_PATIENCE = 60.0
"""Seconds that a starting node waits for JetStream to make its buckets (a cluster may be electing)."""


class NodeSettings(Struct, frozen=True):
    """Everything that can be chosen for a node. Times in seconds."""

    node: NodeId
    access: Access = Access()
    prefix: str = ""
    create: bool = True
    """Create buckets that are missing."""
    replicas: int = 1
    """Replicas of buckets that it creates."""
    labels: dict[str, str] = {}
    capacity: int | None = None
    runtime: str = "external"
    lease_ttl: float = 10.0
    node_ttl: float = 10.0
    reconcile_interval: float = 30.0
    relist_interval: float = RELIST_INTERVAL
    policy: Policy = Policy()


class Node:
    """A running node's parts; made by `node`."""

    def __init__(self, settings: NodeSettings, connection: Connection) -> None:
        self.settings = settings
        self.connection = connection
        self.incarnation = secrets.token_hex(8)
        self.buckets = buckets(connection)
        self._work = Signal()
        self._orders = Signal()
        self._statuses = Signal()
        self.election = Election(
            settings.node, self.incarnation, Timing(ttl=settings.lease_ttl), random.SystemRandom().random
        )
        self.topology = Topology(self._route, settings.node_ttl)
        self.outbox = Outbox(self._orders.set, self._statuses.set)
        self.manager = ClusterDeploymentManager(
            settings.node,
            self.topology,
            self.outbox,
            clock.now,
            self._work.set,
            settings.policy,
            settings.reconcile_interval,
        )
        slices = self.buckets["slices"]
        self._commands = CommandWriter(
            slices, self.outbox, self._orders, self.election, self._wake_leadership, self._route
        )
        self.watches = {name: self._watch(bucket) for name, bucket in self.buckets.items()}
        self._status_writer = StatusWriter(self.buckets["status"], self.outbox, self._statuses, self.election)
        self.leadership = Leadership(
            slices,
            self.election,
            barrier=self._barrier,
            route=self._route,
            drained=self._commands.drained,
            on_fence_lost=self._list_anew,
            nodes=lambda: self.topology.registered,
        )
        self.presence = Presence(self.buckets["nodes"], settings.node, self._registration())
        self.router = Router((self.topology, self.leadership, self.manager), SENT)

    async def prepare(self) -> None:
        """Check the server and the buckets; waits while JetStream itself is not ready.

        Raises:
            Unsuitable: the server or a bucket cannot do what is needed.
            BucketMissing: a bucket is not there and may not be created.
        """
        await self.connection.check_server()
        for bucket in self.buckets.values():
            await ensure(bucket, create=self.settings.create, replicas=self.settings.replicas)

    async def run(self, stop: anyio.Event) -> None:
        """Run until ``stop`` is set, then leave in good order.

        Raises:
            NodeIdTaken: the id belongs to a living process.
            Unreachable: the connection is lost for good.
        """
        if not await self._enter(stop):
            return
        log.info("node is up", servers=self.connection.access.shown, incarnation=self.incarnation)
        async with anyio.create_task_group() as tasks:
            for watch in self.watches.values():
                tasks.start_soon(watch.run)
            for work in (
                self.presence.run,
                self._commands.run,
                self._status_writer.run,
                self._tick,
                self.leadership.run,
                self.connection.lost,
            ):
                tasks.start_soon(work)
            await stop.wait()
            log.info("stopping")
            await self.leadership.resign()
            if self.connection.is_up:
                await self.presence.leave()
                await self.leadership.give_back()
            tasks.cancel_scope.cancel()
        log.info("stopped")

    async def _enter(self, stop: anyio.Event) -> bool:
        """Register, however long it takes; returns False when told to stop before."""
        async with anyio.create_task_group() as tasks:

            async def give_up() -> None:
                await stop.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(give_up)
            await self.presence.register()
            tasks.cancel_scope.cancel()
        return not stop.is_set()

    def _route(self, message: Message) -> None:
        self.router.route(message)

    def _wake_leadership(self) -> None:
        self.leadership.wake()

    def _watch(self, bucket: Bucket) -> Watch:
        async def recreate() -> None:
            if self.settings.create:
                await bucket.ensure(create=True, replicas=self.settings.replicas)

        return Watch(
            bucket,
            self._route,
            on_live=self._on_hearing if bucket.layout is NODES else None,
            on_reset=self._on_reset if bucket.layout is SLICES else None,
            on_missing=recreate,
            relist_interval=self.settings.relist_interval,
            hold=self._commands.calm if bucket.layout is SLICES else None,
        )

    def _on_hearing(self, hearing: bool) -> None:
        self._route(Connected(clock.now()) if hearing else Disconnected(clock.now()))
        self._work.set()

    def _on_reset(self, reason: str) -> None:
        self.leadership.reset(reason)

    def _list_anew(self) -> None:
        for watch in self.watches.values():
            watch.relist()

    def _registration(self) -> Registration:
        settings = self.settings
        return Registration(
            labels=settings.labels,
            capacity=settings.capacity,
            runtime=settings.runtime,
            version=VERSION,
            started=datetime.now(UTC).isoformat(timespec="milliseconds"),
            incarnation=self.incarnation,
            ttl=settings.node_ttl,
        )

    async def _barrier(self) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                for watch in self.watches.values():
                    tasks.start_soon(watch.caught_up)
        except* StoreError as errors:
            raise errors.exceptions[0] from None

    async def _tick(self) -> None:
        """Route a `Tick` whenever there is work or something is due."""
        while True:
            due = [at for at in (self.manager.wake_at(), self.topology.wake_at()) if at is not None]
            pause = max(min(due) - clock.now(), 0) if due else None
            with anyio.move_on_after(pause):
                await self._work.wait()
            self._route(Tick(clock.now()))
            await anyio.lowlevel.checkpoint()


SENT = (
    *(
        message[kind, kind.value_type]
        for message in (ValuePut, ValueRemove, ValueRejected)
        for layout in LAYOUTS
        for kind in layout.kinds
    ),
    *(message[layout.kinds[0]] for message in (KeyRejected, RejectedKeyRemoved) for layout in LAYOUTS[:3]),
    LeaderChange,
    Connected,
    Disconnected,
    Tick,
    NodeJoined,
    NodeLeft,
    NodeMissing,
    NodeDied,
    IntentChanged,
    Written,
    WriteFailed,
)
"""Every message that a node routes, as receivers annotate them. Keys of ``status`` always decode."""


async def ensure(bucket: Bucket, *, create: bool, replicas: int, change_replicas: bool = False) -> bool:
    """`Bucket.ensure`, patient with a JetStream that is still coming up."""
    deadline = clock.now() + BUCKET_PATIENCE
    while True:
        try:
            return await bucket.ensure(create=create, replicas=replicas, change_replicas=change_replicas)
        except StoreError as error:
            if clock.now() >= deadline or isinstance(error, (Unsuitable, BucketMissing, AccessDenied)):
                raise
            log.info("waiting for JetStream", bucket=bucket.name, reason=str(error))
        await anyio.sleep(0.5)


@asynccontextmanager
async def node(settings: NodeSettings) -> AsyncIterator[Node]:
    """Connect, however long it takes, and make a node that is ready to run."""
    async with connect(
        settings.access, name=f"cdm node {settings.node}", prefix=settings.prefix, timeout=None
    ) as connection:
        prepared = Node(settings, connection)
        await prepared.prepare()
        yield prepared
