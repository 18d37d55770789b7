"""``cdm status``: leader, blueprints, nodes and slices."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated

from cyclopts import Parameter

from cdm.cli.connected import run_connected
from cdm.cli.log_setup import LogLevel
from cdm.cli.looking import look_at_cluster
from cdm.cli.node_tables import node_parts, table
from cdm.cli.options import FLAG, ConnectionOptions
from cdm.cli.parameters import HERE, Json
from cdm.cli.report import BlueprintReport, ClusterReport, Trouble, troubles
from cdm.cli.screen import Table, Text, plain, print_json, wide_console
from cdm.cli.wording import CRASH_LOOP, rollout_in_words
from cdm.manager.endings import LAST_OUTPUT, kind_of
from cdm.model.artifact import NodeId
from cdm.model.node import Schedule
from cdm.model.slice import SliceState
from cdm.model.status import FORBIDDEN, Condition

LISTED_SLICES = 30
"""Most slices that are listed for people; of more there are counts, and ``--all`` lists them all."""
NAMED_NODES = 20
"""Most nodes that are named in one line."""
_WIDEST_NAME = 48
"""Longest name that the columns beside it are aligned for."""

_CONDITIONS = {
    Condition.INVALID: "red",
    Condition.UNSCHEDULABLE: "yellow",
    Condition.DEGRADED: "yellow",
    Condition.REVERTED: "yellow",
    "Unknown": "yellow",
    Condition.PROGRESSING: "cyan",
    Condition.READY: "green",
    Condition.SUPERSEDED: "dim",
}
"""Conditions, the worst first, and their colours."""
_FAILURES = re.compile(r"(?:(.*); in force: )?\d+ failed: ", re.DOTALL)
"""Beginning of a status's summary of failed slices, after why a newer blueprint is refused."""
_NUMBERS = ("desired", "active", "pending", "failed")
_SLICE_NUMBERS = ("restarts", "term", "port")
_STATE_STYLE = {SliceState.ACTIVE: "green", SliceState.FAILED: "red", SliceState.UNLOAD: "dim"}


def status(
    connection: ConnectionOptions = HERE,
    *,
    everything: Annotated[bool, FLAG, Parameter(name="--all")] = False,
    json: Json = False,
) -> int:
    """Show leader and term, blueprints, nodes and slices; the exit code is 3 where nobody leads.

    Parameters
    ----------
    everything
        List also versions that were replaced or taken back, and all slices, however many there are.
    """
    found = run_connected(connection, "cdm status", look_at_cluster, level=LogLevel.ERROR)
    if json:
        print_json(found)
    else:
        console = wide_console()
        for part in render(found, everything=everything):
            console.print(part)
    return 0 if found.healthy else 3


def render(found: ClusterReport, *, everything: bool = False) -> list[Text | Table]:
    """The report for people: what is wrong comes first, and is said once; the sums come last, above the prompt."""
    return [
        *_leader(found),
        *(plain(f"note: {each}", "yellow") for each in found.notes),
        *_blueprints(found, everything=everything),
        *node_parts(found, everything=everything),
        *_slices(found, everything=everything),
        _sum(found),
    ]


def _leader(found: ClusterReport) -> list[Text]:
    leader = plain(found.leader or "none", "green" if found.leader else "red")
    lines = [Text.assemble(("leader ", "bold"), leader, f"   term {found.term}")]
    if not found.healthy:
        lines.append(Text("nobody leads: what follows is as the last leader left it", "red"))
    return lines


def _sum(found: ClusterReport) -> Text:
    conditions = _sums((each.condition for each in found.blueprints), list(_CONDITIONS))
    states = _sums((each.state for each in found.slices), _ORDER)
    schedules = _sums((each.schedule for each in found.nodes if each.schedule is not Schedule.NORMAL), ())
    counts = [
        _count(len(found.nodes), "node", schedules),
        _count(len(found.blueprints), "blueprint", conditions),
        _count(len(found.slices), "slice", states),
    ]
    return Text.assemble("\n", plain(", ".join(counts)))


_ORDER = (SliceState.FAILED, *(state for state in SliceState if state not in (SliceState.FAILED, SliceState.ACTIVE)))


def _sums(kinds: Iterable[str], order: Sequence[str]) -> str:
    """How many there are of each kind, in this order; other kinds come last."""
    sums = Counter(str(kind) for kind in kinds)
    known = [str(kind) for kind in order if str(kind) in sums]
    return ", ".join(f"{sums[kind]} {kind}" for kind in (*known, *sorted(sums.keys() - known)))


def _count(number: int, what: str, sums: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}{f' ({sums})' if sums else ''}"


# Blueprints, and what is wrong with their slices


