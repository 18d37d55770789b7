"""``plan``, ``delta`` and ``route``: deciding, without a server."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from cdm import clock
from cdm.allocation.evenly import Host, allocate
from cdm.dispatch.messages import (
    MESSAGES,
    CheckResult,
    Connected,
    ContentsUnknown,
    Disconnected,
    FenceRenewal,
    IntentChanged,
    KeyRejected,
    LeaderChange,
    Message,
    NodeDied,
    NodeJoined,
    NodeLeft,
    NodeMissing,
    RejectedKeyRemoved,
    Tick,
    ValuePut,
    ValueRejected,
    ValueRemove,
    WriteFailed,
    Written,
)
from cdm.dispatch.router import Router, receiver
from cdm.manager.active import Active
from cdm.manager.cluster import Desired
from cdm.manager.group import Group
from cdm.manager.manager import ClusterDeploymentManager
from cdm.manager.outbox import Outbox
from cdm.manager.policy import Policy
from cdm.manager.reconciliation import reconcile
from cdm.manager.standing import Fleet, LiveNode
from cdm.manager.topology import Topology
from cdm.manager.wanted import wanted_of
from cdm.model.artifact import NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.keys import BlueprintKey, FenceKey, IntentKey, Key, LeaseKey, NodeKey, SliceKey
from cdm.model.node import Fence, Intent, Lease, Registration, Schedule
from cdm.model.slice import SliceState, SliceValue
from tests.bench.measure import Figure, Goal, figure, seconds
from tests.bench.playground import ACTIVE, artifact, nodes_named, slice_keys

INSTANCES = 100
LEADER = NodeId("leader")


class World:
    """A manager that leads a cluster at rest: nodes, blueprints and ACTIVE slices, all in memory.

    Args:
        slices: how many.
        nodes: how many.
        instances: of each blueprint.
    """

    def __init__(self, slices: int, nodes: int = 1_000, instances: int = INSTANCES) -> None:
        self.revision = 0
        names = nodes_named(nodes)
        self.topology = Topology(self._emit, 10.0)
        self.outbox = Outbox(lambda: None, lambda: None)
        self.manager = ClusterDeploymentManager(
            LEADER, self.topology, self.outbox, clock.now, lambda: None, reconcile_interval=1e9
        )
        self.route: Callable[[Message], None] = Router((self.topology, self.manager), MESSAGES).route
        for name in names:
            self.route(ValuePut(NodeKey(name), Registration(), 1, clock.now()))
        self.blueprints = slices // instances
        for number in range(self.blueprints):
            self.put(BlueprintKey(artifact(number)), Blueprint(instances))
        for key in slice_keys(slices, names, instances):
            # A value for each, as a decoder makes them; ACTIVE for an hour.
            value = SliceValue(SliceState.ACTIVE, 1, failures=0, blueprint=self.blueprints)
            self.put(key, value, clock.now() - 3600.0)
        self.route(LeaderChange(LEADER, 1, local_node_is_leader=True))
        self.work()
        self.outbox.clear()

    def _emit(self, message: Message) -> None:
        self.route(message)

    def put(self, key: Any, value: Any, at: float | None = None) -> None:
        """The mirror brings a value."""
        self.revision += 1
        self.route(ValuePut(key, value, self.revision, clock.now() if at is None else at))

    def work(self) -> None:
        """Let the manager decide until nothing is left to decide."""
        state = self.manager.state
        assert isinstance(state, Active)
        self.route(Tick(clock.now()))
        while state._unfinished:
            self.route(Tick(clock.now()))

    def round(self) -> None:
        """Let the manager go over everything."""
        state = self.manager.state
        assert isinstance(state, Active)
        state._next_round = clock.now()
        self.work()

    def answer(self) -> int:
        """The outbox's orders are stored, and the mirror shows them as ACTIVE; returns how many commands there were."""
        count = 0
        while order := self.outbox.take_order():
            for command in order.commands:
                count += 1
                if command.state is SliceState.LOAD:
                    self.put(command.key, ACTIVE)
            self.route(Written(order.artifact, 1, self.revision))
        self.work()
        self.outbox.clear()
        return count


def plan(quick: bool) -> list[Figure]:
    """Pure allocation, the commands that come of it, and a round over slices that need nothing."""
    count, repetitions = (100_000, 3) if quick else (1_000_000, 5)
    found = [_allocation(count, repetitions), _commands(count, repetitions)]
    world = World(count)
    rounds = [seconds(world.round) for _ in range(repetitions)]
    assert not world.outbox.orders
    goals = () if quick else (Goal(1.0, "value<="),)
    found.append(
        figure("plan no drift", "s", rounds, (), *goals, note=f"{count:,} slices, {world.blueprints:,} blueprints")
    )
    return found


