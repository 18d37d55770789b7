"""Follows one bucket and never loses its place.

The client's own watcher goes silent for good when its consumer is lost. This one owns its consumer: it counts the
deliveries, expects heartbeats, and replaces the consumer when a number is skipped, a heartbeat is overdue, or the
connection was down. It resumes behind the last sequence that it reached where that can be trusted, which is while every
marker of a delete is still kept; otherwise it lists the bucket again. `cdm.store.mirror` works out the changes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from cdm import clock
from cdm.dispatch.messages import Message
from cdm.errors import AccessDenied, BucketMissing, StoreError, Uncertain
from cdm.log import Log
from cdm.store.announcer import Announcer
from cdm.store.backpressure import Backpressure
from cdm.store.barrier import Barrier
from cdm.store.bucket import Bucket
from cdm.store.consumer import Consumer, Hearing, until_up
from cdm.store.crowd import Crowd
from cdm.store.intake import FlowControl, Intake
from cdm.store.looks import Looks
from cdm.store.mirror import Gap, Mirror, SetBack
from cdm.store.progress import Lag, Phase, lag, phase_of
from cdm.store.provider import Provider
from cdm.store.rereader import Rereader
from cdm.store.rereading import RELIST_INTERVAL
from cdm.store.session import Listing
from cdm.store.source import ConsumerSource, OwnSource, first_of
from cdm.store.tasks import together
from cdm.store.wire import MARKER_TTL, StreamState, delivery_of, headers_of, matters

__all__ = ["Hearing", "Phase", "Watch"]

log = Log("cdm.watch")

HEARTBEAT = 2.5
"""Seconds between the server's heartbeats on a silent consumer, unless others are asked for. A lease is renewed
more often, by default, so that a mirror of ``slices`` hardly gets any."""
OVERDUE = 1.2
"""Such heartbeats by which the next one, however far apart they are, may be late before the consumer counts as lost."""
CHECK_PATIENCE = 2.0
"""Seconds that a check of the stream waits for what is on its way."""
TRUSTED_GAP = MARKER_TTL / 3
"""Longest silence, in seconds, after which the watch resumes behind its last sequence without listing."""
BEHIND_PATIENCE = 10.0
"""Seconds that a consumer's server may take to catch up with the stream's leader."""
DRIFT = 5.0
"""Seconds by which a message's time may differ from this node's clock, given what the server's clock was when the
consumer was made: servers take turns in leading a stream, and a clock may be set."""
DRIFT_INTERVAL = 30.0
"""Seconds for which a consumer is kept even so: to a receiver that is late itself every message looks old."""


class Watch:
    """One bucket's updates, as messages.

    Args:
        bucket: which bucket.
        emit: takes each message. An exception that it raises ends `run`.
        keys: which keys: all, or those that match a pattern as NATS has them (``node-1.>``).
        on_live: called with True when the mirror is complete, with False when it may fall behind.
        on_reset: called with a reason when the stream is not the one that it was.
        provide: called when the bucket is missing or lacks settings; it may create or adapt it.
        relist_interval: seconds between two full comparisons with the bucket, on average.
        backpressure: holds updates back while a leader's commands are being written.
        lent: managers that make the consumer where this user may make none; None: there is no other way.
        hearing: how it hears by its consumer; None: as most do.
    """

    def __init__(
        self,
        bucket: Bucket,
        emit: Callable[[Message], None],
        *,
        keys: str = ">",
        on_live: Callable[[bool], None] | None = None,
        on_reset: Callable[[str], None] | None = None,
        provide: Callable[[], Awaitable[object]] | None = None,
        relist_interval: float = RELIST_INTERVAL,
        backpressure: Backpressure | None = None,
        lent: ConsumerSource | None = None,
        hearing: Hearing | None = None,
    ) -> None:
        self.bucket = bucket
        self._filter = bucket.subject(keys)
        self._looks = Looks(bucket, self._filter)
        self._hearing = hearing or Hearing()
        asked, many = (self.check, self.caught_up, self.relist), self._hearing.of_each_node
        self._rereader = Rereader(bucket, self._filter, relist_interval, *asked, one_of_many=many)
        self._mirror = Mirror(bucket.layout, emit, self._looks.wake)
        self._own = OwnSource(bucket, self._filter)
        self._lent = lent
        self._name_at = len(bucket.subject(""))
        self._on_live = on_live
        self._on_reset = on_reset or (lambda _: None)
        self._provider = Provider(bucket.name, provide)
        self._heartbeat = self._hearing.clustered or HEARTBEAT
        """The present consumer's, or the last one's."""
        self._backpressure = backpressure
        self._crowd = Crowd(many, random.SystemRandom().random)
        self._was_interrupted = False
        self._flow_control = FlowControl(bucket.connection)
        self._consumer: Consumer | None = None
        self.epoch = time.time() - clock.now()
        """The server's clock less this node's, in seconds, as far as is known: what `ValuePut.at` was made with."""
        self._barrier = Barrier(self._mirror, lambda: self._consumer, self._end, bucket.connection.hurry)
        self._announcer = Announcer(self._tell)
        self.resumes = self.listings = 0
        """How many consumers began behind the last message known, and how many with all that the bucket held."""
        self._began = self._complete = self._heard = float("-inf")
        """When the server was last heard of, by whichever consumer."""

    @property
    def phase(self) -> Phase:
        """What the watch is doing."""
        return phase_of(self._mirror.phase)

    @property
    def reached(self) -> int:
        """Everything up to this sequence of the stream was emitted."""
        return self._mirror.reached

    @property
    def lag(self) -> Lag:
        """How far the mirror is behind the bucket."""
        mirror, consumer, heard = self._mirror, self._consumer, max(self._heard, self._began)
        messages = None if consumer is None else max(int(consumer.pending), consumer.waiting())
        taken, complete, now = mirror.stored / 1e9 - self.epoch, self._complete, clock.now()
        silence = self._heartbeat + HEARTBEAT / 2
        return lag(mirror.is_live, messages, taken=taken, heard=heard, complete=complete, silence=silence, now=now)

    async def run(self) -> None:
        """Follow the bucket until cancelled; ends only with an exception of a receiver.

        Raises:
            AccessDenied: a permission is missing, and was from the beginning. One that is revoked later may be
                granted again.
        """
        self._began = clock.now()
        looks, reread = self._looks.run(self._mirror), self._rereader.run(self._mirror)
        try:
            await together(self._flow_control.run(), looks, reread, self._follow())
        finally:
            self._announcer.trust()

    async def caught_up(self) -> None:
        """Wait until everything that the bucket holds at the time of the call has been emitted (read barrier).

        Raises:
            StoreError: the server did not say how far the bucket is.
        """
        # Where the stream is replaced meanwhile, sequences of the old one say nothing about the new one.
        while True:
            generation = self._mirror.generation
            _, target = await first_of(self._own, self._lent)
            if await self._barrier.reach(generation, target) and not self._purged(target):
                return

    async def check(self) -> None:
        """Look whether the stream is the one that is followed, holds what is known, and has the settings it needs.

        Where not, the bucket is adapted, or listed. Such a look precedes each new consumer in any case.
        """
        mirror, reached, generation = self._mirror, self._mirror.reached, self._mirror.generation
        try:
            stream = await self.bucket.state()
        except StoreError as error:
            log.debug("bucket not checked", bucket=self.bucket.name, reason=str(error))
            if isinstance(error, BucketMissing):
                self._end("the bucket is missing")
            return
        if stream.lacks:
            await self._provider.provide(f"it lacks {stream.lacks}")
        if mirror.is_live and (stream.created != mirror.created or stream.last < reached):
            self._end("the stream is another one")
        elif mirror.is_live and mirror.lost(stream, clock.now()):
            # Most often it is only that what was replaced meanwhile was not delivered so far.
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(CHECK_PATIENCE):
                    if await self._barrier.reach(generation, stream):
                        self._purged(stream)

    def _purged(self, stream: StreamState) -> bool:
        """Whether known keys are gone from the stream, which was reached; then everything is listed."""
        if lost := self._mirror.lost(stream, clock.now()):
            log.warning("keys were purged; everything is listed", bucket=self.bucket.name, at_least=lost)
            self.relist()
        return lost > 0

    def relist(self) -> None:
        """List the whole bucket again, now; `caught_up` waits for it."""
        self._mirror.distrust()
        self._end("to be listed again")

    async def _follow(self) -> None:
        while True:
            try:
                log.debug("watch renewed", bucket=self.bucket.name, reason=await self._run_session())
                continue
            except BucketMissing:
                await self._provider.provide("it does not exist")
                pause = self._crowd.refused()
            except StoreError as error:
                if isinstance(error, AccessDenied) and not self.reached:
                    raise
                self._miss(error)
                lost = isinstance(error, Uncertain) and not self._was_interrupted
                pause = self._crowd.unanswered() if lost else self._crowd.refused()
            await asyncio.sleep(pause)

    def _miss(self, error: StoreError) -> None:
        """There is no consumer, and none could be made: after a while the mirror cannot be trusted."""
        log.debug("watch waits", bucket=self.bucket.name, reason=str(error))
        if clock.now() >= self._overdue:
            self._announcer.tell(False)
        elif not isinstance(error, AccessDenied):
            return
        # The error names the consumer, which is another one each time: the connection would log it each time.
        self._provider.complain("updates do not come", str(error))

    # A session: the life of one consumer

    async def _run_session(self) -> str:
        connection, crowd = self.bucket.connection, self._crowd
        while self._was_interrupted or not connection.is_up:
            self._was_interrupted = False
            self._announcer.tell(False)
            await until_up(connection)
            await asyncio.sleep(crowd.back())
        source, stream = await first_of(self._own, self._lent)
        self._rereader.lent = source is not self._own
        crowd.see(stream)
        self._own.patience = crowd.patience
        consumer = Consumer(self.bucket, self._filter, source, stream)
        if reason := self._mirror.other_stream(stream):
            self._reset(reason)
        if stream.lacks:
            await self._provider.provide(f"it lacks {stream.lacks}")
        after = self._begin(stream)
        self._heartbeat = self._hearing.heartbeats(stream) or HEARTBEAT
        self._consumer, self.epoch = consumer, consumer.offset
        connection.listen(self._on_connection)
        intake = Intake(partial(self._on_message, consumer), self._may_wait)
        subscription = await consumer.listen(intake, can_wait=self._hearing.can_wait)
        try:
            drained = await consumer.create(after, self._heartbeat)
            self._heard = consumer.made
            self._announcer.trust()
            if drained:
                await self._finish_if_complete(consumer)
            return await self._until_over(consumer)
        finally:
            self._consumer = None
            intake.close()
            self._complete = self._heard if self._mirror.is_live else self._complete
            self._mirror.leave()
            self._announcer.doubt(self._overdue - clock.now())
            connection.unlisten(self._on_connection)
            await connection.unsubscribe(subscription)
            if clock.now() < self._overdue:  # else it is lost, and whoever could delete it may be too
                consumer.delete()

    def _reset(self, reason: str) -> None:
        log.warning("stream is not the one that it was", bucket=self.bucket.name, reason=reason)
        self._announcer.tell(False)
        self._on_reset(f"the stream of {self.bucket.name} {reason}")

    def _may_wait(self) -> bool:
        return self._backpressure is not None and self._mirror.is_live and self._backpressure.much()

    def _begin(self, stream: StreamState) -> int | None:
        """Returns the sequence behind which the consumer is to begin; None: it is to list everything."""
        mirror, now = self._mirror, clock.now()
        if mirror.may_resume and now < self._heard + TRUSTED_GAP and now < self._rereader.relist_due(mirror):
            self.resumes += 1
            return mirror.resume(stream.last)
        self.listings += 1
        self._rereader.plan()
        mirror.list(stream.last)
        return None

    async def _until_over(self, consumer: Consumer) -> str:
        """Wait for the session to end; returns why."""
        while not consumer.over.done():
            now, overdue, relist = clock.now(), self._overdue, self._rereader.relist_due(self._mirror)
            if now >= overdue:
                self._announcer.tell(False)
                return "the consumer is silent"
            if not self._mirror.is_live:
                waited_for = (consumer.over,) if consumer.idle.done() else (consumer.over, consumer.idle)
                await asyncio.wait(waited_for, timeout=HEARTBEAT / 2, return_when=asyncio.FIRST_COMPLETED)
                # What was still to be delivered may be purged or expired meanwhile: then no delivery was the last one.
                if not self._mirror.is_live and not consumer.over.done() and await consumer.drained():
                    await self._finish_if_complete(consumer)
            elif now >= relist:
                return "time to compare everything"
            else:
                await asyncio.wait((consumer.over,), timeout=min(overdue, relist) - now)
        return consumer.over.result()

    @property
    def _overdue(self) -> float:
        """When the consumer counts as lost, unless it is heard of before."""
        return max(self._heard, self._began) + self._heartbeat + HEARTBEAT * OVERDUE

    async def _finish_if_complete(self, consumer: Consumer) -> None:
        """It has nothing more to deliver: that is all that there is, or the server that it is on is behind."""
        if await consumer.complete(consumer.stream, listing=isinstance(self._mirror.phase, Listing)):
            if not self._mirror.is_live and not consumer.over.done():
                self._finish(consumer)
        elif clock.now() >= consumer.made + BEHIND_PATIENCE:
            consumer.end("its server is behind the stream's leader")

    def _finish(self, consumer: Consumer) -> None:
        try:
            self._mirror.finish(clock.now())
        except Gap as gap:
            self._end(str(gap))
        else:
            self._barrier.progress()
            self._announcer.tell(True)
            consumer.on_complete()
            self._looks.wake()
            self._rereader.wake()

    def _end(self, reason: str) -> None:
        if self._consumer is not None:
            self._consumer.end(reason)

    def _on_connection(self, up: bool) -> None:
        self._was_interrupted = True
        self._announcer.tell(False)
        self._end("the connection was interrupted")

    def _tell(self, live: bool) -> None:
        if live:
            self._provider.mended()
            self._crowd.well()
        if self._on_live is not None:
            self._on_live(live)

    def _on_message(self, consumer: Consumer, subject: bytes, reply: bytes, data: bytes, block: bytes) -> None:
        if consumer.over.done():
            return
        try:
            if reply.startswith(b"$JS.ACK."):
                self._on_delivery(consumer, subject, reply, data, block)
            else:
                self._on_control(consumer, reply.decode("utf-8", "replace"), headers_of(block))
        except Gap as gap:
            consumer.end(str(gap))
            if isinstance(gap, SetBack):
                self._reset(str(gap))
        except Exception as error:  # noqa: BLE001  # a receiver's: it ends `run`, and with it the process
            if not consumer.over.done():
                consumer.over.set_exception(error)

    def _on_delivery(self, consumer: Consumer, subject: bytes, reply: bytes, data: bytes, block: bytes) -> None:
        if (delivery := delivery_of(reply)) is None:
            return
        name, sequence, number, stored, pending = delivery
        if number != consumer.expected or name != consumer.token:
            if name == consumer.token:
                consumer.end(f"delivery {number} came instead of {consumer.expected}")
            return
        consumer.expected += 1
        consumer.pending = pending
        now = self._heard = clock.now()
        # Most messages have no headers, or only those of the batch that they were written in.
        marked = block and matters(block)
        key = subject[self._name_at :].decode("utf-8", "backslashreplace")
        at = stored / 1e9 - consumer.offset
        consumer.delivered(subject, sequence)
        self._mirror.update(key, data, headers_of(block) if marked else None, sequence, stored, min(at, now))
        if self._barrier.awaited:
            self._barrier.progress()
        if pending == b"0":  # nothing waits behind it, so it was stored just now
            if not self._mirror.is_live:
                if consumer.surely_complete(consumer.stream):
                    self._finish(consumer)
                elif not consumer.idle.done():
                    consumer.idle.set_result(None)
            elif abs(at - now) > DRIFT and now > consumer.made + DRIFT_INTERVAL:
                consumer.end("the server's clock is another one")

    def _on_control(self, consumer: Consumer, reply: str, headers: dict[str, str]) -> None:
        self._heard = clock.now()
        if question := reply or headers.get("Nats-Consumer-Stalled"):
            self._flow_control.ask(question)
        elif (last := headers.get("Nats-Last-Consumer", "")).isdecimal() and int(last) > consumer.expected - 1:
            consumer.end(f"deliveries up to {last} were made, {consumer.expected - 1} came")
