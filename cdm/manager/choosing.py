"""Puts the choice of nodes by rules (`cdm.allocation`) to one artifact's slices. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence

from msgspec.structs import replace

from cdm.allocation.awaited import awaited
from cdm.allocation.case import Case
from cdm.allocation.choice import choose
from cdm.allocation.evenly import Allocation
from cdm.allocation.installed import strategy_named
from cdm.allocation.leaving import leaves_room
from cdm.allocation.moving import HARD_RULE, Relocation, moves, takes
from cdm.allocation.removal import surplus
from cdm.allocation.site import Freed
from cdm.allocation.strategy import EVEN, AllocationStrategy
from cdm.allocation.verdict import Obstacle, Verdict, broken, closed_by, full, nearest, summary, verdicts
from cdm.errors import UsageError
from cdm.log import Log
from cdm.manager.group import SlicePut
from cdm.manager.situation import Situation
from cdm.manager.standing import Standing
from cdm.model.artifact import NodeId, Service
from cdm.model.keys import SliceKey
from cdm.model.rules import NO_RULES

log = Log("cdm.manager")

_STAYS = (Standing.LIVE, Standing.AWAITED)
_missed: set[str] = set()
"""Strategies that are not installed, and were logged."""


def case_of(at: Situation, due: Sequence[SlicePut] = (), cursor: NodeId | None = None) -> Case:
    """What is to be decided about an artifact's instances, for the rules.

    Args:
        at: the facts.
        due: failed slices that are tried again.
        cursor: the node that was served last.
    """
    rules, fleet, group = at.wanted.rules, at.fleet, at.group
    shun = {put.key.node: 0.0 for standing in (Standing.FAILED, Standing.STUCK) for put in at.standings[standing]}
    services = {each.service for each in (*rules.near, *rules.apart)}
    apart = {each.service for each in rules.apart if each.hard}
    return Case(
        at.artifact,
        rules,
        fleet.sites(),
        at.wanted.instances or 0,
        Counter(put.key.node for standing in _STAYS for put in at.standings[standing]),
        of_service={service: fleet.of_service(Service.parse(service)) for service in services},
        leaving={service: fleet.leaving(Service.parse(service)) for service in apart},
        cursor=cursor,
        shun={**shun, **{node: failed.at for node, failed in group.failed_on.items()}},
        runs_elsewhere=bool(group.active),
        retried=_held(due),
        strategy=_strategy(rules.strategy),
        beside=_beside(at, due) if rules.max_per_node is not None else {},
        each=at.wanted.nodes is not None,
    )


def place(at: Situation, count: int, due: Sequence[SlicePut], cursor: NodeId | None) -> Allocation:
    """Which nodes get the instances that are missing."""
    return choose(case_of(at, due, cursor), count)


def places(at: Situation, count: int, without: Sequence[SlicePut]) -> int:
    """How many of ``count`` more instances there is a place for now, by all hard rules.

    Args:
        at: the facts.
        count: how many are looked for.
        without: slices that will have gone by then, and are no neighbours of what is placed.
    """
    due = at.standings[Standing.FAILED]
    if at.wanted.rules is NO_RULES:
        again, total = Counter(put.key.node for put in due), at.fleet.total
        found = 0
        for node, live in at.fleet.nodes.items():
            if live.open:
                room = count if live.capacity is None else live.capacity - total(node) + again[node]
                found += max(room, 0)
        return min(found, count)
    case, own = case_of(at, due), str(at.artifact.service)
    if own in case.of_service:
        left = Counter(case.of_service[own]) - Counter(put.key.node for put in without)
        leaving = {service: counts for service, counts in case.leaving.items() if service != own}
        case = replace(case, of_service={**case.of_service, own: left}, leaving=leaving)
    return sum(choose(case, count).counts.values())


def which_go(at: Situation, count: int, ranked: Sequence[Sequence[SliceKey]]) -> list[SliceKey]:
    """Which of the live slices go when there are too many; those of an earlier class before those of a later one."""
    return surplus(case_of(at), count, ranked)


def why_not(at: Situation, due: Sequence[SlicePut], placed: Mapping[NodeId, int]) -> str:
    """Why no node takes another instance, besides those that are placed now; for people."""
    if at.wanted.rules is NO_RULES:
        return _why_full(at, due, placed)
    case = case_of(at, due).placed(placed)
    found = verdicts(case)
    return "; ".join((summary(found), *awaited(case, found), *nearest(found)))


def none_fits(at: Situation) -> str:
    """Why none is wanted of what is to be on every node that fits; for people."""
    found = verdicts(case_of(at))
    return f"no node is to have one: {summary(found)}" if found else "there is no node that is to have one"


def _why_full(at: Situation, due: Sequence[SlicePut], placed: Mapping[NodeId, int]) -> str:
    """The same where there are no rules: a look at each node is enough, and all that is open is full."""
    again, total = Counter(put.key.node for put in due), at.fleet.total
    found = []
    for node, live in at.fleet.nodes.items():
        more = placed.get(node, 0)
        closed = closed_by(registered=live.registered, draining=live.draining, takes=live.open)
        obstacle = closed or full(total(node) + more - min(more, again[node]), live.capacity or 0)
        found.append(Verdict(node, (obstacle,)))
    return summary(found) if found else ""


def violations(at: Situation) -> dict[NodeId, Obstacle]:
    """The nodes on which an instance is that a hard rule forbids to be there, and which."""
    rules = at.wanted.rules
    hard = rules.require or rules.needs or rules.max_per_node or any(each.hard for each in (*rules.near, *rules.apart))
    if not hard:
        return {}
    return {node: obstacles[0] for node, obstacles in broken(case_of(at)).items()}


def named(at: Situation, found: Iterable[Relocation]) -> list[Relocation]:
    """The same moves, which name the hard rule that they are made for."""
    relocations = list(found)
    forbidden = violations(at) if any(each.why == HARD_RULE for each in relocations) else {}
    return [
        each._replace(why=f"{HARD_RULE}: {forbidden[each.slice.node].why}")
        if each.why == HARD_RULE and each.slice.node in forbidden
        else each
        for each in relocations
    ]


def better_placed(
    at: Situation, most: int, *, off_forbidden: bool = True, avoid: Container[NodeId] = frozenset()
) -> list[Relocation]:
    """Live slices that would be better placed elsewhere, not on nodes on which it failed; at most so many.

    Args:
        at: the facts.
        most: how many.
        off_forbidden: whether those are among them that are where a hard rule forbids it; else such slices stay.
        avoid: nodes to which none is moved.
    """
    slices = [put.key for put in at.standings[Standing.LIVE]]
    return moves(case_of(at), slices, most, off_forbidden=off_forbidden, avoid=avoid)


def has_place(at: Situation, node: NodeId) -> bool:
    """Whether the node takes one more instance, by all hard rules."""
    return takes(case_of(at), node)


def leave_room(at: Situation, others: Iterable[SlicePut]) -> bool:
    """Whether any of these, slices of the same service, would leave its place to a new instance."""
    case = case_of(at)
    return any(leaves_room(case, node, held) for node, held in _held(others).items())


def _held(due: Iterable[SlicePut]) -> Mapping[NodeId, Freed]:
    found: dict[NodeId, Freed] = {}
    for put in due:
        needs, before = put.value.needs, found.get(put.key.node)
        cpu, memory = (needs.cpu, needs.memory) if needs is not None else (0.0, 0)
        if before is not None:
            cpu, memory = min(cpu, before.cpu), min(memory, before.memory)
        found[put.key.node] = Freed(before.slices + 1 if before is not None else 1, cpu, memory)
    return found


def _beside(at: Situation, due: Sequence[SlicePut]) -> Mapping[NodeId, int]:
    """What else counts for the most that a node has: what is on its way out, and the other side of a rollout."""
    tried = {put.key for put in due}
    found = Counter(
        put.key.node
        for standing, puts in at.standings.items()
        if standing not in _STAYS
        for put in puts
        if put.key not in tried
    )
    if at.wanted.beside:
        found.update(at.fleet.others_of(at.wanted.beside, at.group.slices))
    return found


def _strategy(name: str) -> AllocationStrategy:
    try:
        return strategy_named(name)
    except UsageError as error:
        if name not in _missed:
            _missed.add(name)
            log.warning("strategy is not there; round-robin instead", strategy=name, reason=str(error))
        return EVEN
