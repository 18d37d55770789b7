"""The manager against a model of the buckets: anything may happen in any order, and in the end all is well.

While things happen, every command must be legal for the state that its key is in, both as the manager sees it and in
the bucket. At rest (all agents answer, enough time has passed) every blueprint has its instances or a status that says
why not, dead nodes keep nothing, and a further round writes nothing.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cdm.dispatch.messages import Cause
from cdm.manager.policy import Policy
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.keys import BlueprintKey, SliceKey, encode
from cdm.model.node import Registration, Schedule
from cdm.model.slice import SliceState
from cdm.model.status import Condition
from tests.harness.examples import examples
from tests.unit.support import S, n
from tests.unit.world import NEXT, World

ARTIFACTS = [Artifact("g", name, "1") for name in "abc"]
NODES = [n(number) for number in range(1, 6)]
which_artifact = st.sampled_from(ARTIFACTS)
which_node = st.sampled_from(NODES)
numbers = st.integers(0, 1_000_000)
POLICY = Policy(retry_limit=60.0, settle=0.0)
BREAKABLE = (S.LOADING, S.ACTIVATING, S.ACTIVE, S.UNLOADING)


class ClusterModel(RuleBasedStateMachine):
    """One manager, its buckets, agents and operators."""

    rounds = 14
    """So many rounds over everything, at most, until all is at rest."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(policy=POLICY)
        self.checked = 0
        self.deleted: set[Artifact] = set()
        """Blueprints that the present process has seen deleted."""

    @initialize(capacities=st.lists(st.none() | st.integers(0, 4), min_size=0, max_size=4))
    def begin(self, capacities: list[int | None]) -> None:
        for node, capacity in zip(NODES, capacities, strict=False):
            self.world.join(node, Registration(capacity=capacity, incarnation="0"))
        self.world.lead()

    # Nodes and operators

    @rule(node=which_node, capacity=st.none() | st.integers(0, 4), incarnation=st.sampled_from("ab"))
    def node_registers(self, node: NodeId, capacity: int | None, incarnation: str) -> None:
        self.world.join(node, Registration(capacity=capacity, incarnation=incarnation))

    @rule(node=which_node, cause=st.sampled_from([Cause.EXPIRED, Cause.EXPIRED, Cause.MISSING, Cause.DELETED]))
    def node_is_gone(self, node: NodeId, cause: Cause) -> None:
        if node in self.world.nodes:
            self.world.expire(node, cause)

    @rule(node=which_node, schedule=st.sampled_from(Schedule))
    def operator_intends(self, node: NodeId, schedule: Schedule) -> None:
        self.world.intend(node, schedule)

    # Users

    @rule(artifact=which_artifact, instances=st.integers(0, 7), min_healthy=st.sampled_from([0.0, 0.0, 10.0]))
    def user_applies(self, artifact: Artifact, instances: int, min_healthy: float) -> None:
        self.world.want(artifact, instances, min_healthy)

    @rule(artifact=which_artifact)
    def user_mistypes(self, artifact: Artifact) -> None:
        self.world.refuse(artifact)

    @rule(artifact=which_artifact)
    def user_deletes(self, artifact: Artifact) -> None:
        if artifact in self.world.blueprints:
            self.world.drop(artifact)
            self.deleted.add(artifact)

    # Agents

    def _slices(self, *states: SliceState) -> list[SliceKey]:
        world = self.world
        return [key for key, put in world.slices.items() if key.node in world.nodes and put.value.state in states]

    @rule(number=numbers, copy=st.booleans())
    def one_agent_goes_on(self, number: int, copy: bool) -> None:
        if keys := self._slices(*NEXT):
            key = keys[number % len(keys)]
            self.world.report(key, NEXT[self.world.slices[key].value.state], copy=copy)

    @rule()
    def all_agents_go_on(self) -> None:
        self.world.answer()

    @rule(number=numbers, fatal=st.booleans(), copy=st.booleans())
    def a_slice_fails(self, number: int, fatal: bool, copy: bool) -> None:
        if keys := self._slices(*BREAKABLE):
            self.world.report(keys[number % len(keys)], S.FAILED, fatal=fatal, copy=copy)

    @rule(number=numbers, copy=st.booleans())
    def a_program_ends_and_is_started_again(self, number: int, copy: bool) -> None:
        if keys := self._slices(S.ACTIVE):
            self.world.end(keys[number % len(keys)], copy=copy)

    # Time, the mirror and the store

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 5.0, 11.0, 31.0, 61.0, 121.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.tick(seconds)

    @rule(count=st.integers(1, 5))
    def the_mirror_comes_on(self, count: int) -> None:
        self.world.deliver(count)

    @rule()
    def acknowledgements_come(self) -> None:
        self.world.acknowledge()

    @rule()
    def the_store_writes(self) -> None:
        self.world.write()

    @rule(stored=st.integers(0, 3))
    def the_store_fails(self, stored: int) -> None:
        # Batches are atomic, but an order may be spread over several.
        self.world.write(stored=stored, acked=False)

    @rule()
    def statuses_are_written(self) -> None:
        self.world.tell()

    @rule()
    def everything_settles(self) -> None:
        self.world.settle()

    @rule(repeatedly=st.integers(1, 3))
    def everybody_does_their_work(self, repeatedly: int) -> None:
        for _ in range(repeatedly):
            self.world.run_down()
            self.world.tick(5.0)

    # Leadership

    @precondition(lambda self: self.world.active)
    @rule()
    def leadership_ends(self) -> None:
        self.world.step_down()

    def _lead(self) -> None:
        world = self.world
        before = {artifact: world.blueprints[artifact] for artifact in world.blueprints}
        world.lead()
        for artifact, (valid, _, refused) in before.items():
            desired = world.manager.cluster.desired[artifact]
            if valid is not None or artifact in self.deleted:
                assert desired.blueprint == valid
            # What was recovered from the status is in force again: the model knows it as such, too. (A process that
            # began after a deletion cannot tell what the status says from what has left the history.)
            world.blueprints[artifact] = (desired.blueprint, desired.in_force, refused)

    @precondition(lambda self: not self.world.active)
    @rule()
    def leadership_begins(self) -> None:
        self._lead()

    @rule(
        node=which_node,
        cause=st.sampled_from([Cause.EXPIRED, Cause.DELETED]),
        seconds=st.sampled_from([0.0, 11.0, 130.0]),
    )
    def a_node_goes_while_nobody_leads(self, node: NodeId, cause: Cause, seconds: float) -> None:
        if self.world.active:
            self.world.step_down()
        self.node_is_gone(node, cause)
        self.world.tick(seconds)
        self._lead()

    @rule(
        order=st.permutations(["nodes", "blueprints", "slices", "statuses"]),
        forgets=st.booleans(),
        pause=st.sampled_from([0.0, 1.0, 50.0]),
    )
    def another_process_takes_over(self, order: list[str], forgets: bool, pause: float) -> None:
        world = self.world
        world.tell()
        lost: dict[Artifact, Blueprint] = {}
        if forgets:
            # Refused blueprints have pushed the valid one out of the history; the status is all that is left.
            for artifact, (valid, revision, refused) in list(world.blueprints.items()):
                status = world.statuses.get(encode(BlueprintKey(artifact)))
                if refused and valid and status and status.in_force_revision == revision:
                    world.blueprints[artifact] = (None, 0, refused)
                    lost[artifact] = valid
        self.deleted.clear()
        world.now += pause
        world.boot(order)
        world.tick()
        self._lead()
        for artifact, valid in lost.items():
            assert world.blueprints[artifact][0] == valid, "the last valid one is recovered"

    # What always holds

    @invariant()
    def no_more_is_asked_for_than_is_needed(self) -> None:
        world = self.world
        for order in world.decided[self.checked :]:
            desired = world.manager.cluster.desired.get(order.artifact)
            loads = [command for command in order.commands if command.state is S.LOAD]
            if loads:
                assert desired is not None
                assert desired.blueprint is not None
            states = Counter(command.state for command in order.commands)
            assert not (states[S.LOAD] and states[S.DEACTIVATE])
        self.checked = len(world.decided)

    @invariant()
    def records_and_counts_agree(self) -> None:
        for group in self.world.manager.cluster.groups.values():
            states = Counter(put.value.state for put in group.slices.values())
            assert {state: count for state, count in group.counts.items() if count} == states

    @invariant()
    def nothing_is_wanted_of_a_process_that_does_not_lead(self) -> None:
        if not self.world.active:
            assert not self.world.outbox.orders
            assert not self.world.outbox.statuses

    # At rest

    @rule()
    def at_rest_all_is_well(self) -> None:
        world = self.world
        if not world.active:
            self._lead()
        for _ in range(self.rounds):
            world.run_down()
            world.tick(31.0)
        world.run_down()
        for artifact in ARTIFACTS:
            self._check(artifact)
        known = {encode(BlueprintKey(artifact)) for artifact in world.blueprints}
        assert set(world.statuses) == known
        assert set(world.topology.nodes) == set(world.nodes), "the dead are known to be dead"
        decided, told = len(world.decided), len(world.told)
        for _ in range(3):
            world.tick(31.0)
            world.settle()
        assert len(world.decided) == decided, "what needs no change gets no order"
        assert len(world.told) == told, "… and no status"

    def teardown(self) -> None:
        self.at_rest_all_is_well()

    def _room(self) -> int:
        """How many more slices would fit on nodes that take any."""
        world = self.world
        held = Counter(key.node for key in world.slices)
        room = 0
        for node, (registration, _) in world.nodes.items():
            if world.intents.get(node, Schedule.NORMAL) is Schedule.NORMAL:
                room += 1_000 if registration.capacity is None else max(registration.capacity - held[node], 0)
        return room

    def _check(self, artifact: Artifact) -> None:
        world = self.world
        states = world.states(artifact)
        valid, in_force, refused = world.blueprints.get(artifact, (None, 0, None))
        if artifact not in world.blueprints:
            assert states == {}, "without a blueprint nothing is left"
            return
        status = world.statuses[encode(BlueprintKey(artifact))]
        assert status.observed_revision == (refused[1] if refused else in_force)
        assert status.in_force_revision == in_force
        problem, _, trouble = status.reason.partition("; in force: ")
        if refused:
            assert status.condition is Condition.INVALID
            assert problem == refused[0]
        if valid is None:
            return  # there never was a valid one: nothing is changed
        assert all(key.node in world.nodes for key in states), "keys of dead nodes are deleted"
        serving = {key for key, state in states.items() if state is S.ACTIVE}
        draining = {key for key in states if world.intents.get(key.node) is Schedule.DRAIN}
        placed = serving - draining
        assert len(placed) <= valid.instances
        if len(placed) == valid.instances:
            assert placed == set(states), "what failed, or drained and is replaced, is unloaded"
            assert not trouble if refused else status.condition is Condition.READY
        else:
            # Or a status says why not.
            assert self._room() == 0, f"{len(placed)} of {valid.instances} placed, though there is room"
            assert trouble or status.condition is (Condition.UNSCHEDULABLE if world.nodes else Condition.DEGRADED)
            assert all(state in (S.ACTIVE, S.FAILED) for state in states.values())
            assert len(serving) <= valid.instances
        assert (status.desired, status.active) == (valid.instances, len(serving))
        assert (status.pending, status.failed) == (0, len(states) - len(serving))


ClusterModel.TestCase.settings = settings(max_examples=examples(300), stateful_step_count=50, deadline=None)
TestClusterModel = ClusterModel.TestCase
