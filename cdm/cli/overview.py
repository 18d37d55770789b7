"""What ``cdm status`` shows people: what is wrong comes first, whole, and is said once. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from cdm.cli.node_tables import departing_lines, node_table
from cdm.cli.report import BlueprintReport, ClusterReport, SliceReport, Trouble, troubled_slices
from cdm.cli.rows import LEAST_WIDTH, Column, Paint, Sheet, listing, table
from cdm.cli.wording import CRASH_LOOP, ago, rollout_in_words
from cdm.manager.endings import LAST_OUTPUT, kind_of
from cdm.model.artifact import NodeId
from cdm.model.node import Schedule
from cdm.model.slice import SliceState
from cdm.model.status import FORBIDDEN, Condition

LISTED_SLICES = 30
"""Most slices that are listed for people; of more there are counts, and ``--all`` lists them all."""
LISTED_BLUEPRINTS = 30
"""Most blueprints that are listed where the last ones are Ready, and have nothing to tell."""
NAMED_NODES = 20
"""Most nodes that are named in one line."""

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
_ORDER = [str(condition) for condition in _CONDITIONS]
_FAILURES = r"(?s)(?:(.*); in force: )?\d+ failed: "
"""Beginning of a status's summary of failed slices, after why a newer blueprint is refused."""
_STATE_STYLE = {SliceState.ACTIVE: "green", SliceState.FAILED: "red", SliceState.UNLOAD: "dim"}
_STATES = (SliceState.FAILED, *(each for each in SliceState if each not in (SliceState.FAILED, SliceState.ACTIVE)))


def overview(found: ClusterReport, on: Sheet, *, everything: bool = False, whole: bool = False) -> list[str]:
    """The report in lines for people; the sums come last, above the prompt.

    Args:
        found: the report.
        on: what is written on.
        everything: whether also what has nothing to tell is listed.
        whole: whether at least all slices are.
    """
    return [
        *verdict(found, on.paint),
        *details(found, on, everything=everything, whole=whole),
        "",
        on.paint(sums(found)),
    ]


def details(found: ClusterReport, on: Sheet, *, everything: bool = False, whole: bool = False) -> list[str]:
    """What there is to tell of blueprints, nodes and slices; arguments as in `overview`."""
    return [
        *(on.paint(f"note: {each}", "yellow") for each in found.notes),
        *departing_lines(found, on, everything=everything),
        *_blueprints(found, on, everything=everything or whole),
        *node_table(found, on, everything=everything),
        *_slices(found, on, len(found.slices) if everything or whole else LISTED_SLICES),
    ]


def verdict(found: ClusterReport, paint: Paint) -> list[str]:
    """Who leads, and whether all is well."""
    leader = paint(found.leader or "none", "green" if found.leader else "red")
    told = paint("all is well", "green") if found.well else paint(_troubled(found), "yellow")
    lines = [f"{paint('leader', 'bold')} {leader}   term {found.term}   {told}"]
    if not found.healthy:
        lines.append(paint("nobody leads: what follows is as the last leader left it", "red"))
    return lines


def _troubled(found: ClusterReport) -> str:
    kinds = Counter(each.kind for each in found.troubles)
    blueprints, known = kinds.pop("blueprint", 0), len(found.blueprints)
    told = [f"{blueprints} of {known} blueprint{'' if known == 1 else 's'}"] if blueprints else []
    told += [_count(kinds[kind], kind, "") for kind in ("node", "slice", "key") if kinds[kind]]
    return f"not well: {', '.join(told)}" if told else "not well"


def sums(found: ClusterReport) -> str:
    """How many there are of everything."""
    conditions = _sums((each.condition for each in found.blueprints), _ORDER)
    states = _sums((each.state for each in found.slices), _STATES)
    schedules = _sums((each.schedule for each in found.nodes if each.schedule is not Schedule.NORMAL), ())
    counts = [
        _count(len(found.nodes), "node", schedules),
        _count(len(found.blueprints), "blueprint", conditions),
        _count(len(found.slices), "slice", states),
    ]
    return ", ".join(counts)


