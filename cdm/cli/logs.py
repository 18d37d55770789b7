"""``cdm logs``: what an artifact's slices write, asked of all nodes over NATS (see `cdm.log_wire`)."""

from __future__ import annotations

import os
import signal
import sys
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from typing import Annotated

import anyio
import anyio.abc
import msgspec
from cyclopts import Parameter
from cyclopts.types import NonNegativeInt
from msgspec.structs import replace

from cdm import clock
from cdm.cli.log_lines import Show, Shown, as_json, as_text
from cdm.cli.options import ConnectionOptions, duration
from cdm.errors import OutputMissing, StoreError, UsageError
from cdm.log_wire import MAX_LINES, RENEWAL, Answer, Ask, Line, Place, ripe
from cdm.messages import Cause, Message, ValuePut, ValueRemove
from cdm.model.artifact import Artifact, NodeId, node_id
from cdm.model.keys import NODES, NodeKey, encode_node
from cdm.model.node import Registration
from cdm.runtimes import EXTERNAL
from cdm.store.bucket import Bucket
from cdm.store.connection import Access, Connection, connect
from cdm.store.signal import Signal
from cdm.store.snapshot import snapshot
from cdm.store.watch import Watch
from cdm.telemetry import LogFormat, LogLevel, configure_logs

PATIENCE = 2.0
"""Seconds within which a node has to begin to answer."""
SILENCE = 7.0
"""Seconds after which a node that began, and then says nothing, is given up; a living one says something every 2."""
FOLLOWED_FROM = 10
"""Lines of each slice that ``--follow`` begins with."""
GOODBYE = 1.0


def logs(
    artifact: str,
    /,
    connection: ConnectionOptions = ConnectionOptions(),  # noqa: B008  # frozen
    *,
    node: str | None = None,
    ordinal: NonNegativeInt | None = None,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative="")] = False,
    since: Annotated[float | None, duration()] = None,
    lines: NonNegativeInt | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Show what an artifact's slices write and wrote, from all nodes, in the order of time.

    Exit codes: 0 done, 1 there is no such output or node, or a node did not answer.

    Parameters
    ----------
    artifact
        The name, group:name:version.
    node
        Only what this node has.
    ordinal
        Of several slices on a node only this one: 0, 1, …
    follow
        Go on with what comes, until Ctrl-C or SIGTERM.
    since
        Nothing older than this: 90s, 10m, 2h.
    lines
        Of each slice only the last so many. [default: all; with --follow, and without --since, 10]
    json
        Print one JSON object a line.
    """
    configure_logs(LogFormat.CONSOLE, LogLevel.WARNING)
    if lines is not None and lines > MAX_LINES:
        raise UsageError(f"--lines: at most {MAX_LINES}; leave it out for all lines")
    if follow and lines is None and since is None:
        lines = FOLLOWED_FROM
    name = Artifact.parse(artifact)
    ask = Ask(artifact=str(name), ordinal=ordinal, since=since, lines=lines, follow=follow)
    show = as_json(name) if json else as_text(name, coloured=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    only = None if node is None else node_id(node)
    return anyio.run(_run, connection.access(), connection.prefix, ask, only, show)


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


async def _run(access: Access, prefix: str, ask: Ask, only: NodeId | None, show: Show) -> int:
    """Ask until the end, or until told to stop."""
    stopped: list[int] = []
    code = 0
    try:
        async with anyio.create_task_group() as tasks:

            async def stop_on_signal(*, task_status: anyio.abc.TaskStatus[None]) -> None:
                with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                    task_status.started()
                    async for number in signals:
                        stopped.append(number)
                        tasks.cancel_scope.cancel()

            await tasks.start(stop_on_signal)
            async with connect(access, name="cdm logs", prefix=prefix) as connection:
                reader = Reader(connection, ask, only, show)
                code = await reader.run(await _hosts(connection, only))
            tasks.cancel_scope.cancel()
    except* BrokenPipeError:
        # Who read this has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if stopped:
        return 0 if ask.follow else 128 + stopped[0]
    return code


async def _hosts(connection: Connection, only: NodeId | None) -> list[Registered]:
    """The nodes that may have output."""
    await connection.check_server()
    found: dict[NodeId, Registered] = {}
    for message in await snapshot(connection, names=("nodes",)):
        if isinstance(message, ValuePut) and isinstance(message.key, NodeKey) and only in (None, message.key.node):
            found[message.key.node] = message
    if only is not None and not found:
        raise OutputMissing(f"there is no node {only!r} (see `cdm status`)")
    hosts = [found[name] for name in sorted(found) if _keeps_output(found[name].value)]
    if not hosts:
        who = "no node runs its slices itself" if only is None else f"node {only!r} does not run its slices itself"
        raise OutputMissing(f"{who}: what they write is with the agent outside")
    return hosts


def _keeps_output(said: Registration) -> bool:
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
        self._due_news = Signal()
        self._news = Signal()
        self._complete = True

    async def run(self, hosts: Sequence[Registered]) -> int:
        """Write everything that these nodes, and later ones, have; returns the exit code.

        Raises:
            OutputMissing: there is none.
        """
        subject = f"{self._inbox}.*.*"
        subscription = await self._connection.subscribe_directly(subject, self._on_message)
        try:
            await self._connection.flush()
            self._connection.check_subscribed(subject)
            for registered in hosts:
                await self._tell(self._new_source(registered), self._ask)
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
                if _keeps_output(said) and self._only in (None, node):
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
        try:
            for source in self._sources.values():
                if not source.over:
                    await self._tell(source, Ask(stop=True))
            await self._connection.flush()
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
        except msgspec.DecodeError as error:
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
        """Wait until all nodes have answered, though not for long."""
        with anyio.move_on_after(PATIENCE):
            while not all(source.over or source.slices is not None for source in self._sources.values()):
                await self._news.wait()
        for source in self._sources.values():
            if source.slices is None and not source.over:
                self._give_up(source, f"did not answer within {PATIENCE:g} s")
        answered = [source for source in self._sources.values() if source.slices is not None]
        if not answered:
            raise OutputMissing("no node answered")
        if not any(source.slices for source in answered):
            which = "" if self._ask.ordinal is None else f"#{self._ask.ordinal}"
            looked = ", ".join(source.node for source in answered[:5]) + (", …" if len(answered) > 5 else "")
            raise OutputMissing(f"there is no output of {self._ask.artifact}{which} (asked: {looked})")

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


def _warn(text: str) -> None:
    print(f"cdm: warning: {text}", file=sys.stderr)
