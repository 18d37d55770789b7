"""Places the instances of one artifact that are missing, and tries again those that failed. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cdm.allocation.case import NO_LIMIT
from cdm.allocation.evenly import Host, allocate, free_ordinals
from cdm.manager.choosing import has_place, place, why_not
from cdm.manager.group import SlicePut
from cdm.manager.plan import Command
from cdm.manager.situation import Situation
from cdm.manager.standing import Standing, exclusive
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey
from cdm.model.rules import NO_RULES, Rules
from cdm.model.slice import SliceState

_NONE: Mapping[NodeId, int] = {}

# On the hot path: before Python 3.12, looking a member up on its class takes ten times as long.
_LIVE, _FAILED, _STUCK, _DRAINING = Standing.LIVE, Standing.FAILED, Standing.STUCK, Standing.DRAINING

MOST_AT_ONCE = 25_000
"""Most instances with rules that one decision places: the leader has its lease to renew. The others follow once these
are written."""
LOOKS_AT_ONCE = 200_000
"""So often one decision may look at a node or a domain where each instance changes how the next one is compared."""


class Growth(NamedTuple):
    """What comes of looking for more instances."""

    commands: Sequence[Command] = ()
    retries: Sequence[float] = ()
    """When failed slices are due."""
    unplaced: int = 0
    held: int = 0
    why: str = ""
    """Why what is unplaced is."""
    cursor: NodeId | None = None


def grow(case: Situation, missing: int, cursor: NodeId | None, *, tells: bool = True) -> Growth:
    """Retry the failed slices that are due, and place what they do not cover; ``tells``: and say why some is not."""
    if (first := _first(case, missing, cursor)) is not None:
        return first
    # What has to go first, and has no place to go to, is not placed beside it.
    draining = case.standings[_DRAINING]
    waiting = min(sum(map(exclusive, draining)), missing) if draining else 0
    missing -= waiting
    commands: list[Command] = []
    due: list[SlicePut] = []
    retries: list[float] = []
    if case.standings[_FAILED]:
        failed = sorted(case.standings[_FAILED], key=case.retry_at)
        retried, superfluous = failed[:missing], failed[missing:]
        commands = [case.unload(put, "failed, and not needed any more") for put in superfluous]
        due = [put for put in retried if case.retry_at(put) <= case.now]
        retries = [case.retry_at(put) for put in retried if case.retry_at(put) > case.now]
    count = missing - len(retries)
    if count + waiting == 0 or case.fleet.settling:
        return Growth(commands, retries, held=count + waiting, cursor=cursor)
    at_once = min(count, most_at_once(case.wanted.rules, len(case.fleet.nodes)))
    nodes, cursor = _place(case, at_once, due, cursor) if count else ({}, cursor)
    placed = sum(nodes.values())
    unplaced = waiting + (count - placed if placed < at_once else 0)
    why = why_not(case, due, nodes) if unplaced and tells else ""
    return Growth(commands + _load(case, nodes, due), retries, unplaced, why=why, cursor=cursor)


def _first(case: Situation, count: int, cursor: NodeId | None) -> Growth | None:
    """The first instances of an artifact without rules, where nothing is in their way; None: something may be.

    It says what the long way would, which looks for what there cannot be here: a whole cluster comes in like this.
    """
    group, fleet, wanted = case.group, case.fleet, case.wanted
    if group.slices or case.taken or group.failed_on or wanted.rules is not NO_RULES or wanted.moving is not None:
        return None
    if fleet.settling or fleet.ranking is None:
        return None
    picked = fleet.ranking.pick(count, _NONE, cursor)
    if not picked:
        return None
    artifact, load = case.artifact, case.load
    return Growth([load(SliceKey(node, artifact), "instance missing", 0) for node in sorted(picked)], cursor=picked[-1])


def most_at_once(rules: Rules, nodes: int) -> int:
    """How many instances one decision places."""
    if rules is NO_RULES:
        return NO_LIMIT  # an even spread over all nodes costs what there are nodes
    levels = len(rules.spread) + len(rules.near) + len(rules.apart)
    return MOST_AT_ONCE if levels < 2 else max(1, min(MOST_AT_ONCE, LOOKS_AT_ONCE // (levels * max(nodes, 1))))


def _place(
    case: Situation, count: int, due: Sequence[SlicePut], cursor: NodeId | None
) -> tuple[dict[NodeId, int], NodeId | None]:
    """How many new instances each node gets, and the node that was served last."""
    moving = case.wanted.moving
    if moving is not None and count == 1:
        # What is chosen anew, by rules that look at more than moves do, may be the node that it is moved off.
        return ({moving.to: 1} if has_place(case, moving.to) else {}), cursor
    if case.wanted.rules is not NO_RULES:
        chosen = place(case, count, due, cursor)
        return chosen.counts, chosen.last or cursor
    standings, fleet = case.standings, case.fleet
    shun = {put.key.node: 0.0 for put in (*standings[_FAILED], *standings[_STUCK])}
    for node, failed in case.group.failed_on.items():
        shun[node] = failed.at
    live = standings[_LIVE]
    mine: Mapping[NodeId, int] = Counter([put.key.node for put in live]) if live else _NONE
    picked = None if fleet.ranking is None else fleet.ranking.pick(count, mine, cursor, shun)
    # Where nothing says whose fault a failure is, a node that failed it is as good as one that has an instance.
    if picked and (case.group.active or not shun or not mine.get(picked[0])):
        return dict.fromkeys(picked, 1), picked[-1]
    hosts = _hosts(case, mine, Counter(put.key.node for put in due), cursor)
    if case.group.active:
        # It runs elsewhere, so what failed is the node: better all others are full than one is missing.
        shunned = sorted((host for host in hosts if host.node in shun), key=lambda host: shun[host.node])
        classes = [[host for host in hosts if host.node not in shun], shunned]
    else:
        # Nothing says whose fault it is. A failure weighs as much as an instance: where there are other nodes it is
        # tried there, and yet those that are left do not get all of them.
        classes = [[host._replace(mine=host.mine + 1) if host.node in shun else host for host in hosts]]
    nodes: dict[NodeId, int] = {}
    for candidates in classes:
        chosen = allocate(count - sum(nodes.values()), candidates)
        nodes |= chosen.counts
        cursor = chosen.last or cursor
    return nodes, cursor


def _hosts(
    case: Situation, mine: Mapping[NodeId, int], retried: Mapping[NodeId, int], cursor: NodeId | None
) -> list[Host]:
    """Nodes that take new slices. A slice that is tried again where it failed takes no further room there."""
    names = sorted(case.fleet.nodes)
    start = bisect_right(names, cursor) if cursor else 0
    hosts: list[Host] = []
    for name in names[start:] + names[:start]:
        node = case.fleet.nodes[name]
        if node.open:
            total = case.fleet.total(name)
            free = None if node.capacity is None else max(node.capacity - total + retried.get(name, 0), 0)
            hosts.append(Host(name, mine.get(name, 0), total, free))
    return hosts


def _load(case: Situation, nodes: Mapping[NodeId, int], due: Sequence[SlicePut]) -> list[Command]:
    """LOADs for the chosen nodes; the failures of those retried and replaced go with them."""
    if not case.group.slices and not case.taken:
        # The first ones, which nothing is in the way of, and of which nothing is known.
        return [
            case.load(SliceKey(node, case.artifact, ordinal), "instance missing", 0)
            for node in sorted(nodes)
            for ordinal in range(nodes[node])
        ]
    commands: list[Command] = []
    left = dict(nodes)
    elsewhere: list[SlicePut] = []
    for put in due:
        if left.get(put.key.node):
            left[put.key.node] -= 1
            commands.append(case.load(put.key, "retry", case.failures_by_now(put)))
        else:
            elsewhere.append(put)
    elsewhere = elsewhere[: sum(left.values())]
    # Those that failed on a node that is drained are taken away, too, and what comes instead has failed as often.
    drained = (put for put in case.standings[Standing.EVACUATED] if put.value.state is SliceState.FAILED)
    history = sorted(case.failures_by_now(put) for put in (*elsewhere, *drained, *case.standings[Standing.STUCK]))
    used: dict[NodeId, list[int]] = {}
    for key in case.taken:
        if key.node in left:
            used.setdefault(key.node, []).append(key.ordinal)
    artifact, load = case.artifact, case.load  # looked up once for 100,000 instances
    for node in sorted(left):
        for ordinal in free_ordinals(left[node], used.get(node, ())):
            failures = history.pop() if history else 0
            reason = "replaces a failed instance" if failures else "instance missing"
            commands.append(load(SliceKey(node, artifact, ordinal), reason, failures))
    return commands + [case.unload(put, "failed, and replaced") for put in elsewhere]
