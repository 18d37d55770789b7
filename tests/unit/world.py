"""The buckets as dictionaries, and one manager in front of them, in virtual time.

What the manager orders is written, and comes back through the mirror, only when a test says so: late, unacknowledged,
in part, or not at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cdm.dispatch.messages import (
    MESSAGES,
    Cause,
    Connected,
    Disconnected,
    LeaderChange,
    Message,
    Tick,
    ValuePut,
    ValueRejected,
    ValueRemove,
    WriteFailed,
    Written,
)
from cdm.dispatch.router import Router
from cdm.manager.active import Active
from cdm.manager.manager import ClusterDeploymentManager
from cdm.manager.outbox import Order, Outbox
from cdm.manager.policy import Policy
from cdm.manager.topology import Registered, Topology
from cdm.model.artifact import Artifact, NodeId, Service
from cdm.model.blueprint import Blueprint
from cdm.model.keys import (
    BlueprintKey,
    FenceKey,
    IntentKey,
    Key,
    LastValidKey,
    LeaseKey,
    NodeKey,
    RolloutKey,
    SeenKey,
    SliceKey,
    StatusKey,
)
from cdm.model.last_valid import LastValid
from cdm.model.node import Fence, Intent, Lease, Registration, Schedule, Seen
from cdm.model.record import Rollout
from cdm.model.slice import SliceState, SliceValue, legal
from cdm.model.status import Status
from tests.unit.support import S

ME = NodeId("me")
TTL = 10.0
HEARTBEAT = 10.0
"""Seconds between two heartbeats of a node: rare, so that little is done, and often enough."""
NEXT: dict[SliceState, SliceState | None] = {
    S.LOAD: S.LOADING,
    S.LOADING: S.LOADED,
    S.ACTIVATE: S.ACTIVATING,
    S.ACTIVATING: S.ACTIVE,
    S.DEACTIVATE: S.DEACTIVATING,
    S.DEACTIVATING: S.LOADED,
    S.UNLOAD: S.UNLOADING,
    S.UNLOADING: None,
}
"""What an agent that meets no trouble reports next."""


class World:
    """A cluster of one manager.

    ``slices``, ``blueprints``, ``nodes``, ``intents`` and ``statuses`` are the buckets; ``markers`` is what tells how
    nodes went.
    """

    def __init__(self, *, interval: float = 30.0, policy: Policy | None = None) -> None:
        self.now = 1_000.0
        self.clock: Callable[[], float] = lambda: self.now
        self.interval = interval
        self.policy = policy or Policy(settle=0.0)
        self.sequence = 0
        self.term = 0
        self.slices: dict[SliceKey, ValuePut[SliceKey, SliceValue]] = {}
        self.records: dict[Key, ValuePut[Any, Any]] = {}
        """Of rollouts, and copies of blueprints."""
        self.blueprints: dict[Artifact, tuple[Blueprint | None, int, tuple[str, int] | None]] = {}
        """The last valid one and its revision, and the refused one after it."""
        self.nodes: dict[NodeId, tuple[Registration, float]] = {}
        self.markers: dict[NodeId, Cause] = {}
        self.intents: dict[NodeId, Schedule] = {}
        self.more_of_intents: dict[NodeId, tuple[dict[str, Any], float]] = {}
        """Their other fields, and when they were stored."""
        self.seen: dict[NodeId, tuple[Seen, float]] = {}
        self.statuses: dict[str, Status] = {}
        self.mirror: deque[Message] = deque()
        """What the mirror of ``slices`` has yet to bring."""
        self.acks: deque[Message] = deque()
        self.decided: list[Order] = []
        """Every order so far."""
        self.told: list[dict[str, Status | None]] = []
        """Every batch of statuses so far."""
        self.wakes = 0
        self.watch: Callable[[Order], None] = lambda order: None
        """Called with each order, at the moment that it is decided on."""
        self.may_fail = False
        """Whether decisions may raise."""
        self.boot()

    # The process

    def boot(self, order: Iterable[str] = ("nodes", "blueprints", "slices", "statuses")) -> None:
        """Start a process that knows nothing; its mirrors fill bucket by bucket."""
        self.mirror.clear()
        self.acks.clear()
        self.topology = Topology(self._emit, TTL)
        self.outbox = Outbox(self._on_order, lambda: None)
        self.manager = ClusterDeploymentManager(
            ME, self.topology, self.outbox, self._read_clock, self._wake, self.policy, self.interval
        )
        self.router = Router([self.topology, self.manager], MESSAGES)
        for bucket in order:
            getattr(self, f"_list_{bucket}")()
        self.route(Connected(self.now))

    def _read_clock(self) -> float:
        return self.clock()

    def _list_nodes(self) -> None:
        for node, (seen, at) in self.seen.items():
            self.route(ValuePut(SeenKey(node), seen, 1, at))
        for node, (registration, heard) in self.nodes.items():
            self.route(ValuePut(NodeKey(node), registration, 1, heard))
        for node, cause in self.markers.items():
            self._tell_gone(node, cause)
        for node, schedule in self.intents.items():
            more, at = self.more_of_intents.get(node, ({}, self.now))
            self.route(ValuePut(IntentKey(node), Intent(schedule, **more), 1, at))

    def _list_blueprints(self) -> None:
        for artifact, (valid, revision, refused) in self.blueprints.items():
            if valid is not None:
                self.route(ValuePut(BlueprintKey(artifact), valid, revision))
            if refused is not None:
                self.route(ValueRejected(BlueprintKey(artifact), *refused))

    def _list_slices(self) -> None:
        for put in sorted([*self.slices.values(), *self.records.values()], key=lambda put: put.revision):
            self.route(put)

    def _list_statuses(self) -> None:
        for name, status in self.statuses.items():
            self.route(ValuePut(StatusKey(name), status, 1))

    def _emit(self, message: Message) -> None:
        self.route(message)

    def _wake(self) -> None:
        self.wakes += 1

    def route(self, message: Message) -> None:
        self.router.route(message)

    @property
    def active(self) -> bool:
        return isinstance(self.manager.state, Active)

    def lead(self) -> None:
        """A new term of this process, behind its read barrier."""
        self.deliver()
        self.acks.clear()
        self.outbox.clear()
        self.term += 1
        self.sequence += 2
        self.route(ValuePut(LeaseKey(), Lease(ME, self.term), self.sequence - 1))
        self.route(ValuePut(FenceKey(), Fence(self.term, ME), self.sequence))
        self.route(LeaderChange(ME, self.term, local_node_is_leader=True))

    def step_down(self) -> None:
        self.acks.clear()
        self.route(LeaderChange(None, self.term, local_node_is_leader=False))

    def outage(self, seconds: float) -> dict[NodeId, Registration]:
        """NATS is away for so long, and all registrations expire; returns those of the nodes, which are yet to be back.

        This process is back first, and leads again.
        """
        self.step_down()
        self.route(Disconnected(self.now))
        self.now += seconds
        away = {node: registration for node, (registration, _) in self.nodes.items()}
        for node in away:
            self.expire(node)
        self.route(Connected(self.now))
        self.lead()
        return away

    def back(self, away: Mapping[NodeId, Registration]) -> None:
        """Nodes register again."""
        for node, registration in away.items():
            self.join(node, registration)

    def tick(self, seconds: float = 0.0) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + HEARTBEAT, until)
            self._beat()
        self.route(Tick(self.now))
        state = self.manager.state
        for error in state.undecided.values() if isinstance(state, Active) and not self.may_fail else ():
            raise error

    def _beat(self) -> None:
        """All nodes that are registered are heard."""
        for node, (registration, _) in self.nodes.items():
            self.nodes[node] = (registration, self.now)
            self.route(ValuePut(NodeKey(node), registration, 1, self.now))

    # What others write

    def join(self, node: NodeId, registration: Registration | None = None) -> None:
        registration = registration or Registration()
        self.nodes[node] = (registration, self.now)
        self.markers.pop(node, None)
        self.route(ValuePut(NodeKey(node), registration, 1, self.now))

    def expire(self, node: NodeId, cause: Cause = Cause.EXPIRED) -> None:
        del self.nodes[node]
        if cause is not Cause.MISSING:
            self.markers[node] = cause
        self._tell_gone(node, cause)

    def _tell_gone(self, node: NodeId, cause: Cause) -> None:
        gone: ValueRemove[NodeKey, Registration] = ValueRemove(NodeKey(node), 1, cause, self.now)
        self.route(gone)

    def forget(self, node: NodeId) -> None:
        """An operator has a node that is gone forgotten."""
        del self.seen[node]
        forgotten: ValueRemove[SeenKey, Seen] = ValueRemove(SeenKey(node), 1, at=self.now)
        self.route(forgotten)

    def intend(self, node: NodeId, schedule: Schedule, **more: Any) -> None:
        self.intents[node] = schedule
        self.more_of_intents[node] = (more, self.now)
        self.route(ValuePut(IntentKey(node), Intent(schedule, **more), 1, self.now))

    def want(self, artifact: Artifact, instances: int, min_healthy: float = 0.0) -> None:
        self.apply(artifact, Blueprint(instances, min_healthy=min_healthy))

    def apply(self, artifact: Artifact, blueprint: Blueprint) -> None:
        self.sequence += 1
        self.blueprints[artifact] = (blueprint, self.sequence, None)
        self.route(ValuePut(BlueprintKey(artifact), blueprint, self.sequence))

    def refuse(self, artifact: Artifact, reason: str = "instances: must be a whole number") -> None:
        self.sequence += 1
        valid, revision, _ = self.blueprints.get(artifact, (None, 0, None))
        self.blueprints[artifact] = (valid, revision, (reason, self.sequence))
        self.route(ValueRejected(BlueprintKey(artifact), reason, self.sequence))

    def drop(self, artifact: Artifact) -> None:
        self.sequence += 1
        del self.blueprints[artifact]
        gone: ValueRemove[BlueprintKey, Blueprint] = ValueRemove(BlueprintKey(artifact), self.sequence)
        self.route(gone)

    def store(self, key: SliceKey, value: SliceValue | None) -> int:
        """Write a slice; the mirror brings it later."""
        self.sequence += 1
        if value is not None:
            self.slices[key] = ValuePut(key, value, self.sequence, self.now)
            self.mirror.append(self.slices[key])
        elif self.slices.pop(key, None) is not None:
            gone: ValueRemove[SliceKey, SliceValue] = ValueRemove(key, self.sequence, at=self.now)
            self.mirror.append(gone)
        return self.sequence

    def store_record(self, service: Service, record: Rollout | None) -> int:
        """Write the record of a rollout; the mirror brings it later."""
        return self.store_beside(RolloutKey(service), record)

    def store_beside(self, key: RolloutKey | LastValidKey, value: Rollout | LastValid | None) -> int:
        """Write what is no slice; the mirror brings it later."""
        self.sequence += 1
        put = self.records.pop(key, None)
        if value is not None:
            self.records[key] = ValuePut(key, value, self.sequence, self.now)
            self.mirror.append(self.records[key])
        elif put is not None:
            gone: ValueRemove[Any, Any] = ValueRemove(key, self.sequence, at=self.now)
            self.mirror.append(gone)
        return self.sequence

    def report(
        self, key: SliceKey, state: SliceState | None, *, copy: bool = True, fatal: bool = False, **more: Any
    ) -> None:
        """An agent writes a slice's next state; ``more``: other fields of the value."""
        before = self.slices[key].value
        assert legal(before.state, state), "the test's agent obeys the table"
        if state is None:
            self.store(key, None)
            return
        fields: dict[str, Any] = {"reason": "it broke" if state is S.FAILED else None, "restarts": before.restarts}
        fields["needs"] = before.needs  # an agent whose node tells what it has knows of them
        if copy:
            fields |= {"failures": before.failures, "blueprint": before.blueprint, "overrides": before.overrides}
            fields |= {"template": before.template, "content": before.content}
        self.store(key, SliceValue(state, before.term, fatal=fatal, **(fields | more)))

    def end(self, key: SliceKey, reason: str = "exit status 1", **more: Any) -> None:
        """The program of an ACTIVE slice ended, and is being started again."""
        restarts = (self.slices[key].value.restarts or 0) + 1
        self.report(key, S.ACTIVATING, restarts=restarts, reason=reason, **more)

    # What the manager writes

    def _on_order(self) -> None:
        order = self.outbox.orders[-1]
        self.decided.append(order)
        for command in order.commands:
            known = self.manager.cluster.group(command.key.artifact).slices.get(command.key)
            state = known.value.state if known else None
            if command.state is not None:
                assert legal(state, command.state), f"{state} -> {command}"
            else:
                presence = self.topology.nodes.get(command.key.node)
                gone = presence is None or (isinstance(presence, Registered) and not presence.registration.hosts)
                assert known is not None
                assert gone or state in (S.UNLOAD, S.UNLOADING), f"{state} -> {command}"
        self.watch(order)

    def write(self, *, stored: int | None = None, acked: bool = True) -> Order | None:
        """Carry out one order: ``stored`` of its commands, all if None."""
        order = self.outbox.take_order()
        if order is None:
            return None
        commands: Sequence[Any] = order.commands if stored is None else order.commands[:stored]
        revision = self.sequence
        if stored is None or stored > 0 or not order.commands:
            for service, record in order.records.items():
                revision = self.store_record(service, record)
            for artifact, copy in order.copies.items():
                revision = self.store_beside(LastValidKey(artifact), copy)
        for command in commands:
            before = self.slices.get(command.key)
            state = before.value.state if before else None
            if command.state is None:
                revision = self.store(command.key, None)
                continue
            assert legal(state, command.state), f"{state} -> {command} in the bucket"
            value = SliceValue(
                command.state,
                order.term,
                failures=command.failures or None,
                blueprint=command.blueprint or None,
                overrides=command.overrides,
                template=command.template,
                content=command.content,
                after=command.after,
                needs=command.needs,
            )
            revision = self.store(command.key, value)
        for artifact in (order.artifact, *order.also):
            if acked and len(commands) == len(order.commands):
                self.acks.append(Written(artifact, order.term, revision))
            else:
                self.acks.append(WriteFailed(artifact, order.term, self.sequence, "no answer"))
        return order

    def deliver(self, count: int | None = None) -> None:
        """Let the mirror of ``slices`` come on."""
        while self.mirror and (count is None or count > 0):
            self.route(self.mirror.popleft())
            count = None if count is None else count - 1
        if not self.mirror:
            # The renewed lease tells how far the stream has come.
            self.sequence += 1
            self.route(ValuePut(LeaseKey(), Lease(ME, self.term), self.sequence))

    def acknowledge(self) -> None:
        while self.acks:
            self.route(self.acks.popleft())

    def tell(self) -> None:
        """Carry out all statuses, and remember nodes."""
        for node, seen in self.outbox.take_seen(10_000).items():
            self.seen[node] = (seen, self.now)
            self.route(ValuePut(SeenKey(node), seen, 1, self.now))
        taken = self.outbox.take_statuses(10_000)
        if taken:
            self.told.append(taken)
        for name, status in taken.items():
            if status is None:
                if self.statuses.pop(name, None) is not None:
                    gone: ValueRemove[StatusKey, Status] = ValueRemove(StatusKey(name), 1)
                    self.route(gone)
            else:
                self.statuses[name] = status
                self.route(ValuePut(StatusKey(name), status, 1))

    def settle(self) -> int:
        """Write, deliver and decide until nothing is left to do now; returns how many orders that took."""
        before = len(self.decided)
        for _ in range(200):
            self.deliver()
            self.acknowledge()
            self.tick()
            if not self.outbox.orders and not self.mirror and not self.acks:
                self.tell()
                return len(self.decided) - before
            while self.write():
                pass
        raise AssertionError("it never comes to rest")

    # Agents

    def answer(self) -> bool:
        """All agents go one step on; returns whether any did."""
        moved = False
        for key, put in list(self.slices.items()):
            if key.node in self.nodes and put.value.state in NEXT:
                self.report(key, NEXT[put.value.state])
                moved = True
        return moved

    def run_down(self) -> None:
        """Agents and manager go on until nobody has anything to do at this moment."""
        for _ in range(100):
            self.settle()
            if not self.answer():
                return
        raise AssertionError("it never comes to rest")

    def states(self, artifact: Artifact) -> dict[SliceKey, SliceState]:
        return {key: put.value.state for key, put in self.slices.items() if key.artifact == artifact}
