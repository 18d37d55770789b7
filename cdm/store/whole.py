"""Deliveries of a batch are taken in at one go: who is told of all of it decides nothing on a part.

The server stores all of a batch at once, but delivers it message by message. Uncordoned together, the first of several
nodes would get everything that waited for one. So it is with what operators want of nodes; batches of slices are a
leader's own, and may be long.
"""

from __future__ import annotations

from collections.abc import Callable

from cdm.store.client import Deliver


class WholeBatches:
    """Takes deliveries of a whole bucket, and hands them on when a batch is complete. Others are handed on at once.

    The last message of a batch may be missing, where its key was written again meanwhile: then whatever comes next, at
    the latest a heartbeat, completes it.

    Args:
        take: takes a delivery in, and must not raise.
        wanted: whether deliveries are held at present.
    """

    def __init__(self, take: Deliver, wanted: Callable[[], bool]) -> None:
        self._take = take
        self._wanted = wanted
        self._held: list[tuple[bytes, bytes, bytes, bytes]] = []

    def __call__(self, subject: bytes, reply: bytes, data: bytes, block: bytes) -> None:
        """Take one in."""
        if b"Nats-Batch-Id" in block and b"Nats-Batch-Commit" not in block and self._wanted():
            self._held.append((subject, reply, data, block))
            return
        held, self._held = self._held, []
        for each in held:
            self._take(*each)
        self._take(subject, reply, data, block)
