"""A node's replies to those who ask for its slices' output, on ``cdm.logs.{node}``: see `cdm.output.wire`.

Nothing here may end the node or delay its heartbeat: files are read in threads, a little at a time, and only as fast
as the client takes the lines.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import NamedTuple

import anyio
import anyio.abc
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from msgspec.structs import replace

from cdm import clock
from cdm.errors import AccessDenied, StoreError, innermost
from cdm.log import Log
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SliceKey, encode_node
from cdm.model.problems import UNREADABLE
from cdm.output import Logging, OutputLine
from cdm.output.runs import previous_run
from cdm.output.wire import KEEPS_NONE, LEASE, QUIET, WINDOW, LogReply, LogRequest, WireLine, ripe
from cdm.store.connection import Connection
from cdm.store.listening import subscribed_in_time
from cdm.store.micro import EndpointTally
from cdm.wakeup import Wakeup

log = Log("cdm.logs")

SESSIONS = 32
"""Sessions that a node serves at the same time."""
BATCH = 64 * 1024
"""Bytes of lines in one reply; it may exceed this by one line."""
RESCAN = 1.0
"""Seconds between two looks for new slices to follow."""
LONGEST = timedelta(days=36_525)
"""The most that `LogRequest.since` goes back: times begin with the year 1."""
_encode = msgspec.json.encode


class Refusal(NamedTuple):
    """A request that gets no session."""

    name: str
    to: str
    artifact: str
    reason: str


class LogService:
    """Serves the output of one node's slices.

    Args:
        connection: the node's.
        node: this node.
        runtime: runs its slices and keeps their output; None: it keeps none.
    """

    def __init__(self, connection: Connection, node: NodeId, runtime: Logging | None) -> None:
        self._connection = connection
        self._node = node
        self._runtime = runtime
        self.tally = EndpointTally(
            "logs", connection.subject("cdm", "logs", encode_node(node)), about="what slices write"
        )
        """Sessions, from the first request to the end."""
        self._open: dict[str, Session | Refusal] = {}
        """What is being replied to, by the name of the session."""
        self._begun: deque[Session | Refusal] = deque()
        self._news = Wakeup()

    async def run(self) -> None:
        """Serve until cancelled."""
        await self._listen()
        async with anyio.create_task_group() as tasks:
            while True:
                while self._begun:
                    tasks.start_soon(self._serve, self._begun.popleft())
                await self._news.wait()

    async def _listen(self) -> None:
        connection, subject = self._connection, self.tally.subject
        subscribe = partial(connection.subscribe_directly, subject, self._on_message)
        try:
            await subscribed_in_time(connection, subject, subscribe)
        except AccessDenied as error:
            connection.complain(error)  # the node can do without

    def _on_message(self, _subject: bytes, reply: bytes, data: bytes, _headers: bytes) -> None:
        to = reply.decode("utf-8", "replace")
        if not self._connection.may_answer(to):
            return
        try:
            request = msgspec.json.decode(data, type=LogRequest)
            artifact = Artifact.parse(request.artifact) if request.artifact else None
        except UNREADABLE as error:
            self._begin(Refusal(to, to, "", f"not understood: {error}"))
            return
        name = request.session or to
        match self._open.get(name):
            case Session() as session:
                session.heard(request, to)
            case None if artifact is not None and not request.stop:
                self._begin(self._session_or_refusal(name, to, request, artifact))

    def _session_or_refusal(self, name: str, to: str, request: LogRequest, artifact: Artifact) -> Session | Refusal:
        if self._runtime is None:
            return Refusal(name, to, str(artifact), KEEPS_NONE)
        if len(self._open) >= SESSIONS:
            return Refusal(name, to, str(artifact), f"{SESSIONS} others are being served; try again later")
        return Session(self._connection, self._node, self._runtime, name, to, request, artifact)

    def _begin(self, served: Session | Refusal) -> None:
        if served.name not in self._open and len(self._begun) < 2 * SESSIONS:
            self._open[served.name] = served
            self._begun.append(served)
            self._news.set()

    async def _serve(self, served: Session | Refusal) -> None:
        try:
            with self.tally.timed():
                await self._reply_to(served)
        finally:
            del self._open[served.name]

    async def _reply_to(self, served: Session | Refusal) -> None:
        match served:
            case Session():
                await self._run_session(served)
            case Refusal(_, to, artifact, reason):
                self.tally.failed(reason)
                with suppress(StoreError):
                    reply = LogReply(self._node, artifact, 0, end=True, error=reason)
                    await self._connection.publish(to, _encode(reply))

    async def _run_session(self, session: Session) -> None:
        log.debug("log session begins", artifact=str(session.artifact), to=session.to)
        try:
            await session.run()
        except* StoreError as group:
            self.tally.failed(str(innermost(group)))
            log.debug("log session broken off", reason=str(innermost(group)))
        except* Exception as group:  # whatever it is, the node lives on
            self.tally.failed(repr(innermost(group)))
            log.exception("log session failed", artifact=str(session.artifact))
            await session.fail(f"answering failed: {innermost(group)!r:.500}")
        log.debug("log session ended", artifact=str(session.artifact), to=session.to)


class Session:
    """The replies to one client.

    Args:
        connection: the node's.
        node: this node.
        runtime: has the output.
        name: of the session.
        to: the reply subject of its newest request.
        request: its first request.
        artifact: whose output is asked for.
    """

    def __init__(
        self,
        connection: Connection,
        node: NodeId,
        runtime: Logging,
        name: str,
        to: str,
        request: LogRequest,
        artifact: Artifact,
    ) -> None:
        self.name = name
        self.to = to
        self.artifact = artifact
        self._connection = connection
        self._node = node
        self._runtime = runtime
        self._request = request
        self._scope = anyio.CancelScope()
        self._until = clock.now() + LEASE
        self._sent = 0
        """Number of the last reply with lines."""
        self._seen = 0
        """Number of the last one that was acknowledged."""
        self._acknowledged = Wakeup()
        self._limit = min(4 * BATCH, connection.max_payload // 4)

    def heard(self, request: LogRequest, to: str) -> None:
        """The client is still there."""
        self.to = to
        self._until = clock.now() + LEASE
        if request.seen > self._seen:
            self._seen = request.seen
            self._acknowledged.set()
        if request.stop:
            self._scope.cancel()

    async def run(self) -> None:
        """Reply for as long as the client is there."""
        with self._scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._expire)
                await self._reply()
                tasks.cancel_scope.cancel()

    async def fail(self, problem: str) -> None:
        """Tell the client why there is no more; never raises."""
        with suppress(StoreError):
            await self._send(end=True, error=problem)

    async def _expire(self) -> None:
        while (left := self._until - clock.now()) > 0:  # noqa: ASYNC110  # it is put off again and again
            await anyio.sleep(left)
        log.debug("the client of a log session is gone", to=self.to)
        self._scope.cancel()

    async def _reply(self) -> None:
        await self._send(slices=[key.ordinal for key in self._keys()])
        send, receive = anyio.create_memory_object_stream[list[WireLine]](0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read_all, send)
            await self._send_all(receive)
        await self._send(end=True)  # unless reading failed

    def _keys(self) -> list[SliceKey]:
        ordinal = self._request.ordinal
        return [key for key in self._runtime.written(self.artifact) if ordinal is None or key.ordinal == ordinal]

    # Reading

    async def _read_all(self, send: MemoryObjectSendStream[list[WireLine]]) -> None:
        request = self._request
        since = None
        if request.since is not None:
            since = datetime.now(UTC) - timedelta(seconds=min(request.since, LONGEST.total_seconds()))
        lines = request.lines
        async with send, anyio.create_task_group() as tasks:
            if not request.follow:
                async for batch in _merged({key: self._read(key, lines, since) for key in self._keys()}):
                    await send.send(batch)
                return
            known: set[SliceKey] = set()
            while True:
                for key in self._keys():
                    if key not in known:
                        known.add(key)
                        tasks.start_soon(_pump, key, self._read(key, lines, since), send)
                lines = None  # a slice that comes later is shown from its beginning
                await anyio.sleep(RESCAN)

    def _read(self, key: SliceKey, lines: int | None, since: datetime | None) -> AsyncIterator[Sequence[OutputLine]]:
        after = self._request.after.get(key.ordinal, since)
        if self._request.previous:
            return previous_run(self._runtime.read(key, since=after), lines)
        return self._runtime.read(key, lines=lines, since=after, follow=self._request.follow)

    # Sending

    async def _send_all(self, receive: MemoryObjectReceiveStream[list[WireLine]]) -> None:
        async with receive:
            while True:
                lines: list[WireLine] = []
                with anyio.move_on_after(QUIET):
                    try:
                        lines = await receive.receive()
                    except anyio.EndOfStream:
                        return
                if lines:
                    await self._send_lines(lines)
                else:
                    await self._send()

    async def _send_lines(self, lines: list[WireLine]) -> None:
        batch: list[msgspec.Raw] = []
        size = 0
        for line in lines:
            for encoded in self._encoded(line):
                if batch and size + len(encoded) > min(BATCH, self._limit):
                    await self._send_batch(batch)
                    batch, size = [], 0
                batch.append(msgspec.Raw(encoded))
                size += len(encoded) + 1
        await self._send_batch(batch)

    def _encoded(self, line: WireLine) -> list[bytes]:
        """The line, or its parts where it is too long for one message."""
        encoded = _encode(line)
        if len(encoded) <= self._limit:
            return [encoded]
        size = self._limit // 8  # a character takes six bytes at most
        *parts, end = (line.text[start : start + size] for start in range(0, len(line.text), size))
        return [_encode(replace(line, text=text, partial=True)) for text in parts] + [_encode(replace(line, text=end))]

    async def _send_batch(self, batch: list[msgspec.Raw]) -> None:
        while self._sent - self._seen >= WINDOW:
            with anyio.move_on_after(QUIET) as waiting:
                await self._acknowledged.wait()
            if waiting.cancelled_caught:
                await self._send()
        self._sent += 1
        await self._send(batch)

    async def _send(
        self,
        lines: list[msgspec.Raw] | None = None,
        slices: list[int] | None = None,
        end: bool = False,
        error: str = "",
    ) -> None:
        reply = LogReply(self._node, str(self.artifact), self._sent, lines or [], slices, end, error)
        await self._connection.publish(self.to, _encode(reply))


def _on_wire(key: SliceKey, line: OutputLine) -> WireLine:
    return WireLine(line.time, line.stream, key.ordinal, line.text, line.partial)


async def _pump(
    key: SliceKey, source: AsyncIterator[Sequence[OutputLine]], send: MemoryObjectSendStream[list[WireLine]]
) -> None:
    async for batch in source:
        await send.send([_on_wire(key, line) for line in batch])


async def _merged(sources: dict[SliceKey, AsyncIterator[Sequence[OutputLine]]]) -> AsyncIterator[list[WireLine]]:
    """The lines of several slices in one order."""
    fronts: dict[SliceKey, deque[WireLine]] = {key: deque() for key in sources}
    while True:
        for key, front in list(fronts.items()):
            while not front:
                batch = await anext(sources[key], None)
                if batch is None:
                    del fronts[key]
                    break
                front.extend(_on_wire(key, line) for line in batch)
        if not fronts:
            return
        yield ripe(fronts.values())
