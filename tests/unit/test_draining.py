"""A drain replaces first; what is left at a forced deadline goes, dependents first; why it has not gone yet is told."""

from __future__ import annotations

from typing import Any

import pytest

from cdm.cli.node_tables import left_in_short
from cdm.dispatch.messages import Cause, Message, ValuePut, ValueRejected, ValueRemove
from cdm.manager.emptying import left_on
from cdm.manager.left import Left
from cdm.manager.onlooker import Onlooker
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint, Overrides
from cdm.model.condition import LabelCondition
from cdm.model.keys import BlueprintKey, IntentKey, LeaseKey, NodeKey, SliceKey
from cdm.model.node import FEATURES, LOST, Intent, Lease, Registration, Schedule
from cdm.model.rules import Rules
from cdm.model.slice import SliceState, SliceValue
from tests.unit.support import APP, OTHER, S, n, put
from tests.unit.world import ME, World

pytestmark = pytest.mark.quick

NEW = Registration(version="2", features=FEATURES)
ON_N1 = Rules(require=(LabelCondition.parse("node = n1"),))


def world(*nodes: int) -> World:
    """A cluster whose manager leads."""
    it = World()
    for number in nodes:
        it.join(n(number), NEW)
    it.lead()
    return it


def running(it: World, artifact: Artifact = APP) -> list[NodeId]:
    """The nodes on which instances of the artifact are ACTIVE."""
    return sorted(key.node for key, state in it.states(artifact).items() if state is S.ACTIVE)


def test_what_is_left_goes_at_the_deadline_and_not_before() -> None:
    it = world(1, 2)
    it.apply(APP, Blueprint(1, min_healthy=0, rules=ON_N1))
    it.run_down()
    it.intend(n(1), Schedule.DRAIN, deadline="1m", force=True)
    it.run_down()
    it.tick(59)
    it.run_down()
    assert running(it) == [n(1)]
    wake = it.manager.wake_at()
    assert wake is not None
    assert wake <= it.now + 1
    it.tick(1)
    it.run_down()
    assert it.states(APP) == {}
    (unload,) = it.decided[-1].commands
    assert unload.reason == "node n1 is draining and its deadline is over"
    it.intend(n(1), Schedule.NORMAL)
    it.run_down()
    assert running(it) == [n(1)]


def test_a_deadline_that_is_not_forced_changes_nothing() -> None:
    it = world(1, 2)
    it.apply(APP, Blueprint(1, min_healthy=0, rules=ON_N1))
    it.run_down()
    it.intend(n(1), Schedule.DRAIN, deadline=1)
    it.tick(100)
    it.run_down()
    assert running(it) == [n(1)]


def test_a_new_leader_counts_the_deadline_from_when_the_intent_was_stored() -> None:
    it = world(1, 2)
    it.apply(APP, Blueprint(1, min_healthy=0, rules=ON_N1))
    it.run_down()
    it.intend(n(1), Schedule.DRAIN, deadline="1m", force=True)
    it.tick(50)
    it.step_down()
    it.boot()
    it.lead()
    it.run_down()
    assert running(it) == [n(1)]
    it.tick(10)
    it.run_down()
    assert it.states(APP) == {}


def test_a_deadline_goes_from_the_last_time_that_it_was_written() -> None:
    it = world(1, 2)
    it.apply(APP, Blueprint(1, min_healthy=0, rules=ON_N1))
    it.run_down()
    for _ in range(3):
        it.intend(n(1), Schedule.DRAIN, deadline="1m", force=True)
        it.tick(40)
        it.run_down()
        assert running(it) == [n(1)]


def test_what_failed_and_what_has_no_valid_blueprint_goes_too() -> None:
    it = world(1)
    it.want(APP, 1)
    it.run_down()
    it.store(put(n(1), S.ACTIVE, artifact=OTHER).key, put(n(1), S.ACTIVE, artifact=OTHER).value)
    it.refuse(OTHER)
    it.run_down()
    (key,) = it.states(APP)
    it.report(key, S.FAILED)
    it.intend(n(1), Schedule.DRAIN, force=True)
    it.run_down()
    assert it.slices == {}


@pytest.mark.parametrize(("more", "instead"), [({}, [n(2)]), ({"rules": ON_N1}, [])])
def test_what_failed_keeps_no_node_from_being_empty(more: dict[str, Any], instead: list[NodeId]) -> None:
    """It goes at once, whenever its next try is due; what comes instead has failed as often, and waits as long."""
    it = world(1, 2)
    it.intend(n(2), Schedule.CORDON)
    it.apply(APP, Blueprint(1, **more))
    it.run_down()
    (key,) = it.states(APP)
    it.report(key, S.FAILED, fatal=True, failures=7)
    it.intend(n(2), Schedule.NORMAL)
    it.run_down()
    assert it.states(APP) == {key: S.FAILED}, "its next try is not due"
    it.intend(n(1), Schedule.DRAIN)
    it.run_down()
    assert running(it) == instead
    assert all(each.value.failures == 8 for each in it.slices.values())


