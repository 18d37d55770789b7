"""Nodes as ``cdm status`` and ``cdm nodes`` show them: a table, what is left on those that drain, and those gone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TypeVar

from cdm.cli.emptying import Emptied, GoneNode
from cdm.cli.report import ClusterReport, NodeReport
from cdm.cli.screen import Table, Text, plain
from cdm.cli.wording import ago, until
from cdm.manager.endings import kind_of
from cdm.manager.left import Left
from cdm.model.node import Schedule
from cdm.model.quantity import memory_shown
from cdm.node.machine import USUAL_LABELS

Amount = TypeVar("Amount", int, float)

MOST_LEFT = 10
"""Most lines about what is left on a node, where not all is asked for."""
MOST_HAD = 3
"""Most artifacts that are named of what a node had that is gone."""


def node_parts(found: ClusterReport, *, everything: bool = False) -> list[Text | Table]:
    """All there is to say of nodes; ``everything``: also of those that left in good order."""
    lost = [each for each in found.gone if everything or each.lost]
    return [*node_table(found), *draining_lines(found.draining, whole=everything), *gone_lines(lost)]


LEAST_WIDTH = 10
"""Characters of a name or of labels that a line has at least; what is longer is folded."""


def table(title: str, *columns: str, right: tuple[str, ...] = (), least: int = 0) -> Table:
    """An empty table; names and labels may be folded, down to ``least`` characters."""
    # Without a least width a narrow screen has no room for them at all.
    return Table(*columns, title=title, right=right, folded=("node", "artifact", "labels"), least=least)


def node_table(found: ClusterReport) -> list[Table]:
    """The nodes that are registered, those first that take nothing."""
    # The screen is narrow: what no node limits, and what all have in common of themselves, goes without saying.
    usual = {label for label in USUAL_LABELS if len({node.labels.get(label) for node in found.nodes}) == 1}
    told: dict[str, Callable[[NodeReport], str]] = {
        "role": lambda node: node.role,
        "schedule": _schedule,
        "heard": lambda node: f"{node.heard:.0f} s ago",
        "slices": lambda node: str(node.slices),
        "capacity": lambda node: "" if node.capacity is None else str(node.capacity),
        "cpu": lambda node: _of(node.reserved_cpu, node.cpu, "{:g}".format),
        "memory": lambda node: _of(node.reserved_memory, node.memory, memory_shown),
        "runtime": lambda node: node.runtime,
        "labels": lambda node: " ".join(f"{name}={value}" for name, value in node.labels.items() if name not in usual),
    }
    columns = [name for name, shown in told.items() if any(map(shown, found.nodes))]
    numbers = ("heard", "slices", "capacity", "cpu", "memory")
    least = min(LEAST_WIDTH, max((len(node.node) for node in found.nodes), default=0))
    shown = table("nodes", "node", *columns, right=numbers, least=least)
    for node in sorted(found.nodes, key=lambda node: node.schedule is Schedule.NORMAL):
        shown.add_row(*map(plain, (node.node, *(told[name](node) for name in columns))))
    return [shown] if found.nodes else []


def _schedule(node: NodeReport) -> str:
    if node.leaving:
        return "leaving"
    return "" if node.schedule is Schedule.NORMAL else node.schedule


def _of(reserved: Amount, there: Amount | None, shown: Callable[[Amount], str]) -> str:
    """What a node has, and how much of it is reserved."""
    if there is None:
        return f"{shown(reserved)} of ?" if reserved else ""
    return f"{shown(reserved)} of {shown(there)}" if reserved else shown(there)


def draining_lines(found: Iterable[Emptied], *, whole: bool) -> list[Text]:
    """For each node that drains a line of its own, and one for what is left and waits for the same."""
    lines: list[Text] = []
    for each in found:
        lines.append(Text.assemble(plain(each.node, "bold"), plain(f"  {drain_in_words(each)}")))
        left = left_in_words(each.left)
        shown = left if whole else left[:MOST_LEFT]
        lines += [plain(f"    {line}") for line in shown]
        if more := len(left) - len(shown):
            lines.append(plain(f"    and {more} more; `cdm nodes {each.node}` lists all", "dim"))
    return [Text("\ndraining", "bold"), *lines] if lines else []


def drain_in_words(each: Emptied) -> str:
    """Since when it drains, who wants it and why, until when, and how much is left."""
    if each.leaving:
        said = ["it is about to stop"]
    else:
        since = f"for {ago(datetime.fromisoformat(each.since).timestamp())}"
        said = [f"{since}, by {each.by or 'unknown'}{f': {each.reason}' if each.reason else ''}"]
    if each.waits:
        said.append(f"its deadline is over, and nothing is forced: {each.waits}")
    elif each.deadline and not each.overdue:
        then = ", then by force" if each.force else ""
        said.append(f"to be empty in {until(datetime.fromisoformat(each.deadline).timestamp())}{then}")
    elif each.overdue:
        over = ago(datetime.fromisoformat(each.deadline).timestamp())
        said.append("forced" if each.force else f"its deadline is over for {over}, and it goes on waiting")
    count = len(each.left)
    said.append(f"{count} slice{'' if count == 1 else 's'} left" if count else "empty")
    return "; ".join(said)


def left_in_words(left: Iterable[Left]) -> list[str]:
    """What is left, and why, in a line for each artifact and reason."""
    alike: dict[tuple[str, str, tuple[str, str]], list[Left]] = {}
    for each in left:
        alike.setdefault((each.artifact, each.state, kind_of(each.why)), []).append(each)
    return [
        f"{f'{len(some)} of ' if len(some) > 1 else ''}{artifact}  {state}: {some[0].why}"
        for (artifact, state, _), some in alike.items()
    ]


def gone_lines(found: Iterable[GoneNode]) -> list[Text]:
    """A line for each node that is gone."""
    lines = [
        Text.assemble(
            plain(each.node, "bold"),
            plain(f"  {each.how} {ago(datetime.fromisoformat(each.since).timestamp())} ago", _GONE.get(each.how, "")),
            plain(_had_in_words(each)),
        )
        for each in found
    ]
    return [Text("\ngone", "bold"), *lines] if lines else []


_GONE = {"lost": "red", "missing": "yellow", "left": "dim"}


def _had_in_words(each: GoneNode) -> str:
    named = [f"{count} of {artifact}" for artifact, count in each.had.items()]
    more = f" and of {len(named) - MOST_HAD} more" if len(named) > MOST_HAD else ""
    had = f"; it had {', '.join(named[:MOST_HAD])}{more}" if named else ""
    still = f"; {each.slices} of its slices are still there" if each.slices else ""
    return f"{had}{still}"
