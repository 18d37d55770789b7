"""A node's answers to those who ask for its slices' output, on ``cdm.logs.{node}``: see `cdm.output.wire`.

Nothing here may end the node, or keep it from its heartbeat: files are read in threads, a little at a time, and only
as fast as the asker takes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import anyio
import anyio.abc
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from cdm import clock
from cdm.errors import AccessDenied, StoreError
from cdm.log import Log
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SliceKey, encode_node
from cdm.model.problems import UNREADABLE
from cdm.output import Logging, OutputLine
from cdm.output.wire import LEASE, QUIET, WINDOW, Answer, Ask, Line, ripe
from cdm.store.connection import Connection
from cdm.wakeup import Wakeup

log = Log("cdm.logs")

SESSIONS = 32
"""Askers that a node answers at the same time."""
BATCH = 64 * 1024
"""Bytes of lines in one answer; one line more may be in it."""
RESCAN = 1.0
"""Seconds between two looks for new slices to follow."""
RETRY_PAUSE = 1.0
LONGEST = timedelta(days=36_525)
"""How far back may be asked for; what is more means the same, and times end with the year 1."""
_encode = msgspec.json.encode


class LogService:
    """Answers for one node.

    Args:
        connection: the node's.
        node: this node.
        runtime: runs its slices; it has output if it is `Logging`.
    """

    def __init__(self, connection: Connection, node: NodeId, runtime: object) -> None:
        self.connection = connection
        self.node = node
        self.runtime = runtime
        self.sessions: dict[str, Session] = {}
        """What is being answered, by name, or by the subject that the answers go to."""
        self._begun: deque[Session] = deque()
        self._news = Wakeup()

    async def run(self) -> None:
        """Answer until cancelled."""
        await self._listen()
        async with anyio.create_task_group() as tasks:
            while True:
                while self._begun:
                    tasks.start_soon(self._serve, self._begun.popleft())
                await self._news.wait()

    async def _listen(self) -> None:
        subject = self.connection.subject("cdm", "logs", encode_node(self.node))
        while True:
            try:
                await self.connection.subscribe_directly(subject, self._on_message)
                await self.connection.flush()
                self.connection.check_subscribed(subject)
                return
            except AccessDenied as error:
                self.connection.complain(error)  # the node can do without
                return
            except StoreError as error:
                log.debug("not listening yet", reason=str(error))
                await anyio.sleep(RETRY_PAUSE)

    def _on_message(self, _subject: bytes, reply: bytes, data: bytes, _headers: bytes) -> None:
        to = reply.decode("utf-8", "replace")
        if not self.connection.may_answer(to):
            return
        try:
            ask = msgspec.json.decode(data, type=Ask)
            artifact = Artifact.parse(ask.artifact) if ask.artifact else None
        except UNREADABLE as error:
            self._begin(Session(self, to, to, Ask(), None, f"not understood: {error}"))
            return
        name = ask.session or to
        session = self.sessions.get(name)
        if session is not None:
            session.heard(ask, to)
        elif artifact is not None and not ask.stop:
            problem = ""
            if not isinstance(self.runtime, Logging):
                problem = "its runtime keeps no output"
            elif len(self.sessions) >= SESSIONS:
                problem = f"{SESSIONS} others are being answered; try again later"
            self._begin(Session(self, name, to, ask, artifact, problem))

    def _begin(self, session: Session) -> None:
        if session.name not in self.sessions and len(self._begun) < 2 * SESSIONS:
            self.sessions[session.name] = session
            self._begun.append(session)
            self._news.set()

    async def _serve(self, session: Session) -> None:
        log.debug("output is asked for", artifact=str(session.artifact), to=session.to)
        try:
            await session.run()
        except* StoreError as group:
            log.debug("not answered", reason=str(_cause(group)))
        except* Exception as group:  # whatever it is, the node lives on
            log.exception("answering failed", artifact=str(session.artifact))
            await session.fail(f"answering failed: {_cause(group)!r:.500}")
        finally:
            del self.sessions[session.name]
            log.debug("no more output is asked for", artifact=str(session.artifact), to=session.to)


class Session:
    """One answer to one asker."""

    def __init__(
        self, service: LogService, name: str, to: str, ask: Ask, artifact: Artifact | None, problem: str
    ) -> None:
        self.name = name
        self.to = to
        self.artifact = artifact
        self._service = service
        self._ask = ask
        self._problem = problem
        self._scope = anyio.CancelScope()
        self._until = clock.now() + LEASE
        self._number = 0
        self._seen = 0
        self._acknowledged = Wakeup()
        self._limit = min(4 * BATCH, service.connection.max_payload // 4)

    def heard(self, ask: Ask, to: str) -> None:
        """The asker is still there."""
        self.to = to
        self._until = clock.now() + LEASE
        if ask.seen > self._seen:
            self._seen = ask.seen
            self._acknowledged.set()
        if ask.stop:
            self._scope.cancel()

    async def run(self) -> None:
        """Answer, for as long as the asker is there."""
        with self._scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._expire)
                await self._answer()
                tasks.cancel_scope.cancel()

    async def fail(self, problem: str) -> None:
        """Tell the asker why there is no more; never raises."""
        with suppress(StoreError):
            await self._say(end=True, error=problem)

    async def _expire(self) -> None:
        while (left := self._until - clock.now()) > 0:  # noqa: ASYNC110  # it is put off again and again
            await anyio.sleep(left)
        log.debug("the asker is gone", to=self.to)
        self._scope.cancel()

    async def _answer(self) -> None:
        runtime = self._service.runtime
        if self._problem or self.artifact is None or not isinstance(runtime, Logging):
            await self._say(end=True, error=self._problem)
            return
        await self._say(slices=[key.ordinal for key in self._keys(runtime, self.artifact)])
        send, receive = anyio.create_memory_object_stream[list[Line]](0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._feed, runtime, self.artifact, send)
            await self._send_all(receive)
        await self._say(end=True)  # not where feeding failed

    def _keys(self, runtime: Logging, artifact: Artifact) -> list[SliceKey]:
        wanted = self._ask.ordinal
        return [key for key in runtime.written(artifact) if wanted is None or key.ordinal == wanted]

    @property
    def _since(self) -> datetime | None:
        since = self._ask.since
        return None if since is None else datetime.now(UTC) - timedelta(seconds=min(since, LONGEST.total_seconds()))

    # Reading

    async def _feed(self, runtime: Logging, artifact: Artifact, send: MemoryObjectSendStream[list[Line]]) -> None:
        ask, since = self._ask, self._since
        async with send, anyio.create_task_group() as tasks:
            if not ask.follow:
                keys = self._keys(runtime, artifact)
                async for batch in _merged({key: self._read(runtime, key, ask.lines, since) for key in keys}):
                    await send.send(batch)
                return
            known: set[SliceKey] = set()
            lines = ask.lines
            while True:
                for key in self._keys(runtime, artifact):
                    if key not in known:
                        known.add(key)
                        tasks.start_soon(_pump, key, self._read(runtime, key, lines, since), send)
                lines = None  # one that comes later is shown from its beginning
                await anyio.sleep(RESCAN)

    def _read(
        self, runtime: Logging, key: SliceKey, lines: int | None, since: datetime | None
    ) -> AsyncIterator[Sequence[OutputLine]]:
        ask = self._ask
        return runtime.read(key, lines=lines, since=ask.after.get(key.ordinal, since), follow=ask.follow)

    # Sending

    async def _send_all(self, receive: MemoryObjectReceiveStream[list[Line]]) -> None:
        async with receive:
            while True:
                lines: list[Line] | None = None
                with anyio.move_on_after(QUIET):
                    try:
                        lines = await receive.receive()
                    except anyio.EndOfStream:
                        return
                if lines is None:
                    await self._say()
                else:
                    await self._send(lines)

    async def _send(self, lines: list[Line]) -> None:
        batch: list[msgspec.Raw] = []
        size = 0
        for line in lines:
            encoded = self._encoded(line)
            if batch and size + len(encoded) > min(BATCH, self._limit):
                await self._send_batch(batch)
                batch, size = [], 0
            batch.append(msgspec.Raw(encoded))
            size += len(encoded) + 1
        if batch:
            await self._send_batch(batch)

    def _encoded(self, line: Line) -> bytes:
        encoded = _encode(line)
        if len(encoded) <= self._limit:
            return encoded
        text = line.text[: self._limit // 8]  # a character takes six bytes at most
        return _encode(Line(line.time, line.stream, line.ordinal, f"{text} [cdm: cut]"))

    async def _send_batch(self, batch: list[msgspec.Raw]) -> None:
        while self._number - self._seen >= WINDOW:
            waited = False
            with anyio.move_on_after(QUIET):
                await self._acknowledged.wait()
                waited = True
            if not waited:
                await self._say()
        self._number += 1
        await self._say(batch)

    async def _say(
        self,
        lines: list[msgspec.Raw] | None = None,
        slices: list[int] | None = None,
        end: bool = False,
        error: str = "",
    ) -> None:
        artifact = "" if self.artifact is None else str(self.artifact)
        answer = Answer(self._service.node, artifact, self._number, lines or [], slices, end, error)
        await self._service.connection.publish(self.to, _encode(answer))


def _cause(error: BaseException) -> BaseException:
    """The first error in a task group's bundle."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _pump(
    key: SliceKey, source: AsyncIterator[Sequence[OutputLine]], send: MemoryObjectSendStream[list[Line]]
) -> None:
    async for batch in source:
        await send.send([Line(time, stream, key.ordinal, text) for time, stream, text in batch])


async def _merged(
    sources: dict[SliceKey, AsyncIterator[Sequence[OutputLine]]],
) -> AsyncIterator[list[Line]]:
    """The lines of several slices in one order."""
    fronts: dict[SliceKey, deque[Line]] = {key: deque() for key in sources}
    while True:
        for key, front in list(fronts.items()):
            while not front:
                batch = await anext(sources[key], None)
                if batch is None:
                    del fronts[key]
                    break
                front.extend(Line(time, stream, key.ordinal, text) for time, stream, text in batch)
        if not fronts:
            return
        yield ripe(fronts.values())