def _sums(kinds: Iterable[str], order: Sequence[str]) -> str:
    """How many there are of each kind, in this order; other kinds come last."""
    counts = Counter(str(kind) for kind in kinds)
    known = [str(kind) for kind in order if str(kind) in counts]
    return ", ".join(f"{counts[kind]} {kind}" for kind in (*known, *sorted(counts.keys() - known)))


def _count(number: int, what: str, told: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}{f' ({told})' if told else ''}"


# Blueprints, and what is wrong with their slices


def _blueprints(found: ClusterReport, on: Sheet, *, everything: bool) -> list[str]:
    """A line for each blueprint, the worst of those in force first, with the reasons below it."""
    paint, wrong = on.paint, troubled_slices(found.slices)
    listed = [each for each in found.blueprints if everything or each.artifact in wrong or not each.past]
    listed.sort(key=lambda each: _badness(each, wrong.get(each.artifact, [])))
    loud = sum(not _is_quiet(each, wrong) for each in listed)
    most = len(listed) if everything else max(loud, LISTED_BLUEPRINTS)
    listed, quiet = listed[:most], listed[most:]
    unknown = sorted(wrong.keys() - {each.artifact for each in found.blueprints})
    head, rows = table(_columns(listed, unknown), on)
    lines = ["", head] if rows else []
    for each, row in zip(listed, rows, strict=False):
        lines += row
        if (rollout := each.told_rollout) is not None:
            lines.append(paint(f"    {rollout_in_words(rollout)}", "cyan"))
        lines += _reasons(each, wrong.get(each.artifact, []), paint)
        if each.violations and FORBIDDEN not in each.reason:  # a leader of before does not name the rule
            are = "instance is on a node" if each.violations == 1 else "instances are on nodes"
            lines.append(paint(f"    violations: {each.violations} {are} that a rule forbids by now", "yellow"))
    for artifact, row in zip(unknown, rows[len(listed) :], strict=True):
        lines += [*row, *(_trouble(each, paint) for each in wrong[artifact])]
    if quiet:
        lines.append(paint(f"{len(quiet)} more that are Ready; --all lists all", "dim"))
    shown = {each.artifact for each in (*listed, *quiet)}
    if past := [each.condition for each in found.blueprints if each.artifact not in shown]:
        told = _count(len(past), "version", _sums(past, _ORDER))
        lines.append(paint(f"{told} not in force and not listed here; --all lists all", "dim"))
    return lines


def _columns(listed: Sequence[BlueprintReport], unknown: Sequence[str]) -> list[Column]:
    """The columns of blueprints, and of artifacts that have slices and no blueprint."""
    none, rest = "no blueprint", [""] * len(unknown)
    style = [_CONDITIONS.get(each.condition, "") for each in listed]

    def numbers(title: str, cells: list[str], *, dull: bool = False) -> Column:
        return Column(title, [*cells, *rest], right=True, dull=dull)

    counts = [each.up_to_date for each in listed]
    same = all(each.up_to_date in (None, each.active + each.pending) for each in listed)
    return [
        Column("blueprints", [*(each.artifact for each in listed), *unknown], least=LEAST_WIDTH),
        Column("", [*(each.condition for each in listed), *([none] * len(rest))], [*style, *["yellow"] * len(rest)]),
        numbers("active", [f"{each.active}/{each.desired}" for each in listed]),
        numbers("healthy", [_or_dash(each.healthy) for each in listed]),
        numbers("up to date", [_or_dash(count) for count in counts], dull=same),
        numbers("failed", [str(each.failed) for each in listed], dull=not any(each.failed for each in listed)),
        numbers("restarts", [str(each.restarts) for each in listed], dull=not any(each.restarts for each in listed)),
        numbers("age", [_age(each.written) for each in listed]),
    ]


def _or_dash(count: int | None) -> str:
    return "-" if count is None else str(count)


def _age(since: str) -> str:
    return ago(datetime.fromisoformat(since).timestamp()) if since else ""


