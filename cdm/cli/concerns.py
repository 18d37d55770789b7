"""What is not well in a cluster, for people, for scripts, and for those who wait until all is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from cdm.cli.emptying import GoneNode
from cdm.cli.report import BlueprintReport, ClusterReport, Concern
from cdm.explain.words import brief
from cdm.model.slice import SliceState
from cdm.model.status import Condition

MOST_HAD = 3
"""Most artifacts that are named of what a node had that is gone."""


def concerns(found: ClusterReport, unreadable: Iterable[str] = ()) -> ClusterReport:
    """The report with all that is not well in it; ``unreadable``: what is to be said of keys that cannot be read."""
    told = [*_leader(found), *_blueprints(found), *_nodes(found), *_slices(found), *_keys(unreadable)]
    return replace(found, well=not told, troubles=told)


def in_line(each: Concern) -> str:
    """What is not well, in a line."""
    reason = brief(each.reason)
    return f"{f'{each.name}: ' if each.name else ''}{each.what}{f': {reason}' if reason else ''}"


def _leader(found: ClusterReport) -> Iterator[Concern]:
    if found.leader is None:
        yield Concern("leader", "", "nobody leads", "nothing is placed or replaced until a node does")


def _blueprints(found: ClusterReport) -> Iterator[Concern]:
    for each in found.blueprints:
        if _serves(each):
            continue
        if each.taken_up:
            yield Concern("blueprint", each.artifact, each.condition, each.reason)
        else:
            why = f"the leader has not read revision {each.observed_revision} so far"
            yield Concern("blueprint", each.artifact, "Unknown", why)


def _serves(each: BlueprintReport) -> bool:
    """Whether as much of it serves as is wanted."""
    if each.replaced or not each.taken_up:
        return each.replaced
    if each.condition == Condition.REVERTED:  # what was before serves, or not
        return each.active == each.desired == (each.active if each.healthy is None else each.healthy)
    return each.condition == Condition.READY


def _nodes(found: ClusterReport) -> Iterator[Concern]:
    for each in found.gone:
        if each.lost:
            yield Concern("node", each.node, each.how, f"{each.in_words}{had_in_words(each)}".removeprefix("; "))


def had_in_words(each: GoneNode) -> str:
    """What a node had that is gone, and what of it is still there."""
    named = [f"{count} of {artifact}" for artifact, count in each.had.items()]
    more = f" and of {len(named) - MOST_HAD} more" if len(named) > MOST_HAD else ""
    had = f"; it had {', '.join(named[:MOST_HAD])}{more}" if named else ""
    still = f"; {each.slices} of its slices {'is' if each.slices == 1 else 'are'} still there" if each.slices else ""
    return f"{had}{still}"


def _slices(found: ClusterReport) -> Iterator[Concern]:
    """Slices that failed, and of which no blueprint tells."""
    told = {each.artifact for each in found.blueprints}
    for each in found.slices:
        if each.state == SliceState.FAILED and each.artifact not in told:
            name = f"{each.node}/{each.artifact}{f'#{each.ordinal}' if each.ordinal else ''}"
            yield Concern("slice", name, each.state, each.reason or "no reason given")


def _keys(unreadable: Iterable[str]) -> Iterator[Concern]:
    for each in unreadable:
        name, _, reason = each.partition(": ")
        yield Concern("key", name, reason, "")