def _allocation(count: int, repetitions: int) -> Figure:
    hosts = [Host(node, 0, 0) for node in nodes_named(1_000)]
    # By parts, so that a repetition is more than a blink: each blueprint is allocated on its own.
    each = 1_000

    def spread() -> None:
        for _ in range(count // each):
            assert sum(allocate(each, hosts).counts.values()) == each

    return figure(
        "plan allocation",
        "placements/s",
        [count / seconds(spread) for _ in range(repetitions)],
        (),
        Goal(1_000_000, "value>="),
        note=f"{count // each:,} blueprints of {each:,} on 1,000 nodes",
    )


def _commands(count: int, repetitions: int) -> Figure:
    names = nodes_named(1_000)
    fleet = Fleet({node: LiveNode(node, open=True, draining=False) for node in names}, lambda node: 0)
    instances = min(count, 100_000)
    desired, policy = Desired(Blueprint(instances), 1, 1), Policy()

    def decide() -> None:
        for number in range(count // instances):
            found = reconcile(artifact(number), wanted_of(desired), Group(), fleet, 0.0, policy)
            assert len(found.commands) == instances

    return figure(
        "plan commands",
        "placements/s",
        [count / seconds(decide) for _ in range(repetitions)],
        note=f"allocation and its commands, {instances:,} a blueprint",
    )


def delta(quick: bool) -> list[Figure]:
    """A blueprint changed by one: from the message to its command in the outbox.

    In clusters of several sizes, and of a blueprint that has an instance on each of 1,000 nodes.
    """
    sizes = (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000)
    found: list[Figure] = []
    smallest: list[float] = []
    for size in sizes:
        values = deltas(World(size), 200)
        smallest = smallest or values
        goals = (Goal(200, "value<="), Goal(1.3, "ratio<="))
        base = [] if size == sizes[0] else smallest
        found.append(figure(f"delta {size:,}", "µs", values, base, *goals[: 1 + bool(base)]))
    everywhere = [each / 1_000 for each in deltas(World(20_000, nodes=1_000, instances=1_000), 60 if quick else 200)]
    note = "20 blueprints of 1,000 instances on 1,000 nodes"
    return [*found, figure("delta on every node", "ms", everywhere, (), Goal(1, "value<="), note=note)]


def deltas(world: World, count: int) -> list[float]:
    """Microseconds from message to command, for changes of different blueprints."""
    order = random.Random(1).sample(range(world.blueprints), min(count, world.blueprints))
    values: list[float] = []
    while len(values) < count:
        for number in order:
            artifact_ = artifact(number)
            have = world.manager.cluster.group(artifact_).live
            key, more = BlueprintKey(artifact_), Blueprint(have + 1)
            put, now = ValuePut(key, more, world.revision, 0.0), clock.now()
            before = time.perf_counter()
            world.route(put)
            world.route(Tick(now))
            values.append((time.perf_counter() - before) * 1e6)
            assert world.answer() == 1
    return values[:count]


class Nothing:
    """Receives everything, does nothing."""

    @receiver
    def on_value(self, message: ValuePut[Key, Any] | ValueRemove[Key, Any] | ValueRejected[Key, Any]) -> None: ...

    @receiver
    def on_rejected(self, message: KeyRejected[Key] | RejectedKeyRemoved[Key]) -> None: ...

    @receiver
    def on_event(
        self,
        message: LeaderChange
        | Connected
        | Disconnected
        | Tick
        | Written
        | WriteFailed
        | FenceRenewal
        | CheckResult
        | ContentsUnknown
        | NodeJoined
        | NodeLeft
        | NodeMissing
        | NodeDied
        | IntentChanged,
    ) -> None: ...


def messages() -> list[Message]:
    """One message of each of 17 topics, the everyday ones."""
    app, node = artifact(1), NodeId("n1")
    keys: tuple[tuple[Key, Any], ...] = (
        (SliceKey(node, app), ACTIVE),
        (BlueprintKey(app), Blueprint(3)),
        (NodeKey(node), Registration()),
        (IntentKey(node), Intent(Schedule.CORDON)),
        (LeaseKey(), Lease(node, 1)),
        (FenceKey(), Fence(1)),
    )
    return [
        *(ValuePut(key, value, 1) for key, value in keys),
        *(ValueRemove(key, 1) for key, _ in keys[:5]),
        *(Tick(0.0), Connected(0.0), NodeLeft(node), NodeDied(node), NodeMissing(node), Written(app, 1, 1)),
    ]


def route(quick: bool) -> list[Figure]:
    """A message through the router, against a bare call of its receiver."""
    count, repetitions = (100_000, 5) if quick else (1_000_000, 9)
    nothing = Nothing()
    router = Router((nothing,), MESSAGES)
    kinds = messages()
    shuffled = [random.Random(1).choice(kinds) for _ in range(1_000)]
    loops = count // len(shuffled)
    routed: list[float] = []
    bare: list[float] = []
    for _ in range(repetitions):
        routed.append(seconds(lambda: _each(router.route, shuffled, loops)) * 1e9 / count)
        bare.append(seconds(lambda: _each(nothing.on_event, shuffled, loops)) * 1e9 / count)
    overhead = [each - beside for each, beside in zip(routed, bare, strict=True)]
    return [
        figure("route overhead", "ns", overhead, (), Goal(300, "value<="), note="17 topics, shuffled"),
        figure("route", "ns", routed, bare, Goal(12, "ratio<=")),
    ]


def _each(call: Callable[[Any], None], each: Sequence[Message], loops: int) -> None:
    for _ in range(loops):
        for message in each:
            call(message)
