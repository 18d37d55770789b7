"""Writes what the leader remembers of nodes to ``nodes``, under ``{node}.seen``."""

from __future__ import annotations

from cdm import clock
from cdm.errors import AccessDenied, StoreError
from cdm.leader.election import Election
from cdm.log import Log
from cdm.manager.outbox import Outbox
from cdm.model.keys import SeenKey, encode
from cdm.store.batch import MAX_BATCH, Write
from cdm.store.bucket import Bucket
from cdm.store.wire import dump
from cdm.wakeup import Wakeup

log = Log("cdm.writer")


class SeenWriter:
    """Writes what is to be remembered; what was not stored is asked for again by the manager's next round.

    Args:
        bucket: ``nodes``.
        outbox: where it comes from.
        ready: set when there is any.
        election: nothing is written while this process does not lead.
    """

    def __init__(self, bucket: Bucket, outbox: Outbox, ready: Wakeup, election: Election) -> None:
        self._bucket = bucket
        self._outbox = outbox
        self._ready = ready
        self._election = election

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._ready.wait()
            while seen := self._outbox.take_seen(MAX_BATCH):
                if not self._election.valid(clock.now()):
                    continue
                try:
                    await self._bucket.write_all(
                        [Write(encode(SeenKey(node)), dump(each)) for node, each in seen.items()]
                    )
                except StoreError as error:
                    if isinstance(error, AccessDenied):
                        self._bucket.connection.complain(error)
                    log.debug("what is known of nodes is not stored", reason=str(error))
