"""The model of `tests.unit.test_reconciliation_model`, with blueprints that say where their instances go.

Besides what holds there: nothing is placed where a hard rule forbids it, no node ever reserves more than it has, and at
rest what is missing fits nowhere. A spread that waits never gives a domain more than its share and the skew, and gives
every domain its share where there is room. What is moved comes to an end: left alone, no instance is moved more than
once for each time that what it is to be near to, or apart from, may have moved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from cdm.manager.active import Active
from cdm.manager.outbox import Order
from cdm.manager.topology import Registered
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.keys import BlueprintKey, RolloutKey, SliceKey, encode
from cdm.model.node import Registration, Schedule
from cdm.model.quantity import millicores
from cdm.model.rules import OTHERS, Needs, Neighbour, OnViolation, Spread
from cdm.model.status import Condition
from tests.harness.examples import examples
from tests.unit.support import S
from tests.unit.test_choice_properties import naive_shares
from tests.unit.test_reconciliation_model import ARTIFACTS, NODES, ClusterModel, which_artifact, which_node

CORES = dict(zip(NODES, (1.0, 2.0, None, 1.5, 4.0), strict=True))
"""What each node has."""
MEMORY = dict(zip(NODES, (4, 4, 2, None, 8), strict=True))
"""The same, in GB."""
MOST_MOVES = (1, 2, 4)
"""Moves of each instance at most, once nothing else happens: by what those before it in the alphabet may do."""
zones = st.sampled_from(["a", "b"])
capacities = st.none() | st.integers(0, 4)
a_node = st.tuples(zones, capacities)
fields = st.fixed_dictionaries(
    {"min_healthy": st.sampled_from([0, 10])},
    optional={
        "require": st.sampled_from([["zone = a"], ["zone"], ["zone = b"]]),
        "spread": st.sampled_from(
            [
                [{"by": "zone"}],
                [{"by": "zone", "or": "wait"}],
                [{"by": "zone", "weights": {"a": 2, "*": 1}, "max_skew": 2, "or": "wait"}],
                [{"by": "node"}, {"by": "zone", "weights": {"b": 3, "c": 1}}],
            ]
        ),
        "prefer": st.just([{"if": "zone = b", "weight": 7}]),
        "needs": st.sampled_from([{"cpu": 0.5}, {"cpu": 0.75}, {"memory": "1G"}, {"cpu": 0.25, "memory": "2G"}]),
        "max_per_node": st.integers(1, 3),
        "strategy": st.sampled_from(["pack", "round-robin"]),
        "on_violation": st.sampled_from(["move", "stay"]),
        "rebalance": st.just("on-join"),
        "rebalanced": st.sampled_from(["x", "y"]),
    },
)
_OF_NUMBERS = ("max_per_node", "prefer", "spread", "strategy", "on_violation", "rebalance", "rebalanced")
by = st.sampled_from(["zone", "node"])
each = st.booleans().map(lambda yes: {"instances": "each"} if yes else {})


@st.composite
def neighbours(draw: st.DrawFn, artifact: Artifact, *, moves: bool, each: bool) -> dict[str, Any]:
    """What an artifact is to be near to, or apart from: itself, and others.

    What is moved off nodes that a rule forbids (``moves``) has rules about those alone that come before it in the
    alphabet: two that each have a rule about the other may chase one another for ever, as they were told to. Of what is
    to be on ``each`` node nothing can be wished for.
    """
    hard = st.just(True) if each else st.booleans()
    own = str(artifact.service)
    others = [str(each.service) for each in ARTIFACTS if each < artifact or (each != artifact and not moves)]
    found: dict[str, Any] = {}
    if apart := draw(st.lists(st.sampled_from([own, *others]), max_size=2, unique=True)):
        found["apart"] = [{"from": one, "by": draw(by), "hard": draw(hard)} for one in apart]
    near = draw(st.sampled_from([None, *(one for one in (own, *others) if one not in apart)]))
    if near is not None and not (each and near == own):
        found["near"] = [{"with": near, "by": draw(by), "hard": near != own and draw(hard)}]
    return found


class PlacementModel(ClusterModel):
    """Nodes in two zones, and users who care."""

    rounds = 60

    def registration(self, node: NodeId, zone: str, capacity: int | None, incarnation: str) -> Registration:
        gigabytes = MEMORY[node]
        memory = None if gigabytes is None else gigabytes * 10**9
        labels = {"zone": zone}
        return Registration(capacity=capacity, incarnation=incarnation, labels=labels, cpu=CORES[node], memory=memory)

    def __init__(self) -> None:
        super().__init__()
        self.world.watch = self.an_order_is_decided_on
        self.needs: dict[Artifact, set[Needs | None]] = {}
        """What each needed since there was nothing of it."""

    @initialize(
        nodes=st.lists(a_node, max_size=4) | st.lists(a_node, min_size=4, max_size=5),
        begun=st.booleans(),
        data=st.data(),
    )
    def begin(self, nodes: list[tuple[str, int | None]], begun: bool, data: st.DataObject) -> None:
        for node, (zone, capacity) in zip(NODES, nodes, strict=False):
            self.world.join(node, self.registration(node, zone, capacity, "0"))
        self.world.lead()
        if begun:
            for artifact in ARTIFACTS:
                self.user_applies(artifact, data.draw(st.integers(1, 5)), data.draw(fields), {}, data)
            self.all_goes_on()

    @rule()
    def all_goes_on(self) -> None:
        """Long enough for some to be moved."""
        for _ in range(8):
            self.world.run_down()
            self.world.tick(11.0)

    @rule(node=which_node, zone=zones)
    def a_node_has_another_label(self, node: NodeId, zone: str) -> None:
        if node in self.world.nodes:
            known = self.world.nodes[node][0]
            self.world.join(node, msgspec.structs.replace(known, labels={"zone": zone}))

    @rule(node=which_node, zone=zones, capacity=capacities, incarnation=st.sampled_from("ab"))
    def node_registers(self, node: NodeId, zone: str, capacity: int | None, incarnation: str) -> None:
        self.world.join(node, self.registration(node, zone, capacity, incarnation))

    @rule(artifact=which_artifact, instances=st.integers(0, 5), typed=fields, each=each, data=st.data())
    def user_applies(
        self, artifact: Artifact, instances: int, typed: dict[str, Any], each: dict[str, Any], data: st.DataObject
    ) -> None:
        near_and_apart = data.draw(neighbours(artifact, moves=typed.get("on_violation") == "move", each=bool(each)))
        blueprint = {"instances": instances, **typed, **near_and_apart, **each}
        if each:
            blueprint = {name: value for name, value in blueprint.items() if name not in _OF_NUMBERS}
        world, before = self.world, self.world.blueprints.get(artifact, (None, 0, None))[0]
        if before is None and not self._is_anything_of(artifact):
            self.needs.pop(artifact, None)
        elif not data.draw(st.sampled_from([False, False, False, True]), label="other needs"):
            blueprint.pop("needs", None)
            if before is not None and before.rules.needs is not None:
                needs = before.rules.needs
                blueprint["needs"] = {"cpu": needs.cpu, "memory": needs.memory}
        made = Blueprint.parse(msgspec.json.encode(blueprint))
        self.needs.setdefault(artifact, set()).add(made.rules.needs)
        world.apply(artifact, made)

    def _is_anything_of(self, artifact: Artifact) -> bool:
        """Whether there are slices of it, or some are about to be, or a rollout is known."""
        world = self.world
        orders = any(order.artifact == artifact for order in world.outbox.orders)
        there = any(key.artifact == artifact for key in world.slices) or artifact in world.manager.cluster.groups
        return orders or there or RolloutKey(artifact.service) in world.records

    def _rolled(self, artifact: Artifact) -> bool:
        """Whether it had other needs while it ran: which are in force is the business of the model of rollouts."""
        return len(self.needs.get(artifact, ())) > 1

    @invariant()
    def no_node_reserves_more_than_it_has(self) -> None:
        for node, cores in CORES.items():
            needs = [put.value.needs for key, put in self.world.slices.items() if key.node == node]
            assert sum(millicores(each.cpu) for each in needs if each is not None) <= millicores(cores or 0.0)
            assert sum(each.memory for each in needs if each is not None) <= (MEMORY[node] or 0) * 10**9

    @invariant()
    def nothing_is_placed_where_a_rule_forbids_it(self) -> None:
        world = self.world
        for order in world.decided[self.checked :]:
            desired = world.manager.cluster.desired.get(order.artifact)
            for command in order.commands:
                if command.state is S.LOAD and desired is not None and desired.blueprint is not None:
                    presence = world.topology.nodes[command.key.node]
                    assert isinstance(presence, Registered)
                    assert all(one.holds(presence.registration.labels) for one in desired.blueprint.rules.require)
                    assert world.topology.schedule(command.key.node) is Schedule.NORMAL

    def an_order_is_decided_on(self, order: Order) -> None:
        """Look at it, with all that the leader has seen and ordered so far."""
        self.apart_is_what_must_be_apart(order)
        self.no_domain_gets_more_than_its_share_where_others_wait(order)

    def no_domain_gets_more_than_its_share_where_others_wait(self, order: Order) -> None:
        """What is moved has its old place until the new one is healthy, and rollouts have more for a while."""
        world, artifact = self.world, order.artifact
        desired = world.manager.cluster.desired.get(artifact)
        loads = {command.key for command in order.commands if command.state is S.LOAD}
        state = world.manager.state
        moving = isinstance(state, Active) and state._moves.under_way(artifact)
        if desired is None or desired.blueprint is None or not loads or moving or self._rolled(artifact):
            return
        # Of those that are on their way some may be given up, so only these certainly count.
        there = {
            key
            for key, put in world.manager.cluster.group(artifact).slices.items()
            if put.value.state in (S.LOADED, S.ACTIVE) and self._counts(key.node)
        }
        for spread in desired.blueprint.rules.spread:
            if not spread.anyway:
                counts = Counter(self._labels(key.node).get(spread.by) for key in there | loads)
                for key in loads:
                    domain = self._labels(key.node).get(spread.by)
                    most = max(self._shares(desired.blueprint, spread, domain)) + spread.max_skew - 1
                    assert counts[domain] <= most, f"{counts[domain]} in {domain}, and not {most}: {order}"

    def _counts(self, node: NodeId) -> bool:
        presence = self.world.topology.nodes.get(node)
        return isinstance(presence, Registered) and self.world.topology.schedule(node) is not Schedule.DRAIN

    def _shares(self, blueprint: Blueprint, spread: Spread, domain: str | None) -> set[int]:
        """What the domain's share may be, by largest remainder."""
        topology, require = self.world.topology, blueprint.rules.require
        domains = {each for each in spread.weights if each != OTHERS}
        for node in {*topology.nodes, *topology.seen}:
            presence, seen = topology.nodes.get(node), topology.seen.get(node)
            known = presence.registration if isinstance(presence, Registered) else seen and seen.registration
            labels = {**(known.labels if known else {}), "node": node}
            if all(one.holds(labels) for one in require):
                domains.add(labels.get(spread.by, ""))
        weights = {each: spread.weight(each or None) for each in domains}
        return {way[domain or ""] for way in naive_shares(blueprint.instances, weights)}

    def apart_is_what_must_be_apart(self, order: Order) -> None:
        """Nothing is placed beside what it must be apart from."""
        world = self.world
        desired = world.manager.cluster.desired.get(order.artifact)
        if desired is None or desired.blueprint is None:
            return
        groups = world.manager.cluster.groups.values()
        # What is being stopped may still serve.
        there = {key for group in groups for key, put in group.slices.items() if put.value.state is not S.FAILED}
        there |= {each.key for one in world.outbox.orders for each in one.commands if each.state is S.LOAD}
        for command in order.commands:
            if command.state is S.LOAD:
                labels, most = self._labels(command.key.node), desired.blueprint.rules.max_per_node
                on_it = {key for key in there if (key.node, key.artifact) == (command.key.node, order.artifact)}
                assert most is None or len({*on_it, command.key}) <= most, command
                for rule in desired.blueprint.rules.apart:
                    assert not rule.hard or not self._is_near(rule, labels, there - {command.key}), command

    def _fits(self, node: NodeId, artifact: Artifact, blueprint: Blueprint) -> bool:
        """Whether one more instance fits there, by the buckets alone."""
        world = self.world
        registration, _ = world.nodes[node]
        if world.intents.get(node, Schedule.NORMAL) is not Schedule.NORMAL or not registration.hosts:
            return False
        on_it = {key: put.value for key, put in world.slices.items() if key.node == node}
        if registration.capacity is not None and len(on_it) >= registration.capacity:
            return False
        if blueprint.each and any(key.artifact == artifact for key in on_it):
            return False
        most = blueprint.rules.max_per_node
        if most is not None and sum(key.artifact == artifact for key in on_it) >= most:
            return False
        if not self._is_allowed(node, blueprint):
            return False
        needs = blueprint.rules.needs
        if needs is None:
            return True
        held = [value.needs for value in on_it.values() if value.needs is not None]
        return sum(millicores(each.cpu) for each in (*held, needs)) <= millicores(registration.cpu or 0.0) and (
            sum(each.memory for each in (*held, needs)) <= (registration.memory or 0)
        )

    def _check(self, artifact: Artifact) -> None:
        world = self.world
        states = world.states(artifact)
        valid, in_force, refused = world.blueprints.get(artifact, (None, 0, None))
        if artifact not in world.blueprints:
            assert states == {}, "without a blueprint nothing is left"
            return
        status = world.statuses[encode(BlueprintKey(artifact))]
        assert status.in_force_revision == in_force
        if valid is None:
            return
        assert all(key.node in world.nodes for key in states), "keys of dead nodes are deleted"
        serving = {key for key, state in states.items() if state is S.ACTIVE}
        draining = {key for key in states if world.intents.get(key.node) is Schedule.DRAIN}
        wanted = status.desired
        if self._rolled(artifact):
            assert len(serving - draining) <= wanted
            return
        assert valid.each or wanted == valid.instances
        assert len(serving - draining) <= wanted
        fitting = [node for node in world.nodes if self._fits(node, artifact, valid)]
        short = [node for node in fitting if self._is_short(node, valid, serving - draining)]
        if len(serving - draining) == wanted:
            assert serving == set(states)
            assert refused or status.condition is Condition.READY
        else:
            assert not short, f"{status.reason}, though {short} would take one"
            trouble = Condition.UNSCHEDULABLE if world.nodes else Condition.DEGRADED
            assert refused or status.condition is trouble, f"{status}: {states}"
        if valid.each:
            assert len({key.node for key in serving}) == len(serving)
        forbidden = [key for key in serving - draining if not self._is_allowed(key.node, valid, key)]
        assert len(forbidden) == (status.violations or 0), f"{status}: {states}"
        if forbidden and len(serving - draining) == wanted and valid.on_violation is OnViolation.MOVE:
            waits = any(not each.anyway for each in valid.rules.spread)  # by what goes, others' shares are others
            assert not fitting or waits, f"{forbidden} could go to {fitting}"

    def _is_short(self, node: NodeId, blueprint: Blueprint, placed: Collection[SliceKey]) -> bool:
        """Whether the node's domains certainly have room for one more, by the spreads that wait."""
        for spread in blueprint.rules.spread:
            domain = self._labels(node).get(spread.by)
            have = sum(self._labels(key.node).get(spread.by) == domain for key in placed)
            least = min(self._shares(blueprint, spread, domain)) + spread.max_skew - 1
            if not spread.anyway and have >= least:
                return False
        return True

    def _is_allowed(self, node: NodeId, blueprint: Blueprint, itself: SliceKey | None = None) -> bool:
        """Whether hard rules let an instance be there, whatever room there is; ``itself``: it is there."""
        labels, rules = self._labels(node), blueprint.rules
        there = {key for key, put in self.world.slices.items() if put.value.state.live and key != itself}
        if itself is not None and rules.max_per_node is not None:
            beside = sum(key.node == node and key.artifact == itself.artifact for key in there)
            if beside >= rules.max_per_node:
                return False
        return (
            all(one.holds(labels) for one in rules.require)
            and all(self._is_near(each, labels, there) for each in rules.near if each.hard)
            and not any(self._is_near(each, labels, there) for each in rules.apart if each.hard)
        )

    def _is_near(self, rule: Neighbour, labels: Mapping[str, str], there: Collection[SliceKey]) -> bool:
        """Whether one of these slices is where the rule speaks of, seen from a node with these labels."""
        return rule.by in labels and any(
            str(key.artifact.service) == rule.service
            and key.node in self.world.nodes
            and self._labels(key.node).get(rule.by) == labels[rule.by]
            for key in there
        )

    def _labels(self, node: NodeId) -> Mapping[str, str]:
        return {**self.world.nodes[node][0].labels, "node": node}

    @rule()
    def at_rest_all_is_well(self) -> None:
        """Also what is moved is, and it was moved no more often than was needed."""
        before = len(self.world.decided)
        super().at_rest_all_is_well()
        moved = Counter(
            order.artifact
            for order in self.world.decided[before:]
            for command in order.commands
            if command.state is S.UNLOAD and "moved off" in command.reason
        )
        for number, artifact in enumerate(ARTIFACTS):
            valid = self.world.blueprints.get(artifact, (None, 0, None))[0]
            most = MOST_MOVES[number] * (valid.instances if valid is not None else 0)
            assert moved[artifact] <= most, f"{moved[artifact]} moves of {artifact}, {valid}"


PlacementModel.TestCase.settings = settings(max_examples=examples(120), stateful_step_count=30, deadline=None)
TestPlacementModel = PlacementModel.TestCase
