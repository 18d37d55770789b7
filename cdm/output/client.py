"""Asks nodes for what slices write, and puts their replies into one order: for ``cdm logs``."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import count

import anyio
import msgspec
from msgspec.structs import replace

from cdm import clock
from cdm.dispatch.messages import Cause, Message, ValuePut, ValueRemove
from cdm.errors import OutputMissing, OutputUnknown, StoreError
from cdm.model.artifact import NodeId
from cdm.model.keys import NODES, NodeKey, encode_node
from cdm.model.node import Registration
from cdm.model.problems import UNREADABLE
from cdm.output.source import Received, Registered, Shown, Source, SourcePhase, keeps_output
from cdm.output.wire import KEEPS_NONE, RENEWAL, LogReply, LogRequest, WireLine, ripe
from cdm.store.bucket import Bucket
from cdm.store.connection import Connection
from cdm.store.watch import Watch
from cdm.wakeup import Wakeup

PATIENCE = 2.0
"""Seconds within which a node has to begin to reply."""
SILENCE = 7.0
"""Seconds without a reply after which a node that began is given up; a living one sends something every 2."""
GOODBYE = 1.0
"""Most seconds that telling the nodes to stop may take."""
POLL = 0.5
"""Seconds between two looks for nodes that have fallen silent."""


class Reader:
    """Asks nodes, and hands on what they reply.

    While it follows, a node that registers, or registers again, is asked at once; one that does not answer, as soon as
    it is heard of again; and all of them after the connection was lost. Each goes on where it was.

    Args:
        connection: to NATS.
        request: what is asked for.
        only: the one node to ask; None: all of them.
        write: called with lines in the order that they are to be shown in.
        remark: called with what the user is to know besides.
        missing: awaited where no node has any output; says why there can be none, or nothing.
    """

    def __init__(
        self,
        connection: Connection,
        request: LogRequest,
        only: NodeId | None,
        write: Callable[[list[Shown]], Awaitable[None]],
        remark: Callable[[str], None],
        missing: Callable[[], Awaitable[str]],
    ) -> None:
        self._connection = connection
        self._request = request
        self._only = only
        self._write = write
        self._remark = remark
        self._missing = missing
        self._began = clock.now()
        self._inbox = connection.new_inbox()
        self._numbers = count()
        self._sources: dict[NodeId, Source] = {}
        """The newest request to each node."""
        self._sessions: dict[str, Source] = {}
        """The same by session; replies to any other session are of no use any more."""
        self._due: deque[Source] = deque()
        """Requests that are to be sent."""
        self._due_news = Wakeup()
        self._news = Wakeup()
        self._begun = False
        """All nodes have answered, or had the time to."""
        self._without: set[NodeId] = set()
        """Nodes that keep no output, which the user is told, or will be as soon as all have answered."""
        self._complete = True

    async def run(self, hosts: Sequence[Registered]) -> bool:
        """Hand on everything that these nodes, and later ones, have; returns whether nothing was missing.

        Raises:
            OutputMissing: there is none, and none that comes is waited for.
            OutputUnknown: the same, but not all nodes answered; or none did.
            AccessDenied: a node may not be asked, or may not reply here.
        """
        subject = f"{self._inbox}.*.*"
        subscription = await self._connection.subscribe_directly(subject, self._on_message)
        try:
            sources = [self._new_source(registered) for registered in hosts]
            async with self._connection.accepted({source.subject for source in sources}):
                for source in sources:
                    await self._send(source, self._request)
            self._connection.check_subscribed(subject)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._renew)
                await self._begin()
                if self._request.follow:
                    self._connection.listen(self._on_connection)
                    tasks.start_soon(self._ask_again)
                    tasks.start_soon(Watch(Bucket(self._connection, NODES), self._on_node).run)
                await self._go_on()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(GOODBYE, shield=True):
                await self._leave()
                await self._connection.unsubscribe(subscription)
        return self._complete

    # Which nodes to ask

    def _new_source(self, registered: Registered, *, excused: bool = False) -> Source:
        node = registered.key.node
        before = self._sources.get(node)
        if before is None:
            received = Received(node, self._request.artifact)
        else:
            received = before.received
            received.go_back()
            self._sessions.pop(before.session, None)
        subject = self._connection.subject("cdm", "logs", encode_node(node))
        source = Source(registered, subject, f"{self._inbox}.{next(self._numbers)}", received, excused=excused)
        self._sources[node] = self._sessions[source.session] = source
        return source

    def _on_node(self, message: Message) -> None:
        match message:
            case ValuePut(key=NodeKey(node=node), value=Registration() as registration):
                if keeps_output(registration) and self._only in (None, node):
                    self._on_registered(message)
            case ValueRemove(key=NodeKey(node=node), cause=cause):
                source = self._sources.get(node)
                if source is not None and (not source.open or cause is Cause.DELETED):
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
        if later and source.phase in (SourcePhase.ENDED, SourcePhase.LOST):
            self._ask_soon(registered)

    def _on_connection(self, up: bool) -> None:
        # Replies that were on their way are lost, so that those after them are of no use.
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
                    continue  # a newer request takes its place, or will when the connection is back
                # Of slices that have sent nothing yet: all that they wrote since this command began.
                since = (self._request.since or 0.0) + clock.now() - self._began
                request = replace(self._request, lines=None, since=since, after=source.received.after)
                with suppress(StoreError):  # the connection is down
                    await self._send(source, request)

    # Messages

    async def _send(self, source: Source, request: LogRequest) -> None:
        source.published += 1
        payload = msgspec.json.encode(replace(request, session=source.session))
        await self._connection.publish(source.subject, payload, reply=f"{source.session}.{source.published}")

    async def _acknowledge(self, source: Source) -> None:
        with suppress(StoreError):  # the next renewal says it
            await self._send(source, LogRequest(seen=source.acknowledged))

    async def _renew(self) -> None:
        while True:
            await anyio.sleep(RENEWAL)
            for source in self._open:
                await self._acknowledge(source)

    async def _leave(self) -> None:
        sources = self._open
        with suppress(StoreError):  # the nodes notice by themselves
            async with self._connection.accepted({source.subject for source in sources}):
                for source in sources:
                    await self._send(source, LogRequest(stop=True))

    def _on_message(self, subject: bytes, _reply: bytes, data: bytes, headers: bytes) -> None:
        source = self._sessions.get(subject.decode(errors="replace").rpartition(".")[0])
        if source is None or not source.open:
            return
        self._news.set()
        source.heard = clock.now()
        if headers.startswith(b"NATS/1.0 503"):
            self._nobody_listens(source)
            return
        source.received.complained = False
        try:
            reply = msgspec.json.decode(data, type=LogReply)
            lines = [msgspec.json.decode(raw, type=WireLine) for raw in reply.lines]
        except UNREADABLE as error:
            self._give_up(source, f"its reply is not understood: {error}", SourcePhase.REFUSED)
            return
        if reply.error == KEEPS_NONE and (source.node in self._without or not self._begun):
            self._without.add(source.node)
            self._complete = False
            source.phase = SourcePhase.REFUSED
        elif reply.error:
            self._give_up(source, reply.error, SourcePhase.REFUSED)
        elif not source.reply(reply, lines):
            self._complete = False

    def _nobody_listens(self, source: Source) -> None:
        if source.excused:
            source.phase = SourcePhase.LOST  # it is asked again at its next heartbeat
            return
        ago = max(clock.now() - source.registered.at, 0)
        self._give_up(source, f"does not answer (registered, last heard of {ago:.0f} s ago)")

    def _give_up(self, source: Source, reason: str, phase: SourcePhase = SourcePhase.LOST) -> None:
        if source.phase is not SourcePhase.REFUSED:
            source.phase = phase
        self._complete = False
        if not source.received.complained:
            source.received.complained = True
            self._remark(f"warning: node {source.node!r}: {reason}")

    # Lines

    @property
    def _open(self) -> list[Source]:
        return [source for source in self._sources.values() if source.open]

    async def _begin(self) -> None:
        """Wait a short while until all nodes have answered; raises `OutputMissing`."""
        with anyio.move_on_after(PATIENCE):
            while any(source.phase is SourcePhase.ASKED for source in self._sources.values()):
                await self._news.wait()
        self._begun = True
        answered = [source for source in self._sources.values() if source.slices is not None]
        for source in self._sources.values():
            if source.phase is SourcePhase.ASKED:
                self._give_up(source, f"did not answer within {PATIENCE:g} s")
        if self._sources and self._without == self._sources.keys():
            await self._nothing_yet(
                "no node keeps output of {}: their runtimes keep none", list(self._sources.values())
            )
            return
        for source in self._sources.values():
            if source.node in self._without:
                self._give_up(source, KEEPS_NONE, SourcePhase.REFUSED)
        if self._sources and not answered:
            raise OutputUnknown(f"no node {'that keeps output ' if self._without else ''}answered")
        if not any(source.slices for source in answered):
            yet = " yet" if self._request.follow else ""
            await self._nothing_yet(f"there is no output of {{}}{yet}", answered)

    async def _nothing_yet(self, finding: str, asked: Sequence[Source]) -> None:
        what = self._request.artifact
        if self._request.ordinal is not None:
            what += f"#{self._request.ordinal}"
        names = ", ".join(source.node for source in asked[:5]) + (", …" if len(asked) > 5 else "")
        looked = f"asked: {names}" if names else "no node is registered, see `cdm status`"
        reason = await self._missing() or f"{finding.format(what)} ({looked})"
        if not self._request.follow:
            heard = all(each.slices is not None or each.node in self._without for each in self._sources.values())
            raise OutputMissing(reason) if heard else OutputUnknown(reason)
        self._remark(f"note: {reason}; waiting")

    async def _go_on(self) -> None:
        while (live := self._live) or self._request.follow:
            lines = self._take_lines(live)
            shown = {source: source.seen for source in live if not source.received.lines}
            if lines:
                await self._write(lines)  # meanwhile more may come, which is not shown yet
            unacknowledged = {source: seen for source, seen in shown.items() if seen > source.acknowledged}
            for source, seen in unacknowledged.items():
                source.acknowledged = seen
                await self._acknowledge(source)
            if not lines and not unacknowledged:
                with anyio.move_on_after(POLL):
                    await self._news.wait()
                self._give_up_silent()

    @property
    def _live(self) -> list[Source]:
        """Those that have lines, or may have some soon."""
        return [source for source in self._sources.values() if source.received.lines or source.open]

    def _take_lines(self, live: Sequence[Source]) -> list[Shown]:
        fronts = [source.received.lines for source in live]
        if not self._request.follow:
            return ripe(fronts) if all(fronts) else []
        lines = [line for front in fronts for line in front]
        for front in fronts:
            front.clear()
        lines.sort(key=lambda each: each.time)
        return lines

    def _give_up_silent(self) -> None:
        if self._request.follow and not self._connection.is_up:
            return  # nobody can be heard
        for source in self._open:
            if clock.now() - source.heard > SILENCE:
                missing = "" if self._request.follow else "; the rest of its output is missing"
                self._give_up(source, f"does not answer any more{missing}")
