"""Decides what to do about one artifact: commands, each with its reason. Pure; knows no term and writes nothing.

`reconcile` looks at one artifact. It is called whenever something about the artifact changed, and its answer depends
only on what it is given: asked again about the same facts, it says the same, and asked about a settled artifact, it
says nothing. It sorts the slices by how they stand (`cdm.manager.standing`); each of the functions below turns some
of these into commands.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from cdm.allocation.evenly import Host, allocate, choose_removals, free_ordinals
from cdm.manager.group import Group, SlicePut
from cdm.manager.policy import Policy
from cdm.manager.standing import NEVER_RAN, Fleet, Standing, Standings, gone_at, lingering, sort
from cdm.manager.wanted import Wanted
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import DRAIN_DELAY, Overrides
from cdm.model.keys import SliceKey
from cdm.model.slice import SliceState

CLOCKS_APART = 1.0
"""Seconds: what an instance may be told to go on serving for, beyond what is left of it, and it is not told again."""


class Command(Struct, frozen=True):
    """One write to a slice key. ``state`` None deletes the key."""

    key: SliceKey
    state: SliceState | None
    reason: str
    failures: int = 0
    blueprint: int = 0
    overrides: Overrides | None = None
    loaded: int = 0
    """Of an ACTIVATE: revision of the LOADED that it answers."""
    template: str | None = None
    """Digest of the template that it serves."""
    content: str | None = None
    """Digest of the content that is to run."""
    after: float | None = None
    """Of an UNLOAD: seconds for which the slice goes on serving."""


class Plan(Struct, frozen=True):
    """What to do about one artifact now, and when to look again."""

    commands: list[Command] = []
    wake_at: float | None = None
    """When something becomes due without any further message, in seconds."""
    unplaced: int = 0
    """Instances for which no node is open."""
    held: int = 0
    """Instances that are not placed yet because nodes are waited for."""
    lingering: int = 0
    """Exclusive instances that are to stop, or whose node is lost, and that may still run."""
    cursor: NodeId | None = None
    """The node that was served last, where any was: the next round robin goes on behind it."""
    waits_for: tuple[str, ...] = ()
    """Services for which instances wait that are LOADED."""

    @property
    def is_short(self) -> bool:
        """Whether it cannot be carried out whole."""
        return bool(self.unplaced or self.held or self.lingering or self.waits_for)

    def joined(self, other: Plan) -> Plan:
        """What is short of two plans for parts of one artifact's slices."""
        return Plan(
            unplaced=self.unplaced + other.unplaced,
            held=self.held + other.held,
            lingering=self.lingering + other.lingering,
            waits_for=(*self.waits_for, *(each for each in other.waits_for if each not in self.waits_for)),
        )


WHOLE = Plan()
"""The plan of an artifact that needs nothing."""


