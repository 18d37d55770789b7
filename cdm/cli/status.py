"""``cdm status``: leader, nodes, blueprints and slices."""

from __future__ import annotations

from typing import Annotated

import anyio
import msgspec
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cdm import clock
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
from cdm.cli.options import FLAG, ConnectionOptions
from cdm.cli.report import ClusterReport, report
from cdm.cli.screen import plain, wide_console
from cdm.model.slice import SliceState
from cdm.model.status import Condition
from cdm.store.connection import Access, connect
from cdm.store.snapshot import snapshot

SHOWN_SLICES = 200
"""Longest table of slices for people; ``--json`` has them all."""

_CONDITION_STYLE = {
    Condition.READY: "green",
    Condition.PROGRESSING: "cyan",
    Condition.DEGRADED: "yellow",
    Condition.UNSCHEDULABLE: "yellow",
    Condition.INVALID: "red",
}
_STATE_STYLE = {SliceState.ACTIVE: "green", SliceState.FAILED: "red", SliceState.UNLOAD: "dim"}


def status(
    connection: ConnectionOptions = ConnectionOptions(),  # noqa: B008  # frozen
    *,
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Show leader and term, nodes, blueprints and slices; the exit code is 3 where nobody leads.

    Parameters
    ----------
    json
        Print JSON.
    """
    configure_logs(LogFormat.CONSOLE, LogLevel.ERROR)
    found = anyio.run(_look, connection.access(), connection.prefix)
    if json:
        print(msgspec.json.encode(found).decode())
    else:
        wide_console().print(render(found))
    return 0 if found.healthy else 3


async def _look(access: Access, prefix: str) -> ClusterReport:
    async with connect(access, name="cdm status", prefix=prefix) as connection:
        await connection.check_server()
        return report(await snapshot(connection), clock.now())


def render(found: ClusterReport) -> Group:
    """The report as tables."""
    leader = Text.assemble(
        ("leader ", "bold"), plain(found.leader or "none", "green" if found.leader else "red"), f"   term {found.term}"
    )
    parts: list[Text | Table] = [leader]
    if not found.healthy:
        parts.append(Text("nobody leads: what follows is as the last leader left it", "red"))
    parts += [_nodes(found), _blueprints(found), *_reasons(found), _slices(found)]
    if len(found.slices) > SHOWN_SLICES:
        parts.append(Text(f"… and {len(found.slices) - SHOWN_SLICES} more slices; --json shows all", "dim"))
    parts += [plain(f"note: {each}", "yellow") for each in found.notes]
    return Group(*parts)


def _table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        whole = column not in ("reason", "labels")
        table.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=whole)
    return table


def _nodes(found: ClusterReport) -> Table:
    columns = ("schedule", "heard", "slices", "capacity", "runtime", "labels")
    table = _table("nodes", "node", "role", *columns, right=("heard", "slices", "capacity"))
    for node in found.nodes:
        labels = " ".join(f"{name}={value}" for name, value in node.labels.items())
        capacity = "" if node.capacity is None else str(node.capacity)
        numbers = (f"{node.heard:.0f} s ago", str(node.slices), capacity)
        table.add_row(*map(plain, (node.node, node.role, node.schedule, *numbers, node.runtime, labels)))
    return table


def _blueprints(found: ClusterReport) -> Table:
    numbers = ("desired", "active", "pending", "failed")
    table = _table("blueprints", "artifact", "condition", *numbers, right=numbers)
    for each in found.blueprints:
        style = _CONDITION_STYLE.get(Condition(each.condition), "") if each.condition in list(Condition) else ""
        counts = (str(getattr(each, number)) for number in numbers)
        table.add_row(plain(each.artifact), plain(each.condition, style), *counts)
    return table


def _reasons(found: ClusterReport) -> list[Text]:
    """Below the table: beside it there is no room for a sentence."""
    return [plain(f"{each.artifact}: {each.reason}") for each in found.blueprints if each.reason]


def _slices(found: ClusterReport) -> Table:
    table = _table("slices", "node", "artifact", "state", "term", "port", "reason", right=("term", "port"))
    for each in found.slices[:SHOWN_SLICES]:
        artifact = f"{each.artifact}#{each.ordinal}" if each.ordinal else each.artifact
        state = plain(each.state, _STATE_STYLE.get(SliceState(each.state), ""))
        port = "" if each.port is None else str(each.port)
        table.add_row(plain(each.node), plain(artifact), state, str(each.term), port, plain(each.reason or ""))
    return table
