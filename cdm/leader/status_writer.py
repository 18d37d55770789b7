"""Writes statuses to ``status``, newest only. They are for people: commands go first."""

from __future__ import annotations

from collections.abc import Mapping

import anyio

from cdm import clock
from cdm.errors import AccessDenied, StoreError
from cdm.leader.election import Election
from cdm.log import Log
from cdm.manager.outbox import Outbox
from cdm.model.status import Status
from cdm.store.backpressure import Backpressure
from cdm.store.batch import MAX_BATCH, Write
from cdm.store.bucket import Bucket
from cdm.store.wire import DELETE, dump
from cdm.wakeup import Wakeup

log = Log("cdm.writer")

PATIENCE = 1.0
"""Seconds for which statuses let commands go first."""
PAUSE = 0.25
"""Least seconds between two writes: what changes faster is written once."""


class StatusWriter:
    """Writes statuses; one that was not stored is tried again, unless there is a newer one by then.

    Args:
        bucket: ``status``.
        outbox: where they come from.
        ready: set when there are any.
        election: nothing is written while this process does not lead.
        backpressure: held while commands wait to be written.
    """

    def __init__(
        self, bucket: Bucket, outbox: Outbox, ready: Wakeup, election: Election, backpressure: Backpressure
    ) -> None:
        self._bucket = bucket
        self._outbox = outbox
        self._ready = ready
        self._election = election
        self._backpressure = backpressure

    async def run(self) -> None:
        """Write statuses until cancelled."""
        while True:
            await self._ready.wait()
            while self._outbox.statuses:
                with anyio.move_on_after(PATIENCE):
                    await self._backpressure.released()
                statuses = self._outbox.take_statuses(MAX_BATCH)
                if self._election.valid(clock.now()):
                    await self._write(statuses)
                    await anyio.sleep(PAUSE)

    async def _write(self, statuses: Mapping[str, Status | None]) -> None:
        writes = [
            Write(name, b"", DELETE) if status is None else Write(name, dump(status))
            for name, status in statuses.items()
        ]
        if too_long := [write for write in writes if self._bucket.problem_with(write)]:
            # Of a refused blueprint whose key is hardly shorter than NATS takes: the log has told of it.
            log.debug("statuses cannot be stored", blueprints=[write.name[:40] for write in too_long])
            writes = [write for write in writes if write not in too_long]
        if not writes:
            return
        try:
            await self._bucket.write_all(writes)
        except StoreError as error:
            if isinstance(error, AccessDenied):
                self._bucket.connection.complain(error)
            log.debug("statuses not stored", reason=str(error))
            for write in writes:
                if write.name not in self._outbox.statuses:
                    self._outbox.status(write.name, statuses[write.name])
