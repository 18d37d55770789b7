"""The manager of a node whose role changes: there for as long as the node holds a slot, with mirrors of its own.

What runs the node's slices goes on beside it, on a mirror and a router of its own, whether there is a manager or not.
"""

from __future__ import annotations

import anyio

from cdm.errors import StoreError
from cdm.log import Log
from cdm.model.node import SLOTS, managers_without
from cdm.node.manager import manager
from cdm.node.part import Ground, Part
from cdm.node.wiring import Composition, Wiring

log = Log("cdm.node")

AGAIN_AFTER = 0.1
"""Seconds after which it is asked again how far the buckets are."""


class Office:
    """One manager.

    Args:
        ground: the node's.
        accepting: whether the bucket accepts heartbeats.
    """

    def __init__(self, ground: Ground, *, accepting: bool) -> None:
        composition = Composition((self._make,), hears_by=("nodes",))
        self.wiring = Wiring(ground.settings, ground.connection, composition, ground.incarnation)
        self.warm = anyio.Event()
        """Set once its mirrors were complete."""
        self._connection = ground.connection
        self._until = float("-inf")
        self.managing.election.until = self._until
        self._scope = anyio.CancelScope()
        self.wiring.on_accepting(accepting)

    def _make(self, ground: Ground) -> Part:
        self.managing = manager(ground)
        return self.managing

    def allow(self, until: float) -> None:
        """It may manage until then, in seconds on `cdm.clock`; in the past: it may not."""
        self._until = until
        if self.warm.is_set() and self.managing.election.until != until:
            self.managing.election.until = until
            self.managing.leadership.wake()

    @property
    def excused(self) -> bool:
        """Whether it manages without a slot: there are managers that know of none, and would report them for ever."""
        return self.warm.is_set() and bool(managers_without(SLOTS, self.managing.topology.registrations))

    async def run(self) -> None:
        """Work until `close` has been called, or cancelled."""
        with self._scope:
            async with anyio.create_task_group() as tasks:
                for work in self.wiring.work:
                    tasks.start_soon(work)
                await self._warm_up()
                self.warm.set()
                self.allow(self._until)

    async def close(self) -> None:
        """Lead no more, and end."""
        if self._connection.is_up:
            await self.managing.leadership.resign()
            await self.managing.leadership.give_back()
        self._scope.cancel()

    async def _warm_up(self) -> None:
        while True:
            try:
                await self.managing.caught_up()
                return
            except StoreError as error:
                log.debug("not ready to manage yet", reason=str(error))
                await anyio.sleep(AGAIN_AFTER)
