"""``cdm logs``: what an artifact's slices write, asked of all nodes over NATS (see `cdm.log_wire`)."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from datetime import UTC, datetime
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
from cdm.log_wire import MAX_LINES, RENEWAL, Answer, Ask, Line, ripe
from cdm.messages import ValuePut
from cdm.model.artifact import Artifact, node_id
from cdm.model.keys import NodeKey, encode_node
from cdm.model.node import Registration
from cdm.runtimes import EXTERNAL
from cdm.store.connection import Access, Connection, connect
from cdm.store.signal import Signal
from cdm.store.snapshot import snapshot
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
    return anyio.run(_run, connection.access(), connection.prefix, ask, node, show)


Registered = ValuePut[NodeKey, Registration]


class Source:
    """What one node answers."""

    def __init__(self, registered: Registered, subject: str, reply: str) -> None:
        self.registered = registered
        self.node = registered.key.node
        self.subject = subject
        self.session = reply
        self.asked = 0
        self.lines: deque[Shown] = deque()
        self.slices: list[int] | None = None
        """Which slices it has; None: it has not answered yet."""
        self.seen = 0
        self.told = 0
        """The last answer that the node knows to be dealt with."""
        self.over = False
        self.heard = clock.now()


async def _run(access: Access, prefix: str, ask: Ask, node: str | None, show: Show) -> int:
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
                reader = Reader(connection, ask, await _sources(connection, node), show)
                code = await reader.run()
            tasks.cancel_scope.cancel()
    except* BrokenPipeError:
        # Who read this has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if stopped:
        return 0 if ask.follow else 128 + stopped[0]
    return code


async def _sources(connection: Connection, only: str | None) -> list[Source]:
    """The nodes that may have output."""
    await connection.check_server()
    found: dict[str, Registered] = {}
    for message in await snapshot(connection, names=("nodes",)):
        if isinstance(message, ValuePut) and isinstance(message.key, NodeKey):
            found[message.key.node] = message
    if only is not None:
        name = node_id(only)
        if name not in found:
            raise OutputMissing(f"there is no node {only!r} (see `cdm status`)")
        found = {name: found[name]}
    hosts = [found[name] for name in sorted(found) if _keeps_output(found[name].value)]
    if not hosts:
        who = "no node runs its slices itself" if only is None else f"node {only!r} does not run its slices itself"
        raise OutputMissing(f"{who}: what they write is with the agent outside")
    inbox = connection.new_inbox()
    return [
        Source(said, connection.subject("cdm", "logs", encode_node(said.key.node)), f"{inbox}.{number}")
        for number, said in enumerate(hosts)
    ]


def _keeps_output(said: Registration) -> bool:
    return said.hosts and said.runtime != EXTERNAL


class Reader:
    """Asks nodes, and writes what they answer to standard output."""

    def __init__(self, connection: Connection, ask: Ask, sources: list[Source], show: Show) -> None:
        self._connection = connection
        self._ask = ask
        self._sources = sources
        self._show = show
        self._news = Signal()
        self._complete = True

    async def run(self) -> int:
        """Write everything; returns the exit code.

        Raises:
            OutputMissing: there is none.
        """
        subject = self._sources[0].session.rpartition(".")[0] + ".*.*"
        subscription = await self._connection.subscribe_directly(subject, self._on_message)
        try:
            await self._connection.flush()
            self._connection.check_subscribed(subject)
            for source in self._sources:
                await self._tell(source, self._ask)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._renew)
                await self._begin()
                await self._go_on()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(GOODBYE, shield=True):
                await self._leave()
                await self._connection.unsubscribe(subscription)
        if self._ask.follow:
            raise OutputMissing("no node answers any more")
        return 0 if self._complete else 1

    # Talk

    async def _tell(self, source: Source, ask: Ask) -> None:
        source.asked += 1
        payload = msgspec.json.encode(replace(ask, session=source.session))
        await self._connection.publish(source.subject, payload, reply=f"{source.session}.{source.asked}")

    async def _tell_seen(self, source: Source) -> None:
        try:
            await self._tell(source, Ask(seen=source.told))
        except StoreError:
            source.told = -1  # the next renewal says it

    async def _renew(self) -> None:
        while True:
            await anyio.sleep(RENEWAL)
            for source in self._sources:
                if not source.over:
                    await self._tell_seen(source)

    async def _leave(self) -> None:
        try:
            for source in self._sources:
                if not source.over:
                    await self._tell(source, Ask(stop=True))
            await self._connection.flush()
        except StoreError:
            return  # they notice by themselves

    def _on_message(self, subject: bytes, _reply: bytes, data: bytes, headers: bytes) -> None:
        number = subject.split(b".")[-2]
        if not number.isdigit() or int(number) >= len(self._sources):
            return
        source = self._sources[int(number)]
        self._news.set()
        source.heard = clock.now()
        if source.over:
            return
        if headers.startswith(b"NATS/1.0 503"):
            ago = max(clock.now() - source.registered.at, 0)
            self._give_up(source, f"does not answer (registered, last heard of {ago:.0f} s ago)")
            return
        try:
            answer = msgspec.json.decode(data, type=Answer)
            lines = [msgspec.json.decode(raw, type=Line) for raw in answer.lines]
        except msgspec.DecodeError as error:
            self._give_up(source, f"its answer is not understood: {error}")
            return
        if answer.error:
            self._give_up(source, answer.error)
            return
        if source.slices is None:
            source.slices = answer.slices or []
        if lost := answer.number - source.seen - bool(lines):
            remark = f"{lost} messages with lines were lost on the way"
            source.lines.append(Shown(source.node, Line(datetime.now(UTC), "cdm", 0, remark)))
            self._complete = False
        source.seen = answer.number
        source.lines.extend(Shown(source.node, line) for line in lines)
        source.over = answer.end

    def _give_up(self, source: Source, reason: str) -> None:
        source.over = True
        self._complete = False
        _warn(f"node {source.node!r}: {reason}")

    # Show

    async def _begin(self) -> None:
        """Wait until all nodes have answered, though not for long."""
        with anyio.move_on_after(PATIENCE):
            while not all(source.over or source.slices is not None for source in self._sources):
                await self._news.wait()
        for source in self._sources:
            if source.slices is None and not source.over:
                self._give_up(source, f"did not answer within {PATIENCE:g} s")
        answered = [source for source in self._sources if source.slices is not None]
        if not answered:
            raise OutputMissing("no node answered")
        if not any(source.slices for source in answered):
            which = "" if self._ask.ordinal is None else f"#{self._ask.ordinal}"
            looked = ", ".join(source.node for source in answered[:5]) + (", …" if len(answered) > 5 else "")
            raise OutputMissing(f"there is no output of {self._ask.artifact}{which} (asked: {looked})")

    async def _go_on(self) -> None:
        while live := [source for source in self._sources if source.lines or not source.over]:
            lines: list[Shown] = []
            if self._ask.follow:
                for source in live:
                    lines += source.lines
                    source.lines.clear()
                lines.sort(key=lambda each: each.time)
            elif all(source.lines for source in live):
                lines = ripe(source.lines for source in live)
            if lines:
                dealt_with = [(source, source.seen) for source in live if not source.lines]
                await self._write(lines)
                for source, seen in dealt_with:
                    if seen > source.told:
                        source.told = seen
                        await self._tell_seen(source)
                continue
            with anyio.move_on_after(0.5):
                await self._news.wait()
            for source in live:
                if not source.over and clock.now() - source.heard > SILENCE:
                    self._give_up(source, "does not answer any more; what it has to tell is missing")

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
