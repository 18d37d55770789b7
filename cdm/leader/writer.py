"""Carries the outbox to the server: fenced batches to ``slices``, plain ones to ``status``.

One batch is in flight at a time and the next gathers meanwhile (group commit); where a whole one waits already, it is
made ready while the server takes the one before in. Every batch is guarded by the fence:
its first message expects the revision of ``_term`` that this leadership wrote, so the server refuses it whole once
another term began, however late it arrives. Being refused so is loss of leadership at once.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
from msgspec import Struct

from cdm import clock
from cdm.dispatch.messages import Message, WriteFailed, Written
from cdm.errors import AccessDenied, Conflict, RequestRefused, StoreBusy, StoreError
from cdm.leader.election import Election
from cdm.log import Log
from cdm.manager.outbox import Order, Outbox
from cdm.manager.reconciliation import Command
from cdm.model.artifact import Artifact
from cdm.model.keys import FENCE, encode
from cdm.model.slice import SliceValue
from cdm.store.backpressure import Backpressure
from cdm.store.batch import MAX_BATCH, Batch, Write
from cdm.store.bucket import Bucket
from cdm.store.wire import DELETE, EXPECT, EXPECT_SUBJECT, dump
from cdm.wakeup import Wakeup

log = Log("cdm.writer")

RETRY_PAUSE = 0.02
REFUSAL_PAUSE = 0.25
"""Seconds of patience with a server that refuses commands."""
REFUSAL_LOG_INTERVAL = 10.0
STATUS_PATIENCE = 1.0
"""Seconds for which statuses let commands go first."""
STATUS_PAUSE = 0.25
"""Least seconds between two writes of statuses, which are for people: what changes faster is written once."""


class _Part(Struct):
    """What goes into one batch."""

    term: int
    writes: list[Write]
    batch: Batch
    finished: list[Artifact]
    """Artifacts whose orders it completes."""
    touched: list[Artifact]
    """All artifacts that it is about."""


class CommandWriter:
    """Writes orders to ``slices``, fenced.

    Args:
        slices: the bucket.
        outbox: where orders come from.
        ready: set when there are orders.
        backpressure: released when no command waits to be written.
        election: knows the tenure that guards the writes, and learns that it was fenced.
        on_fenced: called after the election was told.
        route: takes `Written` and `WriteFailed`.
    """

    def __init__(
        self,
        slices: Bucket,
        outbox: Outbox,
        ready: Wakeup,
        backpressure: Backpressure,
        election: Election,
        on_fenced: Callable[[], None],
        route: Callable[[Message], None],
    ) -> None:
        self._slices = slices
        self._outbox = outbox
        self._ready = ready
        self._backpressure = backpressure
        self._election = election
        self._on_fenced = on_fenced
        self._route = route
        self._order: Order | None = None
        self._next = 0
        self._ahead: _Part | None = None
        """The part after the one in flight, where it was made ready already."""
        self._in_flight = False
        self._one_by_one = False
        self._logged_at = float("-inf")
        self._idle = anyio.Event()

    async def run(self) -> None:
        """Write orders until cancelled."""
        while True:
            await self._ready.wait()
            while part := self._ahead or self._gather():
                self._ahead = None
                self._in_flight = True
                try:
                    await self._write(part)
                finally:
                    self._in_flight = False
                    self._idle.set()
                    self._idle = anyio.Event()
            self._backpressure.release()

    async def drained(self) -> None:
        """Wait until no batch is in flight."""
        while self._in_flight:
            await self._idle.wait()

    @property
    def _waiting(self) -> int:
        """How many commands wait for a batch."""
        left = len(self._order.commands) - self._next if self._order is not None else 0
        return left + self._outbox.queued

    def _gather(self) -> _Part | None:
        """The next part, guarded by the fence; None where nothing is to be written."""
        tenure = self._election.tenure
        writes: list[Write] = []
        finished: list[Artifact] = []
        touched: list[Artifact] = []
        while len(writes) < MAX_BATCH:
            if self._order is None:
                self._order, self._next = self._outbox.take_order(), 0
                if self._order is None:
                    break
            order = self._order
            if tenure is None or order.term != tenure.term:
                self._order = None
                continue
            commands = order.commands[self._next : self._next + MAX_BATCH - len(writes)]
            writes += [_write(command, order.term) for command in commands]
            touched.append(order.artifact)
            self._next += len(commands)
            if self._next >= len(order.commands):
                finished.append(order.artifact)
                self._order = None
                if self._one_by_one:
                    break
        if tenure is None or not writes:
            return None
        guard = {EXPECT: str(tenure.fence), EXPECT_SUBJECT: self._slices.subject(encode(FENCE))}
        writes[0] = Write(writes[0].name, writes[0].payload, {**writes[0].headers, **guard})
        return _Part(tenure.term, writes, self._slices.prepare(writes), finished, touched)

    def _covered(self, term: int) -> bool:
        """Whether the lease, by this node's own clock, covers what is sent in this term."""
        tenure = self._election.tenure
        return tenure is not None and tenure.term == term and self._election.valid(clock.now())

    async def _write(self, part: _Part) -> None:
        # Nothing is sent that the lease does not cover.
        while self._covered(part.term):
            try:
                revision = await self._send(part)
            except Conflict as error:
                log.warning("fenced: another term began", term=part.term, server=str(error))
                self._ahead = None
                if self._covered(part.term):
                    self._election.fenced("the server refused a write of this term")
                    self._on_fenced()
                return
            except StoreBusy as error:
                log.debug("again", reason=str(error))
                part.batch = self._slices.prepare(part.writes)
                await anyio.sleep(RETRY_PAUSE)
                continue
            except RequestRefused as error:
                # A full store, most likely. What is small may still fit: orders go one by one until one is taken.
                self._one_by_one = True
                if clock.now() >= self._logged_at + REFUSAL_LOG_INTERVAL:
                    self._logged_at = clock.now()
                    log.warning("the server refuses commands", reason=str(error), commands=len(part.writes))
                await anyio.sleep(REFUSAL_PAUSE)
                await self._failed(part, str(error))
                return
            except StoreError as error:
                log.warning("commands may not be stored", reason=str(error), commands=len(part.writes))
                await self._failed(part, str(error))
                return
            self._one_by_one = False
            for artifact in part.finished:
                self._route(Written(artifact, part.term, revision))
            return
        self._give_up(part, 0, "the lease ended")

    async def _send(self, part: _Part) -> int:
        await self._slices.stage(part.batch)
        if self._ahead is None and self._waiting >= MAX_BATCH:
            self._ahead = self._gather()
        return await self._slices.commit(part.batch)

    async def _failed(self, part: _Part, reason: str) -> None:
        """Find out how far the stream is by now: a mirror that has come so far shows what was stored."""
        while self._covered(part.term):
            try:
                revision = (await self._slices.state()).last
            except StoreError:
                await anyio.sleep(RETRY_PAUSE)
                continue
            self._give_up(part, revision, reason)
            return
        self._give_up(part, 0, reason)

    def _give_up(self, part: _Part, revision: int, reason: str) -> None:
        """Drop what is left of its orders, too: they are decided anew."""
        ahead, self._ahead = self._ahead, None
        touched = dict.fromkeys([*part.touched, *(ahead.touched if ahead else ())])
        if self._order is not None and self._order.artifact in touched:
            self._order = None
        for artifact in touched:
            self._route(WriteFailed(artifact, part.term, revision, reason))


