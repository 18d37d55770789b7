"""Everything that a bucket keeps of some keys, with who wrote it and when: what a mirror leaves out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from msgspec import Struct

from cdm.store.bucket import Bucket
from cdm.store.consumer import Consumer
from cdm.store.library import Msg
from cdm.store.source import OwnSource
from cdm.store.stalls import while_it_comes
from cdm.store.wire import OWNER, WRITER, delivery_of, is_removal

PATIENCE = 10.0
"""Seconds without anything that comes after which reading is given up."""
HEARTBEAT = 1.0
"""Seconds between the server's heartbeats; after each silence it is asked whether that was all."""


class Revision(Struct, frozen=True):
    """One message of a bucket."""

    name: str
    """The key's string."""
    number: int
    at: float
    """When it was stored, by the server's clock, in seconds since 1970."""
    payload: bytes | None
    """None: the key was removed."""
    by: str = ""
    """Who wrote it, as that command declared; empty: nobody said."""
    owner: str = ""
    """Who looks after it; empty: nobody said."""


async def revisions(bucket: Bucket, keys: str = ">") -> list[Revision]:
    """Every revision that is kept of the keys that match a pattern, the oldest first.

    Raises:
        BucketMissing: there is no such bucket.
        Uncertain: nothing came for some time, and there is more.
    """
    async with while_it_comes(f"bucket {bucket.name}", PATIENCE) as came:
        return await _Reading(bucket, keys, came).run()


class _Reading:
    """Reads with a consumer of its own, whose deliveries the server numbers."""

    def __init__(self, bucket: Bucket, keys: str, came: Callable[[], None]) -> None:
        self._bucket = bucket
        self._came = came
        self._subjects = bucket.subject(keys)
        self._found: dict[int, Revision] = {}
        self._drained = asyncio.Event()
        """Set when nothing waited behind what was delivered."""
        self._consumer: Consumer | None = None

    async def run(self) -> list[Revision]:
        connection = self._bucket.connection
        stream = await self._bucket.state()
        source = OwnSource(self._bucket, self._subjects)
        consumer = self._consumer = Consumer(self._bucket, self._subjects, source, stream)
        subscription = await connection.subscribe(consumer.inbox, self._take)
        try:
            drained = await consumer.create(None, HEARTBEAT)
            while not (drained and await consumer.complete(stream, listing=True)):
                with suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT):
                        await self._drained.wait()
                # What was still to be delivered may have been replaced meanwhile: then nothing was the last one.
                drained = self._drained.is_set() or await consumer.drained()
                self._drained = asyncio.Event()
        finally:
            await connection.unsubscribe(subscription)
            consumer.delete()
        return [self._found[number] for number in sorted(self._found)]

    async def _take(self, message: Msg) -> None:
        consumer, headers = self._consumer, message.headers or {}
        if not message.reply.startswith("$JS.ACK."):
            if question := message.reply or headers.get("Nats-Consumer-Stalled"):
                await self._bucket.connection.publish(question)
            return
        delivery = delivery_of(message.reply.encode())
        if consumer is None or delivery is None or delivery[0] != consumer.token:
            return
        self._came()
        _, sequence, _, stored, pending = delivery
        consumer.expected += 1
        consumer.delivered(message.subject.encode(), sequence)
        name = message.subject[len(self._bucket.subject("")) :]
        payload = None if is_removal(headers) else message.data
        self._found[sequence] = Revision(
            name, sequence, stored / 1e9, payload, headers.get(WRITER, ""), headers.get(OWNER, "")
        )
        if pending == b"0":
            self._drained.set()