def _badness(blueprint: BlueprintReport, wrong: Sequence[Trouble]) -> tuple[bool, int, int, bool]:
    known = blueprint.condition in _ORDER  # a condition of a later version is taken for Progressing
    worst = _ORDER.index(blueprint.condition if known else Condition.PROGRESSING)
    return blueprint.replaced, worst, -blueprint.failed, not (wrong or blueprint.violations)


def _is_quiet(blueprint: BlueprintReport, wrong: Mapping[str, Sequence[Trouble]]) -> bool:
    """Whether there is nothing to tell but that all is as it should be."""
    has_told = blueprint.artifact in wrong or blueprint.violations or blueprint.told_rollout is not None
    return blueprint.condition == Condition.READY and not has_told and not blueprint.replaced


def _reasons(blueprint: BlueprintReport, wrong: Sequence[Trouble], paint: Paint) -> list[str]:
    reason = blueprint.reason
    # The lines about failed slices say more than the leader's summary of them, and the columns have the counts.
    if wrong and (failures := re.match(_FAILURES, reason)):
        reason = failures[1] or ""
    elif reason == f"{blueprint.active} of {blueprint.desired} active":
        reason = ""
    else:
        reason = _untold(blueprint, reason)
    # One reason that is told below is not repeated; the status may have it shorter, or of another instance.
    loop = re.match(CRASH_LOOP, reason)
    why = loop["reasons"] if loop else ""
    if loop and why.count(LAST_OUTPUT) <= 1 and kind_of(why) in {kind_of(trouble.reason) for trouble in wrong}:
        reason = loop["what"]
    return [*([paint(f"    {reason}")] if reason else []), *(_trouble(each, paint) for each in wrong)]


def _untold(blueprint: BlueprintReport, reason: str) -> str:
    """What the line about the rollout does not say of it."""
    rollout = blueprint.told_rollout
    if rollout is None or not rollout.why or reason.endswith(rollout.why):
        return "" if rollout is not None and rollout.why else reason
    return reason.removeprefix(f"{rollout.why}; ")


def _trouble(trouble: Trouble, paint: Paint) -> str:
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
    state = paint(f"{len(trouble.slices)} {trouble.state}", _STATE_STYLE.get(SliceState(trouble.state), "yellow"))
    return f"    {state}{paint(f'{where}{again}: {trouble.reason}')}"


# Slices


def _slices(found: ClusterReport, on: Sheet, most: int) -> list[str]:
    """The slices, those in trouble first; of very many only those with something to tell."""
    listed = sorted(found.slices, key=_rank)
    if len(listed) > most:
        listed = [each for each in listed if _tells(each)][:most]
    shown = listing(
        [
            Column("slices", [_name(each) for each in listed], least=LEAST_WIDTH),
            Column("node", [each.node for each in listed], least=LEAST_WIDTH),
            Column(
                "state",
                [each.state for each in listed],
                [_STATE_STYLE.get(SliceState(each.state), "yellow") for each in listed],
            ),
            Column(
                "restarts",
                [str(each.restarts) for each in listed],
                right=True,
                dull=not any(each.restarts for each in listed),
            ),
            Column("age", [_age(each.since) for each in listed], right=True),
            Column("port", ["" if each.port is None else str(each.port) for each in listed], right=True),
        ],
        on,
    )
    lines = ["", *shown] if listed else [""] if found.slices else []
    if more := len(found.slices) - len(listed):
        lines.append(on.paint(f"{_count(more, 'slice', '')} not listed here; --all lists all", "dim"))
    return lines


def _rank(each: SliceReport) -> tuple[int, int]:
    return (0 if each.state == SliceState.FAILED else 1 if each.state != SliceState.ACTIVE else 2), -each.restarts


def _tells(each: SliceReport) -> bool:
    return each.state != SliceState.ACTIVE or each.restarts > 0


def _name(each: SliceReport) -> str:
    return f"{each.artifact}#{each.ordinal}" if each.ordinal else each.artifact
