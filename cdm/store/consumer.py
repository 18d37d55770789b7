"""One consumer of a bucket's stream, which delivers to this process: made, asked, and deleted."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from cdm import clock
from cdm.errors import AccessDenied, StoreBusy, StoreError, Uncertain, Unreachable
from cdm.log import Log
from cdm.store.bucket import Bucket
from cdm.store.connection import Connection
from cdm.store.intake import Intake
from cdm.store.library import Subscription
from cdm.store.source import ConsumerSource
from cdm.store.wire import StreamState

log = Log("cdm.watch")

INFO_TIMEOUT = 1.0
"""Seconds that the server has to say how far the consumer is. If the consumer's server died, no answer comes."""
DELETE_TIMEOUT = 0.5


async def until_up(connection: Connection) -> None:
    """Wait until there is a connection."""
    up = asyncio.Event()

    def listener(is_up: bool) -> None:
        if is_up:
            up.set()

    connection.listen(listener)
    try:
        if not connection.is_up:
            await up.wait()
    finally:
        connection.unlisten(listener)


class Hearing(NamedTuple):
    """How a watch hears by its consumer.

    Of heartbeats: seconds between those that the server sends on a silent consumer; None: as many as usual. The loss of
    a consumer that nothing else shows is found so much later.
    """

    clustered: float | None = None
    """Heartbeats where its server may end, and the connection stay: in a cluster, and behind a leaf node."""
    alone: float | None = None
    """Heartbeats where that server is in no cluster, and is connected to: seldom lost without the connection."""
    of_each_node: bool = False
    """Whether every node has such a consumer: then they are not to be made all at once (`cdm.store.crowd`)."""
    can_wait: bool = False
    """Whether its deliveries may come a moment late, several at once (`cdm.store.gathering`), once all is known."""

    def heartbeats(self, stream: StreamState) -> float | None:
        """Those on a consumer of this stream."""
        return self.alone if stream.alone else self.clustered


class Consumer:
    """The life of one consumer.

    Args:
        bucket: whose messages it delivers.
        subjects: which of them.
        source: makes it.
        stream: the bucket's stream, as its leader had it just now.
    """

    __slots__ = (
        "_bucket",
        "_delivered",
        "_source",
        "_subjects",
        "expected",
        "idle",
        "inbox",
        "made",
        "name",
        "offset",
        "on_complete",
        "over",
        "pending",
        "reached",
        "stream",
        "token",
        "waiting",
    )

    def __init__(self, bucket: Bucket, subjects: str, source: ConsumerSource, stream: StreamState) -> None:
        self._bucket = bucket
        self._subjects = subjects
        self._source = source
        self.name = f"cdm-{secrets.token_hex(8)}"
        self.inbox = source.inbox(self.name)
        """The subject that it delivers to."""
        self.token = source.stored_as(self.name).encode()
        """The same, as it stands in the subjects of deliveries."""
        self.pending = b"0"
        """How many messages it had yet to deliver when it delivered the last one, as the server says it."""
        self.waiting: Callable[[], int] = lambda: 0
        """How many of its deliveries are still to be taken in."""
        self.on_complete: Callable[[], None] = lambda: None
        """Called when all that there was is taken in, and from now on only what is new comes."""
        self.expected = 1
        """Number of its next delivery."""
        self.made = clock.now()
        self.offset = stream.clock - self.made
        """The server's clock less this node's, in seconds."""
        self.stream = stream
        self.reached = 0
        """Sequence of the message that it delivered last."""
        self._delivered: set[str] = set()
        """The subjects that it delivered, where it does not deliver all."""
        self.idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when it had nothing more to deliver, and yet not all that its stream's leader had when it was made."""
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done when another one is to take its place; holds the reason, or a receiver's exception."""

    def end(self, reason: str) -> None:
        """Another one is to take its place."""
        if not self.over.done():
            self.over.set_result(reason)

    async def listen(self, intake: Intake, *, can_wait: bool) -> Subscription:
        """Have what it delivers put down there.

        Args:
            intake: where.
            can_wait: as of `Hearing`, from when it is complete.
        """
        connection = self._bucket.connection
        self.waiting = intake.length
        subscription = await connection.subscribe_directly(self.inbox, intake.put)
        if can_wait:
            self.on_complete = partial(connection.can_wait, subscription)
        return subscription

    async def create(self, after: int | None, heartbeat: float) -> bool:
        """Make it; returns whether there is nothing for it to deliver.

        Args:
            after: begin behind this sequence; None: with all that the bucket holds.
            heartbeat: seconds of silence after which it sends a heartbeat.
        """
        progress = await self._source.create(self.name, self.inbox, after, heartbeat)
        self.made = clock.now()
        return progress.pending == 0 and progress.delivered == 0

    def delivered(self, subject: bytes, sequence: int) -> None:
        """It delivered this message."""
        self.reached = sequence
        if self.stream.replicas > 1 and self._subjects != self._bucket.all_subjects:
            self._delivered.add(subject.decode("utf-8", "backslashreplace"))

    def surely_complete(self, stream: StreamState) -> bool:
        """Whether its deliveries alone show that it delivered all that the stream held."""
        return stream.replicas < 2 or self.reached >= stream.last

    async def complete(self, stream: StreamState, *, listing: bool) -> bool:
        """Whether it delivered all that the stream held as its leader has it; asked once it was `drained`.

        It lives on any one of the stream's replicas. One that is behind, as when its server has just come back, has
        nothing more to deliver before it has caught up: what it lacks would be taken for deleted, and what was
        replaced since for new.

        Args:
            stream: the stream, as its leader had it.
            listing: whether it was made to deliver every key.
        """
        if self.surely_complete(stream):
            return True
        with suppress(Uncertain, StoreBusy, Unreachable):
            if self._subjects == self._bucket.all_subjects:
                with suppress(AccessDenied):
                    return await self._bucket.newest() <= self.reached
                return True
            # The server tells a key that is not UTF-8 otherwise than it delivers it.
            held = {each for each in await self._source.subjects() if "\ufffd" not in each} if listing else set()
            return held <= self._delivered
        return False

    async def drained(self) -> bool:
        """Whether all that it has was delivered. One that does not answer may be lost: its silence shows."""
        with suppress(Uncertain, StoreBusy):
            progress = await self._source.progress(self.name, INFO_TIMEOUT)
            return progress.pending == 0 and progress.delivered == self.expected - 1
        return False

    def delete(self) -> None:
        """Have it deleted, which nobody waits for; without this the server would keep it for some time."""
        self._bucket.connection.see_to(self._delete())

    async def _delete(self) -> None:
        try:
            await self._source.delete(self.name, DELETE_TIMEOUT)
        except StoreError as error:
            log.debug("consumer not deleted", bucket=self._bucket.name, reason=str(error))
