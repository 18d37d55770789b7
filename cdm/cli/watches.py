"""Buckets that are followed together: whether all are listed, and whether what is known of them may be old."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.abc

from cdm.errors import Uncertain
from cdm.store.bucket import Bucket
from cdm.store.snapshot import check_there
from cdm.store.watch import Watch

LISTING_PATIENCE = 30.0
"""Seconds that the first listing of the buckets may take."""


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
        self.rolling_up: list[str] = []
        """Buckets that were still as managers of an earlier version need them, when this was started."""

    def add(self, bucket: Bucket, take: Callable[[Any], None], *, keys: str = ">") -> None:
        """Follow the keys of this bucket, too, from `start` on; each message is handed to ``take``."""
        self._behind.add(bucket.name)
        self._watches.append(Watch(bucket, take, keys=keys, on_live=partial(self._on_live, bucket.name)))

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
            Uncertain: the buckets could not be listed in time.
            AccessDenied: a permission is missing.
        """
        with anyio.move_on_after(LISTING_PATIENCE) as scope:
            for watch in self._watches:
                if (await check_there(watch.bucket)).rolls_up:
                    self.rolling_up.append(watch.bucket.name)
                tasks.start_soon(watch.run)
            await self._listed.wait()
        if scope.cancelled_caught:
            raise Uncertain(f"the buckets could not be listed within {LISTING_PATIENCE:g} s")

    def _on_live(self, name: str, live: bool) -> None:
        if live:
            self._behind.discard(name)
        else:
            self._behind.add(name)
        self._on_change()
        if not self._behind:
            self._listed.set()
