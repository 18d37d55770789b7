"""One node, wired: connection, mirrors, router, registration, and the parts of its role, in one task group.

Everything runs on one event loop and every receiver is synchronous, so there are no locks. A task that fails ends the
node: the supervisor is the task group.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TypeVar

import anyio
import anyio.abc
from msgspec.structs import replace

from cdm import clock
from cdm.errors import NodeIdTaken, StoreError
from cdm.log import Log
from cdm.model.node import EXTERNAL, FEATURES, NO_RUNTIME, Registration, Role, Vitals
from cdm.node.buckets import ensure, patiently
from cdm.node.machine import Load, Machine, detected, usual_labels
from cdm.node.manager import candidacy, manager
from cdm.node.metadata import metadata_labels
from cdm.node.notify import READY, STOPPING, keep_alive, notify
from cdm.node.part import Ground, Part
from cdm.node.registration import Presence
from cdm.node.serving import Running, Serving, outlive
from cdm.node.settings import NodeSettings
from cdm.node.shown import ShownNode
from cdm.node.supervisor import stop_limit
from cdm.node.wiring import Composition, Wiring
from cdm.store.connection import Connection
from cdm.store.tasks import dismiss
from cdm.store.watch import Watch
from cdm.version import VERSION

__all__ = ["Node", "NodeSettings", "ensure", "node"]

log = Log("cdm.node")

P = TypeVar("P")

DRAIN_PAUSE = 0.1
"""Seconds between two looks whether slices are left."""
DRAIN_TOLD = 10.0
"""Seconds between two lines in the log that some are."""
FAREWELL_PATIENCE = 2.0
"""Seconds that a node which stops takes to have it known that it takes no more slices."""


ROLES = {
    # A node that could not hear obeys nothing that it knew before: its slices may have been replaced elsewhere.
    Role.ALL: Composition((manager,), hears_by=("nodes", "slices"), says={"role": Role.ALL}),
    Role.MANAGER: Composition(
        (manager,),
        hears_by=("nodes",),
        says={"role": Role.MANAGER, "capacity": 0, "runtime": NO_RUNTIME, "cpu": None, "memory": None},
    ),
    Role.AGENT: Composition((), hears_by=("slices",), says={"role": Role.AGENT}, borrows=True),
    Role.AUTO: Composition((candidacy,), hears_by=("slices",), borrows=True),
}


class Node:
    """A running node; made by `node`."""

    def __init__(self, settings: NodeSettings, connection: Connection) -> None:
        self.settings = settings
        self.connection = connection
        role = ROLES[settings.role]
        self._wiring = Wiring(settings, connection, role._replace(parts=(*role.parts, *_serving_parts(settings))))
        self.ground, self.parts = self._wiring.ground, self._wiring.parts
        self.incarnation = self.ground.incarnation
        self.buckets = self.ground.buckets
        self.router = self._wiring.router
        self._hurried = False
        self._heard = clock.now()
        """When the last heartbeat was sent that NATS took, in seconds on `cdm.clock`."""
        self._leaves = False
        """Whether what runs ends with this process, which was told to leave; else it is there for the next one."""
        self._closing = anyio.CancelScope()
        self.presence = Presence(
            self.buckets["nodes"],
            settings.node,
            self._registration(),
            self._on_accepting,
            self._on_beat,
            self.ground.address,
            self._says,
            Load() if settings.role is not Role.MANAGER else None,
            self._vitals,
            self._on_succession,
        )
        self.ground.describe_anew = self.presence.beat_at_once
        self._shown = ShownNode(self.ground, lambda: self.everything, self.presence.tally, lambda: self.routed)

    @property
    def routed(self) -> int:
        """Messages so far, for those who want to know how much there was to do."""
        return self._wiring.routed + sum(part.routed for part in self.parts)

    @property
    def watches(self) -> dict[str, Watch]:
        """Its mirrors by bucket: of those that there are, the one that has most."""
        found = dict(self.ground.watches)
        for part in self.parts:
            found.update(part.watches)
        return found

    @property
    def everything(self) -> tuple[Part, ...]:
        """Its parts, and those that these have at present."""
        return tuple(each for part in self.parts for each in (part, *part.within))

    def part(self, kind: type[P]) -> P:
        """The part of this kind. Raises `LookupError` where the node's role has none."""
        for part in self.everything:
            if isinstance(part, kind):
                return part
        raise LookupError(f"a node of role {self.settings.role} has no {kind.__name__}")

    async def prepare(self) -> None:
        """Check the machine, take over what runs there, connect, however long it takes, and check the server.

        Raises:
            UsageError: slices cannot be run on this machine; nothing is made then, here or there.
            SliceFailed: something that they need there does not answer; likewise.
            FolderTaken: another living process uses the node's folder.
            StoreError: as of `Connection.open`.
            Unsuitable: the server or a bucket cannot do what is needed.
            BucketMissing: a bucket is not there and may not be created.
        """
        for part in self.parts:
            await part.check()
        # Before anything waits for NATS: slices whose node has no process end with its TTL, whoever is silent.
        for part in self.parts:
            await part.take_over()
        await self.connection.open(f"cdm node {self.settings.node}")
        await patiently(self.connection.check_server, "the server")
        for part in self.parts:
            await part.prepare()

    async def run(self, stop: anyio.Event) -> None:
        """Run until ``stop`` is set, then leave in good order, or leave what runs to the next process of this node.

        What runs is left to that process, too, where an error ends this one, or a cancellation, before it was told to
        stop; but not where the error is that another process has this node's id.

        Raises:
            NodeIdTaken: the id belongs to a living process.
            Unreachable: the connection is lost for good.
        """
        try:
            if not await self._enter(stop):
                self._leaves |= not self.settings.keep
                return
            role, servers = str(self.settings.role), self.connection.access.shown
            log.info("node is up", role=role, servers=servers, incarnation=self.incarnation)
            notify(READY)
            await self._serve(stop)
        except (NodeIdTaken, BaseExceptionGroup) as error:
            told = error if isinstance(error, BaseExceptionGroup) else BaseExceptionGroup("", [error])
            self._leaves |= told.subgroup(NodeIdTaken) is not None  # what runs is another process's to start
            raise

    async def close(self) -> None:
        """End what the parts still run, whatever ended the node."""
        for part in self.parts:
            with anyio.CancelScope(shield=True) as self._closing:
                if self._hurried:
                    self._closing.cancel()
                await (part.close() if self._leaves else part.detach())

    def leave(self) -> None:
        """What runs ends with this process, whatever the settings say: to be called before it is told to stop."""
        self._leaves = True

    def hurry(self) -> None:
        """Give slices no grace: `close` ends them at once, also when it has already begun."""
        self._hurried = True
        self._closing.cancel()

    async def _serve(self, stop: anyio.Event) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.presence.run)
            tasks.start_soon(self._shown.run)
            for work in self._wiring.work:
                tasks.start_soon(work)
            tasks.start_soon(self.connection.lost)
            await stop.wait()
            self._leaves |= not self.settings.keep
            await (self._leave() if self._leaves else self._pause())
            tasks.cancel_scope.cancel()

    async def _leave(self) -> None:
        notify(STOPPING)
        if self.settings.drain_for is not None:
            await self._drain(self.settings.drain_for)
        log.info("stopping")
        await self._take_no_more()
        # Slices may take their time to stop: this node leads on meanwhile.
        for part in reversed(self.parts):
            await part.resign()
        if self.connection.is_up:
            for part in self.parts:
                await part.withdraw()
            await self._deregister()
            for part in self.parts:
                await part.give_back()

    async def _deregister(self) -> None:
        """Take the registration back; but where something may still run that others would start then, let it expire."""
        if any(part.leaves_doubt for part in self.parts):
            log.warning("the registration is left to expire: slices with stop_after may run where they were begun")
            await self.presence.lapse()
        else:
            await self.presence.leave()

    async def _pause(self) -> None:
        """Lead no more; all else is as if this process had been killed."""
        left = max(self._heard + outlive(self.settings.node_ttl) - clock.now(), 0.0)
        log.info("stopping; slices run on, for the next process of this node", within=round(left, 1))
        if self.connection.is_up:
            with anyio.move_on_after(FAREWELL_PATIENCE):
                for part in self.parts:
                    await part.give_back()

    async def _drain(self, within: float) -> None:
        """Have this node's slices replaced elsewhere, and wait until they are gone, or for so many seconds."""
        log.info("stopping; slices are to be replaced elsewhere first", slices=self._slices, within=within)
        await self._take_no_more(leaving=True)
        with anyio.move_on_after(within) as scope:
            told = clock.now()
            while self._slices:
                await anyio.sleep(DRAIN_PAUSE)
                if clock.now() >= told + DRAIN_TOLD:
                    told = clock.now()
                    log.info("slices are yet to be replaced elsewhere", slices=self._slices)
        if scope.cancelled_caught:
            log.warning("slices were not replaced elsewhere in time", slices=self._slices, within=within)

    @property
    def _slices(self) -> int:
        return max((part.slices for part in self.parts), default=0)  # several parts may know of the same

    async def _take_no_more(self, *, leaving: bool = False) -> None:
        """Have managers place nothing here any more: they would start anew what is about to be stopped.

        This node's own manager knows of it, too, before anything is stopped: it may lead to the end.
        """
        with anyio.move_on_after(FAREWELL_PATIENCE) as scope:
            try:
                await self.presence.take_no_more(leaving=leaving)
                for part in self.everything if self.connection.is_up else ():
                    await part.know_nodes()
            except StoreError as error:
                log.debug("nobody may know that this node takes no more slices", reason=str(error))
        if scope.cancelled_caught:
            log.debug("nobody may know that this node takes no more slices", seconds=FAREWELL_PATIENCE)

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

    def _on_beat(self, sent: float) -> None:
        self._heard = sent
        for part in self.parts:
            part.heard(sent)

    def _on_succession(self, until: float) -> None:
        for part in self.parts:
            part.succeeds(until)

    def _on_accepting(self, accepting: bool) -> None:
        if ROLES[self.settings.role].judges:
            self._wiring.on_accepting(accepting)
        for part in self.parts:
            part.accepting(accepting)

    def _says(self) -> dict[str, object]:
        return {name: value for part in self.parts for name, value in part.says.items()}

    def _vitals(self) -> Vitals:
        settings = self.settings
        told = Vitals(round(time.time(), 3), stop_limit=settings.stop_limit, stop_needs=settings.drain_for)
        for part in self.parts:
            told = part.vitals(told)
        return told

    def _registration(self) -> Registration:
        settings = self.settings
        found = detected()
        machine = Machine(
            found.cpu if settings.machine.cpu is None else settings.machine.cpu,
            found.memory if settings.machine.memory is None else settings.machine.memory,
        )
        left = machine.less(settings.reserved)
        for what in machine.used_up(settings.reserved):
            has, kept_back = getattr(machine, what), getattr(settings.reserved, what)
            log.warning(f"no {what} is left that slices could reserve", has=has, kept_back=kept_back)
        described = Registration(
            labels={**usual_labels(), **settings.labels},
            capacity=settings.capacity,
            runtime=settings.runtime,
            version=VERSION,
            started=datetime.now(UTC).isoformat(timespec="milliseconds"),
            incarnation=self.incarnation,
            ttl=settings.node_ttl,
            address=self.ground.address(),
            features=(*FEATURES, *(each for part in self.parts for each in part.features)),
            cpu=left.cpu,
            memory=left.memory,
            http=settings.http,
        )
        return replace(described, **ROLES[settings.role].says)


def _serving_parts(settings: NodeSettings) -> tuple[Callable[[Ground], Part], ...]:
    """The part for the node's own slices, where there is one: an agent that is not ours reads them itself."""
    if settings.role is Role.MANAGER or (settings.role is Role.ALL and settings.runtime == EXTERNAL):
        return ()
    return (Serving,) if settings.runtime == EXTERNAL else (Running,)


@asynccontextmanager
async def node(settings: NodeSettings) -> AsyncIterator[Node]:
    """Make a node, and connect it, however long that takes, so that it is ready to run; it is closed with the block.

    What it runs then ends, or is left to the next process of the node: see `Node.run`.
    """
    if settings.labels_from_metadata:
        found = await metadata_labels(settings.metadata_address)
        settings = replace(settings, labels={**found, **settings.labels})
    settings = replace(settings, stop_limit=await stop_limit())
    connection = Connection(settings.access, settings.prefix, timeout=None)
    try:
        made = Node(settings, connection)
        # Also while it waits for NATS: a process that was reloaded is waited for by the watchdog of the one before.
        alive = asyncio.create_task(keep_alive())
        try:
            await made.prepare()
            yield made
        finally:
            await made.close()
            dismiss(alive)
    finally:
        await connection.close()
    log.info("stopped")
