"""Follows one bucket and never loses its place.

The client's own watcher goes silent for good when its consumer is lost. This one owns its consumer: it counts the
deliveries, expects heartbeats, and replaces the consumer when a number is skipped, a heartbeat is overdue, or the
connection was down. It resumes behind the last sequence that it reached where that can be trusted, which is while every
marker of a delete is still kept; otherwise it lists the bucket again. `cdm.store.mirror` works out the changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from functools import partial

import anyio

from cdm import clock
from cdm.dispatch.messages import Message
from cdm.errors import AccessDenied, BucketMissing, StoreError
from cdm.log import Log
from cdm.store.backpressure import Backpressure
from cdm.store.bucket import Bucket
from cdm.store.consumer import Consumer
from cdm.store.mirror import Behind, Live, Mirror
from cdm.store.wire import MARKER_TTL, StreamState, headers_of
from cdm.wakeup import Wakeup

log = Log("cdm.watch")

HEARTBEAT = 2.0
"""Seconds between the server's heartbeats on a silent consumer."""
OVERDUE = 2.5
"""Heartbeats after which a silent consumer counts as lost."""
RELIST_INTERVAL = 300.0
"""Seconds between two full comparisons with the bucket."""
TRUSTED_GAP = MARKER_TTL / 3
"""Longest silence, in seconds, after which the watch resumes behind its last sequence without listing."""
BARRIER_PATIENCE = 0.05
"""Seconds after which a barrier asks the consumer how far it is."""
LONGEST_HOLD = 2.0
"""Seconds for which the server's question whether to continue may be left unanswered."""
SESSION_PAUSE = 0.25
"""Seconds before another consumer is made where one could not be."""
COMPLAINT_INTERVAL = 30.0
"""Seconds between two lines that say that updates of a bucket do not come."""
DRIFT = 5.0
"""Seconds by which a message's time may differ from this node's clock, given what the server's clock was when the
consumer was made: servers take turns in leading a stream, and a clock may be set."""
DRIFT_INTERVAL = 30.0
"""Seconds for which a consumer is kept even so: to a receiver that is late itself every message looks old."""


class Phase(Enum):
    """What a watch is doing."""

    SEEKING = auto()
    """There is no consumer."""
    LISTING = auto()
    """The consumer delivers what the bucket held when it was made."""
    LIVE = auto()
    """All of that was delivered; updates follow."""


