"""Follows one bucket and never loses its place.

The client's own watcher goes silent for good when its consumer is lost. This one owns its consumer: it numbers the
deliveries, hears heartbeats, and replaces the consumer when a number is skipped, a heartbeat is overdue, or the
connection was down. It goes on behind the last sequence it saw where that can be trusted, which is while every marker
of a delete is still kept; otherwise it lists the bucket again and works out the difference. Either way every receiver
ends with what the bucket holds, and hears of no change that did not happen (PROTOCOL I8).

Each update is emitted as a typed message. Keys and values that do not decode are messages too. How a node's
registration ended is told even where the registration was never known.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum, auto
from typing import Any

import anyio
import msgspec
from msgspec.structs import replace

from cdm import clock
from cdm.dispatch.messages import Cause, KeyRejected, Message, RejectedKeyRemoved, ValuePut, ValueRejected, ValueRemove
from cdm.errors import AccessDenied, BucketMissing, InvalidBlueprint, InvalidKey, InvalidValue, StoreError, Uncertain
from cdm.log import Log
from cdm.model.blueprint import Blueprint
from cdm.model.keys import NODES, Key
from cdm.model.node import Registration
from cdm.model.problems import explain
from cdm.store.backpressure import Backpressure
from cdm.store.bucket import Bucket, State
from cdm.store.wire import MARKER, MARKER_TTL, headers_of, is_removal
from cdm.wakeup import Wakeup

log = Log("cdm.watch")

HEARTBEAT = 2.0
"""Seconds between the server's heartbeats on a silent consumer."""
OVERDUE = 2.5
"""Heartbeats after which a silent consumer counts as lost."""
RELIST_INTERVAL = 300.0
"""Seconds between two full comparisons with the bucket."""
TRUSTED_GAP = MARKER_TTL / 3
"""Longest silence, in seconds, after which the watch goes on behind its last sequence without listing."""
BARRIER_PATIENCE = 0.05
"""Seconds after which a barrier asks the consumer how far it is."""
INFO_TIMEOUT = 1.0
"""Seconds that the consumer has to say how far it is. One whose server died never does."""
LONGEST_HOLD = 2.0
"""Seconds for which the server's question whether to go on may be left open."""
RETRY_PAUSE = 0.25
COMPLAINT_INTERVAL = 30.0
"""Seconds between two lines that say that updates of a bucket do not come."""
DRIFT = 5.0
"""Seconds by which a message's time may differ from ours, as far as the server's clock was known when the consumer was
made: servers take turns in leading a stream, and a clock may be set."""
DRIFT_INTERVAL = 30.0
"""Seconds for which a consumer is kept all the same: who is late himself takes every message for an old one."""

Known = ValuePut[Any, Any] | ValueRejected[Any, Any] | KeyRejected[Any]


class Phase(Enum):
    """What a watch is doing."""

    SEEKING = auto()
    """There is no consumer."""
    LISTING = auto()
    """The consumer brings what the bucket held when it was made."""
    LIVE = auto()
    """All of that was brought; updates follow."""


