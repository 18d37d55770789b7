"""Buckets that are followed together: whether all are listed, and whether what is known of them may be old."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.abc

from cdm.store.bucket import Bucket
from cdm.store.snapshot import check_there
from cdm.store.stalls import while_it_comes
from cdm.store.watch import Watch

LISTING_PATIENCE = 30.0
"""Seconds without anything that comes after which the first listing of the buckets is given up."""


def _nobody_waits() -> None:
    pass


class Watches:
    """Follows buckets, with one consumer each.

    Args:
        on_change: called when a bucket is heard of again, or no more.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._watches: list[Watch] = []
        self._behind: set[str] = set()
        self._listed = anyio.Event()
        self._came: Callable[[], None] = _nobody_waits
        """Told of all that comes of a bucket that is not listed yet."""
        self.rolling_up: list[str] = []
        """Buckets that were still as managers of an earlier version need them, when this was started."""

    def add(self, bucket: Bucket, take: Callable[[Any], None], *, keys: str = ">") -> None:
        """Follow the keys of this bucket, too, from `start` on; each message is handed to ``take``."""
        self._behind.add(bucket.name)

        def heard(message: Any) -> None:
            if bucket.name in self._behind:  # others are heard for ever, and say nothing of those that are not listed
                self._came()
            take(message)

        self._watches.append(Watch(bucket, heard, keys=keys, on_live=partial(self._on_live, bucket.name)))

    @property
    def is_behind(self) -> bool:
        """Whether NATS is away, so that what is known may be old."""
        return bool(self._behind)

    @property
    def is_listed(self) -> bool:
        """Whether everything was known once."""
        return self._listed.is_set()

    async def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """Follow, in tasks of this group, and wait until everything is listed.

        Raises:
            BucketMissing: the cluster was never initialised.
            Uncertain: nothing came for some time, and there is more.
            AccessDenied: a permission is missing.
        """
        async with while_it_comes("what the buckets hold", LISTING_PATIENCE) as self._came:
            for watch in self._watches:
                if (await check_there(watch.bucket)).rolls_up:
                    self.rolling_up.append(watch.bucket.name)
                tasks.start_soon(watch.run)
            await self._listed.wait()

    def _on_live(self, name: str, live: bool) -> None:
        if live:
            self._behind.discard(name)
        else:
            self._behind.add(name)
        self._on_change()
        if not self._behind:
            self._listed.set()
