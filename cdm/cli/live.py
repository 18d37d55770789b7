"""The cluster's report as it changes, from watches of the buckets: nothing is polled."""

from __future__ import annotations

import anyio.abc

from cdm import clock
from cdm.cli.gathering import Gathered
from cdm.cli.intending import intent_writers
from cdm.cli.report import ClusterReport
from cdm.cli.watches import Watches
from cdm.dispatch.messages import Message
from cdm.model.artifact import NodeId
from cdm.store.bucket import buckets
from cdm.store.connection import Connection
from cdm.wakeup import Wakeup


class LiveReport:
    """Follows the buckets, with one consumer each.

    Args:
        connection: to NATS.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._news = Wakeup()
        self._watches = Watches(self._news.set)
        for bucket in buckets(connection).values():
            self._watches.add(bucket, self._take)
        self._gathered = Gathered()
        self._writers: dict[NodeId, str] = {}
        self._intents: object = None
        """The intents whose writers are known."""

    async def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """Follow, in tasks of this group, and wait until everything is listed. Errors as of `Watches.start`."""
        await self._watches.start(tasks)

    @property
    def is_behind(self) -> bool:
        """Whether NATS is away, so that what is known may be old."""
        return self._watches.is_behind

    async def news(self) -> None:
        """Wait until something is new since this was last waited for; for one task."""
        await self._news.wait()

    def wake(self) -> None:
        """Have whoever waits for news look again."""
        self._news.set()

    async def now(self) -> ClusterReport:
        """The cluster as far as it is known now."""
        intents = dict(self._gathered.intents)
        if intents != self._intents and not self.is_behind:
            self._writers, self._intents = await intent_writers(self._connection, there=bool(intents)), intents
        return self._gathered.report(clock.now(), self._writers, self._watches.rolling_up)

    def _take(self, message: Message) -> None:
        self._gathered.take(message)
        self._news.set()
