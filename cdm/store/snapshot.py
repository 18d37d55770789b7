"""One look at the buckets, for commands that show something and end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import NamedTuple

from cdm.dispatch.messages import Message
from cdm.errors import BucketMissing
from cdm.store.bucket import Bucket, buckets
from cdm.store.connection import Connection
from cdm.store.stalls import while_it_comes
from cdm.store.tasks import ended, together
from cdm.store.watch import Watch
from cdm.store.wire import StreamState


class Look(NamedTuple):
    """What buckets hold."""

    messages: list[Message]
    streams: dict[str, StreamState]
    """By the bucket's name, with its prefix."""


async def look(connection: Connection, patience: float = 30.0, names: Collection[str] = ()) -> Look:
    """Look at the buckets of these names, or at all of them.

    Raises:
        BucketMissing: the cluster was never initialised. It comes in an exception group, as does every error of a
            single bucket.
        Uncertain: nothing came for ``patience`` seconds, and there is more.
    """
    everything = [bucket for name, bucket in buckets(connection).items() if not names or name in names]
    found: dict[str, list[Message]] = {bucket.name: [] for bucket in everything}
    streams: dict[str, StreamState] = {}

    async def one(bucket: Bucket) -> None:
        def take(message: Message) -> None:
            came()
            found[bucket.name].append(message)

        streams[bucket.name] = await listed(bucket, take)

    async with while_it_comes("what the buckets hold", patience) as came:
        await together(*map(one, everything))
    return Look([message for messages in found.values() for message in messages], streams)


async def snapshot(connection: Connection, patience: float = 30.0, names: Collection[str] = ()) -> list[Message]:
    """What the buckets of these names hold, as messages; errors as those of `look`."""
    return (await look(connection, patience, names)).messages


async def check_there(bucket: Bucket) -> StreamState:
    """The bucket's stream; raises `BucketMissing` where it does not exist, with what to do about it."""
    try:
        return await bucket.state()
    except BucketMissing:
        raise BucketMissing(f"bucket {bucket.name} does not exist; run `cdm init` (is --prefix right?)") from None


async def listed(bucket: Bucket, emit: Callable[[Message], None]) -> StreamState:
    """Tell of all that a bucket holds, once; returns its stream as it was before. Errors as those of `look`."""
    stream = await check_there(bucket)
    complete = asyncio.get_running_loop().create_future()

    def on_live(live: bool) -> None:
        if live and not complete.done():
            complete.set_result(None)

    following = asyncio.create_task(Watch(bucket, emit, on_live=on_live).run())
    try:
        await asyncio.wait((following, complete), return_when=asyncio.FIRST_COMPLETED)
        if not complete.done():
            following.result()  # it has failed
    finally:
        await ended(following)
    return stream