def _blueprints(found: ClusterReport, *, everything: bool) -> list[Text]:
    """A line for each blueprint, the worst of those in force first, with the reasons below it."""
    wrong = troubles(found.slices)
    named = {each.artifact for each in found.blueprints}
    listed = [each for each in found.blueprints if everything or each.artifact in wrong or not each.past]
    width = min(max(len(name) for name in ("blueprints", *(each.artifact for each in listed), *wrong)), _WIDEST_NAME)
    lines: list[Text] = []
    for each in sorted(listed, key=lambda each: _badness(each, wrong.get(each.artifact, []))):
        condition = plain(f"{each.condition:<13}", _CONDITIONS.get(each.condition, ""))
        numbers = "".join(f"{getattr(each, number):>9}" for number in _NUMBERS)
        lines.append(Text.assemble(_padded(each.artifact, width), "  ", condition, numbers))
        if (rollout := each.told_rollout) is not None:
            lines.append(plain(f"    {rollout_in_words(rollout)}", "cyan"))
        lines += _reasons(each, wrong.get(each.artifact, []))
        if each.violations and FORBIDDEN not in each.reason:  # a leader of before does not name the rule
            are = "instance is on a node" if each.violations == 1 else "instances are on nodes"
            lines.append(plain(f"    violations: {each.violations} {are} that a rule forbids by now", "yellow"))
    for artifact in sorted(wrong.keys() - named):
        lines.append(Text.assemble(_padded(artifact, width), "  ", ("no blueprint", "yellow")))
        lines += map(_trouble, wrong[artifact])
    if past := [each.condition for each in found.blueprints if each not in listed]:
        sums = _sums(past, list(_CONDITIONS))
        lines.append(
            Text(f"{_count(len(past), 'version', sums)} not in force and not listed here; --all lists all", "dim")
        )
    if not lines:
        return []
    head = Text.assemble(
        ("\nblueprints".ljust(width + 1), "bold"), " " * 15, "".join(f"{each:>9}" for each in _NUMBERS)
    )
    return [head, *lines]


def _padded(artifact: str, width: int) -> Text:
    name = plain(artifact)
    name.pad_right(width - name.cell_len)
    return name


def _badness(blueprint: BlueprintReport, wrong: Sequence[Trouble]) -> tuple[bool, int, int, bool]:
    order = [str(condition) for condition in _CONDITIONS]
    known = blueprint.condition in order  # a condition of a later version is taken for Progressing
    worst = order.index(blueprint.condition if known else Condition.PROGRESSING)
    return blueprint.replaced, worst, -blueprint.failed, not (wrong or blueprint.violations)


def _reasons(blueprint: BlueprintReport, wrong: Sequence[Trouble]) -> list[Text]:
    reason = blueprint.reason
    # The lines about failed slices say more than the leader's summary of them, and the columns have the counts.
    if wrong and (failures := _FAILURES.match(reason)):
        reason = failures[1] or ""
    elif reason == f"{blueprint.active} of {blueprint.desired} active":
        reason = ""
    else:
        reason = _untold(blueprint, reason)
    # One reason that is told below is not repeated; the status may have it shorter, or of another instance.
    loop = CRASH_LOOP.match(reason)
    why = loop["reasons"] if loop else ""
    if loop and why.count(LAST_OUTPUT) <= 1 and kind_of(why) in {kind_of(trouble.reason) for trouble in wrong}:
        reason = loop["what"]
    return [*([plain(f"    {reason}")] if reason else []), *map(_trouble, wrong)]


def _untold(blueprint: BlueprintReport, reason: str) -> str:
    """What the line about the rollout does not say of it."""
    rollout = blueprint.told_rollout
    if rollout is None or not rollout.why or reason.endswith(rollout.why):
        return "" if rollout is not None and rollout.why else reason
    return reason.removeprefix(f"{rollout.why}; ")


def _trouble(trouble: Trouble) -> Text:
    ordinals: dict[NodeId, list[int]] = {}
    for each in trouble.slices:
        ordinals.setdefault(each.node, []).append(each.ordinal)
    nodes = [
        f"{node} ({len(several)})" if len(several) > 1 else f"{node}#{several[0]}" if several[0] else node
        for node, several in ordinals.items()
    ]
    more = f" and {len(nodes) - NAMED_NODES} more nodes" if len(nodes) > NAMED_NODES else ""
    where = f" on {', '.join(nodes[:NAMED_NODES])}{more}"
    restarts = sum(each.restarts for each in trouble.slices)
    again = f", {_count(restarts, 'restart', '')}" if restarts else ""
    state = plain(f"{len(trouble.slices)} {trouble.state}", _STATE_STYLE.get(SliceState(trouble.state), "yellow"))
    return Text.assemble("    ", state, plain(f"{where}{again}: {trouble.reason}"))


# Nodes and slices


def _slices(found: ClusterReport, *, everything: bool) -> list[Text | Table]:
    """Slices about which not everything is said above; of very many only those with something to tell."""
    rest = [each for each in found.slices if each.state == SliceState.ACTIVE or not each.troubled]
    rest.sort(key=lambda each: (each.state == SliceState.ACTIVE, -each.restarts))
    listed = rest
    if len(rest) > LISTED_SLICES and not everything:
        listed = [each for each in rest if each.state != SliceState.ACTIVE or each.restarts]
    if len(listed) > LISTED_SLICES and not everything:
        listed = []
    shown = table("slices", "node", "artifact", "state", *_SLICE_NUMBERS, right=_SLICE_NUMBERS)
    for each in listed:
        artifact = f"{each.artifact}#{each.ordinal}" if each.ordinal else each.artifact
        state = plain(each.state, _STATE_STYLE.get(SliceState(each.state), ""))
        port = "" if each.port is None else str(each.port)
        shown.add_row(plain(each.node), plain(artifact), state, str(each.restarts), str(each.term), port)
    parts: list[Text | Table] = [shown] if listed else []
    if more := len(rest) - len(listed):
        parts.append(Text(f"\n{_count(more, 'slice', '')} not listed here; --all lists all", "dim"))
    return parts
