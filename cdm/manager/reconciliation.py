"""Decides what to do about one artifact: commands, each with its reason. Pure; knows no term and writes nothing.

`reconcile` looks at one artifact. It is called whenever something about the artifact changed, and its answer depends
only on what it is given: asked again about the same facts, it says the same, and asked about a settled artifact, it
says nothing. It sorts the slices by how they stand (`cdm.manager.standing`); each of the functions below turns some
of these into commands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from math import inf

from cdm.allocation.evenly import choose_removals
from cdm.manager.choosing import places, which_go
from cdm.manager.group import Group, SlicePut
from cdm.manager.growth import Growth, grow
from cdm.manager.plan import Command, Plan
from cdm.manager.policy import Policy
from cdm.manager.situation import Situation
from cdm.manager.standing import Fleet, Standing, Standings, due_at, exclusive, gone_at, lingering, sort
from cdm.manager.wanted import Wanted
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SliceKey
from cdm.model.rules import NO_RULES
from cdm.model.slice import SliceState

CLOCKS_APART = 1.0
"""Seconds: what an instance may be told to go on serving for, beyond what is left of it, and it is not told again."""

_IDLE, _YOUNG, _HEALTHY = 0, 1, 2
"""What a slice is worth; the least goes first."""


def settled(wanted: Wanted, group: Group) -> bool:
    """Whether the counts alone show that nothing is to be done.

    They do unless a slice waits for an answer, sits on a node that is dead or draining, or has missed a deadline:
    the caller knows of the latter two.
    """
    if group.owed:
        return False
    if wanted.moving is not None:
        return False
    if wanted.nodes is not None and wanted.nodes != {
        key.node for key, put in group.slices.items() if put.value.state.live
    }:
        return False
    return wanted.instances is None or group.live == wanted.instances


def reconcile(
    artifact: Artifact,
    wanted: Wanted,
    group: Group,
    fleet: Fleet,
    now: float,
    policy: Policy,
    cursor: NodeId | None = None,
    taken: Collection[SliceKey] | None = None,
    *,
    tells: bool = True,
) -> Plan:
    """Decide what to do about one artifact, or about its slices of one template.

    Args:
        artifact: which one.
        wanted: how many instances there are to be, and what they are started with.
        group: its slices.
        fleet: the nodes.
        now: seconds on the clock that the slices' ``at`` are on.
        policy: deadlines and backoff.
        cursor: the node that was served last; among equals the next one in name order comes first.
        taken: the keys of all slices of the artifact; None: those of the group are all.
        tells: whether the plan is to say why what is unplaced is; that costs a look at every node.
    """
    case = situation_of(artifact, wanted, group, fleet, now, policy, taken)
    count = wanted.instances
    if count is None:
        # Refused, and never a valid one before: nothing is changed, but the keys of dead nodes go.
        unheard = case.standings[Standing.UNHEARD]
        commands = [*_forget(case), *_evacuate(case)]
        return Plan(commands, _earliest(_gone(case)), lingering=len(unheard), cursor=cursor)
    if not group.slices and wanted.grows and wanted.moving is None:
        growth = grow(case, count, cursor) if count else Growth(cursor=cursor)  # there is nothing else to look at
        return Plan([*growth.commands], None, growth.unplaced, growth.why, growth.held, cursor=growth.cursor)
    live, waited_for = case.standings[Standing.LIVE], len(lingering(case.standings))
    commands = [*_forget(case), *_take_away(case)]
    missing = count - len(live) - len(case.standings[Standing.AWAITED]) - waited_for
    if missing > 0 and wanted.grows:
        growth = grow(case, missing, cursor, tells=tells)
        commands += growth.commands
        staying: Sequence[SlicePut] = live
    else:
        growth = Growth(cursor=cursor)
        commands += (case.unload(put, "failed, and not needed any more") for put in case.standings[Standing.FAILED])
        there = "1 instance" if len(live) == 1 else f"{len(live)} instances"
        removed = _choose_removals(case, max(len(live) - count, 0), commands)
        commands += (case.retire(put, f"{there}, {count} wanted") for put in live if put.key in removed)
        staying = [put for put in live if put.key not in removed] if removed else live
    emptied, emptied_at = ([], []) if wanted.outlives else _empty_draining(case, staying, count)
    moved, moved_at = _moved(case, staying, count)
    commands += emptied + moved
    loaded = [put for put in staying if put.value.state is SliceState.LOADED] if wanted.grows else []
    waits_for = wanted.waits_for if loaded else ()
    commands += (case.activate(put) for put in loaded if not waits_for and put.key not in wanted.held)
    wake_at = _earliest(
        (*_gone(case), *_deadlines(case), *_unloads_to_come(case), *growth.retries, *emptied_at, *moved_at)
    )
    return Plan(
        commands,
        wake_at,
        growth.unplaced,
        growth.why,
        growth.held,
        waited_for,
        wanted.moving.reason if wanted.moving is not None else "",
        growth.cursor,
        waits_for,
    )


def situation_of(
    artifact: Artifact,
    wanted: Wanted,
    group: Group,
    fleet: Fleet,
    now: float,
    policy: Policy,
    taken: Collection[SliceKey] | None = None,
) -> Situation:
    """The facts, with the slices sorted; the arguments are those of `reconcile`."""
    standings = sort(group, fleet, policy, now)
    if wanted.outlives:
        _set_apart_outliving(standings)
    elif wanted.nodes is not None:
        _set_apart_misplaced(standings, wanted, wanted.nodes, now)
    if wanted.moving is not None:
        _set_apart_moving(standings, wanted.moving.key)
    keys = group.slices if taken is None else taken
    case = Situation(artifact, wanted, group, fleet, now, policy, standings, keys)
    if standings[Standing.DRAINING] and not wanted.outlives:
        _set_apart_evacuated(case)
    return case


def _set_apart_outliving(standings: Standings) -> None:
    """What others need that are yet to stop stays until they have."""
    standings[Standing.DRAINING] += (put for put in standings[Standing.EVACUATED] if put.value.state.live)
    standings[Standing.EVACUATED][:] = (put for put in standings[Standing.EVACUATED] if not put.value.state.live)


def _set_apart_misplaced(standings: Standings, wanted: Wanted, nodes: AbstractSet[NodeId], now: float) -> None:
    """Of those that serve and those that will, keep one on each of the nodes, and none on nodes that are emptied."""
    live = sorted(standings[Standing.LIVE], key=lambda put: (-_worth(wanted, put, now), put.key))
    kept: dict[NodeId, SlicePut] = {}
    for put in live:
        if put.key.node in nodes and put.key.node not in kept:
            kept[put.key.node] = put
    standings[Standing.MISPLACED] += (put for put in live if kept.get(put.key.node) is not put)
    standings[Standing.MISPLACED] += standings[Standing.DRAINING]
    standings[Standing.LIVE][:] = kept.values()
    standings[Standing.DRAINING].clear()


def _set_apart_evacuated(case: Situation) -> None:
    """Of what must not run twice, and drains, as many go as there are places for beside what is missing."""
    standings, wanted = case.standings, case.wanted
    waiting = sorted((put for put in standings[Standing.DRAINING] if exclusive(put)), key=lambda put: put.key)
    if not waiting or wanted.instances is None or not case.fleet.has_room():
        return
    needed = wanted.instances - len(standings[Standing.LIVE]) - len(standings[Standing.AWAITED])
    go = waiting[max(needed - len(lingering(standings)), 0) :]  # the others are there instead
    waiting = waiting[: len(waiting) - len(go)]
    # What others have left for is theirs.
    promised = case.fleet.promised(case.group.slices)
    first = needed - len(waiting) + promised
    if not wanted.grows:
        go += waiting
    elif any(each.service == str(case.artifact.service) for each in wanted.rules.apart if each.hard):
        # Each keeps others off its own neighbourhood, and leaves it when it goes.
        go += [put for put in waiting if places(case, first + 1, [put]) > first][:1]
    elif waiting:
        go += waiting[: max(places(case, needed + promised, ()) - first, 0)]
    standings[Standing.EVACUATED] += go
    gone = {put.key for put in go}
    standings[Standing.DRAINING][:] = [put for put in standings[Standing.DRAINING] if put.key not in gone]


def _worth(wanted: Wanted, put: SlicePut, now: float) -> int:
    """What goes first: of several slices those that do not serve, then the young, then the healthy ones."""
    if put.value.state is not SliceState.ACTIVE:
        return _IDLE
    return _YOUNG if _healthy_at(wanted, put) > now else _HEALTHY


def _healthy_at(wanted: Wanted, put: SlicePut) -> float:
    """When a slice that is ACTIVE counts as healthy."""
    return put.at + wanted.min_healthy


def _set_apart_moving(standings: Standings, key: SliceKey) -> None:
    live = standings[Standing.LIVE]
    for put in [put for put in live if put.key == key]:
        live.remove(put)
        standings[Standing.EVACUATED if exclusive(put) else Standing.MOVING].append(put)


def _earliest(times: Iterable[float]) -> float | None:
    return min(times, default=None)


def _gone(case: Situation) -> list[float]:
    """When the slices of lost nodes that are still waited for can run no more."""
    return [gone_at(put, case.fleet) for put in case.standings[Standing.UNHEARD]]


def _deadlines(case: Situation) -> list[float]:
    """The deadlines that have yet to pass; of nodes that are missing none does."""
    if not case.group.moving:
        return []
    fleet = case.fleet
    due = (
        due_at(put, fleet.nodes[put.key.node], fleet, case.policy)
        for standing in (Standing.LIVE, Standing.DRAINING, Standing.LEAVING)
        for put in case.standings[standing]
    )
    return [each for each in due if case.now < each < inf]


def _unloads_to_come(case: Situation) -> list[float]:
    """When slices that failed to unload are to be unloaded again."""
    due = (case.retry_at(put) for put in case.standings[Standing.UNLOAD_FAILED])
    return [each for each in due if each > case.now]


def _forget(case: Situation) -> list[Command]:
    """Delete the keys of dead nodes."""
    return [Command(put.key, None, f"node {put.key.node} is gone") for put in case.standings[Standing.GONE]]


def _take_away(case: Situation) -> list[Command]:
    """Take away what is of no use, however many instances are wanted."""
    standings = case.standings
    return [
        *(
            Command(put.key, None, f"{put.value.state} was not answered in time")
            for put in standings[Standing.UNANSWERED]
        ),
        *(case.unload(put, f"stuck in {put.value.state}", failed=True) for put in standings[Standing.STUCK]),
        *_evacuate(case),
        *(
            case.retire(put, f"node {put.key.node} is none that is to have it, or has another")
            for put in standings[Standing.MISPLACED]
        ),
        *(
            case.unload(put, "unloading failed", failed=True)
            for put in standings[Standing.UNLOAD_FAILED]
            if case.retry_at(put) <= case.now
        ),
        *_hurry(case),
    ]


def _hurry(case: Situation) -> list[Command]:
    """Stop sooner what goes on serving for longer than the blueprint says by now."""
    delay = case.wanted.drain_delay
    if delay is None:
        return []
    return [
        case.unload(put, f"drain_delay is {delay:g} s now", after=delay or None)
        for put in case.standings[Standing.LEAVING]
        if put.value.state is SliceState.UNLOADING and put.value.after is not None
        if put.at + put.value.after - case.now > delay + CLOCKS_APART
    ]


def _evacuate(case: Situation) -> list[Command]:
    """Take away what goes before another one comes."""
    return [case.retire(put, _why_evacuated(case, put)) for put in case.standings[Standing.EVACUATED]]


def _why_evacuated(case: Situation, put: SlicePut) -> str:
    moving, node = case.wanted.moving, put.key.node
    if moving is not None and moving.key == put.key:
        return moving.reason
    live = case.fleet.nodes.get(node)
    over = " and its deadline is over" if live is not None and live.forced else ""
    return f"node {node} is draining{over}"


def _moved(case: Situation, staying: Sequence[SlicePut], wanted: int) -> tuple[list[Command], list[float]]:
    """Unload what is moved once enough others are healthy, and else say when they may be."""
    moving, move = case.standings[Standing.MOVING], case.wanted.moving
    if not moving or move is None:
        return [], []
    healthy_at = sorted(_healthy_at(case.wanted, put) for put in staying if put.value.state is SliceState.ACTIVE)
    if len(healthy_at) < wanted:
        return [], []
    if wanted and healthy_at[wanted - 1] > case.now:
        return [], [healthy_at[wanted - 1]]
    return [case.retire(put, move.reason) for put in moving], []


def _choose_removals(case: Situation, surplus: int, commands: Iterable[Command]) -> set[SliceKey]:
    """Which of the live slices go when there are too many: those first that do not serve yet, or not for long."""
    if surplus == 0:
        return set()
    live = case.standings[Standing.LIVE]
    ranked: tuple[list[SliceKey], ...] = ([], [], [])
    for put in live:
        ranked[_worth(case.wanted, put, case.now)].append(put.key)
    if case.wanted.rules is not NO_RULES:
        return set(which_go(case, surplus, ranked))
    leaving = Counter(command.key.node for command in commands if command.state is SliceState.UNLOAD)
    total = case.fleet.total
    return set(choose_removals(surplus, ranked, lambda node: total(node) - leaving[node]))


def _empty_draining(case: Situation, staying: Iterable[SlicePut], count: int) -> tuple[list[Command], list[float]]:
    """Unload what sits on draining nodes as far as its replacement is healthy, and else say when it may be.

    What is not healthy itself is kept only where fewer than are wanted would serve without it.
    """
    draining = case.standings[Standing.DRAINING]
    if not draining:
        return [], []
    wanted, now = case.wanted, case.now
    healthy_at = [_healthy_at(wanted, put) for put in staying if put.value.state is SliceState.ACTIVE]
    to_come = [at for at in healthy_at if at > now]
    worth = {put.key: _worth(wanted, put, now) for put in draining}
    healthy = sum(1 for each in worth.values() if each == _HEALTHY)
    few = max(min(count - len(healthy_at) + len(to_come), healthy), count - len(healthy_at), 0)
    serving = sorted((key for key, each in worth.items() if each), key=lambda key: (-worth[key], key))
    kept = set(serving[:few])
    commands = [case.retire(put, f"node {put.key.node} is draining") for put in draining if put.key not in kept]
    return commands, to_come if kept else []
