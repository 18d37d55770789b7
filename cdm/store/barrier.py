"""Waits until a watch has emitted all that its bucket held at some time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from cdm.store.consumer import Consumer
from cdm.store.mirror import Mirror
from cdm.store.wire import StreamState

PATIENCE = 0.05
"""Seconds after which the consumer is asked how far it is."""


class Barrier:
    """Whoever waits for a watch.

    Args:
        mirror: what it has emitted.
        consumer: its consumer; None where there is none.
        end: ends the session, for a reason.
        hurry: called whenever deliveries are waited for.
    """

    def __init__(
        self,
        mirror: Mirror,
        consumer: Callable[[], Consumer | None],
        end: Callable[[str], None],
        hurry: Callable[[], None],
    ) -> None:
        self._mirror = mirror
        self._consumer = consumer
        self._end = end
        self._hurry = hurry
        self._progress: asyncio.Event | None = None

    @property
    def awaited(self) -> bool:
        """Whether anybody waits for more to be emitted."""
        return self._progress is not None

    def progress(self) -> None:
        """More was emitted."""
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    async def reach(self, generation: int, target: StreamState) -> bool:
        """Wait until all that the stream held is emitted; returns False where the stream was replaced meanwhile.

        Args:
            generation: of the mirror, before the stream was looked at.
            target: the stream as it was then.
        """
        mirror = self._mirror
        while generation == mirror.generation:
            same = mirror.created == target.created
            if same and mirror.is_live and mirror.reached >= target.last:
                return True
            if not same and mirror.is_live:
                self._end("the stream was created anew")
            self._hurry()
            self._progress = self._progress or asyncio.Event()
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._progress.wait()
                continue
            # Nothing more is delivered where the last messages were removed again: the consumer knows.
            consumer = self._consumer()
            if same and mirror.is_live and consumer and await consumer.drained():
                complete = await consumer.complete(target, listing=False)
                if complete and consumer is self._consumer():
                    mirror.skip(target.last)
        return False
