"""The part of a node whose role changes: it manages while it holds a slot, and seeks a free one while it does not."""

from __future__ import annotations

import random
from collections.abc import Mapping

import anyio
import anyio.abc
from msgspec.structs import replace

from cdm import clock
from cdm.errors import AccessDenied, BucketMissing, Conflict, StoreError, Uncertain
from cdm.leader.actions import Wait
from cdm.leader.slot import LookForSlots, ReadSlot, RenewSlot, SlotClaim, TakeSlot
from cdm.leader.slot_store import SlotStore
from cdm.log import Log
from cdm.model.node import Role, Slot, Vitals
from cdm.node.buckets import patiently, provide_buckets
from cdm.node.manager import imported
from cdm.node.office import Office
from cdm.node.part import Ground, Part
from cdm.store.bucket import Bucket
from cdm.store.watch import Watch
from cdm.wakeup import Wakeup

log = Log("cdm.node")

AGAIN_AFTER = 0.2
"""Seconds after which something is tried again that the server did not take."""


class Candidacy(Part):
    """Whether the node manages."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        settings, nodes = ground.settings, ground.buckets["nodes"]
        holder = Slot(settings.node, ground.incarnation)
        self.claim = SlotClaim(holder, settings.managers, settings.node_ttl, random.SystemRandom().random)
        self._store = SlotStore(nodes, holder, settings.node_ttl)
        self._able = False
        """Whether the node's credentials let it manage, as far as is known."""
        self.office: Office | None = None
        self._accepting = True
        self._news = Wakeup()
        self._complained = False
        self._began_seated = False
        """Whether the node registers as a manager from the beginning, and has been one since."""
        self.work = (self._run,)
        ground.connection.listen(self._on_connection)

    async def prepare(self) -> None:
        """See whether this node may manage, provide the buckets, and take a slot if one is free.

        Raises:
            StoreError: as of `Managing.prepare`.
        """
        try:
            await patiently(self._ground.buckets["blueprints"].state, "bucket blueprints")
        except AccessDenied as error:
            # Nothing is missing: so it is no line of a refusal.
            log.info("this node runs slices and never manages: its credentials are for that")
            log.debug("it may not manage", reason=str(error))
            return
        except BucketMissing:
            pass
        self._able = True
        await provide_buckets(self._ground)
        # A node that starts waits for nobody: its first registration says what it is.
        while not isinstance(self.claim.next(clock.now()), Wait) and await self._step():
            pass
        self._began_seated = self.claim.seat is not None

    async def provide(self, bucket: Bucket) -> None:
        """As a manager does."""
        if self._able:
            settings = self._ground.settings
            await bucket.ensure(create=settings.create, replicas=settings.replicas)

    @property
    def within(self) -> tuple[Part, ...]:
        """The manager, while there is one."""
        return () if self.office is None else (self.office.managing,)

    @property
    def watches(self) -> Mapping[str, Watch]:
        """Those of the manager, while there is one."""
        return {} if self.office is None else self.office.wiring.ground.watches

    @property
    def routed(self) -> int:
        """Those of the manager, while there is one."""
        return 0 if self.office is None else self.office.wiring.routed

    @property
    def says(self) -> Mapping[str, object]:
        """A manager, or an agent that may become one."""
        office = self.office
        # One that starts with a slot says so at once. Another one does once it is ready to lead.
        manages = self._began_seated if office is None or not office.warm.is_set() else True
        return {"role": Role.ALL if manages else Role.AGENT, "auto": self._able}

    def vitals(self, of_node: Vitals) -> Vitals:
        """With how many are to manage, and what the manager knows."""
        told = replace(of_node, managers=self._ground.settings.managers)
        return told if self.office is None else self.office.managing.vitals(told)

    def accepting(self, accepting: bool) -> None:
        """Whether others can be heard."""
        self._accepting = accepting
        if self.office is not None:
            self.office.wiring.on_accepting(accepting)

    async def resign(self) -> None:
        """Seek no slot any more; the one that is held is renewed to the end."""
        self.claim.stop_seeking()
        if self.office is not None:
            await self.office.managing.resign()

    async def give_back(self) -> None:
        """Let a successor lead at once, and another node manage."""
        if self.office is not None:
            await self.office.managing.give_back()
        if (seat := self.claim.give_up()) is not None:
            await self._store.give_back(*seat)

    async def _run(self) -> None:
        """Seek, hold and lose slots until cancelled, and have a manager meanwhile."""
        if not self._able:
            return
        # Not only when it is needed: by then another version may be installed.
        await imported()
        log.debug("this node can manage")
        await self._inherit()
        async with anyio.create_task_group() as tasks:
            while True:
                await self._match(tasks)
                match self.claim.next(clock.now()):
                    case Wait(until):
                        with anyio.move_on_after(None if until is None else max(until - clock.now(), 0)):
                            await self._news.wait()
                    case _ if not self._ground.connection.is_up or not await self._step():
                        with anyio.move_on_after(AGAIN_AFTER):
                            await self._news.wait()

    async def _inherit(self) -> None:
        """Where no slot was free, one of this node's process before is this one's: the node is registered by now."""
        if self.claim.seat is not None:
            return
        try:
            for number in sorted((await self._store.look()).held):
                stored, revision = await self._store.read(number)
                if stored is not None and stored.node == self.claim.holder.node:
                    sent = clock.now()
                    self.claim.taken(number, await self._store.renew(number, revision), sent)
                    return
        except StoreError as error:
            log.debug("no slot inherited", reason=str(error))

    async def _match(self, tasks: anyio.abc.TaskGroup) -> None:
        """Have a manager where a slot is held, and none where there is none to be had."""
        claim, office = self.claim, self.office
        if office is not None:
            claim.excuse(clock.now(), office.excused)
        until = claim.held_until
        if office is not None and (until > clock.now() or claim.returning or claim.leaving):
            office.allow(until)
        elif office is not None:
            log.info("this node manages no more: other nodes do")
            self.office, self._began_seated = None, False
            await office.close()
            self._ground.describe_anew()
        elif until > clock.now():
            self.office = Office(self._ground, accepting=self._accepting)
            self.office.allow(claim.held_until)
            tasks.start_soon(self._manage, self.office)
        else:
            self._began_seated = False

    async def _manage(self, office: Office) -> None:
        if not self._began_seated:
            log.info("this node is going to manage", slot=self.claim.seat and self.claim.seat[0])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(office.run)
            await office.warm.wait()
            if self.claim.leaving:  # told so while it was imported, or knew of nobody who could lead instead
                await office.managing.resign()
            if not self._began_seated:
                self._ground.describe_anew()

    async def _step(self) -> bool:
        """Do what is next; returns whether the server took it."""
        claim, store = self.claim, self._store
        sent = clock.now()
        try:
            match claim.next(sent):
                case LookForSlots():
                    found = await store.look()
                    claim.looked(found.held, found.keys, clock.now())
                case TakeSlot(number):
                    try:
                        claim.taken(number, await store.take(number), sent)
                    except Uncertain:
                        claim.unanswered(number, sent)
                case RenewSlot(number, revision, within):
                    try:
                        claim.renewed(await store.renew(number, revision, within), sent)
                    except (Conflict, Uncertain):
                        claim.not_renewed(sent)
                case ReadSlot(number):
                    stored, revision = await store.read(number)
                    claim.read(stored, revision, clock.now())
                case Wait():
                    pass
        except Conflict:
            claim.not_taken(clock.now())
        except AccessDenied as error:
            self._deny(error)
        except StoreError as error:
            log.debug("slots are asked for again", reason=str(error))
            return False
        return True

    def _on_connection(self, up: bool) -> None:
        if up:
            self.claim.connected(clock.now())
        self._news.set()

    def _deny(self, error: AccessDenied) -> None:
        self.claim.denied(clock.now())
        if not self._complained:
            self._complained = True
            log.warning(
                "this node manages nothing: its credentials let it hold no manager's slot; `cdm secure --out SITE` "
                "grants it, and --role all needs none",
                reason=str(error),
            )
