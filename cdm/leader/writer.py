"""Carries orders to ``slices`` in batches that are guarded by the fence.

One batch is in flight at a time and the next gathers meanwhile (group commit); where a whole one waits already, it is
made ready while the server stores the one before, and all of it is sent but the last message, without which nothing of
it is stored. The first message of every batch expects the revision of ``_term``
that this leadership wrote, so the server refuses it whole once another term began, however late it arrives. Being
refused so is loss of leadership at once.

A batch that was sent ahead may be lost: a server forgets it when another one leads the stream, and after ten seconds.
Then it takes no last message, and the batch is sent again, whole. One that is dropped stays open there for these ten
seconds, and takes one of the places for batches that all share: until they are over none is sent ahead.

Where the server takes no batch that it was sent in one go, because others hold theirs open, the same messages go one by
one for a while, each with the guard, the next one when the one before is stored.

Where a batch is not answered, it may be stored, or still be under way for a long time, and its term is still the right
one. Then nothing is sent until the fence is stored anew: the server refuses from there on what was under way, and
whoever has seen the fence's new revision has seen all that was stored before.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress

import anyio
from msgspec import Struct

from cdm import clock
from cdm.dispatch.messages import FenceRenewal, Message, WriteFailed, Written
from cdm.errors import AccessDenied, BatchRefused, Conflict, RequestRefused, StoreBusy, StoreError
from cdm.leader.batching import BatchPart, Cutter
from cdm.leader.election import Election
from cdm.leader.lease import LeaseStore
from cdm.leader.records import Tenure
from cdm.log import Lasting, Log, Ration
from cdm.manager.outbox import Outbox
from cdm.model.keys import FENCE, encode
from cdm.model.slice import SliceState
from cdm.store.backpressure import Backpressure
from cdm.store.batch import MAX_BATCH, Batch, Write
from cdm.store.bucket import Bucket
from cdm.store.wire import EXPECT, EXPECT_SUBJECT
from cdm.wakeup import Wakeup

log = Log("cdm.writer")

BUSY_PAUSE = 0.02
"""Seconds after which a server is asked again that had no time."""
SINGLY_FOR = 1.0
"""Seconds for which messages go one by one, once the server has refused a batch."""
FORGOTTEN_AFTER = 10.0
"""Seconds after which a server forgets a batch whose last message does not come."""
REFUSAL_PAUSE = 0.25
"""Seconds of patience with a server that refuses commands."""
STORED, REFUSED, UNKNOWN, DROPPED = OUTCOMES = ("stored", "refused", "unknown", "dropped")
"""What may become of commands. Those that the server refused, or whose outcome is unknown, are decided anew; those of
a term that is over are dropped."""
REFUSAL_LOG_INTERVAL = 10.0
"""Seconds between two lines that say that commands are refused."""


class Prepared(Struct):
    """A part, and what it is sent as: one batch, or one message after the other."""

    part: BatchPart
    batches: deque[Batch]
    """What is still to be sent of it; each can be sent once."""
    fence_revision: int
    """The revision of the fence that guards it."""
    sent_ahead: Batch | None = None
    """The one of these batches that the server was sent, but for its last message, before it was its turn."""


class CommandWriter:
    """Writes orders, fenced.

    Args:
        slices: the bucket.
        outbox: where orders come from.
        ready: set when there are orders.
        backpressure: released when no command waits to be written.
        election: knows the tenure that guards the writes, and learns that it was fenced.
        on_fenced: called after the election was told.
        route: takes `Written`, `WriteFailed` and `FenceRenewal`.
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
        self._fence = LeaseStore(slices, election.node, election.incarnation, election.timing.ttl)
        self._cutter = Cutter(outbox)
        self._ready = ready
        self._backpressure = backpressure
        self._election = election
        self._on_fenced = on_fenced
        self._route = route
        self._ahead: Prepared | None = None
        """What is sent after the batch in flight, where it was made ready already."""
        self._none_ahead_until = float("-inf")
        """When the server has forgotten the last one that was sent ahead and dropped."""
        self._in_flight = False
        self._idle = anyio.Event()
        self._one_order = False
        """Whether the server refused a batch. What is small may still fit: orders go one by one until one is stored."""
        self.outcomes: Counter[tuple[SliceState | None, str]] = Counter()
        """How many commands of each kind (None: deletes of keys) came to what: one of `OUTCOMES`."""
        self._singly_until = float("-inf")
        self._refusals = Ration(1, REFUSAL_LOG_INTERVAL)
        self._unknown = Lasting(log, "commands are stored again")

    async def run(self) -> None:
        """Write orders until cancelled."""
        while True:
            await self._ready.wait()
            while prepared := self._ahead or self._prepare():
                self._ahead = None
                self._in_flight = True
                try:
                    await self._write(prepared)
                finally:
                    self._in_flight = False
                    self._idle.set()
                    self._idle = anyio.Event()
            self._backpressure.release()

    @property
    def waiting(self) -> int:
        """How many commands wait for a batch, those of an order that was begun included."""
        return self._cutter.waiting

    async def drained(self) -> None:
        """Wait until no batch is in flight."""
        while self._in_flight:
            await self._idle.wait()

    def _prepare(self) -> Prepared | None:
        """The next batch, guarded by the fence; None where nothing is to be written."""
        tenure = self._election.tenure
        part = self._cutter.cut(tenure.term if tenure else 0, one_order=self._one_order)
        if tenure is None or part is None:
            return None
        return Prepared(part, self._encoded(part.writes, tenure.fence_revision), tenure.fence_revision)

    def _encoded(self, writes: list[Write], fence_revision: int) -> deque[Batch]:
        """One batch whose first message is guarded, or each message alone, and guarded."""
        guard = {EXPECT: str(fence_revision), EXPECT_SUBJECT: self._slices.subject(encode(FENCE))}
        guarded = (Write(write.name, write.payload, {**write.headers, **guard}) for write in writes)
        if clock.now() < self._singly_until:
            return deque(self._slices.prepare([write]) for write in guarded)
        writes[0] = next(guarded)
        return deque([self._slices.prepare(writes)])

    async def _tenure(self, term: int) -> Tenure | None:
        """What this process holds, once its lease covers what is sent; None: the term is over.

        By this node's own clock the lease may have ended while the answer to its renewal is on its way.
        """
        while (tenure := self._election.tenure) is not None and tenure.term == term:
            if self._election.valid(clock.now()):
                return tenure
            await anyio.sleep(BUSY_PAUSE)
        self._unknown.drop()
        return None

    async def _write(self, prepared: Prepared) -> None:
        part, batches, revision = prepared.part, prepared.batches, 0
        while batches and await self._tenure(part.term):
            try:
                revision = await self._send(prepared)
                batches.popleft()
            except Conflict as error:
                self._on_conflict(part.term, error)
                self._count(part, DROPPED)
                return
            except StoreBusy as error:
                await self._again(prepared, error)
            except RequestRefused as error:
                # A full store, most likely.
                self._one_order = True
                self._count(part, REFUSED)
                self._log_refusal("the server refuses commands", error, part)
                await anyio.sleep(REFUSAL_PAUSE)
                await self._failed(part, str(error))
                return
            except StoreError as error:
                self._count(part, UNKNOWN)
                self._unknown.goes_on(
                    clock.now(), "unknown whether commands were stored", reason=str(error), commands=len(part.writes)
                )
                if isinstance(error, AccessDenied):
                    await anyio.sleep(REFUSAL_PAUSE)  # it is decided anew, and would be refused anew at once
                await self._settle(prepared, str(error))
                return
        if batches:
            self._count(part, DROPPED)
            self._give_up(part, 0, "the term is over")
            return
        self._count(part, STORED)
        self._unknown.over(clock.now())
        self._one_order = False
        for artifact in part.finished:
            self._route(Written(artifact, part.term, revision))

    def _count(self, part: BatchPart, outcome: str) -> None:
        for kind, count in part.kinds.items():
            self.outcomes[kind, outcome] += count

    async def _send(self, prepared: Prepared) -> int:
        batch = prepared.batches[0]
        if batch is not prepared.sent_ahead:
            await self._slices.stage(batch)
        return await self._slices.commit(batch, meanwhile=self._get_ahead)

    async def _get_ahead(self) -> None:
        """Make the next batch ready, where a whole one waits, and let the server have all of it but its last message.

        Without that the server stores nothing of it. What may well be dropped is not sent: it would stay open there.
        """
        if self._ahead is not None or self._cutter.waiting < MAX_BATCH or not (ahead := self._prepare()):
            return
        self._ahead = ahead
        if self._one_order or clock.now() < self._none_ahead_until:
            return
        with suppress(StoreError):
            await self._slices.stage(ahead.batches[0])
            ahead.sent_ahead = ahead.batches[0]

    def _drop_ahead(self) -> Prepared | None:
        """What was made ready, and is not sent after all."""
        ahead, self._ahead = self._ahead, None
        if ahead and ahead.sent_ahead:
            self._none_ahead_until = clock.now() + FORGOTTEN_AFTER
        return ahead

    async def _again(self, prepared: Prepared, error: StoreBusy) -> None:
        """What was sent last was not stored: make it ready to be sent again, as far as it takes."""
        part, batches = prepared.part, prepared.batches
        if isinstance(error, BatchRefused):
            if batches[0] is prepared.sent_ahead:
                log.debug("a batch that was sent ahead is sent again", reason=str(error))
            else:
                self._log_refusal("commands go one by one, for the server takes no batch", error, part)
                self._singly_until = clock.now() + SINGLY_FOR
            batches.clear()
            batches.extend(self._encoded(part.writes, prepared.fence_revision))
            return
        log.debug("again", reason=str(error))
        if batches[0].frames:
            batches[0] = self._slices.prepare(part.writes)
        await anyio.sleep(BUSY_PAUSE)

    def _log_refusal(self, what: str, error: StoreError, part: BatchPart) -> None:
        if self._refusals.take(clock.now()):
            log.warning(what, reason=str(error), commands=len(part.writes))

    def _on_conflict(self, term: int, error: Conflict) -> None:
        log.warning("fenced: another term began", term=term, server=str(error))
        self._drop_ahead()
        self._unknown.drop()
        if self._election.valid(clock.now()):
            self._election.fenced("the server refused a write of this term")
            self._on_fenced()

    async def _settle(self, prepared: Prepared, reason: str) -> None:
        """Write the fence anew until that is answered; all that was decided before is decided anew after it."""
        term, election = prepared.part.term, self._election
        self._route(FenceRenewal(term, None))
        while tenure := await self._tenure(term):
            if tenure.fence_revision > prepared.fence_revision:
                log.debug("fence renewed", term=term, revision=tenure.fence_revision)
                self._route(FenceRenewal(term, tenure.fence_revision))
                self._give_up(prepared.part, tenure.fence_revision, reason, with_all_orders=True)
                return
            try:
                election.fence_renewed(await self._fence.renew_fence(tenure, election.timing.renew_every))
            except Conflict:
                await self._adopt_fence()
            except StoreError as error:
                log.debug("fence not renewed yet", reason=str(error))
                await anyio.sleep(BUSY_PAUSE)
        self._give_up(prepared.part, 0, "the term is over")

    async def _adopt_fence(self) -> None:
        """The fence is not the one that was expected: it is an earlier try that was stored, or this term is over."""
        try:
            self._election.fence_refused(await self._fence.read_fence())
        except StoreError as error:
            log.debug("fence not read yet", reason=str(error))
            await anyio.sleep(BUSY_PAUSE)
        else:
            if not self._election.valid(clock.now()):
                self._on_fenced()

    async def _failed(self, part: BatchPart, reason: str) -> None:
        """No more is stored of it: its orders are decided anew when the mirror shows all that was stored so far."""
        while await self._tenure(part.term):
            try:
                revision = (await self._slices.state()).last
            except StoreError:
                await anyio.sleep(BUSY_PAUSE)
                continue
            self._give_up(part, revision, reason)
            return
        self._give_up(part, 0, "the term is over")

    def _give_up(self, part: BatchPart, revision: int, reason: str, *, with_all_orders: bool = False) -> None:
        """Drop what is left of its orders, too, or everything that waits: it is decided anew."""
        ahead = self._drop_ahead()
        touched = dict.fromkeys([*part.touched, *(ahead.part.touched if ahead else ())])
        if with_all_orders:
            touched |= dict.fromkeys(self._cutter.drop_all())
        self._cutter.drop(touched)
        for artifact in touched:
            self._route(WriteFailed(artifact, part.term, revision, reason))
