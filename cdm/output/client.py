"""Asks nodes for what slices write, puts together what they answer, and writes it: for ``cdm logs``."""

from __future__ import annotations

import os
import sys
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count

import anyio
import anyio.abc
import msgspec
from msgspec.structs import replace

from cdm import clock
from cdm.dispatch.messages import Cause, Message, ValuePut, ValueRemove
from cdm.errors import OutputMissing, StoreError
from cdm.log import printable
from cdm.model.artifact import NodeId
from cdm.model.keys import NODES, NodeKey, encode_node
from cdm.model.node import EXTERNAL, Registration
from cdm.model.problems import UNREADABLE
from cdm.output.lines import Show, Shown
from cdm.output.wire import RENEWAL, Answer, Ask, Line, Place, ripe
from cdm.store.bucket import Bucket
from cdm.store.connection import Connection
from cdm.store.watch import Watch
from cdm.wakeup import Wakeup

PATIENCE = 2.0
"""Seconds within which a node has to begin to answer."""
SILENCE = 7.0
"""Seconds after which a node that began, and then says nothing, is given up; a living one says something every 2."""
GOODBYE = 1.0

Registered = ValuePut[NodeKey, Registration]


class Source:
    """One ask to a node, and what it answers.

    Args:
        registered: the node's newest heartbeat.
        subject: where it is asked.
        session: where it answers.
        before: what it was asked before; this goes on there.
        excused: whether it may be about to listen: then it is no news that it does not yet.
    """

    def __init__(
        self, registered: Registered, subject: str, session: str, before: Source | None = None, *, excused: bool = False
    ) -> None:
        self.registered = registered
        self.node = registered.key.node
        self.subject = subject
        self.session = session
        self.excused = excused
        self.asked = 0
        self.lines: deque[Shown] = deque() if before is None else before.lines
        self.places: defaultdict[int, Place] = defaultdict(Place) if before is None else before.places
        """How far each slice's lines have come."""
        for place in self.places.values():
            place.go_back()
        self.slices: list[int] | None = None
        """Which slices it has; None: it has not answered yet."""
        self.seen = 0
        self.told = 0
        """The last answer that is dealt with."""
        self.over = False
        self.refused = False
        """Whether it said why it does not answer: it would say so again."""
        self.complained: bool = before is not None and before.complained
        """Whether the user knows that it does not answer."""
        self.heard = clock.now()


def keeps_output(said: Registration) -> bool:
    """Whether a node runs slices itself."""
    return said.hosts and said.runtime != EXTERNAL


