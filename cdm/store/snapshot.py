"""One look at the buckets, for commands that show something and end."""

from __future__ import annotations

from collections.abc import Callable, Collection

import anyio

from cdm.dispatch.messages import Message
from cdm.errors import BucketMissing, Uncertain
from cdm.store.bucket import Bucket, buckets
from cdm.store.connection import Connection
from cdm.store.watch import Watch


async def snapshot(connection: Connection, timeout: float = 30.0, names: Collection[str] = ()) -> list[Message]:
    """What the buckets of these names hold, as messages; without names, what all of them hold.

    Raises:
        BucketMissing: the cluster was never initialised. It comes in an exception group, as does every error of a
            single bucket.
        Uncertain: the buckets could not be listed within ``timeout`` seconds.
    """
    everything = [bucket for name, bucket in buckets(connection).items() if not names or name in names]
    found: dict[str, list[Message]] = {bucket.name: [] for bucket in everything}
    with anyio.move_on_after(timeout) as scope:
        async with anyio.create_task_group() as tasks:
            for bucket in everything:
                tasks.start_soon(listed, bucket, found[bucket.name].append)
    if scope.cancelled_caught:
        raise Uncertain(f"the buckets could not be listed within {timeout:g} s")
    return [message for messages in found.values() for message in messages]


async def check_there(bucket: Bucket) -> None:
    """Raise `BucketMissing` where the bucket does not exist, with what to do about it."""
    try:
        await bucket.state()
    except BucketMissing:
        raise BucketMissing(
            f"bucket {bucket.name} does not exist; run `cdm init`, or start a node (is --prefix right?)"
        ) from None


async def listed(bucket: Bucket, emit: Callable[[Message], None]) -> None:
    """Tell of all that a bucket holds, once; errors as those of `snapshot`."""
    await check_there(bucket)
    complete = anyio.Event()

    def on_live(live: bool) -> None:
        if live:
            complete.set()

    watch = Watch(bucket, emit, on_live=on_live)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        await complete.wait()
        tasks.cancel_scope.cancel()