def settled(wanted: Wanted, group: Group) -> bool:
    """Whether the counts alone show that nothing is to be done.

    They do unless a slice waits for an answer, sits on a node that is dead or draining, or has missed a deadline:
    the caller knows of the latter two.
    """
    if group.owed:
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
    taken: Iterable[SliceKey] | None = None,
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
    """
    keys = group.slices if taken is None else taken
    case = _Case(artifact, wanted, group, fleet, now, policy, sort(group, fleet, policy, now), keys)
    count = wanted.instances
    if count is None:
        # Refused, and never a valid one before: nothing is changed, but the keys of dead nodes go.
        unheard = case.standings[Standing.UNHEARD]
        return Plan(_forget(case), _earliest(_gone(case)), lingering=len(unheard), cursor=cursor)
    live, waited_for = case.standings[Standing.LIVE], len(lingering(case.standings))
    commands = [*_forget(case), *_take_away(case)]
    missing = count - len(live) - len(case.standings[Standing.AWAITED]) - waited_for
    if missing > 0 and wanted.grows:
        growth = _grow(case, missing, cursor)
        commands += growth.commands
        staying: Sequence[SlicePut] = live
    else:
        growth = _Growth(cursor=cursor)
        commands += (case.unload(put, "failed, and not needed any more") for put in case.standings[Standing.FAILED])
        there = "1 instance" if len(live) == 1 else f"{len(live)} instances"
        removed = _choose_removals(case, max(len(live) - count, 0), commands)
        commands += (case.retire(put, f"{there}, {count} wanted") for put in live if put.key in removed)
        staying = [put for put in live if put.key not in removed] if removed else live
    commands += _empty_draining(case, staying, count)
    loaded = [put for put in staying if put.value.state is SliceState.LOADED] if wanted.grows else []
    waits_for = wanted.waits_for if loaded else ()
    commands += (
        case.command(put.key, SliceState.ACTIVATE, "loaded", case.failures(put), put.revision)
        for put in loaded
        if not waits_for and put.key not in wanted.held
    )
    wake_at = _earliest((*_gone(case), *_deadlines(case), *_unloads_to_come(case), *growth.retries))
    return Plan(commands, wake_at, growth.unplaced, growth.held, waited_for, growth.cursor, waits_for)


class _Case(NamedTuple):
    """What is decided about: the facts, which nothing changes, and how commands are made of them."""

    artifact: Artifact
    wanted: Wanted
    group: Group
    fleet: Fleet
    now: float
    policy: Policy
    standings: Standings
    taken: Iterable[SliceKey]
    """The keys of all slices of the artifact."""

    def failures(self, put: SlicePut) -> int:
        """How often the instance failed before."""
        return put.value.failures or 0

    def retry_at(self, put: SlicePut) -> float:
        """When a failed slice is due to be tried again, or to be unloaded again."""
        # Whoever puts the blueprint again expects it to be tried again.
        if put.value.blueprint is not None and put.value.blueprint < self.wanted.revision:
            return put.at
        return self.policy.retry_at(put)

    def command(self, key: SliceKey, state: SliceState, reason: str, failures: int, loaded: int = 0) -> Command:
        """A command on the way up."""
        wanted = self.wanted
        return Command(
            key,
            state,
            reason,
            failures,
            wanted.revision,
            wanted.overrides,
            loaded,
            wanted.template,
            wanted.content,
        )

    def unload(self, put: SlicePut, reason: str, *, failed: bool = False, after: float | None = None) -> Command:
        """An UNLOAD; ``failed``: it counts as one more failure."""
        # With the overrides that it runs with: they say for how long it may run unheard of.
        value = put.value
        overrides = None if value.state in NEVER_RAN else value.overrides
        failures = self.failures(put) + 1 if failed else self.failures(put)
        return Command(
            put.key,
            SliceState.UNLOAD,
            reason,
            failures,
            self.wanted.revision,
            overrides,
            template=value.template,
            content=value.content,
            after=after,
        )

    def retire(self, put: SlicePut, reason: str) -> Command:
        """An UNLOAD in good order: what can be reached goes on serving until nobody sends to it any more."""
        reached = put.value.state is SliceState.ACTIVE and put.value.port is not None
        delay = DRAIN_DELAY if self.wanted.drain_delay is None else self.wanted.drain_delay
        return self.unload(put, reason, after=delay or None if reached else None)


class _Growth(NamedTuple):
    """What comes of looking for more instances."""

    commands: Sequence[Command] = ()
    retries: Sequence[float] = ()
    """When failed slices are due."""
    unplaced: int = 0
    held: int = 0
    cursor: NodeId | None = None


def _earliest(times: Iterable[float]) -> float | None:
    return min(times, default=None)


def _gone(case: _Case) -> list[float]:
    """When the slices of lost nodes that are still waited for can run no more."""
    return [gone_at(put, case.fleet) for put in case.standings[Standing.UNHEARD]]


def _deadlines(case: _Case) -> list[float]:
    """The deadlines that have yet to pass."""
    if not case.group.moving:
        return []
    due = (
        case.policy.deadline(put)
        for standing in (Standing.LIVE, Standing.AWAITED, Standing.DRAINING, Standing.LEAVING)
        for put in case.standings[standing]
    )
    return [each for each in due if each is not None and each > case.now]


def _unloads_to_come(case: _Case) -> list[float]:
    """When slices that failed to unload are to be unloaded again."""
    due = (case.retry_at(put) for put in case.standings[Standing.UNLOAD_FAILED])
    return [each for each in due if each > case.now]


def _forget(case: _Case) -> list[Command]:
    """Delete the keys of dead nodes."""
    return [Command(put.key, None, f"node {put.key.node} is gone") for put in case.standings[Standing.GONE]]


def _take_away(case: _Case) -> list[Command]:
    """Take away what is of no use, however many instances are wanted."""
    standings = case.standings
    return [
        *(
            Command(put.key, None, f"{put.value.state} was not answered in time")
            for put in standings[Standing.UNANSWERED]
        ),
        *(case.unload(put, f"stuck in {put.value.state}", failed=True) for put in standings[Standing.STUCK]),
        *(case.retire(put, f"node {put.key.node} is draining") for put in standings[Standing.EVACUATED]),
        *(
            case.unload(put, "unloading failed", failed=True)
            for put in standings[Standing.UNLOAD_FAILED]
            if case.retry_at(put) <= case.now
        ),
        *_hurry(case),
    ]


def _hurry(case: _Case) -> list[Command]:
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


def _choose_removals(case: _Case, surplus: int, commands: Iterable[Command]) -> set[SliceKey]:
    """Which of the live slices go when there are too many: those first that do not serve yet."""
    if surplus == 0:
        return set()
    live = case.standings[Standing.LIVE]
    healthy_since = case.now - (case.wanted.min_healthy if case.wanted.young_first else 0.0)
    waiting = [put.key for put in live if put.value.state is not SliceState.ACTIVE]
    active = [put for put in live if put.value.state is SliceState.ACTIVE]
    young = [put.key for put in active if put.at > healthy_since]
    healthy = [put.key for put in active if put.at <= healthy_since]
    leaving = Counter(command.key.node for command in commands if command.state is SliceState.UNLOAD)
    total = case.fleet.total
    return set(choose_removals(surplus, (waiting, young, healthy), lambda node: total(node) - leaving[node]))


def _empty_draining(case: _Case, staying: Iterable[SlicePut], wanted: int) -> list[Command]:
    """Unload what sits on draining nodes as far as its replacement already serves."""
    draining = case.standings[Standing.DRAINING]
    if not draining:
        return []
    serving = sum(1 for put in staying if put.value.state is SliceState.ACTIVE)
    active = sorted(put.key for put in draining if put.value.state is SliceState.ACTIVE)
    kept = set(active[: max(wanted - serving, 0)])
    return [case.retire(put, f"node {put.key.node} is draining") for put in draining if put.key not in kept]


def _grow(case: _Case, missing: int, cursor: NodeId | None) -> _Growth:
    """Retry the failed slices that are due, and place what they do not cover."""
    failed = sorted(case.standings[Standing.FAILED], key=case.retry_at)
    retried, superfluous = failed[:missing], failed[missing:]
    commands = [case.unload(put, "failed, and not needed any more") for put in superfluous]
    due = [put for put in retried if case.retry_at(put) <= case.now]
    retries = [case.retry_at(put) for put in retried if case.retry_at(put) > case.now]
    count = missing - len(retries)
    if count == 0 or case.fleet.settling:
        return _Growth(commands, retries, held=count, cursor=cursor)
    nodes, cursor = _place(case, count, due, cursor)
    return _Growth(commands + _load(case, nodes, due), retries, count - sum(nodes.values()), cursor=cursor)


def _place(
    case: _Case, count: int, due: Sequence[SlicePut], cursor: NodeId | None
) -> tuple[dict[NodeId, int], NodeId | None]:
    """How many new instances each node gets, and the node that was served last."""
    standings, fleet, failed_on = case.standings, case.fleet, case.group.failed_on
    shun = {put.key.node for standing in (Standing.FAILED, Standing.STUCK) for put in standings[standing]}
    shun.update(failed_on)
    if fleet.ranking is not None:
        occupied = shun.union(put.key.node for put in standings[Standing.LIVE])
        if picked := fleet.ranking.pick(count, occupied, cursor):
            return dict.fromkeys(picked, 1), picked[-1]
    hosts = _hosts(case, Counter(put.key.node for put in due), cursor)
    if case.group.active:
        # It runs elsewhere, so what failed is the node: better all others are full than one is missing.
        shunned = sorted((host for host in hosts if host.node in shun), key=lambda host: failed_on.get(host.node, 0.0))
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


def _hosts(case: _Case, retried: Mapping[NodeId, int], cursor: NodeId | None) -> list[Host]:
    """Nodes that take new slices. A slice that is tried again where it failed takes no further room there."""
    mine = Counter(put.key.node for put in case.standings[Standing.LIVE])
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


def _load(case: _Case, nodes: Mapping[NodeId, int], due: Sequence[SlicePut]) -> list[Command]:
    """LOADs for the chosen nodes; the failures of those retried and replaced go with them."""
    commands: list[Command] = []
    left = dict(nodes)
    elsewhere: list[SlicePut] = []
    for put in due:
        if left.get(put.key.node):
            left[put.key.node] -= 1
            commands.append(case.command(put.key, SliceState.LOAD, "retry", case.failures(put) + 1))
        else:
            elsewhere.append(put)
    elsewhere = elsewhere[: sum(left.values())]
    history = sorted(case.failures(put) + 1 for put in (*elsewhere, *case.standings[Standing.STUCK]))
    used: dict[NodeId, list[int]] = {}
    for key in case.taken:
        if key.node in left:
            used.setdefault(key.node, []).append(key.ordinal)
    artifact, state, command = case.artifact, SliceState.LOAD, case.command  # looked up once for 100,000 instances
    for node in sorted(left):
        for ordinal in free_ordinals(left[node], used.get(node, ())):
            failures = history.pop() if history else 0
            reason = "replaces a failed instance" if failures else "instance missing"
            commands.append(command(SliceKey(node, artifact, ordinal), state, reason, failures))
    return commands + [case.unload(put, "failed, and replaced") for put in elsewhere]