class Reader:
    """Asks nodes, and writes what they answer to standard output.

    While it follows, a node that registers, or registers again, is asked at once; one that does not answer, as soon as
    it is heard of again; and all of them when the connection was lost and is back. Each goes on where it was.
    """

    def __init__(self, connection: Connection, ask: Ask, only: NodeId | None, show: Show) -> None:
        self._connection = connection
        self._ask = ask
        self._only = only
        self._show = show
        self._began = clock.now()
        self._inbox = connection.new_inbox()
        self._numbers = count()
        self._sources: dict[NodeId, Source] = {}
        self._sessions: dict[str, Source] = {}
        """By the subject of their answers; what comes to another is of no use any more."""
        self._due: deque[Source] = deque()
        """Those that are to be asked."""
        self._due_news = Wakeup()
        self._news = Wakeup()
        self._complete = True

    async def run(self, hosts: Sequence[Registered]) -> int:
        """Write everything that these nodes, and later ones, have; returns the exit code.

        Raises:
            OutputMissing: there is none, and none that comes is waited for; or no node answered.
            AccessDenied: a node may not be asked, or may not answer here.
        """
        subject = f"{self._inbox}.*.*"
        subscription = await self._connection.subscribe_directly(subject, self._on_message)
        try:
            sources = [self._new_source(registered) for registered in hosts]
            async with self._connection.accepted({source.subject for source in sources}):
                for source in sources:
                    await self._tell(source, self._ask)
            self._connection.check_subscribed(subject)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._renew)
                await self._begin()
                if self._ask.follow:
                    self._connection.listen(self._on_connection)
                    tasks.start_soon(self._ask_again)
                    tasks.start_soon(Watch(Bucket(self._connection, NODES), self._on_node).run)
                await self._go_on()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(GOODBYE, shield=True):
                await self._leave()
                await self._connection.unsubscribe(subscription)
        return 0 if self._complete else 1

    # Whom to ask

    def _new_source(self, registered: Registered, *, excused: bool = False) -> Source:
        node = registered.key.node
        before = self._sources.get(node)
        if before is not None:
            self._sessions.pop(before.session, None)
        subject = self._connection.subject("cdm", "logs", encode_node(node))
        source = Source(registered, subject, f"{self._inbox}.{next(self._numbers)}", before, excused=excused)
        self._sources[node] = self._sessions[source.session] = source
        return source

    def _on_node(self, message: Message) -> None:
        match message:
            case ValuePut(key=NodeKey(node=node), value=Registration() as said):
                if keeps_output(said) and self._only in (None, node):
                    self._on_registered(message)
            case ValueRemove(key=NodeKey(node=node), cause=cause):
                source = self._sources.get(node)
                if source is not None and (source.over or cause is Cause.DELETED):
                    self._give_up(source, "is not registered any more")
            case _:
                pass

    def _on_registered(self, registered: Registered) -> None:
        """A node is there: for the first time, as another process than before, or still."""
        source = self._sources.get(registered.key.node)
        if source is None or source.registered.value.incarnation != registered.value.incarnation:
            self._ask_soon(registered, excused=True)
            return
        later = registered.revision > source.registered.revision
        source.registered = registered
        if later and source.over and not source.refused:
            self._ask_soon(registered)

    def _on_connection(self, up: bool) -> None:
        # Answers that were on their way are lost, so that those that follow them are of no use.
        self._sessions.clear()
        if up:
            for source in list(self._sources.values()):
                self._ask_soon(source.registered, excused=True)

    def _ask_soon(self, registered: Registered, *, excused: bool = False) -> None:
        self._due.append(self._new_source(registered, excused=excused))
        self._due_news.set()

    async def _ask_again(self) -> None:
        while True:
            await self._due_news.wait()
            while self._due:
                source = self._due.popleft()
                if source.session not in self._sessions:
                    continue  # it is to be asked once more, or will be when the connection is back
                after = {ordinal: place.time for ordinal, place in source.places.items() if place.time is not None}
                # Of slices that have told nothing yet: all that they wrote since this began.
                since = (self._ask.since or 0.0) + clock.now() - self._began
                with suppress(StoreError):  # the connection is down
                    await self._tell(source, replace(self._ask, lines=None, since=since, after=after))

    # Talk

    async def _tell(self, source: Source, ask: Ask) -> None:
        source.asked += 1
        payload = msgspec.json.encode(replace(ask, session=source.session))
        await self._connection.publish(source.subject, payload, reply=f"{source.session}.{source.asked}")

    async def _tell_seen(self, source: Source) -> None:
        try:
            await self._tell(source, Ask(seen=source.told))
        except StoreError:
            return  # the next renewal says it

    async def _renew(self) -> None:
        while True:
            await anyio.sleep(RENEWAL)
            for source in list(self._sources.values()):
                if not source.over:
                    await self._tell_seen(source)

    async def _leave(self) -> None:
        living = [source for source in self._sources.values() if not source.over]
        try:
            async with self._connection.accepted({source.subject for source in living}):
                for source in living:
                    await self._tell(source, Ask(stop=True))
        except StoreError:
            return  # they notice by themselves

    def _on_message(self, subject: bytes, _reply: bytes, data: bytes, headers: bytes) -> None:
        source = self._sessions.get(subject.decode(errors="replace").rpartition(".")[0])
        if source is None or source.over:
            return
        self._news.set()
        source.heard = clock.now()
        if headers.startswith(b"NATS/1.0 503"):
            if source.excused:
                source.over = True  # until its next heartbeat
                return
            ago = max(clock.now() - source.registered.at, 0)
            self._give_up(source, f"does not answer (registered, last heard of {ago:.0f} s ago)")
            return
        source.complained = False
        try:
            answer = msgspec.json.decode(data, type=Answer)
            lines = [msgspec.json.decode(raw, type=Line) for raw in answer.lines]
        except UNREADABLE as error:
            self._refused(source, f"its answer is not understood: {error}")
            return
        if answer.error:
            self._refused(source, answer.error)
            return
        if source.slices is None:
            source.slices = answer.slices or []
        if lost := answer.number - source.seen - bool(lines):
            remark = f"{lost} messages with lines were lost on the way"
            source.lines.append(Shown(source.node, Line(datetime.now(UTC), "cdm", 0, remark)))
            self._complete = False
        source.seen = answer.number
        source.lines.extend(Shown(source.node, new) for line in lines for new in source.places[line.ordinal].new(line))
        source.over = answer.end

    def _refused(self, source: Source, reason: str) -> None:
        source.refused = True
        self._give_up(source, reason)

    def _give_up(self, source: Source, reason: str) -> None:
        source.over = True
        self._complete = False
        if not source.complained:
            source.complained = True
            _warn(f"node {source.node!r}: {reason}")

    # Show

    async def _begin(self) -> None:
        """Wait until all nodes have answered, though not for long; raises `OutputMissing`."""
        with anyio.move_on_after(PATIENCE):
            while not all(source.over or source.slices is not None for source in self._sources.values()):
                await self._news.wait()
        for source in self._sources.values():
            if source.slices is None and not source.over:
                self._give_up(source, f"did not answer within {PATIENCE:g} s")
        answered = [source for source in self._sources.values() if source.slices is not None]
        if self._sources and not answered:
            raise OutputMissing("no node answered")
        if not any(source.slices for source in answered):
            self._miss(answered)

    def _miss(self, answered: Sequence[Source]) -> None:
        """There is no output: where it is followed it may come, else that is the answer."""
        what = self._ask.artifact if self._ask.ordinal is None else f"{self._ask.artifact}#{self._ask.ordinal}"
        names = ", ".join(source.node for source in answered[:5]) + (", …" if len(answered) > 5 else "")
        looked = f"asked: {names}" if names else "no node is there"
        if not self._ask.follow:
            raise OutputMissing(f"there is no output of {what} ({looked})")
        _note(f"there is no output of {what} yet ({looked}); waiting")

    async def _go_on(self) -> None:
        while (live := self._live) or self._ask.follow:
            lines: list[Shown] = []
            if self._ask.follow:
                for source in live:
                    lines += source.lines
                    source.lines.clear()
                lines.sort(key=lambda each: each.time)
            elif all(source.lines for source in live):
                lines = ripe(source.lines for source in live)
            dealt_with = [(source, source.seen) for source in live if not source.lines and source.seen > source.told]
            if lines:
                await self._write(lines)
            for source, seen in dealt_with:
                source.told = seen
                await self._tell_seen(source)
            if not lines and not dealt_with:
                with anyio.move_on_after(0.5):
                    await self._news.wait()
                self._give_up_silent()

    @property
    def _live(self) -> list[Source]:
        return [source for source in self._sources.values() if source.lines or not source.over]

    def _give_up_silent(self) -> None:
        if self._ask.follow and not self._connection.is_up:
            return  # nobody can be heard
        for source in self._live:
            if not source.over and clock.now() - source.heard > SILENCE:
                missing = "" if self._ask.follow else "; what it has to tell is missing"
                self._give_up(source, f"does not answer any more{missing}")

    async def _write(self, lines: list[Shown]) -> None:
        # In a thread: a reader that takes its time must not keep the nodes from hearing of us.
        text = self._show(lines).encode(errors="replace")
        await anyio.to_thread.run_sync(_write_out, text, abandon_on_cancel=True)


def _write_out(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def _note(text: str) -> None:
    sys.stderr.write(f"cdm: note: {printable(text)}\n")


def _warn(text: str) -> None:
    sys.stderr.write(f"cdm: warning: {printable(text)}\n")
