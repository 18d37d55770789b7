"""Follows one service for a router: with one consumer for each bucket that concerns it."""

from __future__ import annotations

import anyio
import anyio.abc

from cdm import clock
from cdm.cli.log_setup import remark
from cdm.cli.watches import Watches
from cdm.dispatch.messages import Message
from cdm.manager.endpoints import Endpoint
from cdm.manager.service_view import Pool, ServiceView
from cdm.model.artifact import Service
from cdm.model.keys import encode_service
from cdm.store.bucket import buckets
from cdm.store.connection import Connection
from cdm.wakeup import Wakeup


class Follower:
    """Follows what concerns one service.

    Args:
        connection: to NATS.
        service: which service.
        pools: whether `pool` is asked for, which takes its blueprints and their statuses, too.
    """

    def __init__(self, connection: Connection, service: Service, *, pools: bool = False) -> None:
        self.view = ServiceView(service)
        there = buckets(connection)
        # Neither the lease nor the fence, which are written all the time; neither intents nor what is remembered.
        keys = {"slices": keys_of(service), "nodes": "*"}
        if pools:
            keys |= dict.fromkeys(("blueprints", "status"), keys_of(service).removeprefix("*."))
        self._watches = Watches(self._on_change)
        for name, pattern in keys.items():
            self._watches.add(there[name], self._on_message, keys=pattern)
        self._away = True
        """Whether NATS was away when that was looked at last; at the beginning nothing is known, either."""
        self._news = Wakeup()
        self._silent = 0
        """Instances without an address that the user was told of."""

    @property
    def is_behind(self) -> bool:
        """Whether NATS is away: what is known stays in force."""
        return self._watches.is_behind

    async def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """Follow, in tasks of this group, and wait until everything is listed. Errors as of `Watches.start`."""
        await self._watches.start(tasks)

    async def news(self, within: float | None = None) -> None:
        """Wait until anything may be new, or for so many seconds at most; for one task."""
        due = self.view.wake_at()
        left = [*(() if within is None else (within,)), *(() if due is None else (max(due - clock.now(), 0),))]
        with anyio.move_on_after(min(left, default=None)):
            await self._news.wait()

    def endpoints(self) -> list[Endpoint]:
        """The endpoints as they are now; tells the user of instances that are left out."""
        self.view.tick(clock.now())
        found = self.view.endpoints()
        if self._silent < (silent := self.view.without_address):
            left_out = f"{silent} instances are" if silent > 1 else "an instance is"
            remark(f"{left_out} left out: no node says at which address; those of an earlier cdm do not")
        self._silent = silent
        return found

    def pool(self) -> Pool:
        """What a proxy is to be told now."""
        self.endpoints()
        return self.view.pool(clock.now())

    def _on_message(self, message: Message) -> None:
        if self.view.take(message):
            self._news.set()

    def _on_change(self) -> None:
        before, self._away = self._away, self.is_behind
        if self._away and not before:
            self.view.disconnected()
            remark("NATS is away; the last list stays in force")
        elif before and not self._away:
            self.view.connected(clock.now())
            if self._watches.is_listed:
                remark("NATS is back")
        self._news.set()


def keys_of(service: Service) -> str:
    """A pattern of the keys in ``slices`` that covers the service's slices and its rollout's record, and little else.

    A dot in a name ends a token of the subject; what stands before the last one is the same in all its keys.
    """
    return ".".join(("*", *encode_service(service).split(".")[:-1], ">"))