class Watch:
    """One bucket's updates, as messages.

    Args:
        bucket: which bucket.
        emit: takes each message. An exception that it raises ends `run`.
        keys: which keys: all, or those that match a pattern as NATS has them (``node-1.>``).
        on_live: called with True when the mirror is complete, with False when it may fall behind.
        on_reset: called with a reason when the stream is not the one that it was.
        on_missing: called when the bucket is found missing; it may create it.
        relist_interval: seconds between two full comparisons with the bucket.
        backpressure: holds updates back while a leader's commands are being written.
    """

    def __init__(
        self,
        bucket: Bucket,
        emit: Callable[[Message], None],
        *,
        keys: str = ">",
        on_live: Callable[[bool], None] | None = None,
        on_reset: Callable[[str], None] | None = None,
        on_missing: Callable[[], Awaitable[object]] | None = None,
        relist_interval: float = RELIST_INTERVAL,
        backpressure: Backpressure | None = None,
    ) -> None:
        self.bucket = bucket
        self._mirror = Mirror(bucket.layout, emit)
        self._filter = bucket.subject(keys)
        self._name_at = len(bucket.subject(""))
        self._on_live = on_live
        self._on_reset = on_reset
        self._on_missing = on_missing
        self._relist_interval = relist_interval
        self._backpressure = backpressure
        self._consumer: Consumer | None = None
        self._question = ""
        """Subject at which the server waits for an answer before it delivers more (flow control)."""
        self._asked = Wakeup()
        self._progress: anyio.Event | None = None
        """Set when more was emitted; there while a barrier waits."""
        self._told_live = False
        self._began = float("-inf")
        self._heard = float("-inf")
        """When the server was last heard of, by whichever consumer."""
        self._complained_at = float("-inf")

    @property
    def phase(self) -> Phase:
        """What the watch is doing."""
        match self._mirror.phase:
            case Behind():
                return Phase.SEEKING
            case Live():
                return Phase.LIVE
            case _:
                return Phase.LISTING

    @property
    def reached(self) -> int:
        """Everything up to this sequence of the stream was emitted."""
        return self._mirror.reached

    async def run(self) -> None:
        """Follow the bucket until cancelled; ends only with an exception of a receiver.

        Raises:
            AccessDenied: a permission is missing, and was from the beginning. One that is revoked later may be
                granted again.
        """
        self._began = clock.now()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._answer)
            await self._follow()

    async def caught_up(self) -> None:
        """Wait until everything that the bucket holds at the time of the call has been emitted (read barrier).

        Raises:
            StoreError: the server did not say how far the bucket is.
        """
        mirror = self._mirror
        generation, target = mirror.generation, await self.bucket.state()
        while True:
            if generation != mirror.generation:
                # The stream was replaced meanwhile: sequences of the old one say nothing about it.
                generation, target = mirror.generation, await self.bucket.state()
            same = mirror.created == target.created
            if same and mirror.is_live and mirror.reached >= target.last:
                return
            if not same and mirror.is_live:
                self._end("the stream was created anew")
            self._progress = self._progress or anyio.Event()
            with anyio.move_on_after(BARRIER_PATIENCE):
                await self._progress.wait()
                continue
            # Nothing more is delivered where the last messages were removed again: the consumer knows.
            consumer = self._consumer
            if same and mirror.is_live and consumer and await consumer.drained() and consumer is self._consumer:
                mirror.skip(target.last)

    def relist(self) -> None:
        """List the whole bucket again, now; `caught_up` waits for it."""
        self._mirror.distrust()
        self._end("to be listed again")

    async def _follow(self) -> None:
        while True:
            try:
                reason = await self._run_session()
                log.debug("watch renewed", bucket=self.bucket.name, reason=reason)
                continue
            except BucketMissing as error:
                log.warning("bucket is missing", bucket=self.bucket.name)
                await self._recreate(error)
            except StoreError as error:
                if isinstance(error, AccessDenied) and not self.reached:
                    raise
                self._miss(error)
            await anyio.sleep(SESSION_PAUSE)

    def _miss(self, error: StoreError) -> None:
        """There is no consumer, and none could be made: after a while the mirror cannot be trusted."""
        log.debug("watch waits", bucket=self.bucket.name, reason=str(error))
        now = clock.now()
        if now >= self._overdue:
            self._tell_live(False)
        elif not isinstance(error, AccessDenied):
            return
        # The error names the consumer, which is another one each time: the connection would log it each time.
        if now >= self._complained_at + COMPLAINT_INTERVAL:
            self._complained_at = now
            log.error("updates do not come", bucket=self.bucket.name, reason=str(error))

    async def _recreate(self, missing: BucketMissing) -> None:
        if self._on_missing is None:
            return
        try:
            await self._on_missing()
        except StoreError as error:
            log.debug("bucket not created", bucket=self.bucket.name, reason=str(error), cause=str(missing))

    # A session: the life of one consumer

    async def _run_session(self) -> str:
        connection = self.bucket.connection
        if not connection.is_up:
            self._tell_live(False)
            await self._until_up()
        stream = await self.bucket.state()
        consumer = Consumer(self.bucket, self._filter, stream.clock - clock.now())
        after = self._begin(stream)
        self._consumer = consumer
        inbox = connection.new_inbox()
        connection.listen(self._on_connection)
        subscription = await connection.subscribe_directly(inbox, partial(self._on_message, consumer))
        try:
            drained = await consumer.create(inbox, after, HEARTBEAT)
            self._heard = consumer.made
            if drained:
                self._finish()
            return await self._until_over(consumer)
        finally:
            self._consumer = None
            self._mirror.leave()
            connection.unlisten(self._on_connection)
            await connection.unsubscribe(subscription)
            if clock.now() < self._overdue:  # else it is lost, and whoever could delete it may be too
                await consumer.delete()

    async def _until_up(self) -> None:
        up = anyio.Event()

        def listener(is_up: bool) -> None:
            if is_up:
                up.set()

        connection = self.bucket.connection
        connection.listen(listener)
        try:
            if not connection.is_up:
                await up.wait()
        finally:
            connection.unlisten(listener)

    def _begin(self, stream: StreamState) -> int | None:
        """Compare the stream with the one seen before; returns the sequence to resume behind, None to list."""
        mirror = self._mirror
        if reason := mirror.other_stream(stream):
            log.warning("stream is not the one that it was", bucket=self.bucket.name, reason=reason)
            self._tell_live(False)
            if self._on_reset is not None:
                self._on_reset(f"the stream of {self.bucket.name} {reason}")
        now = clock.now()
        if mirror.reached > 0 and now < self._heard + TRUSTED_GAP and now < mirror.listed_at + self._relist_interval:
            mirror.resume(stream.last)
            return mirror.reached
        mirror.list(stream.last)
        return None

    async def _until_over(self, consumer: Consumer) -> str:
        """Wait for the session to end; returns why."""
        while not consumer.over.done():
            overdue = self._overdue
            relist = self._mirror.listed_at + self._relist_interval if self._mirror.is_live else overdue
            now = clock.now()
            if now >= overdue:
                self._tell_live(False)
                return "the consumer is silent"
            if now >= relist:
                return "time to compare everything"
            if self.phase is Phase.LISTING:
                await asyncio.wait((consumer.over,), timeout=HEARTBEAT / 2)
                # What was still to be listed may be purged or expired meanwhile: then no delivery was the last one.
                if self.phase is Phase.LISTING and await consumer.drained() and self.phase is Phase.LISTING:
                    self._finish()
            else:
                await asyncio.wait((consumer.over,), timeout=min(overdue, relist) - now)
        return consumer.over.result()

    @property
    def _overdue(self) -> float:
        """When the consumer counts as lost, unless it is heard of before."""
        return max(self._heard, self._began) + HEARTBEAT * OVERDUE

    def _finish(self) -> None:
        self._mirror.finish(clock.now())
        self._tell_progress()
        self._tell_live(True)

    def _end(self, reason: str) -> None:
        if self._consumer is not None:
            self._consumer.end(reason)

    def _on_connection(self, up: bool) -> None:
        self._tell_live(False)
        self._end("the connection was interrupted")

    def _tell_live(self, live: bool) -> None:
        if live != self._told_live:
            self._told_live = live
            if self._on_live is not None:
                self._on_live(live)

    def _tell_progress(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    # Messages

    def _on_message(self, consumer: Consumer, subject: bytes, reply: bytes, data: bytes, block: bytes) -> None:
        if consumer.over.done():
            return
        try:
            if reply.startswith(b"$JS.ACK."):
                self._on_delivery(consumer, subject, reply, data, block)
            else:
                self._on_control(consumer, reply.decode("utf-8", "replace"), headers_of(block))
        except Exception as error:  # noqa: BLE001  # a receiver's: it ends `run`, and with it the process
            if not consumer.over.done():
                consumer.over.set_exception(error)

    def _on_delivery(self, consumer: Consumer, subject: bytes, reply: bytes, data: bytes, block: bytes) -> None:
        tokens = reply.split(b".")
        # $JS.ACK[.<domain>.<account>].<stream>.<consumer>.<deliveries>.<sequence>.<number>.<time>.<pending>[.<token>]
        base = 2 if len(tokens) == 9 else 4
        try:
            name, sequence, number = tokens[base + 1], int(tokens[base + 3]), int(tokens[base + 4])
            time, pending = int(tokens[base + 5]), tokens[base + 6]
        except (LookupError, ValueError):
            return  # it is not a consumer's: those number their deliveries
        if number != consumer.expected or name != consumer.token:
            if name == consumer.token:
                consumer.end(f"delivery {number} came instead of {consumer.expected}")
            return
        consumer.expected += 1
        now = self._heard = clock.now()
        # Most messages have no headers, or only those of the batch that they were written in.
        marked = block and (b"KV-Operation" in block or b"Nats-Marker" in block)
        key = subject[self._name_at :].decode("utf-8", "backslashreplace")
        at = time / 1e9 - consumer.offset
        self._mirror.update(key, data, headers_of(block) if marked else None, sequence, min(at, now))
        if self._progress is not None:
            self._tell_progress()
        if pending == b"0":  # nothing waits behind it, so it was stored just now
            if not self._mirror.is_live:
                self._finish()
            elif abs(at - now) > DRIFT and now > consumer.made + DRIFT_INTERVAL:
                consumer.end("the server's clock is another one")

    def _on_control(self, consumer: Consumer, reply: str, headers: dict[str, str]) -> None:
        self._heard = clock.now()
        if question := reply or headers.get("Nats-Consumer-Stalled"):
            self._question = question
            self._asked.set()
        elif (last := headers.get("Nats-Last-Consumer", "")).isdecimal() and int(last) > consumer.expected - 1:
            consumer.end(f"deliveries up to {last} were made, {consumer.expected - 1} came")

    async def _answer(self) -> None:
        """Tell the server to continue whenever it asks: at once while listing, else when nothing holds it back."""
        while True:
            await self._asked.wait()
            if self._backpressure is not None and self._mirror.is_live:
                with anyio.move_on_after(LONGEST_HOLD):
                    await self._backpressure.released()
            try:
                await self.bucket.connection.publish(self._question)
            except StoreError as error:
                log.debug("flow control not answered", reason=str(error))
