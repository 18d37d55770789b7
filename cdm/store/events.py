"""The stream of events: made, written, read.

It is read with batches of direct gets and without consumers, so a reader leaves nothing at the server, needs no more
than one permission, and goes on exactly where it was. What is published on the events' subjects is a hint that there is
something to read, and no more than that: it may be a repetition, or not be stored at all.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import anyio
import msgspec
from msgspec import Struct

from cdm import clock
from cdm.errors import BucketMissing, RequestRefused, StoreError, Uncertain, Unsuitable
from cdm.log import Log
from cdm.model.artifact import Artifact, NodeId
from cdm.model.event import EVENTS, Event, event_filter
from cdm.store.connection import Connection
from cdm.store.jetstream import NAME_IN_USE, acknowledged, of_leader
from cdm.store.wire import seconds, told_in
from cdm.wakeup import Wakeup

log = Log("cdm.store")

MAX_AGE = 7 * 86_400
"""Seconds for which events are kept."""
MAX_BYTES = 256 * 1024 * 1024
"""Bytes of events that are kept; older ones make room."""
DUPLICATE_WINDOW = 120
"""Seconds for which the stream knows an id again."""
TIMEOUT = 2.0
"""Seconds that a write may take."""
PAGE = 256
"""Events that are read at once."""
PATIENCE = 5.0
"""Seconds without any answer after which reading is given up."""
LOOK, LOOK_UNTOLD = 0.1, 5.0
"""Seconds between two looks for more while there is a hint that there is more, and otherwise: hints may be lost."""
AWAKE = 1.0
"""Seconds for which a hint holds: what it tells of may not be stored yet, or not on every server."""
MESSAGE_ID = "Nats-Msg-Id"

_decoder = msgspec.json.Decoder(Event)
_encoder = msgspec.json.Encoder()


class StoredEvent(Struct, frozen=True):
    """An event as it is in the stream."""

    sequence: int
    at: float
    """When it was stored, by the server's clock, in seconds since 1970."""
    event: Event


