"""One consumer of a bucket's stream, which delivers to this process: made, asked, and deleted."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from typing import Any

import anyio

from cdm import clock
from cdm.errors import AccessDenied, StoreBusy, StoreError, Uncertain, Unreachable
from cdm.log import Log
from cdm.store.bucket import Bucket
from cdm.store.connection import Connection
from cdm.store.wire import StreamState

log = Log("cdm.watch")

INFO_TIMEOUT = 1.0
"""Seconds that the server has to say how far the consumer is. If the consumer's server died, no answer comes."""
INACTIVE = 10.0
"""Seconds after which the server deletes a consumer to which nobody listens."""
DELETE_TIMEOUT = 0.5


async def until_up(connection: Connection) -> None:
    """Wait until there is a connection."""
    up = anyio.Event()

    def listener(is_up: bool) -> None:
        if is_up:
            up.set()

    connection.listen(listener)
    try:
        if not connection.is_up:
            await up.wait()
    finally:
        connection.unlisten(listener)


class Consumer:
    """The life of one consumer.

    Args:
        bucket: whose messages it delivers.
        subjects: which of them.
        stream: the bucket's stream, as its leader had it just now.
    """

    __slots__ = (
        "_bucket",
        "_delivered",
        "_subjects",
        "expected",
        "idle",
        "made",
        "name",
        "offset",
        "over",
        "reached",
        "stream",
        "token",
    )

    def __init__(self, bucket: Bucket, subjects: str, stream: StreamState) -> None:
        self._bucket = bucket
        self._subjects = subjects
        self.name = f"cdm-{secrets.token_hex(8)}"
        self.token = self.name.encode()
        """The same, as it stands in the subjects of deliveries."""
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

    async def create(self, inbox: str, after: int | None, heartbeat: float) -> bool:
        """Make it; returns whether there is nothing for it to deliver.

        Args:
            inbox: the subject that it delivers to.
            after: begin behind this sequence; None: with all that the bucket holds.
            heartbeat: seconds of silence after which it sends a heartbeat.
        """
        if after is not None:
            start: dict[str, Any] = {"deliver_policy": "by_start_sequence", "opt_start_seq": after + 1}
        else:
            # The last valid blueprint may lie behind refused ones: those buckets are listed with their history.
            start = {"deliver_policy": "all" if self._bucket.layout.history > 1 else "last_per_subject"}
        config = {
            "name": self.name,
            "deliver_subject": inbox,
            "filter_subject": self._subjects,
            "ack_policy": "none",
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
            "idle_heartbeat": int(heartbeat * 1e9),
            "flow_control": True,
            "inactive_threshold": int(INACTIVE * 1e9),
            **start,
        }
        # The subjects are part of the call's, so that a permission can be granted for them. Made twice, it is one.
        info = await self._bucket.connection.api_retried(
            f"CONSUMER.CREATE.{self._bucket.stream}.{self.name}.{self._subjects}",
            {"stream_name": self._bucket.stream, "config": config},
        )
        self.made = clock.now()
        return bool(info["num_pending"] == 0 and info["delivered"]["consumer_seq"] == 0)

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
            return not listing or await self._bucket.subjects(self._subjects) <= self._delivered
        return False

    async def drained(self) -> bool:
        """Whether all that it has was delivered. One that does not answer may be lost: its silence shows."""
        with suppress(Uncertain):
            info = await self._bucket.connection.api(
                f"CONSUMER.INFO.{self._bucket.stream}.{self.name}", timeout=INFO_TIMEOUT
            )
            delivered: int = info["delivered"]["consumer_seq"]
            return info["num_pending"] == 0 and delivered == self.expected - 1
        return False

    async def delete(self) -> None:
        """Delete it, also when cancelled; without this the server would keep it for some time. Never raises."""
        call = f"CONSUMER.DELETE.{self._bucket.stream}.{self.name}"
        with anyio.CancelScope(shield=True), anyio.move_on_after(DELETE_TIMEOUT):
            try:
                await self._bucket.connection.api(call, timeout=DELETE_TIMEOUT)
            except StoreError as error:
                log.debug("consumer not deleted", bucket=self._bucket.name, reason=str(error))
