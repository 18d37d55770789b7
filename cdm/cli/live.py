"""The cluster's report as it changes, from watches of the buckets: nothing is polled."""

from __future__ import annotations

from functools import partial

import anyio

from cdm import clock
from cdm.cli.gathering import Gathered
from cdm.cli.intending import intent_writers
from cdm.cli.report import ClusterReport
from cdm.dispatch.messages import Message
from cdm.errors import Uncertain
from cdm.model.artifact import NodeId
from cdm.store.bucket import buckets
from cdm.store.connection import Connection
from cdm.store.snapshot import check_there
from cdm.store.watch import Watch
from cdm.wakeup import Wakeup

LISTING_PATIENCE = 30.0
"""Seconds that the first listing of the buckets may take."""


class LiveReport:
    """Follows the buckets, with one consumer each.

    Args:
        connection: to NATS.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._buckets = buckets(connection)
        self._behind = set(self._buckets)
        self._listed = anyio.Event()
        self._news = Wakeup()
        self._gathered = Gathered()
        self._writers: dict[NodeId, str] = {}
        self._intents: object = None
        """The intents whose writers are known."""
        self._old: list[str] = []
        """Buckets that were still as managers of an earlier version need them."""

    async def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """Follow, in tasks of this group, and wait until everything is listed.

        Raises:
            BucketMissing: the cluster was never initialised.
            Uncertain: the buckets could not be listed in time.
            AccessDenied: a permission is missing.
        """
        with anyio.move_on_after(LISTING_PATIENCE) as scope:
            for name, bucket in self._buckets.items():
                if (await check_there(bucket)).rolls_up:
                    self._old.append(bucket.name)
                tasks.start_soon(Watch(bucket, self._take, on_live=partial(self._on_live, name)).run)
            await self._listed.wait()
        if scope.cancelled_caught:
            raise Uncertain(f"the buckets could not be listed within {LISTING_PATIENCE:g} s")

    @property
    def is_behind(self) -> bool:
        """Whether NATS is away, so that what is known may be old."""
        return bool(self._behind)

    async def news(self) -> None:
        """Wait until something is new since this was last waited for; for one task."""
        await self._news.wait()

    def wake(self) -> None:
        """Have whoever waits for news look again."""
        self._news.set()

    async def now(self) -> ClusterReport:
        """The cluster as far as it is known now."""
        intents = dict(self._gathered.intents)
        if intents != self._intents and not self._behind:
            self._writers, self._intents = await intent_writers(self._connection, there=bool(intents)), intents
        return self._gathered.report(clock.now(), self._writers, self._old)

    def _take(self, message: Message) -> None:
        self._gathered.take(message)
        self._news.set()

    def _on_live(self, name: str, live: bool) -> None:
        if live:
            self._behind.discard(name)
        else:
            self._behind.add(name)
        if not self._behind:
            self._listed.set()
        self._news.set()