class EventStream:
    """The stream ``cdm_events``, with the connection's prefix."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.name = connection.bucket(EVENTS)
        self._last = 0
        """Sequence of the event that was stored last, where the next one is known to follow it; 0: it is not."""

    @property
    def source(self) -> str:
        """What events tell of where they are from."""
        return f"/{self.connection.prefix}/cdm" if self.connection.prefix else "/cdm"

    def subject(self, *tokens: str) -> str:
        """A subject of events."""
        return self.connection.subject(*tokens)

    # Made

    async def ensure(self, *, create: bool, replicas: int = 1, change_replicas: bool = False) -> bool:
        """Make sure that the stream is there. Arguments, result and errors as those of `Bucket.ensure`.

        For how long it keeps how much is the operator's, once it is there.
        """
        try:
            config = of_leader(await self.connection.api(f"STREAM.INFO.{self.name}"), self.name)["config"]
        except BucketMissing:
            if not create:
                raise BucketMissing(f"stream {self.name} does not exist; run `cdm init`") from None
            try:
                await self.connection.api(f"STREAM.CREATE.{self.name}", self._config(replicas))
            except RequestRefused as error:
                if error.code != NAME_IN_USE:
                    raise
                return False  # somebody else was faster, or the answer to this one was lost
            log.info("stream created", stream=self.name, replicas=replicas)
            return True
        subjects = self._config(replicas)["subjects"]
        changed: dict[str, Any] = {} if config.get("allow_direct") else {"allow_direct": True}
        if not set(subjects) <= set(config.get("subjects") or ()):
            changed["subjects"] = [*(config.get("subjects") or ()), *subjects]
        if change_replicas and config.get("num_replicas") != replicas:
            changed["num_replicas"] = replicas
        if changed:
            try:
                await self.connection.api(f"STREAM.UPDATE.{self.name}", {**config, **changed})
            except RequestRefused as error:
                wanted = ", ".join(changed)
                raise Unsuitable(f"stream {self.name} needs another {wanted}, and cannot be changed: {error}") from None
            log.warning("stream adapted", stream=self.name, changed=", ".join(changed))
        return False

    def _config(self, replicas: int) -> dict[str, Any]:
        return {
            "name": self.name,
            "subjects": [self.subject("cdm", "event", ">")],
            "storage": "file",
            "num_replicas": replicas,
            "discard": "old",
            "max_age": MAX_AGE * 10**9,
            "max_bytes": MAX_BYTES,
            "duplicate_window": DUPLICATE_WINDOW * 10**9,
            "allow_direct": True,
            # Readers go on behind the last sequence that they saw, also in a stream that was created anew.
            "first_seq": time.time_ns() // 1_000_000,
        }

    # Written

    async def publish(self, events: Sequence[Event]) -> None:
        """Store events, at least one, in order; one whose id the stream knows is not stored again.

        Raises:
            NoResponders: there is no such stream, or its server is not ready.
            StoreError: some may be stored, and some not: they are to be published again.
        """
        if self._last and len(events) > 1:
            last, self._last = self._last, 0
            await self.connection.send_frames(b"".join(map(self._frame, events[:-1])))
            await self._store(events[-1])
            # Nobody else writes here: where so many more are stored, these are.
            if self._last == last + len(events):
                return
            self._last = 0
        for event in events:
            await self._store(event)

    async def _store(self, event: Event) -> None:
        subject, payload = self.subject(*event.tokens), _encoder.encode(event)
        answer = await self.connection.request(subject, payload, {MESSAGE_ID: event.id}, TIMEOUT)
        sequence, is_repeated = acknowledged(answer)
        self._last = 0 if is_repeated else sequence

    def _frame(self, event: Event) -> bytes:
        """The message as a command of the client, which would take three times as long."""
        block = f"NATS/1.0\r\n{MESSAGE_ID}: {event.id}\r\n\r\n".encode()
        payload = _encoder.encode(event)
        head = f"HPUB {self.subject(*event.tokens)} {len(block)} {len(block) + len(payload)}\r\n"
        return b"".join((head.encode(), block, payload, b"\r\n"))


class EventReader:
    """Reads the stream.

    Args:
        connection: to NATS.
        kind: only events of this kind.
        node: only events of this node.
        artifact: only events of this artifact.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        kind: str | None = None,
        node: NodeId | None = None,
        artifact: Artifact | None = None,
    ) -> None:
        self._connection = connection
        self._name = connection.bucket(EVENTS)
        self.subjects = connection.subject(*event_filter(kind, node, artifact))
        """Of the events that are read, with a wildcard."""
        self.after = 0
        """Sequence of the last event that was read, or was none; reading goes on behind it."""

    async def read(self, since: float | None = None) -> AsyncIterator[list[StoredEvent]]:
        """All events behind those that were read, the oldest first, page by page.

        Args:
            since: nothing that was stored before this time, in seconds since 1970; only for the first reading.

        Raises:
            BucketMissing: there is no stream.
            StoreError: it cannot be read.
        """
        start: dict[str, Any] = {"seq": self.after + 1}
        if since is not None and not self.after:
            start = {"start_time": datetime.fromtimestamp(since, UTC).isoformat().replace("+00:00", "Z")}
        while True:
            page, more = await self._page({"next_by_subj": self.subjects, "batch": PAGE, **start})
            if page:
                yield page
            if not more:
                return
            start = {"seq": self.after + 1}

    async def follow(self, since: float | None, complain: Callable[[str], None]) -> AsyncIterator[list[StoredEvent]]:
        """All events as `read` gives them, and then those that come, for ever.

        Args:
            since: as for `read`.
            complain: is told, once each time, why nothing comes.
        """
        hint, problem, awake = Wakeup(), "", clock.now() + AWAKE
        subscription = await self._connection.subscribe_directly(self.subjects, lambda *_: hint.set())
        try:
            while True:
                try:
                    async for page in self.read(since):
                        awake = clock.now() + AWAKE
                        yield page
                    problem = ""
                except StoreError as error:
                    if not problem and self._connection.is_up:
                        complain(f"{error}; trying again")
                        problem = str(error)
                with anyio.move_on_after(LOOK if clock.now() < awake else LOOK_UNTOLD) as quiet:
                    await hint.wait()
                if not quiet.cancelled_caught:
                    awake = clock.now() + AWAKE
                    await anyio.sleep(LOOK)  # others come with it
        finally:
            await self._connection.unsubscribe(subscription)

    async def latest(self) -> list[StoredEvent]:
        """The newest event of each subject, the oldest first: of a slice, the last time of each of its states.

        Errors as those of `read`; and `RequestRefused` where that is more than a thousand.
        """
        return (await self._page({"multi_last": [self.subjects]}))[0]

    async def _page(self, request: dict[str, Any]) -> tuple[list[StoredEvent], bool]:
        """What answers a request, and whether there is more."""
        answers: list[tuple[dict[str, str], bytes, str]] = []
        news, over = anyio.Event(), ("204", "404")
        inbox = self._connection.new_inbox()

        def take(_subject: bytes, _reply: bytes, data: bytes, block: bytes) -> None:
            told = told_in(block)
            answers.append((told, data, told.get("Status", "")))
            news.set()

        subscription = await self._connection.subscribe_directly(inbox, take)
        try:
            payload = json.dumps(request).encode()
            async with self._connection.accepted({subject := self._connection.api_subject(f"DIRECT.GET.{self._name}")}):
                await self._connection.publish(subject, payload, reply=inbox)
            self._connection.check_subscribed(inbox)
            while not (answers and answers[-1][2]):
                news, before = anyio.Event(), len(answers)
                with anyio.move_on_after(PATIENCE):
                    await news.wait()
                if len(answers) == before:
                    raise Uncertain(f"stream {self._name} does not answer")
        finally:
            await self._connection.unsubscribe(subscription)
        headers, _, status = answers.pop()
        if status == "503":
            raise BucketMissing(
                f"there is no stream {self._name}: run `cdm init`, or start a manager (is --prefix right?)"
            )
        if status not in over:
            raise RequestRefused(headers.get("Description", f"stream {self._name} answers {status}"), int(status))
        if answers and answers[-1][0].get("Nats-Sequence") != headers.get("Nats-Last-Sequence"):
            raise Uncertain(f"not all that stream {self._name} answered came")
        return self._decoded(answers), status == "204" and headers.get("Nats-Num-Pending", "0") != "0"

    def _decoded(self, answers: list[tuple[dict[str, str], bytes, str]]) -> list[StoredEvent]:
        found: list[StoredEvent] = []
        for headers, data, _ in answers:
            sequence, at = int(headers["Nats-Sequence"]), seconds(headers["Nats-Time-Stamp"])
            self.after = max(self.after, sequence)
            try:
                found.append(StoredEvent(sequence, at, _read(data)))
            except (msgspec.MsgspecError, ValueError) as error:
                log.debug("unreadable event is left out", sequence=sequence, reason=str(error))
        return found


def _read(data: bytes) -> Event:
    event = _decoder.decode(data)
    if datetime.fromisoformat(event.time).tzinfo is None:
        raise ValueError("its time names no time zone")
    return event
