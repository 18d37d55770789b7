"""Follows the cluster: on a terminal as a screen, on a pipe as lines, or until all is well."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from datetime import datetime

import anyio
import anyio.abc
import anyio.to_thread
from msgspec.structs import replace

from cdm import clock
from cdm.cli.concerns import in_line
from cdm.cli.fullscreen import FullScreen
from cdm.cli.live import LiveReport
from cdm.cli.overview import details, sums, verdict
from cdm.cli.report import ClusterReport
from cdm.cli.rows import Sheet, sheet
from cdm.cli.screen import as_json, for_models
from cdm.cli.selecting import Selection, narrowed
from cdm.cli.streams import write_out
from cdm.errors import NodeUnknown, ServiceMissing
from cdm.explain.words import brief
from cdm.log import printable
from cdm.manager.endings import kind_of
from cdm.model.node import Schedule
from cdm.store.connection import Connection

BETWEEN = 0.2
"""Seconds between two looks at least: in a large cluster something is new all the time."""
SHARE = 4.0
"""How many times as long as a look takes it rests at least before the next one."""
TICK = 1.0
"""Seconds after which it is looked again although nothing is new: ages go on."""

Show = Callable[[ClusterReport | str], None]
"""Shows the cluster, or that what is watched is not there any more."""


async def watch(connection: Connection, to: Selection, *, everything: bool = False, json: bool = False) -> None:
    """Show the cluster, or a part of it, at once and whenever it changes, until cancelled.

    Raises:
        ServiceMissing, NodeUnknown: what is to be shown is not there at the beginning.
    """
    async with anyio.create_task_group() as tasks:
        live = LiveReport(connection)
        await live.start(tasks)
        narrowed(await live.now(), to)
        if json:
            await _follow(live, to, _Documents().show)
        elif for_models() or not sys.stdout.isatty():
            await _follow(live, to, ChangedLines().show)
        else:
            with FullScreen() as screen:
                tasks.start_soon(_redraw_when_resized, live)
                await _follow(live, to, _Screen(screen, live, everything=everything, whole=bool(to)).show)


async def _follow(live: LiveReport, to: Selection, show: Show) -> None:
    while True:
        began = clock.now()
        found: ClusterReport | str
        try:
            found = narrowed(await live.now(), to)
        except (ServiceMissing, NodeUnknown) as error:
            found = str(error)
        # In a thread: a reader that takes its time must not keep the server from hearing of this command, nor this from
        # ending.
        await anyio.to_thread.run_sync(show, found, abandon_on_cancel=True)
        await anyio.sleep(max(BETWEEN, SHARE * (clock.now() - began)))
        with anyio.move_on_after(TICK):
            await live.news()


async def _redraw_when_resized(live: LiveReport) -> None:
    with anyio.open_signal_receiver(signal.SIGWINCH) as signals:
        async for _ in signals:
            live.wake()


class _Screen:
    """The whole of a terminal."""

    def __init__(self, screen: FullScreen, live: LiveReport, *, everything: bool, whole: bool) -> None:
        self._screen = screen
        self._live = live
        self._everything = everything
        self._whole = whole
        self._behind = False

    def show(self, found: ClusterReport | str) -> None:
        on = Sheet(sheet().paint, self._screen.width)
        lines = []
        if self._live.is_behind:
            lines = [on.paint("NATS is away: what follows may be old", "red")]
        if self._behind != self._live.is_behind:
            self._behind = self._live.is_behind
            self._screen.again()  # what is logged of it stands on the screen
        if isinstance(found, str):
            lines.append(on.paint(found, "yellow"))
        else:
            lines += [*verdict(found, on.paint), on.paint(sums(found))]
            lines += details(found, on, everything=self._everything, whole=self._whole)
        self._screen.draw(lines, on.paint)


class _Documents:
    """JSON, a document on each line."""

    def __init__(self) -> None:
        self._shown: ClusterReport | None = None

    def show(self, found: ClusterReport | str) -> None:
        if isinstance(found, str):
            return
        # Heartbeats alone are no news.
        told = replace(found, nodes=[replace(each, heard=0.0, load=None) for each in found.nodes])
        if told != self._shown:
            self._shown = told
            write_out(as_json(found).encode() + b"\n")


class ChangedLines:
    """Lines, of what is new only: one for each thing that is another."""

    def __init__(self) -> None:
        self._told: dict[str, str] | None = None

    def show(self, found: ClusterReport | str) -> None:
        """Write what is new."""
        if lines := self.new(found):
            time = f"{datetime.now().astimezone():%H:%M:%S}"
            write_out("".join(f"{time}  {printable(line)}\n" for line in lines).encode(errors="replace"))

    def new(self, found: ClusterReport | str) -> list[str]:
        """What is new since this was last asked."""
        if isinstance(found, str):
            again, self._told = self._told == {"": found}, {"": found}
            return [] if again else [found]
        told, before = dict(_facts(found)), self._told
        self._told = told
        if before is None:
            return [line for name, line in told.items() if not name.startswith("slice ") or ": ACTIVE" not in line]
        lines = [line for name, line in told.items() if name not in before or kind_of(before[name]) != kind_of(line)]
        return [*lines, *(f"{name} is gone" for name in before if name and name not in told)]


def _facts(found: ClusterReport) -> Iterator[tuple[str, str]]:
    """A line for each thing, by its name."""
    yield "leader", f"leader {found.leader}, term {found.term}" if found.leader else "nobody leads"
    for note in found.notes:
        yield f"note {note}", f"note: {note}"
    for gone in found.gone:
        if gone.lost:
            yield f"lost node {gone.node}", f"node {gone.node}: {gone.how}"
    for node in found.nodes:
        state = "leaving" if node.leaving else "up" if node.schedule is Schedule.NORMAL else node.schedule
        yield f"node {node.node}", f"node {node.node}: {state}"
    for each in found.blueprints:
        healthy = "" if each.healthy is None else f", {each.healthy} healthy"
        reason = f": {brief(each.reason)}" if each.reason else ""
        counts = f"{each.active} of {each.desired} active{healthy}"
        yield f"blueprint {each.artifact}", f"blueprint {each.artifact}: {each.condition}, {counts}{reason}"
    for one in found.slices:
        name = f"slice {one.node}/{one.artifact}{f'#{one.ordinal}' if one.ordinal else ''}"
        again = f", {one.restarts} restart{'' if one.restarts == 1 else 's'}" if one.restarts else ""
        yield name, f"{name}: {one.state}{again}{f': {brief(one.reason)}' if one.reason else ''}"


# Until all is well


async def wait_until_well(
    connection: Connection, to: Selection, say: Callable[[str], None], timeout: float | None
) -> ClusterReport:
    """Wait until nothing is in trouble, or for so many seconds; tells meanwhile what is.

    Args:
        connection: to NATS.
        to: the part of the cluster that is waited for.
        say: shows a line.
        timeout: in seconds; None: however long it takes.

    Returns:
        The cluster as it was last.

    Raises:
        ServiceMissing, NodeUnknown: what is waited for is not there, or not any more.
    """
    async with anyio.create_task_group() as tasks:
        live = LiveReport(connection)
        await live.start(tasks)
        found = narrowed(await live.now(), to)
        with anyio.move_on_after(timeout):
            said: set[tuple[str, str]] = set()
            while live.is_behind or not found.well:
                began = clock.now()
                lines = {kind_of(line): line for line in map(in_line, found.troubles)}
                for kind, line in lines.items():
                    if kind not in said:
                        say(line)
                said = {*lines}
                await anyio.sleep(max(TICK, SHARE * (clock.now() - began)))
                await live.news()
                found = narrowed(await live.now(), to)
        tasks.cancel_scope.cancel()
    return found
