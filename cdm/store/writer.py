"""Carries the outbox to the server: fenced batches to ``slices``, plain ones to ``status``.

One batch is in flight at a time and the next gathers meanwhile (group commit). Every batch is guarded by the fence:
its first message expects the revision of ``_term`` that this leadership wrote, so the server refuses it whole once
another term began, however late it arrives. Being refused so is loss of leadership at once.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from cdm import clock
from cdm.election import Election
from cdm.errors import AccessDenied, Busy, Conflict, Refused, StoreError
from cdm.log import Log
from cdm.messages import Message, WriteFailed, Written
from cdm.model.artifact import Artifact
from cdm.model.keys import FENCE, encode
from cdm.model.slice import SliceValue
from cdm.outbox import Order, Outbox
from cdm.reconciliation import Command
from cdm.store.bucket import DELETE, EXPECT, EXPECT_SUBJECT, MAX_BATCH, Bucket, Write, dump
from cdm.store.signal import Signal

log = Log("cdm.writer")

RETRY_PAUSE = 0.02
REFUSAL_PAUSE = 0.25
"""Seconds of patience with a server that refuses commands."""
REFUSAL_LOG_INTERVAL = 10.0
STATUS_PAUSE = 0.25
"""Least seconds between two writes of statuses, which are for people: what changes faster is written once."""


class CommandWriter:
    """Writes orders to ``slices``, fenced.

    Args:
        slices: the bucket.
        outbox: where orders come from.
        ready: set when there are orders.
        election: knows the tenure that guards the writes, and learns that it was fenced.
        on_fenced: called after the election was told.
        route: takes `Written` and `WriteFailed`.
    """

    def __init__(
        self,
        slices: Bucket,
        outbox: Outbox,
        ready: Signal,
        election: Election,
        on_fenced: Callable[[], None],
        route: Callable[[Message], None],
    ) -> None:
        self._slices = slices
        self._outbox = outbox
        self._ready = ready
        self._election = election
        self._on_fenced = on_fenced
        self._route = route
        self._order: Order | None = None
        self._next = 0
        self._in_flight = False
        self._one_by_one = False
        self._logged_at = float("-inf")
        self._idle = anyio.Event()

    async def run(self) -> None:
        """Write orders until cancelled."""
        while True:
            await self._ready.wait()
            while True:
                batch, finished, touched = self._gather()
                if not batch:
                    break
                self._in_flight = True
                try:
                    await self._write(batch, finished, touched)
                finally:
                    self._in_flight = False
                    self._idle.set()
                    self._idle = anyio.Event()

    async def drained(self) -> None:
        """Wait until no batch is in flight."""
        while self._in_flight:
            await self._idle.wait()

    async def calm(self) -> None:
        """Wait until no batch is in flight and no order waits for one."""
        while self._in_flight or self._order is not None or self._outbox.orders:
            await self._idle.wait()

    def _gather(self) -> tuple[list[Write], list[Artifact], list[Artifact]]:
        """The next batch, the artifacts whose orders it completes, and all artifacts it is about."""
        tenure = self._election.tenure
        batch: list[Write] = []
        finished: list[Artifact] = []
        touched: list[Artifact] = []
        while len(batch) < MAX_BATCH:
            if self._order is None:
                self._order, self._next = self._outbox.take_order(), 0
                if self._order is None:
                    break
            order = self._order
            if tenure is None or order.term != tenure.term:
                self._order = None
                continue
            commands = order.commands[self._next : self._next + MAX_BATCH - len(batch)]
            batch += [_write(command, order.term) for command in commands]
            touched.append(order.artifact)
            self._next += len(commands)
            if self._next >= len(order.commands):
                finished.append(order.artifact)
                self._order = None
                if self._one_by_one:
                    break
        return batch, finished, touched

    async def _write(self, batch: list[Write], finished: list[Artifact], touched: list[Artifact]) -> None:
        tenure = self._election.tenure
        assert tenure is not None
        guard = {EXPECT: str(tenure.fence), EXPECT_SUBJECT: self._slices.subject(encode(FENCE))}
        batch[0] = Write(batch[0].name, batch[0].payload, {**batch[0].headers, **guard})
        # Nothing is sent that the lease, by this node's own clock, does not cover.
        while self._election.valid(clock.now()):
            try:
                revision = await self._slices.batch(batch)
            except Conflict as error:
                log.warning("fenced: another term began", term=tenure.term, server=str(error))
                self._election.fenced("the server refused a write of this term")
                self._on_fenced()
                return
            except Busy as error:
                log.debug("again", reason=str(error))
                await anyio.sleep(RETRY_PAUSE)
                continue
            except Refused as error:
                # A full store, most likely. What is small may still fit: orders go one by one until one is taken.
                self._one_by_one = True
                if clock.now() >= self._logged_at + REFUSAL_LOG_INTERVAL:
                    self._logged_at = clock.now()
                    log.warning("the server refuses commands", reason=str(error), commands=len(batch))
                await anyio.sleep(REFUSAL_PAUSE)
                await self._failed(tenure.term, touched, str(error))
                return
            except StoreError as error:
                log.warning("commands may not be stored", reason=str(error), commands=len(batch))
                await self._failed(tenure.term, touched, str(error))
                return
            self._one_by_one = False
            for artifact in finished:
                self._route(Written(artifact, tenure.term, revision))
            return
        self._give_up(tenure.term, touched, 0, "the lease ended")

    async def _failed(self, term: int, touched: list[Artifact], reason: str) -> None:
        """Find out how far the stream is by now: a mirror that has come so far shows what was stored."""
        while self._election.valid(clock.now()):
            try:
                revision = (await self._slices.state()).last
            except StoreError:
                await anyio.sleep(RETRY_PAUSE)
                continue
            self._give_up(term, touched, revision, reason)
            return
        self._give_up(term, touched, 0, reason)

    def _give_up(self, term: int, touched: list[Artifact], revision: int, reason: str) -> None:
        if self._order is not None and self._order.artifact in touched:
            self._order = None
        for artifact in touched:
            self._route(WriteFailed(artifact, term, revision, reason))


class StatusWriter:
    """Writes statuses, newest only; a status that was not stored is tried again.

    Args:
        bucket: ``status``.
        outbox: where they come from.
        ready: set when there are any.
        election: nothing is written while this process does not lead.
    """

    def __init__(self, bucket: Bucket, outbox: Outbox, ready: Signal, election: Election) -> None:
        self._bucket = bucket
        self._outbox = outbox
        self._ready = ready
        self._election = election

    async def run(self) -> None:
        """Write statuses until cancelled."""
        while True:
            await self._ready.wait()
            while statuses := self._outbox.take_statuses(MAX_BATCH):
                if not self._election.valid(clock.now()):
                    continue
                writes = [
                    Write(name, b"", DELETE) if status is None else Write(name, dump(status))
                    for name, status in statuses.items()
                ]
                try:
                    await self._bucket.batch(writes)
                except StoreError as error:
                    if isinstance(error, AccessDenied):
                        self._bucket.connection.complain(error)
                    log.debug("statuses not stored", reason=str(error))
                    for name, status in statuses.items():
                        if name not in self._outbox.statuses:
                            self._outbox.status(name, status)
                await anyio.sleep(STATUS_PAUSE)


def _write(command: Command, term: int) -> Write:
    name = encode(command.key)
    if command.state is None:
        return Write(name, b"", DELETE)
    value = SliceValue(
        command.state,
        term,
        failures=command.failures or None,
        blueprint=command.blueprint or None,
        overrides=command.overrides,
    )
    return Write(name, dump(value))
