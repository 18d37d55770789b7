"""Nodes as ``cdm status`` and ``cdm nodes`` show them: a table, what is left on those that drain, and those gone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TypeVar

from cdm.cli.concerns import had_in_words
from cdm.cli.emptying import Emptied, GoneNode
from cdm.cli.report import ClusterReport, NodeReport
from cdm.cli.rows import LEAST_WIDTH, Column, Paint, Sheet, listing
from cdm.cli.wording import ago, until
from cdm.manager.endings import kind_of
from cdm.manager.left import Left
from cdm.model.node import LATE, Schedule
from cdm.model.quantity import memory_shown
from cdm.node.machine import USUAL_LABELS

Amount = TypeVar("Amount", int, float)

MOST_NODES = 20
"""Most nodes that are listed, where not all are asked for: of more only those with something to tell."""
MOST_LEFT = 10
"""Most lines about what is left on a node, where not all is asked for."""
OVERDUE = 5.0
"""Seconds without a heartbeat after which a node has something to tell that does not say how long it may be silent."""


def node_parts(found: ClusterReport, on: Sheet, *, everything: bool = False) -> list[str]:
    """All there is to say of nodes; ``everything``: also of those that left in good order, and that only serve."""
    return [*departing_lines(found, on, everything=everything), *node_table(found, on, everything=everything)]


def departing_lines(found: ClusterReport, on: Sheet, *, everything: bool = False) -> list[str]:
    """Which nodes are gone, and which are about to be."""
    lost = [each for each in found.gone if everything or each.lost]
    return [*gone_lines(lost, on.paint), *draining_lines(found.draining, on.paint, whole=everything)]


def node_table(found: ClusterReport, on: Sheet, *, everything: bool = True) -> list[str]:
    """The nodes that are registered, those first that take nothing."""
    # The screen is narrow: what no node limits, and what all have in common of themselves, goes without saying.
    usual = {label for label in USUAL_LABELS if len({node.labels.get(label) for node in found.nodes}) == 1}
    told: dict[str, Callable[[NodeReport], str]] = {
        "role": lambda node: f"{node.role} (auto)" if node.auto else node.role,
        "schedule": _schedule,
        "heard": lambda node: f"{node.heard:.0f} s ago",
        "slices": lambda node: str(node.slices),
        "capacity": lambda node: "" if node.capacity is None else str(node.capacity),
        "cpu": lambda node: _of(node.reserved_cpu, node.cpu, "{:g}".format),
        "memory": lambda node: _of(node.reserved_memory, node.memory, memory_shown),
        "runtime": lambda node: node.runtime,
        "labels": lambda node: " ".join(f"{name}={value}" for name, value in node.labels.items() if name not in usual),
    }
    nodes = sorted(found.nodes, key=lambda node: not _tells(node))
    if len(nodes) > MOST_NODES and not everything:
        nodes = [node for node in nodes if _tells(node)]
    columns = [name for name, shown in told.items() if any(map(shown, nodes))]
    numbers = ("heard", "slices", "capacity", "cpu", "memory")
    shown = listing(
        [
            Column("nodes", [node.node for node in nodes], least=LEAST_WIDTH),
            *(
                Column(
                    name,
                    [told[name](node) for node in nodes],
                    ["yellow" if name == "schedule" else ""] * len(nodes),
                    right=name in numbers,
                    least=LEAST_WIDTH if name == "labels" else 0,
                )
                for name in columns
            ),
        ],
        on,
    )
    lines = ["", *shown] if nodes else []
    if more := len(found.nodes) - len(nodes):
        plural = "" if more == 1 else "s"
        lines += [] if nodes else [""]
        lines.append(on.paint(f"{more} node{plural} with nothing to tell not listed here; --all lists all", "dim"))
    return lines


def _tells(node: NodeReport) -> bool:
    """Whether there is more to tell of a node than that it is there."""
    late = OVERDUE if node.ttl is None else LATE * node.ttl
    return node.schedule is not Schedule.NORMAL or node.heard > late


def _schedule(node: NodeReport) -> str:
    if node.leaving:
        return "leaving"
    return "" if node.schedule is Schedule.NORMAL else node.schedule


def _of(reserved: Amount, there: Amount | None, shown: Callable[[Amount], str]) -> str:
    """What a node has, and how much of it is reserved."""
    if there is None:
        return f"{shown(reserved)} of ?" if reserved else ""
    return f"{shown(reserved)} of {shown(there)}" if reserved else shown(there)


def draining_lines(found: Iterable[Emptied], paint: Paint, *, whole: bool) -> list[str]:
    """For each node that drains a line of its own, and one for what is left and waits for the same."""
    lines: list[str] = []
    for each in found:
        lines.append(f"{paint(each.node, 'bold')}  {paint(drain_in_words(each))}")
        left = left_in_words(each.left)
        shown = left if whole else left[:MOST_LEFT]
        lines += [paint(f"    {line}") for line in shown]
        if more := len(left) - len(shown):
            lines.append(paint(f"    and {more} more; `cdm nodes {each.node}` lists all", "dim"))
    return ["", paint("draining", "bold"), *lines] if lines else []


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


def left_in_short(left: Iterable[Left]) -> list[str]:
    """The same in a line for each state and reason, whichever nodes are waited for: one artifact stands for all."""
    alike: dict[tuple[str, tuple[str, str]], list[Left]] = {}
    for each in left:
        alike.setdefault((each.state, kind_of(re.sub(_WHERE, "", each.why))), []).append(each)
    return [
        f"{some[0].artifact}{f' and {len(some) - 1} more' if len(some) > 1 else ''}  {state}: {some[0].why}"
        for (state, _), some in alike.items()
    ]


_WHERE = r" on [^\s,]+(?: \(and \d+ more\))?|, which is [A-Z]+\b"
"""What differs where the same is waited for elsewhere."""


def gone_lines(found: Iterable[GoneNode], paint: Paint) -> list[str]:
    """A line for each node that is gone."""
    lines = []
    for each in found:
        how = paint(f"{each.how} {each.in_words}".rstrip(), _GONE.get(each.how, ""))
        lines.append(f"{paint(each.node, 'bold')}  {how}{paint(had_in_words(each))}")
    return ["", paint("gone", "bold"), *lines] if lines else []


_GONE = {"lost": "red", "missing": "yellow", "left": "dim"}