def test_nothing_is_forced_while_a_manager_does_not_know_deadlines() -> None:
    it = world(1, 2)
    it.join(n(3), Registration(version="1", features=("rollouts", "placement"), capacity=0))
    it.apply(APP, Blueprint(1, min_healthy=0, rules=ON_N1))
    it.run_down()
    it.intend(n(1), Schedule.DRAIN, deadline="1m", force=True)
    it.tick(100)
    it.run_down()
    assert running(it) == [n(1)]
    wake = it.manager.wake_at()
    assert wake is not None
    assert wake > it.now, "it does not wake up again and again"
    it.expire(n(3), Cause.DELETED)
    it.run_down()
    assert it.states(APP) == {}


def test_what_is_needed_stops_last_and_a_circle_ends_all_the_same() -> None:
    api, web = Artifact("org.example", "api", "1"), Artifact("org.example", "web", "1")
    it = world(1, 2)
    it.apply(APP, Blueprint(2, min_healthy=0))
    it.apply(api, Blueprint(2, min_healthy=0, after=(str(APP.service),)))
    it.apply(web, Blueprint(2, min_healthy=0, after=(str(api.service),)))
    one, other = Artifact("g", "one", "1"), Artifact("g", "other", "1")
    for artifact in (one, other):
        it.want(artifact, 1)
    it.run_down()
    it.apply(one, Blueprint(1, min_healthy=0, after=("g:other",)))
    it.apply(other, Blueprint(1, min_healthy=0, after=("g:one",)))
    it.run_down()
    order: list[Artifact] = []

    def watch(decided: Any) -> None:
        for command in decided.commands:
            if command.state is S.UNLOAD:
                order.append(command.key.artifact)
                if command.key.artifact == APP:
                    assert it.states(api) == {}
                if command.key.artifact == api:
                    assert it.states(web) == {}

    it.watch = watch
    for number in (1, 2):
        it.intend(n(number), Schedule.DRAIN, force=True, deadline="2s")
    it.run_down()
    it.tick(2)
    it.run_down()
    assert it.slices == {}
    assert len(order) == 8


def test_where_others_take_instances_nothing_waits_for_its_dependents() -> None:
    it = world(1, 2)
    it.apply(APP, Blueprint(1, min_healthy=0, rules=ON_N1))
    it.apply(OTHER, Blueprint(1, min_healthy=0, after=(str(APP.service),)))
    it.run_down()
    it.intend(n(1), Schedule.DRAIN, force=True)
    it.run_down()
    assert it.states(APP) == {}
    assert len(running(it, OTHER)) == 1


def test_a_node_that_leaves_is_emptied_as_one_that_is_drained() -> None:
    it = world(1, 2)
    it.want(APP, 2)
    it.run_down()
    it.join(n(1), Registration(version="2", features=FEATURES, capacity=0, leaving=True))
    it.run_down()
    assert running(it) == [n(2), n(2)]


def test_what_a_lost_node_had_is_remembered_also_where_that_is_stored_late() -> None:
    it = world(1, 2)
    it.want(APP, 2)
    it.run_down()
    it.expire(n(1))
    it.tick(11)
    it.outbox.take_seen(10)  # what was to be stored is not
    it.run_down()
    it.tick(30)
    it.run_down()
    seen, _ = it.seen[n(1)]
    assert (seen.gone, seen.had) == (LOST, {str(APP): 1})


# Why it is not empty yet


def look(*messages: Message, leader: bool = True) -> Onlooker:
    lease: list[Message] = [ValuePut(LeaseKey(), Lease(ME, 1), 1)] if leader else []
    intent: Message = ValuePut(IntentKey(n(1)), Intent(Schedule.DRAIN), 1, 90.0)
    nodes = [ValuePut(NodeKey(n(number)), NEW, 1, 99.0) for number in (1, 2)]
    return Onlooker([*lease, intent, *nodes, *messages], 100.0)


def why(*messages: Message, leader: bool = True) -> list[str]:
    return [each.why for each in left_on(look(*messages, leader=leader), n(1))]