_LISTING = Phase.LISTING  # asked for at each delivery; before Python 3.12 the class is slow to look it up


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
        self.phase = Phase.SEEKING
        self.reached = 0
        """Everything up to this sequence of the stream was emitted."""
        self._emit = emit
        self._filter = bucket.subject(keys)
        self._on_live = on_live
        self._on_reset = on_reset
        self._on_missing = on_missing
        self._relist_interval = relist_interval
        self._backpressure = backpressure
        self._question = ""
        """Where the server waits for an answer before it delivers more (flow control)."""
        self._asked = Wakeup()
        self._known: dict[str, Known] = {}
        self._whole = False
        """Whether the consumer brings the whole bucket, and not only what is new."""
        self._listed: set[str] | None = None
        """Keys that it brought; None where no other ones were known before."""
        self._name_at = len(bucket.subject(""))
        self._decode_key = bucket.layout.decode
        self._decoders = _decoders(bucket)
        self._created: str | None = None
        self._began = float("-inf")
        self._heard = float("-inf")
        self._complained_at = float("-inf")
        self._full_list_at = float("-inf")
        self._live = False
        self._expected = 1
        self._consumer = ""
        self._list_end = 0
        self._offset = 0.0
        self._made = float("-inf")
        """When the present consumer was made."""
        self._relist_all = False
        self._progress: anyio.Event | None = None
        self._history: dict[str, _Net] | None = None
        self._session_over: asyncio.Future[str] | None = None

    async def run(self) -> None:
        """Follow the bucket until cancelled; ends only with an exception of a receiver.

        Raises:
            AccessDenied: a permission is missing, and was from the beginning. One that is taken away later may come
                back.
        """
        self._began = clock.now()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._answer)
            await self._follow()

    async def _follow(self) -> None:
        while True:
            try:
                reason = await self._session()
                log.debug("watch renewed", bucket=self.bucket.name, reason=reason)
                continue
            except BucketMissing as error:
                log.warning("bucket is missing", bucket=self.bucket.name)
                await self._recreate(error)
            except StoreError as error:
                if isinstance(error, AccessDenied) and not self.reached:
                    raise
                self._miss(error)
            await anyio.sleep(RETRY_PAUSE)

    def _miss(self, error: StoreError) -> None:
        """There is no consumer, and none could be made: after a while the mirror cannot be trusted."""
        log.debug("watch waits", bucket=self.bucket.name, reason=str(error))
        now = clock.now()
        if now >= self._overdue:
            self._set_live(False)
        elif not isinstance(error, AccessDenied):
            return
        # The name of a consumer is in its text, and each time another one: the connection would repeat it each time.
        if now >= self._complained_at + COMPLAINT_INTERVAL:
            self._complained_at = now
            log.error("updates do not come", bucket=self.bucket.name, reason=str(error))

    async def caught_up(self) -> None:
        """Wait until everything that the bucket holds at the time of the call has been emitted (read barrier).

        Raises:
            StoreError: the server did not say how far the bucket is.
        """
        target = (await self.bucket.state()).last
        while self.reached < target or self.phase is not Phase.LIVE:
            self._progress = self._progress or anyio.Event()
            with anyio.move_on_after(BARRIER_PATIENCE):
                await self._progress.wait()
                continue
            # Nothing more comes where the last messages were removed again: the consumer knows.
            if self.phase is Phase.LIVE and await self._drained():
                self._advance(target)

    def relist(self) -> None:
        """List the whole bucket again, now; `caught_up` waits for it."""
        self._full_list_at = float("-inf")
        self.phase = Phase.SEEKING
        self._end("to be listed again")

    async def _recreate(self, missing: BucketMissing) -> None:
        if self._on_missing is None:
            return
        try:
            await self._on_missing()
        except StoreError as error:
            log.debug("bucket not created", bucket=self.bucket.name, reason=str(error), cause=str(missing))

    # A session: the life of one consumer

    async def _session(self) -> str:
        connection = self.bucket.connection
        if not connection.is_up:
            self._set_live(False)
            await self._until_up()
        state = await self.bucket.state()
        self._offset = state.clock - clock.now()
        resume = self._check_identity(state)
        self._expected = 1
        self._consumer = f"cdm-{secrets.token_hex(8)}"
        self._session_over = asyncio.get_running_loop().create_future()
        inbox = connection.new_inbox()
        self._list_end = state.last
        self._whole = not resume
        self._listed = set() if self._whole and self._known else None
        self._history = {} if self._lists_history and not resume else None
        self.phase = Phase.LISTING
        connection.listen(self._on_connection)
        subscription = await connection.subscribe_directly(inbox, self._on_message)
        try:
            # The filter is part of the subject, so that a permission can be written for it. Made twice, it is one.
            info = await connection.api_retried(
                f"CONSUMER.CREATE.{self.bucket.stream}.{self._consumer}.{self._filter}", self._config(inbox, resume)
            )
            self._heard = self._made = clock.now()
            if info["num_pending"] == 0 and info["delivered"]["consumer_seq"] == 0:
                self._finish_list()
            return await self._watch_over()
        finally:
            self._session_over = None
            self.phase = Phase.SEEKING
            connection.unlisten(self._on_connection)
            await connection.unsubscribe(subscription)
            if clock.now() < self._overdue:  # else it is lost, and who would delete it may be too
                await self._delete_consumer()

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

    def _check_identity(self, state: State) -> bool:
        """Compare the stream with the one seen before; returns whether to go on behind the last sequence."""
        if self._created is not None and (state.created != self._created or state.last < self.reached):
            reason = "was created anew" if state.created != self._created else "went back"
            log.warning("stream is not the one that it was", bucket=self.bucket.name, reason=reason)
            self.reached = 0
            self._relist_all = True
            self._full_list_at = float("-inf")
            self._set_live(False)
            if self._on_reset is not None:
                self._on_reset(f"the stream of {self.bucket.name} {reason}")
        self._created = state.created
        now = clock.now()
        return self.reached > 0 and now - self._heard < TRUSTED_GAP and now - self._full_list_at < self._relist_interval

    @property
    def _lists_history(self) -> bool:
        return self.bucket.layout.history > 1

    def _config(self, inbox: str, resume: bool) -> dict[str, Any]:
        if resume:
            start: dict[str, Any] = {"deliver_policy": "by_start_sequence", "opt_start_seq": self.reached + 1}
        else:
            # The last valid blueprint may lie behind refused ones: those buckets are listed with their history.
            start = {"deliver_policy": "all" if self._lists_history else "last_per_subject"}
        return {
            "stream_name": self.bucket.stream,
            "config": {
                "name": self._consumer,
                "deliver_subject": inbox,
                "filter_subject": self._filter,
                "ack_policy": "none",
                "max_deliver": 1,
                "mem_storage": True,
                "num_replicas": 1,
                "idle_heartbeat": int(HEARTBEAT * 1e9),
                "flow_control": True,
                "inactive_threshold": int(10e9),
                **start,
            },
        }

    async def _watch_over(self) -> str:
        """Wait for the session to end; returns why."""
        over = self._session_over
        assert over is not None
        while not over.done():
            overdue = self._overdue
            relist = self._full_list_at + self._relist_interval if self.phase is Phase.LIVE else overdue
            now = clock.now()
            if now >= overdue:
                self._set_live(False)
                return "the consumer is silent"
            if now >= relist:
                return "time to compare everything"
            if self.phase is Phase.LISTING:
                await asyncio.wait((over,), timeout=HEARTBEAT / 2)
                await self._end_list_if_drained()
            else:
                await asyncio.wait((over,), timeout=min(overdue, relist) - now)
        return over.result()

    @property
    def _overdue(self) -> float:
        """When the consumer counts as lost, unless it is heard of before."""
        return max(self._heard, self._began) + HEARTBEAT * OVERDUE

    async def _end_list_if_drained(self) -> None:
        # What was still to be listed may be purged or expired meanwhile: then no delivery says that it was the last.
        if self.phase is Phase.LISTING and await self._drained() and self.phase is Phase.LISTING:
            self._finish_list()

    async def _delete_consumer(self) -> None:
        # Without this the server would keep it for its inactivity threshold.
        with anyio.CancelScope(shield=True), anyio.move_on_after(0.5):
            try:
                await self.bucket.connection.api(f"CONSUMER.DELETE.{self.bucket.stream}.{self._consumer}", timeout=0.5)
            except StoreError as error:
                log.debug("consumer not deleted", bucket=self.bucket.name, reason=str(error))

    def _end(self, reason: str) -> None:
        if self._session_over is not None and not self._session_over.done():
            self._session_over.set_result(reason)

    def _on_connection(self, up: bool) -> None:
        self._set_live(False)
        self._end("the connection was interrupted")

    def _set_live(self, live: bool) -> None:
        if live != self._live:
            self._live = live
            if self._on_live is not None:
                self._on_live(live)

    async def _drained(self) -> bool:
        """Whether all that the consumer has was brought. One that does not answer may be lost: silence will tell."""
        call = f"CONSUMER.INFO.{self.bucket.stream}.{self._consumer}"
        with suppress(Uncertain):
            info = await self.bucket.connection.api(call, timeout=INFO_TIMEOUT)
            delivered: int = info["delivered"]["consumer_seq"]
            return info["num_pending"] == 0 and delivered == self._expected - 1
        return False

    # Messages

    def _on_message(self, subject: bytes, reply: bytes, data: bytes, block: bytes) -> None:
        over = self._session_over
        if over is None or over.done():
            return
        try:
            if reply.startswith(b"$JS.ACK."):
                self._on_delivery(subject, reply, data, block)
            else:
                self._on_control(reply.decode("utf-8", "replace"), headers_of(block))
        except Exception as error:  # noqa: BLE001  # a receiver's: it ends `run`, and with it the process
            if not over.done():
                over.set_exception(error)

    def _on_delivery(self, subject: bytes, reply: bytes, data: bytes, block: bytes) -> None:
        tokens = reply.decode("utf-8", "replace").split(".")
        # $JS.ACK[.<domain>.<account>].<stream>.<consumer>.<deliveries>.<sequence>.<number>.<time>.<pending>[.<token>]
        base = 2 if len(tokens) == 9 else 4
        try:
            consumer, sequence, number = tokens[base + 1], int(tokens[base + 3]), int(tokens[base + 4])
            time, pending = int(tokens[base + 5]), tokens[base + 6]
        except (LookupError, ValueError):
            return  # somebody else's: a consumer numbers its deliveries
        if number != self._expected or consumer != self._consumer:
            if consumer == self._consumer:
                self._end(f"delivery {number} came instead of {self._expected}")
            return
        self._expected += 1
        now = self._heard = clock.now()
        # Most messages have no headers, or such as matter to nobody here: those of the batch they were written in.
        marked = block and (b"KV-Operation" in block or b"Nats-Marker" in block)
        name = subject[self._name_at :].decode("utf-8", "backslashreplace")
        at = time / 1e9 - self._offset
        self._update(name, data, headers_of(block) if marked else None, sequence, min(at, now))
        if not self._whole:
            self._advance(sequence)
        if pending == "0":  # nothing waits behind it, so it was stored just now
            if self.phase is _LISTING:
                self._finish_list()
            elif abs(at - now) > DRIFT and now > self._made + DRIFT_INTERVAL:
                self._end("the server's clock is another one")

    def _on_control(self, reply: str, headers: dict[str, str]) -> None:
        self._heard = clock.now()
        if question := reply or headers.get("Nats-Consumer-Stalled"):
            self._question = question
            self._asked.set()
        elif (last := headers.get("Nats-Last-Consumer", "")).isdecimal() and int(last) > self._expected - 1:
            self._end(f"deliveries up to {last} were made, {self._expected - 1} came")

    async def _answer(self) -> None:
        """Tell the server to go on whenever it asks: at once while listing, else when nothing holds it back."""
        while True:
            await self._asked.wait()
            if self._backpressure is not None and self.phase is Phase.LIVE:
                with anyio.move_on_after(LONGEST_HOLD):
                    await self._backpressure.released()
            try:
                await self.bucket.connection.publish(self._question)
            except StoreError as error:
                log.debug("flow control not answered", reason=str(error))

    def _update(self, name: str, data: bytes, headers: dict[str, str] | None, sequence: int, at: float) -> None:
        known = self._known.get(name)
        gone = headers is not None and is_removal(headers)
        if self._history is not None:
            net = self._history.setdefault(name, _Net())
            if gone:
                net.remove(sequence, at)
            else:
                net.add(self._decode(name, data, sequence, at, known))
            return
        if self._whole and not gone:
            if self._listed is not None:
                self._listed.add(name)
            if known is not None and sequence == known.revision and not self._relist_all:
                return
        if not gone:
            update = self._decode(name, data, sequence, at, known)
            self._known[name] = update
            self._emit(update)
            return
        assert headers is not None
        cause = Cause.EXPIRED if headers.get(MARKER) == "MaxAge" else Cause.DELETED
        if known is not None:
            self._remove(name, known, sequence, cause, at)
        elif self.bucket.layout is NODES:
            self._tell_end(name, sequence, cause, at)

    def _decode(self, name: str, data: bytes, sequence: int, at: float, known: Known | None) -> Known:
        if isinstance(known, (ValuePut, ValueRejected)):
            key: Key = known.key
        else:
            try:
                key = self._decode_key(name)
            except InvalidKey as error:
                return KeyRejected(self.bucket.layout.kinds[0], name, str(error), sequence)
        try:
            return ValuePut(key, self._decoders[type(key)](data), sequence, at)
        except (InvalidBlueprint, InvalidValue) as error:
            return ValueRejected(key, str(error), sequence, at)
        except msgspec.ValidationError as error:
            return ValueRejected(key, str(explain(error, key.value_type)), sequence, at)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return ValueRejected(key, str(error), sequence, at)
        except RecursionError:
            return ValueRejected(key, "is nested too deeply", sequence, at)

    def _remove(self, name: str, known: Known, sequence: int, cause: Cause, at: float) -> None:
        del self._known[name]
        if isinstance(known, KeyRejected):
            self._emit(RejectedKeyRemoved(known.kind, name))
        else:
            self._emit(ValueRemove(known.key, sequence, cause, at))

    def _tell_end(self, name: str, sequence: int, cause: Cause, at: float) -> None:
        """What is left of a node that went before this watch began is how it went: the marker says it."""
        try:
            key = self._decode_key(name)
        except InvalidKey:
            return
        self._emit(ValueRemove(key, sequence, cause, at))

    def _finish_list(self) -> None:
        """Everything that the bucket held was brought: what was known and is not there is gone."""
        if self._history is not None:
            self._emit_net(self._history)
            self._history = None
        if self._whole:
            now = clock.now()
            if self._listed is not None:
                for name in [name for name in self._known if name not in self._listed]:
                    self._remove(name, self._known[name], self._list_end, Cause.MISSING, now)
            self._listed = None
            self._whole = self._relist_all = False
            self._full_list_at = now
        self.phase = Phase.LIVE
        self._advance(self._list_end)
        self._set_live(True)

    def _emit_net(self, history: dict[str, _Net]) -> None:
        """Emit what the listed history comes to: no value that was deleted or replaced since."""
        for name, net in history.items():
            known = self._known.get(name)
            if known is not None and net.removed > known.revision:
                self._remove(name, known, net.removed, Cause.DELETED, net.removed_at)
            known = self._known.get(name)
            if self._listed is not None and net.updates:
                self._listed.add(name)
            for update in net.updates:
                if known is None or self._relist_all or update.revision > known.revision or net.ends_before(known):
                    self._known[name] = update
                    self._emit(update)

    def _advance(self, sequence: int) -> None:
        self.reached = max(self.reached, sequence)
        if self._progress is not None:
            self._progress.set()
            self._progress = None


class _Net:
    """What one key's listed history comes to: its last valid value since it was last deleted, and a refused one
    after that.
    """

    __slots__ = ("removed", "removed_at", "updates")

    def __init__(self) -> None:
        self.updates: list[Known] = []
        self.removed = 0
        self.removed_at = 0.0

    def remove(self, sequence: int, at: float) -> None:
        self.updates = []
        self.removed, self.removed_at = sequence, at

    def ends_before(self, known: Known) -> bool:
        """Whether the bucket holds something older than what is known: it was set back."""
        return self.updates[-1].revision < known.revision

    def add(self, update: Known) -> None:
        if isinstance(update, ValuePut):
            self.updates = [update]
        else:
            if isinstance(update, ValueRejected):
                update = replace(update, removed=self.removed)
            self.updates = [*(each for each in self.updates if isinstance(each, ValuePut)), update]


def _decoders(bucket: Bucket) -> dict[type[Key], Callable[[bytes], Any]]:
    judged = (Blueprint, Registration)
    return {
        kind: kind.value_type.parse if kind.value_type in judged else msgspec.json.Decoder(kind.value_type).decode
        for kind in bucket.layout.kinds
    }
