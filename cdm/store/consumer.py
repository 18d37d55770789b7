"""One consumer of a bucket's stream, which delivers to this process: made, asked, and deleted."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from typing import Any

import anyio

from cdm import clock
from cdm.errors import StoreError, Uncertain
from cdm.log import Log
from cdm.store.bucket import Bucket
from cdm.store.connection import Connection

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
        offset: the server's clock less this node's, in seconds.
    """

    __slots__ = ("_bucket", "_subjects", "expected", "made", "name", "offset", "over", "token")

    def __init__(self, bucket: Bucket, subjects: str, offset: float) -> None:
        self._bucket = bucket
        self._subjects = subjects
        self.name = f"cdm-{secrets.token_hex(8)}"
        self.token = self.name.encode()
        """The same, as it stands in the subjects of deliveries."""
        self.expected = 1
        """Number of its next delivery."""
        self.made = clock.now()
        self.offset = offset
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