class StatusWriter:
    """Writes statuses, newest only; a status that was not stored is tried again.

    Args:
        bucket: ``status``.
        outbox: where they come from.
        ready: set when there are any.
        election: nothing is written while this process does not lead.
        backpressure: held while commands wait to be written, which go first.
    """

    def __init__(
        self,
        bucket: Bucket,
        outbox: Outbox,
        ready: Wakeup,
        election: Election,
        backpressure: Backpressure,
    ) -> None:
        self._bucket = bucket
        self._backpressure = backpressure
        self._outbox = outbox
        self._ready = ready
        self._election = election

    async def run(self) -> None:
        """Write statuses until cancelled."""
        while True:
            await self._ready.wait()
            while self._outbox.statuses:
                with anyio.move_on_after(STATUS_PATIENCE):
                    await self._backpressure.released()
                statuses = self._outbox.take_statuses(MAX_BATCH)
                if not self._election.valid(clock.now()):
                    continue
                writes = [
                    Write(name, b"", DELETE) if status is None else Write(name, dump(status))
                    for name, status in statuses.items()
                ]
                if too_long := [write for write in writes if self._bucket.problem_with(write)]:
                    # Of a refused blueprint whose key is hardly shorter than NATS takes: the log has told of it.
                    log.debug("statuses cannot be stored", blueprints=[write.name[:40] for write in too_long])
                    writes = [write for write in writes if write not in too_long]
                    statuses = {write.name: statuses[write.name] for write in writes}
                try:
                    if writes:
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