def wants(instances: int = 1, **more: Any) -> Message:
    return ValuePut(BlueprintKey(APP), Blueprint(instances, min_healthy=10, **more), 5)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ((wants(),), "its replacement is placed next"),
        ((wants(), put(n(2), S.LOADING)), "waits for its replacement on n2, which is LOADING"),
        ((wants(), put(n(2), S.ACTIVATING, reason="exit status 1")), "which is ACTIVATING: exit status 1"),
        ((wants(), put(n(2), S.ACTIVE, at=93)), "waits until its replacement on n2 is healthy, in 3 s"),
        ((wants(), put(n(2), S.ACTIVE, at=80)), "goes next"),
        (
            (wants(), put(n(2), S.FAILED, at=97, failures=2, reason="boom")),
            "failed on n2, and is tried again in 1 s: boom",
        ),
        ((wants(rules=ON_N1),), "no other node takes it: 0 of 2 nodes take it"),
        (
            (ValuePut(IntentKey(n(2)), Intent(Schedule.DRAIN), 1), wants()),
            "no other node takes it: 0 of 2 nodes take it: 2",
        ),
    ],
)
def test_why_a_healthy_slice_is_left_is_told(messages: tuple[Message, ...], said: str) -> None:
    (told,) = why(put(n(1), S.ACTIVE), *messages)
    assert said in told


def test_why_other_slices_are_left_is_told() -> None:
    once = Overrides(stop_after=5.0)
    assert why(put(n(1), S.ACTIVE), wants(), leader=False) == ["nobody leads: nothing is decided until somebody does"]
    assert why(put(n(1), S.FAILED, at=99, failures=2, reason="boom"), wants()) == ["goes next"]
    (stops,) = why(put(n(1), S.UNLOADING, value=SliceValue(S.UNLOADING, after=5.0), at=97), wants())
    assert stops == "serves for 2 s more, and is stopped then"
    (stops,) = why(put(n(1), S.UNLOADING, value=SliceValue(S.UNLOADING, after=5.0), at=90), wants())
    assert stops == "is being stopped"
    assert why(put(n(1), S.UNLOAD, at=99), wants()) == ["is told to stop"]
    (told,) = why(put(n(1), S.ACTIVE, value=SliceValue(S.ACTIVE, overrides=once)), wants(rules=ON_N1))
    assert told.startswith("must not run twice, and stops once another node takes it: 0 of 2 nodes take it")
    (told,) = why(put(n(1), S.ACTIVE), ValueRejected(BlueprintKey(APP), "no", 5))
    assert told == "no blueprint of it is in force, so nothing is decided about it"


def test_a_look_is_kept_up_message_by_message() -> None:
    it = look(put(n(1), S.ACTIVE), wants(), put(n(2), S.ACTIVE, at=95))
    assert [each.why for each in left_on(it, n(1))] == ["waits until its replacement on n2 is healthy, in 5 s"]
    it.look_again([], 103.0)
    assert [each.why for each in left_on(it, n(1))] == ["waits until its replacement on n2 is healthy, in 2 s"]
    gone: ValueRemove[LeaseKey, Lease] = ValueRemove(LeaseKey(), 9)
    it.look_again([gone], 104.0)
    assert it.leader is None
    removed: ValueRemove[SliceKey, SliceValue] = ValueRemove(SliceKey(n(1), APP), 10)
    it.look_again([removed], 105.0)
    assert left_on(it, n(1)) == []


def test_what_is_left_is_told_in_short_whichever_nodes_are_waited_for() -> None:
    def left(name: str, state: SliceState, why: str) -> Left:
        return Left(f"n1.g/{name}/1", f"g:{name}:1", 0, state, why)

    found = [
        left("a", S.ACTIVE, "waits for its replacement on n2 (and 2 more), which is LOAD"),
        left("b", S.ACTIVE, "waits for its replacement on n3, which is LOADING"),
        left("c", S.ACTIVE, "waits until its replacement on n4 is healthy, in 4 s"),
        left("d", S.ACTIVE, "no other node takes it: 0 of 2 nodes take it: 2 without gpu"),
        left("e", S.UNLOAD, "is told to stop"),
        left("f", S.ACTIVE, "waits until its replacement on n5 is healthy, in 2 s"),
        left("g", S.ACTIVE, "waits until its replacement on n4 is healthy, in 1 s"),
    ]
    assert left_in_short(found) == [
        "g:a:1 and 1 more  ACTIVE: waits for its replacement on n2 (and 2 more), which is LOAD",
        "g:c:1 and 2 more  ACTIVE: waits until its replacement on n4 is healthy, in 4 s",
        "g:d:1  ACTIVE: no other node takes it: 0 of 2 nodes take it: 2 without gpu",
        "g:e:1  UNLOAD: is told to stop",
    ]
