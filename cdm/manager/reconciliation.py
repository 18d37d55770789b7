"""Desired plus actual plus nodes gives commands, each with its reason. Pure; knows no term and writes nothing.

`reconcile` looks at one artifact. It is called whenever something about the artifact changed, and its answer depends
only on what it is given: asked again about the same facts, it says the same, and asked about a settled artifact, it
says nothing (I5).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping

from msgspec import Struct

from cdm.manager.allocation import Host, Ranking, allocate, choose_removals, free_ordinals
from cdm.manager.cluster import Desired, Group, SlicePut
from cdm.manager.policy import Policy
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Overrides
from cdm.model.keys import SliceKey
from cdm.model.slice import SliceState

MAY_RUN = frozenset(
    {
        SliceState.ACTIVATE,  # the node may have begun, and its report be on its way
        SliceState.ACTIVATING,
        SliceState.ACTIVE,
        SliceState.DEACTIVATE,
        SliceState.DEACTIVATING,
        SliceState.UNLOAD,
        SliceState.UNLOADING,
    }
)
"""States in which something of the slice may run on its node."""

NEVER_RAN = frozenset({SliceState.LOAD, SliceState.LOADING, SliceState.LOADED})
"""States of slices that were never told to run."""


class LiveNode(Struct, frozen=True):
    """A node that is not dead, as reconciliation sees it."""

    node: NodeId
    open: bool
    """Takes new slices."""
    draining: bool
    """Is to be emptied."""
    capacity: int | None = None
    """Most slices that it takes; None: no limit."""


class Command(Struct, frozen=True):
    """One write to a slice key. ``state`` None deletes the key."""

    key: SliceKey
    state: SliceState | None
    reason: str
    failures: int = 0
    blueprint: int = 0
    overrides: Overrides | None = None


class Plan(Struct, frozen=True):
    """What to do about one artifact now, and when to look again."""

    commands: list[Command] = []
    wake_at: float | None = None
    """When something becomes due without any further message, in seconds."""
    unplaced: int = 0
    """Instances for which no node is open."""
    lingering: int = 0
    """Instances that must not run twice and may still run, although they are stopped or their node is lost."""
    cursor: NodeId | None = None
    """The node that was served last, where any was: the next round robin goes on behind it."""


def settled(desired: Desired | None, group: Group) -> bool:
    """Whether the counts alone show that nothing is to be done.

    They do unless a slice waits for an answer, sits on a node that is dead or draining, or has missed a deadline:
    the caller knows of the latter two.
    """
    if group.owed:
        return False
    if desired is None:
        return group.live == 0
    return desired.instances is None or group.live == desired.instances


def reconcile(
    artifact: Artifact,
    desired: Desired | None,
    group: Group,
    places: Mapping[NodeId, LiveNode],
    totals: Callable[[NodeId], int],
    now: float,
    policy: Policy,
    cursor: NodeId | None = None,
    ranking: Ranking | None = None,
    lost: Mapping[NodeId, float] | None = None,
) -> Plan:
    """Decide what to do about one artifact.

    Args:
        artifact: which one.
        desired: its blueprint; None where there is none, which means no instances.
        group: its slices.
        places: every node that is not dead.
        totals: how many slices of all artifacts are on a node, commanded ones included.
        now: seconds on the clock that the slices' ``at`` are on.
        policy: deadlines and backoff.
        cursor: the node that was served last; among equals the next one in name order comes first.
        ranking: the open places that have room, in order; without it they are put in order here.
        lost: nodes that died without a word, and when they were heard last, in seconds on the clock of ``now``.
    """
    wanted = 0 if desired is None else desired.instances
    decision = _Decision(artifact, desired, totals, policy, now, cursor)
    decision.ranking, decision.failed_on, decision.lost = ranking, group.failed_on, lost or {}
    decision.works = group.active > 0
    if wanted is None:
        # Refused, and never a valid one before: it changes nothing.
        for put in group.slices.values():
            if put.key.node not in places:
                decision.give_up(put)
        return decision.plan
    decision.sort_out(group, places)
    surplus = len(decision.live) - wanted
    if surplus + decision.lingering >= 0:
        decision.shrink(max(surplus, 0), wanted)
    else:
        decision.grow(-surplus - decision.lingering, group, places)
    decision.empty_draining(wanted)
    decision.activate()
    return decision.plan


def _delete(key: SliceKey, reason: str) -> Command:
    return Command(key, None, reason)


def _runs_on_for(put: SlicePut) -> float:
    """Seconds for which a slice that must not run twice may run though its node is not heard; 0 for all others."""
    overrides = put.value.overrides
    return (overrides.gone_after or 0.0) if overrides is not None else 0.0


def _alone(put: SlicePut) -> bool:
    """Whether something of the slice may run, and must not run twice."""
    return put.value.state in MAY_RUN and _runs_on_for(put) > 0


class _Decision:
    """The artifact's slices sorted by what they mean, and the commands found so far."""

    def __init__(
        self,
        artifact: Artifact,
        desired: Desired | None,
        totals: Callable[[NodeId], int],
        policy: Policy,
        now: float,
        cursor: NodeId | None,
    ) -> None:
        self.artifact = artifact
        self.revision = desired.in_force if desired else 0
        self.overrides = desired.blueprint.overrides if desired and desired.blueprint else None
        self.totals = totals
        self.policy = policy
        self.now = now
        self.cursor = cursor
        self.ranking: Ranking | None = None
        self.failed_on: Mapping[NodeId, float] = {}
        self.works = False
        """Whether an instance of the artifact is ACTIVE."""
        self.lost: Mapping[NodeId, float] = {}
        self.commands: list[Command] = []
        self.wake_at: float | None = None
        self.unplaced = 0
        self.lingering = 0
        self.live: list[SlicePut] = []
        self.draining: list[SlicePut] = []
        self.failed: list[SlicePut] = []
        self.stuck: list[SlicePut] = []
        self.leaving: set[SliceKey] = set()

    @property
    def plan(self) -> Plan:
        """What was decided."""
        return Plan(self.commands, self.wake_at, self.unplaced, self.lingering, self.cursor)

    def sort_out(self, group: Group, places: Mapping[NodeId, LiveNode]) -> None:
        """Sort the slices; what can be decided one by one is decided here."""
        for put in group.slices.values():
            key, state = put.key, put.value.state
            place = places.get(key.node)
            if place is None:
                self.give_up(put)
                continue
            if state is SliceState.FAILED:
                if key in group.failed_unloading:
                    self._unload_again(put)
                    self.lingering += _runs_on_for(put) > 0
                else:
                    self.failed.append(put)
                continue
            deadline = self.policy.deadline(put)
            overdue = deadline is not None and deadline <= self.now
            if deadline is not None and not overdue:
                self._wake(deadline)
            if not state.live and (_alone(put) or not overdue):
                # What must not run twice is waited for however long it takes: its node lives, and may run it.
                self.lingering += _alone(put)
            elif not state.live:
                # The node answers no UNLOAD. It gives up what is not its own when it looks at its keys again.
                self.commands.append(_delete(key, f"{state} was not answered in time"))
            elif overdue:
                self.stuck.append(put)
                self._unload(put, f"stuck in {state}", (put.value.failures or 0) + 1)
                self.lingering += _alone(put)
            elif place.draining and _alone(put) and self._is_room(places):
                # Its replacement can only be started once it is gone.
                self._unload(put, f"node {key.node} is draining")
                self.lingering += 1
            elif place.draining:
                self.draining.append(put)
            else:
                self.live.append(put)

    def give_up(self, put: SlicePut) -> None:
        """Delete the key of a slice whose node is gone, as soon as nothing of the slice can run any more."""
        heard = self.lost.get(put.key.node)
        if heard is not None and _alone(put) and (gone_at := heard + _runs_on_for(put)) > self.now:
            self.lingering += 1
            self._wake(gone_at)
            return
        self.commands.append(_delete(put.key, f"node {put.key.node} is gone"))

    def shrink(self, surplus: int, wanted: int) -> None:
        """There are enough instances: remove those that are too many, and every failed one."""
        for put in self.failed:
            self._unload(put, "failed, and not needed any more")
        if surplus == 0:
            return
        waiting = [put.key for put in self.live if put.value.state is not SliceState.ACTIVE]
        active = [put.key for put in self.live if put.value.state is SliceState.ACTIVE]
        puts = {put.key: put for put in self.live}
        leaving = Counter(key.node for key in self.leaving)
        for key in choose_removals(surplus, (waiting, active), lambda node: self.totals(node) - leaving[node]):
            self._unload(puts[key], f"{surplus + wanted} instances, {wanted} wanted")

    def grow(self, missing: int, group: Group, places: Mapping[NodeId, LiveNode]) -> None:
        """There are too few instances: retry the failed ones that are due, and place what they do not cover."""
        self.failed.sort(key=self._retry_at)
        retried, superfluous = self.failed[:missing], self.failed[missing:]
        for put in superfluous:
            self._unload(put, "failed, and not needed any more")
        fresh = missing - len(retried)
        due = [put for put in retried if self._retry_at(put) <= self.now]
        for put in retried[len(due) :]:
            self._wake(self._retry_at(put))
        if fresh + len(due) == 0:
            return
        nodes = self._place(fresh + len(due), due, places)
        self.unplaced = fresh + len(due) - sum(nodes.values())
        self._load(nodes, due, group)

    def empty_draining(self, wanted: int) -> None:
        """Unload what sits on draining nodes as far as its replacement already serves."""
        serving = sum(1 for put in self.live if put.value.state is SliceState.ACTIVE and put.key not in self.leaving)
        keep = wanted - serving
        for put in sorted(self.draining, key=lambda put: put.key):
            if put.value.state is SliceState.ACTIVE and keep > 0:
                keep -= 1
            else:
                self._unload(put, f"node {put.key.node} is draining")

    def activate(self) -> None:
        """Answer LOADED with ACTIVATE."""
        for put in self.live:
            if put.value.state is SliceState.LOADED and put.key not in self.leaving:
                self._command(put.key, SliceState.ACTIVATE, "loaded", put.value.failures or 0)

    def _is_room(self, places: Mapping[NodeId, LiveNode]) -> bool:
        return any(
            place.open and (place.capacity is None or self.totals(node) < place.capacity)
            for node, place in places.items()
        )

    def _hosts(self, places: Mapping[NodeId, LiveNode], retried: Mapping[NodeId, int]) -> list[Host]:
        """Nodes that take new slices. A slice that is tried again where it failed takes no other place there."""
        mine: dict[NodeId, int] = {}
        for put in self.live:
            mine[put.key.node] = mine.get(put.key.node, 0) + 1
        hosts: list[Host] = []
        names = sorted(places)
        start = bisect_right(names, self.cursor) if self.cursor else 0
        for node in names[start:] + names[:start]:
            place = places[node]
            if place.open:
                total = self.totals(node)
                free = None if place.capacity is None else max(place.capacity - total + retried.get(node, 0), 0)
                hosts.append(Host(node, mine.get(node, 0), total, free))
        return hosts

    def _place(self, count: int, due: list[SlicePut], places: Mapping[NodeId, LiveNode]) -> dict[NodeId, int]:
        shun = {put.key.node for put in (*self.failed, *self.stuck)}.union(self.failed_on)
        if self.ranking is not None:
            occupied = shun.union(put.key.node for put in self.live)
            if picked := self.ranking.pick(count, occupied, self.cursor):
                self.cursor = picked[-1]
                return dict.fromkeys(picked, 1)
        hosts = self._hosts(places, Counter(put.key.node for put in due))
        if self.works:
            # It runs elsewhere, so what failed is the node: better all others are full than one is missing.
            shunned = sorted((host for host in hosts if host.node in shun), key=self._failed_at)
            classes = [[host for host in hosts if host.node not in shun], shunned]
        else:
            # Nothing says whose fault it is. A failure weighs as much as an instance: where there are other nodes it is
            # tried there, and yet those that are left do not get all of them.
            classes = [[host._replace(mine=host.mine + (host.node in shun)) for host in hosts]]
        nodes: dict[NodeId, int] = {}
        for candidates in classes:
            chosen = allocate(count - sum(nodes.values()), candidates)
            nodes |= chosen.counts
            self.cursor = chosen.last or self.cursor
        return nodes

    def _failed_at(self, host: Host) -> float:
        return self.failed_on.get(host.node, 0.0)

    def _load(self, nodes: dict[NodeId, int], due: list[SlicePut], group: Group) -> None:
        """Write LOADs to the chosen nodes; the failures of those retried and replaced go with them."""
        left = dict(nodes)
        elsewhere: list[SlicePut] = []
        for put in due:
            node = put.key.node
            if left.get(node):
                left[node] -= 1
                self._command(put.key, SliceState.LOAD, "retry", (put.value.failures or 0) + 1)
            else:
                elsewhere.append(put)
        elsewhere = elsewhere[: sum(left.values())]
        history = sorted((put.value.failures or 0) + 1 for put in (*elsewhere, *self.stuck))
        taken: dict[NodeId, list[int]] = {}
        for key in group.slices:
            if key.node in left:
                taken.setdefault(key.node, []).append(key.ordinal)
        for node in sorted(left):
            for ordinal in free_ordinals(left[node], taken.get(node, ())):
                failures = history.pop() if history else 0
                reason = "replaces a failed instance" if failures else "instance missing"
                self._command(SliceKey(node, self.artifact, ordinal), SliceState.LOAD, reason, failures)
        for put in elsewhere:
            self._unload(put, "failed, and replaced")

    def _unload(self, put: SlicePut, reason: str, failures: int | None = None) -> None:
        self.leaving.add(put.key)
        failures = (put.value.failures or 0) if failures is None else failures
        # With the overrides that it runs with: they say for how long it may run unheard of.
        overrides = None if put.value.state in NEVER_RAN else put.value.overrides
        self.commands.append(Command(put.key, SliceState.UNLOAD, reason, failures, self.revision, overrides))

    def _unload_again(self, put: SlicePut) -> None:
        if (due := self._retry_at(put)) <= self.now:
            self._unload(put, "unloading failed", (put.value.failures or 0) + 1)
        else:
            self._wake(due)

    def _command(self, key: SliceKey, state: SliceState, reason: str, failures: int) -> None:
        self.commands.append(Command(key, state, reason, failures, self.revision, self.overrides))

    def _retry_at(self, put: SlicePut) -> float:
        # Somebody who writes the blueprint again wants to see it tried again.
        if put.value.blueprint is not None and put.value.blueprint < self.revision:
            return put.at
        return self.policy.retry_at(put)

    def _wake(self, at: float) -> None:
        if self.wake_at is None or at < self.wake_at:
            self.wake_at = at
