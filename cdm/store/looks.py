"""Looks for the keys whose TTL is over: the server removes them, and tells nobody."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from cdm import clock
from cdm.errors import StoreError
from cdm.log import Log
from cdm.store.bucket import Bucket
from cdm.store.mirror import Mirror
from cdm.wakeup import Wakeup

log = Log("cdm.watch")

FEW = 4
"""Up to so many keys are asked for one by one; of more the server is asked which ones there are."""
LISTING_PAUSE = 0.25
"""Seconds between two times that the server is asked for all keys, however many are due: it is dear."""
PAUSE = 0.5
"""Seconds after which a server is asked again that did not answer."""


class Looks:
    """Asks the server about a mirror's keys when their TTL is over; nothing is asked while nothing is due.

    Args:
        bucket: the bucket.
        subjects: which of its subjects the mirror holds.
    """

    def __init__(self, bucket: Bucket, subjects: str) -> None:
        self._bucket = bucket
        self._subjects = subjects
        self._news = Wakeup()

    def wake(self) -> None:
        """Something is due sooner than it was, or the mirror is complete (again)."""
        self._news.set()

    async def run(self, mirror: Mirror) -> None:
        """Look until cancelled; ends only with an exception of a receiver."""
        while True:
            # A mirror that is not complete is about to hear what is there.
            pause = max(mirror.lifetimes.look_at - clock.now(), 0) if mirror.is_live else None
            if pause is None or pause > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause if pause != float("inf") else None):
                        await self._news.wait()
                continue
            due = {name: mirror.lifetimes.ends[name] for name in mirror.lifetimes.due(clock.now())}
            if due:
                await self._look(mirror, due)

    async def _look(self, mirror: Mirror, due: dict[str, float]) -> None:
        generation = mirror.generation
        try:
            there = await self._there(due)
        except StoreError as error:
            log.debug("not known whether keys have expired", bucket=self._bucket.name, reason=str(error))
            mirror.lifetimes.still_there(due, clock.now())
            await asyncio.sleep(PAUSE)
            return
        if generation == mirror.generation and mirror.is_live:
            # What was given another value meanwhile ends later.
            same = [name for name, end in due.items() if mirror.lifetimes.ends.get(name) == end]
            mirror.ended([name for name in same if name not in there])
            mirror.lifetimes.still_there([name for name in same if name in there], clock.now())
        if len(due) > FEW:
            await asyncio.sleep(LISTING_PAUSE)

    async def _there(self, due: dict[str, float]) -> set[str]:
        """Which of these keys the stream's leader has."""
        asked = [self._bucket.subject(name) for name in due]
        if len(asked) > FEW or any(token in subject for subject in asked for token in "*>"):
            asked = [self._subjects]
        found = [await self._bucket.subjects(subjects) for subjects in asked]
        before = len(self._bucket.subject(""))
        return {subject[before:] for subjects in found for subject in subjects}
