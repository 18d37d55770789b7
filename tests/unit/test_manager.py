from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from cdm.dispatch.messages import (
    Cause,
    FenceRenewal,
    KeyRejected,
    LeaderChange,
    RejectedKeyRemoved,
    ValuePut,
    ValueRejected,
    ValueRemove,
    WriteFailed,
    Written,
)
from cdm.manager.active import WORK_BUDGET, Active
from cdm.manager.dormant import Dormant
from cdm.manager.outbox import HIGH_WATER, Order, Outbox
from cdm.manager.plan import Command
from cdm.manager.policy import Policy
from cdm.model.artifact import Artifact
from cdm.model.blueprint import Blueprint, Overrides
from cdm.model.keys import BlueprintKey, FenceKey, LastValidKey, SeenKey, SliceKey, StatusKey, encode
from cdm.model.last_valid import LastValid
from cdm.model.node import FEATURES, LEFT, LOST, SECRETS, Fence, Registration, Role, Schedule, Seen
from cdm.model.rollout import RolloutSettings
from cdm.model.secret import SecretForm, SecretRef
from cdm.model.slice import SliceValue
from cdm.model.status import Condition, Status
from tests.unit.support import APP, OTHER, S, n
from tests.unit.world import ME, NEXT, World

NAME = encode(BlueprintKey(APP))


def world(nodes: int = 3, *, lead: bool = True) -> World:
    each = World()
    for number in range(1, nodes + 1):
        each.join(n(number))
    if lead:
        each.lead()
        each.settle()
    return each


def running(instances: int = 3, nodes: int = 3) -> World:
    """A leader whose blueprint is Ready."""
    each = world(nodes)
    each.want(APP, instances)
    each.run_down()
    assert each.statuses[NAME].condition is Condition.READY
    each.decided.clear()
    each.told.clear()
    return each


def states(each: World, artifact: Artifact = APP) -> Counter[str]:
    return Counter(str(state) for state in each.states(artifact).values())


# Dormant and Active


def test_dormant_records_and_does_nothing_else() -> None:
    each = world(lead=False)
    each.want(APP, 3)
    each.tick(1_000.0)
    assert isinstance(each.manager.state, Dormant)
    assert each.manager.wake_at() is None
    assert each.decided == []
    assert each.outbox.statuses == {}
    assert each.manager.cluster.desired[APP].blueprint == Blueprint(3, min_healthy=0.0)


def test_a_new_leader_starts_from_what_it_recorded() -> None:
    each = world(lead=False)
    each.want(APP, 3)
    each.lead()
    assert isinstance(each.manager.state, Active)
    each.tick()
    assert [order.term for order in each.decided] == [1]
    assert len(each.decided[0].commands) == 3


def test_another_nodes_leadership_makes_nobody_active_here() -> None:
    each = world(lead=False)
    each.want(APP, 3)
    each.route(LeaderChange(n(2), 4, local_node_is_leader=False))
    each.tick(100.0)
    assert isinstance(each.manager.state, Dormant)
    assert each.decided == []


def test_a_leader_that_is_none_any_more_drops_what_it_had_ordered() -> None:
    each = world()
    each.want(APP, 3)
    each.tick()
    assert each.outbox.orders
    each.route(LeaderChange(n(2), 4, local_node_is_leader=False))
    assert not each.outbox.orders
    assert not each.outbox.statuses
    each.tick(100.0)
    assert len(each.decided) == 1


def test_every_command_carries_the_term_of_its_leadership() -> None:
    each = running()
    each.step_down()
    each.lead()
    each.want(APP, 4)
    each.run_down()
    assert {order.term for order in each.decided} == {2}
    assert Counter(put.value.term for put in each.slices.values()) == {1: 3, 2: 1}


def test_a_blueprint_goes_all_the_way_to_ready() -> None:
    each = running(5)
    assert states(each) == {"ACTIVE": 5}
    assert sorted(Counter(key.node for key in each.slices).values()) == [1, 2, 2]
    status = each.statuses[NAME]
    assert (status.desired, status.active, status.pending, status.failed) == (5, 5, 0, 0)
    assert status.observed_revision == status.in_force_revision > 0


def test_removing_a_blueprint_unloads_everything_and_deletes_the_status() -> None:
    each = running()
    each.drop(APP)
    each.run_down()
    assert each.slices == {}
    assert each.statuses == {}
    assert each.manager.cluster.groups == {}


def test_a_further_round_writes_nothing() -> None:
    each = running()
    for _ in range(5):
        each.tick(30.0)
        each.settle()
    assert each.decided == []
    assert each.told == []


def test_a_new_leader_of_a_settled_cluster_writes_nothing() -> None:
    each = running()
    each.boot()
    each.lead()
    each.settle()
    assert each.decided == []
    assert each.told == []


# Read your writes


def test_nothing_is_decided_twice_before_the_mirror_shows_what_was_written() -> None:
    each = world()
    each.want(APP, 3)
    each.tick()
    each.write()
    for _ in range(3):
        each.want(APP, 3)
        each.tick(1.0)
        each.deliver(1)
    assert len(each.decided) == 1
    each.acknowledge()
    each.tick(1.0)
    each.settle()
    assert [len(order.commands) for order in each.decided] == [3, 0], "the second one is the copy of the blueprint"
    assert states(each) == {"LOAD": 3}


def test_what_changed_meanwhile_is_decided_once_the_mirror_is_there() -> None:
    each = world()
    each.want(APP, 1)
    each.tick()
    each.write()
    each.acknowledge()
    each.want(APP, 4)
    each.tick()
    assert len(each.decided) == 1
    each.deliver()
    each.tick()
    assert [len(order.commands) for order in each.decided] == [1, 3]


@pytest.mark.parametrize("acked_first", [True, False])
def test_acks_and_the_mirror_may_come_in_either_order(acked_first: bool) -> None:
    each = world()
    each.want(APP, 2)
    each.tick()
    each.write()
    for step in (each.acknowledge, each.deliver) if acked_first else (each.deliver, each.acknowledge):
        step()
    each.want(APP, 3)
    each.tick()
    assert [len(order.commands) for order in each.decided] == [2, 1]


def test_other_artifacts_do_not_wait() -> None:
    each = world()
    each.want(APP, 2)
    each.tick()
    each.want(OTHER, 2)
    each.tick()
    assert [order.artifact for order in each.decided] == [APP, OTHER]


def test_acks_of_another_term_are_not_listened_to() -> None:
    each = world()
    each.want(APP, 2)
    each.tick()
    each.route(Written(APP, 99, 0))
    each.route(WriteFailed(APP, 99, 0, "late"))
    each.want(APP, 3)
    each.tick()
    assert len(each.decided) == 1


def test_while_the_fence_is_written_anew_nothing_is_decided_of_any_artifact() -> None:
    each = world()
    each.want(APP, 2)
    each.tick()
    each.write(stored=0, acked=False)
    each.route(FenceRenewal(each.term, None))
    each.want(OTHER, 2)
    each.tick()
    assert each.manager.wake_at() is None, "nothing is due before the fence is stored"
    each.sequence += 1
    fence = each.sequence
    each.route(FenceRenewal(each.term, fence))
    each.acknowledge()
    each.tick()
    assert [order.artifact for order in each.decided] == [APP], "the mirror does not show the new fence yet"
    each.route(ValuePut(FenceKey(), Fence(each.term, ME), fence))
    each.tick()
    assert {order.artifact for order in each.decided[1:]} == {APP, OTHER}
    each.settle()
    assert states(each) == states(each, OTHER) == {"LOAD": 2}


def test_a_fence_of_another_term_that_is_written_anew_holds_up_nothing() -> None:
    each = world()
    each.route(FenceRenewal(99, None))
    each.want(APP, 2)
    each.tick()
    assert len(each.decided) == 1


@pytest.mark.parametrize("stored", [0, 1, 3])
def test_an_order_of_which_nobody_knows_whether_it_is_stored_is_decided_again_from_what_is(stored: int) -> None:
    each = world()
    each.want(APP, 3)
    each.tick()
    each.write(stored=stored, acked=False)
    each.acknowledge()
    each.tick()
    if stored:
        assert len(each.decided) == 1, "the mirror has yet to show what was stored"
    each.settle()
    assert states(each) == {"LOAD": 3}
    assert sum(len(order.commands) for order in each.decided) == 6 - stored


def test_what_could_not_be_stored_and_is_not_wanted_any_more_is_no_trouble() -> None:
    each = world()
    each.want(APP, 1)
    each.tick()
    each.write(stored=0, acked=False)
    each.want(APP, 0)
    each.acknowledge()
    each.tick()
    each.settle()
    assert states(each) == {}
    assert each.statuses[NAME].condition is Condition.READY


def test_slices_that_are_ordered_count_as_slices_before_the_mirror_shows_them() -> None:
    each = world(0)
    each.join(n(1), Registration(capacity=2))
    each.want(APP, 2)
    each.tick()
    each.want(OTHER, 1)
    each.tick()
    each.settle()
    assert states(each) == {"LOAD": 2}
    assert each.statuses[encode(BlueprintKey(OTHER))].condition is Condition.UNSCHEDULABLE


def test_a_manager_gets_nothing_and_loses_what_is_there() -> None:
    each = world(0)
    each.join(n(1))
    each.join(n(2), Registration(role=Role.MANAGER, capacity=0))
    each.want(APP, 2)
    each.tick()
    each.settle()
    assert {key.node for key in each.slices} == {n(1)}
    each.join(n(3))
    each.join(n(1), Registration(role=Role.MANAGER, capacity=0, incarnation="b"))
    each.tick()
    each.settle()
    assert {key.node for key in each.slices} == {n(3)}
    assert states(each) == {"LOAD": 2}


def test_slices_that_the_mirror_shows_already_are_not_counted_twice() -> None:
    each = world(0)
    each.join(n(1), Registration(capacity=2))
    each.want(APP, 1)
    each.tick()
    each.write()
    each.deliver()  # the mirror is faster than the acknowledgement
    each.want(OTHER, 1)
    each.tick()
    each.settle()
    assert states(each, OTHER) == {"LOAD": 1}


# Status


def test_a_status_is_written_on_change_only() -> None:
    each = running()
    each.want(APP, 3)
    each.settle()
    changed = [told[NAME] for told in each.told]
    assert [status.observed_revision for status in changed if status] == [each.blueprints[APP][1]]


def test_a_refused_blueprint_changes_nothing_but_its_status() -> None:
    each = running()
    each.refuse(APP, "instances: must be from 0 to 100,000, not -1")
    each.run_down()
    assert each.decided == []
    status = each.statuses[NAME]
    assert status.condition is Condition.INVALID
    assert "not -1" in status.reason
    assert status.in_force_revision < status.observed_revision
    assert (status.desired, status.active) == (3, 3)


def test_a_refused_blueprint_goes_on_being_served() -> None:
    each = running()
    each.refuse(APP)
    each.expire(n(1))
    each.tick(11.0)
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert each.statuses[NAME].condition is Condition.INVALID


def test_a_blueprint_that_is_mended_is_served() -> None:
    each = running()
    each.refuse(APP)
    each.run_down()
    each.want(APP, 4)
    each.run_down()
    assert states(each) == {"ACTIVE": 4}
    assert each.statuses[NAME].condition is Condition.READY


def test_a_blueprint_that_was_never_valid_is_refused_and_nothing_else() -> None:
    each = world()
    each.refuse(APP, "is empty")
    revision = each.sequence
    each.run_down()
    assert each.decided == []
    assert each.statuses[NAME] == Status(Condition.INVALID, "is empty", observed_revision=revision, term=1)


def test_a_blueprint_that_was_deleted_is_not_recovered_from_a_status_that_is_older() -> None:
    each = running()
    each.step_down()
    each.drop(APP)
    each.refuse(APP)
    each.lead()
    each.run_down()
    assert each.manager.cluster.desired[APP].blueprint is None
    assert each.statuses[NAME].in_force_revision == 0


def test_a_blueprint_under_a_bad_key_is_refused_in_its_status() -> None:
    each = world()
    each.route(KeyRejected(BlueprintKey, "a/b", "not of the form", 7))
    each.settle()
    assert each.statuses["a/b"] == Status(Condition.INVALID, "not of the form", observed_revision=7, term=1)
    each.tick(31.0)
    each.settle()
    assert len(each.told) == 1
    each.route(RejectedKeyRemoved(BlueprintKey, "a/b"))
    each.settle()
    assert each.statuses == {}


def test_a_new_leader_tells_of_bad_keys_too() -> None:
    each = world(lead=False)
    each.route(KeyRejected(BlueprintKey, "a/b", "not of the form", 7))
    each.lead()
    each.settle()
    assert set(each.statuses) == {"a/b"}


def test_bad_slice_keys_are_left_alone() -> None:
    each = running()
    each.route(KeyRejected(SliceKey, "n1", "bad", 900))
    each.route(RejectedKeyRemoved(SliceKey, "n1"))
    each.settle()
    assert each.decided == []
    assert each.told == []


def test_a_status_that_somebody_else_left_behind_is_deleted() -> None:
    each = world()
    for name in ("org.example/gone/1", "not a key"):
        each.statuses[name] = Status(Condition.READY)
        each.route(ValuePut(StatusKey(name), each.statuses[name], 1))
    each.tick(31.0)
    each.settle()
    assert each.statuses == {}


@pytest.mark.parametrize("gone", [True, False])
def test_a_status_that_somebody_else_changed_is_mended_by_the_next_round(gone: bool) -> None:
    each = running()
    good = each.statuses[NAME]
    if gone:
        del each.statuses[NAME]
        removed: ValueRemove[StatusKey, Status] = ValueRemove(StatusKey(NAME), 1)
        each.route(removed)
    else:
        each.route(ValuePut(StatusKey(NAME), Status(Condition.DEGRADED), 1))
    each.tick(31.0)
    each.settle()
    assert each.statuses[NAME] == good


def test_a_round_does_not_tell_again_what_the_mirror_is_late_to_show() -> None:
    each = running()
    each.refuse(APP)
    each.tick()
    late = each.outbox.take_statuses(9)
    assert late[NAME] is not None
    each.tick(31.0)
    assert not each.outbox.statuses
    each.route(ValuePut(StatusKey(NAME), late[NAME], 2))
    each.tick(31.0)
    assert not each.outbox.statuses


def test_a_status_that_was_written_over_before_it_was_seen_is_mended() -> None:
    each = running()
    each.refuse(APP)
    each.tick()
    lost = each.outbox.take_statuses(9)
    each.route(ValuePut(StatusKey(NAME), Status(Condition.DEGRADED), 2))
    for _ in range(2):
        each.tick(31.0)
    assert each.outbox.take_statuses(9) == lost


def test_the_last_valid_blueprint_is_recovered() -> None:
    each = running()
    each.refuse(APP)
    each.run_down()
    in_force = each.blueprints[APP][1]
    # Refused ones have pushed the valid one out of the bucket's history.
    each.blueprints[APP] = (None, 0, each.blueprints[APP][2])
    each.boot()
    each.lead()
    each.settle()
    assert each.decided == []
    assert each.statuses[NAME].in_force_revision == in_force
    each.expire(n(2))
    each.tick(11.0)
    each.run_down()
    assert states(each) == {"ACTIVE": 3}


@pytest.mark.parametrize(
    ("desired", "overrides"),
    [(-1, UNSET), (100_001, UNSET), (3, Overrides(stop_after=-5.0)), (3, Overrides({"no name": "x"}))],
)
def test_a_status_that_cannot_be_does_not_stop_a_leader(desired: int, overrides: Overrides | UnsetType) -> None:
    each = world(lead=False)
    each.sequence = 9
    each.refuse(APP)
    wild = Status(Condition.INVALID, in_force_revision=3, desired=desired, overrides=overrides)
    each.route(ValuePut(StatusKey(NAME), wild, 1))
    each.lead()
    each.settle()
    assert each.decided == []
    assert each.statuses[NAME].condition is Condition.INVALID


GUARDED = Blueprint(
    3,
    Overrides({"A": "x", "B": SecretRef("b"), "C": SecretRef("c", SecretForm.FILE)}, ("--safe",), 30.0),
    2.5,
    restarted="now",
    drain_delay=1.5,
    after=("g:db",),
    rollout=RolloutSettings(max_surge="50%"),
)


@pytest.mark.parametrize("all_know", [True, False])
def test_a_blueprint_that_is_recovered_is_whole_and_only_older_managers_need_it_in_the_status(all_know: bool) -> None:
    each = running()
    known = tuple(feature for feature in FEATURES if all_know or feature != SECRETS)
    each.join(n(9), Registration(Role.MANAGER, capacity=0, version="0.1", features=known))
    guarded = replace(GUARDED, overrides=Overrides({"A": "x"}, ("--safe",), 30.0))
    each.apply(APP, guarded)
    each.refuse(APP)
    each.run_down()
    each.blueprints[APP] = (None, 0, each.blueprints[APP][2])
    each.boot()
    each.lead()
    each.settle()
    assert each.manager.cluster.desired[APP].blueprint == guarded
    assert (each.statuses[NAME].overrides is UNSET) is all_know
    assert (each.records[LastValidKey(APP)].value.read() == guarded) is all_know, "else it is an older one"
    if not all_know:
        each.join(n(9), Registration(Role.MANAGER, capacity=0, version="0.2", features=FEATURES))
        each.tick(31.0)
        each.settle()
        assert each.statuses[NAME].overrides is each.statuses[NAME].settings is UNSET
        assert each.records[LastValidKey(APP)].value.read() == guarded


def test_a_copy_goes_with_its_blueprint_and_with_each_new_one() -> None:
    each = running()
    for blueprint in (GUARDED, replace(GUARDED, restarted="again"), Blueprint(3)):
        each.apply(APP, blueprint)
        each.run_down()
        copy = each.records[LastValidKey(APP)].value
        assert (copy.revision, copy.read()) == (each.blueprints[APP][1], blueprint)
    each.drop(APP)
    each.run_down()
    assert LastValidKey(APP) not in each.records
    each.store_beside(LastValidKey(APP), LastValid.of(GUARDED, 7))  # deleted while nobody led
    each.boot()
    each.lead()
    each.settle()
    assert LastValidKey(APP) not in each.records
    number = world()
    number.apply(APP, Blueprint(3))
    number.run_down()
    assert not number.records, "the status has all of it"
    assert number.statuses[NAME].blueprint == Blueprint(3)


@pytest.mark.parametrize("revision", [10, 2**60, -1])
def test_a_status_whose_blueprint_is_no_older_than_the_refused_one_is_not_recovered_from(revision: int) -> None:
    """A wild revision would go into commands, which nobody could read then."""
    each = world(lead=False)
    each.sequence = 9
    each.refuse(APP)
    each.route(ValuePut(StatusKey(NAME), Status(Condition.INVALID, in_force_revision=revision, desired=3), 1))
    each.lead()
    each.settle()
    assert each.decided == []
    assert each.statuses[NAME].in_force_revision == 0


@pytest.mark.parametrize(
    ("nodes", "condition", "reason"),
    [
        (0, Condition.DEGRADED, "no nodes"),
        (1, Condition.UNSCHEDULABLE, "2 of 2 instances cannot be placed: no node takes new slices"),
    ],
)
def test_what_cannot_be_placed_says_why_and_is_placed_as_soon_as_a_node_joins(
    nodes: int, condition: Condition, reason: str
) -> None:
    each = world(0)
    for number in range(nodes):
        each.join(n(2 + number), Registration(role=Role.MANAGER))
    each.want(APP, 2)
    each.settle()
    status = each.statuses[NAME]
    assert (status.condition, status.reason, status.active) == (condition, reason, 0)
    each.join(n(1))
    each.run_down()
    assert states(each) == {"ACTIVE": 2}
    assert each.statuses[NAME].condition is Condition.READY


def test_room_that_another_artifact_leaves_is_used_by_the_next_round_at_the_latest() -> None:
    each = world(0)
    each.join(n(1), Registration(capacity=2))
    each.want(APP, 2)
    each.run_down()
    each.want(OTHER, 1)
    each.run_down()
    each.want(APP, 1)
    each.run_down()
    each.tick(31.0)
    each.run_down()
    assert states(each, OTHER) == {"ACTIVE": 1}


# Nodes


def test_a_dead_nodes_slices_are_replaced_and_its_keys_deleted() -> None:
    each = running()
    each.expire(n(2))
    each.tick(0.0)
    each.settle()
    assert each.decided == [], "missing is not dead"
    each.tick(10.0)
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert n(2) not in {key.node for key in each.slices}


def test_a_node_that_died_while_nobody_led_is_replaced_by_the_next_leader() -> None:
    each = running()
    each.step_down()
    each.expire(n(2))
    each.tick(15.0)
    assert n(2) not in each.topology.nodes
    each.lead()
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert n(2) not in {key.node for key in each.slices}


def test_a_node_that_died_while_no_process_ran_is_replaced_by_the_next_leader() -> None:
    each = running()
    each.step_down()
    del each.nodes[n(2)]
    each.now += 100.0
    each.boot()
    each.tick(11.0)
    each.lead()
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert n(2) not in {key.node for key in each.slices}


def test_a_node_that_left_while_nobody_led_is_replaced_by_the_next_leader() -> None:
    each = running()
    each.step_down()
    each.expire(n(2), Cause.DELETED)
    each.lead()
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert n(2) not in {key.node for key in each.slices}


@pytest.mark.parametrize("order", [("nodes", "slices"), ("slices", "nodes")])
@pytest.mark.parametrize(("cause", "moved"), [(Cause.DELETED, True), (Cause.EXPIRED, False), (Cause.MISSING, False)])
def test_a_process_that_began_later_knows_by_the_marker_that_a_node_left(
    order: tuple[str, str], cause: Cause, moved: bool
) -> None:
    each = running()
    each.step_down()
    each.expire(n(2), cause)
    each.boot((*order, "blueprints", "statuses"))
    each.lead()
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert (n(2) not in {key.node for key in each.slices}) is moved
    each.tick(10.0)
    each.run_down()
    assert n(2) not in {key.node for key in each.slices}


def test_an_order_for_a_node_that_leaves_meanwhile_is_decided_anew_at_once() -> None:
    each = world()
    each.want(APP, 3)
    each.tick()
    each.expire(n(2), Cause.DELETED)
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert n(2) not in {key.node for key in each.slices}


def test_a_slice_that_got_stuck_while_nobody_led_is_replaced_at_once() -> None:
    each = world()
    each.want(APP, 1)
    each.settle()
    each.step_down()
    each.now += 500.0
    each.lead()
    each.settle()
    assert states(each) == {"UNLOAD": 1, "LOAD": 1}


def test_a_node_without_an_agent_is_named_for_as_long_as_it_is_waited_for() -> None:
    each = world(1)
    each.want(APP, 1)
    each.settle()
    assert condition(each) == (Condition.PROGRESSING, "0 of 1 active")
    hint = f"0 of 1 active; LOAD was not answered within 60 s on {n(1)}; does its agent run?"
    for _ in range(3):
        slept(each, 60.0)
        each.settle()
        assert condition(each) == (Condition.PROGRESSING, hint)
    key = next(key for key, value in each.slices.items() if value.value.state is S.LOAD)
    each.report(key, S.LOADING)
    each.settle()
    assert condition(each) == (Condition.PROGRESSING, "0 of 1 active")


def test_a_command_that_is_taken_back_though_there_is_time_left_says_nothing_of_the_node() -> None:
    each = world(2)
    each.want(APP, 2)
    each.settle()
    each.want(APP, 1)
    each.settle()
    assert states(each) == {"LOAD": 1, "UNLOAD": 1}
    assert condition(each) == (Condition.PROGRESSING, "0 of 1 active")


def test_a_drain_ordered_while_nobody_led_is_carried_out() -> None:
    each = running()
    each.step_down()
    each.intend(n(2), Schedule.DRAIN)
    each.lead()
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert n(2) not in {key.node for key in each.slices}


def test_a_drain_never_lets_fewer_serve() -> None:
    each = running(6)
    each.intend(n(1), Schedule.DRAIN)
    for _ in range(20):
        each.settle()
        assert states(each)["ACTIVE"] >= 6
        each.answer()
    each.run_down()
    assert Counter(key.node for key in each.slices) == {n(2): 3, n(3): 3}
    assert each.statuses[NAME].condition is Condition.READY


def test_a_cordoned_node_gets_nothing_new() -> None:
    each = running()
    each.intend(n(1), Schedule.CORDON)
    each.want(APP, 6)
    each.run_down()
    assert Counter(key.node for key in each.slices)[n(1)] == 1
    each.intend(n(1), Schedule.NORMAL)
    each.want(APP, 7)
    each.run_down()
    assert Counter(key.node for key in each.slices)[n(1)] == 2


def test_what_a_node_leaves_behind_is_decided_on_in_the_same_order_by_every_process() -> None:
    each = world(2)
    artifacts = [Artifact("g", "a", f"1.{number}.0") for number in range(8)]
    for artifact in artifacts:
        each.want(artifact, 2)
    each.run_down()
    each.decided.clear()
    each.expire(n(1), Cause.DELETED)
    each.settle()
    assert [order.artifact for order in each.decided] == artifacts


def test_a_dead_node_that_returns_is_used_again() -> None:
    each = running()
    each.expire(n(2))
    each.tick(11.0)
    each.run_down()
    each.join(n(2))
    each.want(APP, 4)
    each.run_down()
    assert n(2) in {key.node for key in each.slices}


@pytest.mark.parametrize("fresh", [True, False])
def test_slices_of_nodes_that_nobody_knows_are_deleted_and_nothing_else_is_touched(fresh: bool) -> None:
    each = running(12)
    before = dict(each.slices)
    for number in range(10, 50):
        each.store(SliceKey(n(number), APP), SliceValue(S.ACTIVE))
    if fresh:
        each.boot(("slices", "nodes", "blueprints", "statuses"))
        each.lead()
    each.settle()
    assert each.slices == before
    assert {command.state for order in each.decided for command in order.commands} == {None}


def test_one_of_an_unknown_node_that_takes_a_missing_ones_place_in_the_counts_is_seen_through() -> None:
    each = running()
    each.step_down()
    (gone, *_) = each.slices
    each.store(gone, None)
    each.store(SliceKey(n(9), APP), SliceValue(S.ACTIVE))
    each.lead()
    each.run_down()
    slept(each, 10.0)  # slices may name nodes that come back from a power cut
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert n(9) not in {key.node for key in each.slices}


def test_unknown_nodes_slow_no_eviction_down() -> None:
    each = running()
    for number in range(10, 50):
        each.store(SliceKey(n(number), OTHER), SliceValue(S.ACTIVE))
    each.settle()
    each.expire(n(2))
    each.tick(10.0)
    assert n(2) not in each.topology.nodes


def test_nothing_is_unloaded_for_a_missing_node_that_may_not_come_back() -> None:
    each = running(6)
    each.expire(n(2))
    each.want(APP, 4)
    each.settle()
    assert not any(order.commands for order in each.decided)
    each.tick(10.0)
    each.run_down()
    assert states(each) == {"ACTIVE": 4}
    assert n(2) not in {key.node for key in each.slices}
    assert not any(c.state is S.UNLOAD for order in each.decided for c in order.commands), "four served all the time"


def test_a_missing_node_that_comes_back_loses_what_is_too_many() -> None:
    each = running(6)
    each.expire(n(2))
    each.want(APP, 4)
    each.settle()
    each.join(n(2))
    each.run_down()
    assert states(each) == {"ACTIVE": 4}


def test_the_leader_remembers_nodes_and_says_when_they_are_gone() -> None:
    each = running()
    assert {node: seen.gone for node, (seen, _) in each.seen.items()} == {n(1): None, n(2): None, n(3): None}
    each.expire(n(1), Cause.DELETED)
    each.expire(n(2))
    each.tick(10.0)
    each.run_down()
    assert {node: seen.gone for node, (seen, _) in each.seen.items()} == {n(1): LEFT, n(2): LOST, n(3): None}
    each.join(n(2), Registration(incarnation="b", load=0.5))
    each.settle()
    assert each.seen[n(2)][0] == Seen(Registration(incarnation="b")), "without what changes all the time"


def test_a_process_that_began_later_knows_by_what_is_remembered_that_a_node_may_come_back() -> None:
    each = running()
    del each.nodes[n(2)]  # its registration expired, and so did the marker of that
    each.boot()
    each.lead()
    each.run_down()
    assert each.decided == [], "it has a whole TTL to come back"
    each.tick(10.0)
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert n(2) not in {key.node for key in each.slices}


def test_a_process_that_began_later_waits_for_no_node_that_was_given_up() -> None:
    each = running()
    each.expire(n(2))
    each.tick(10.0)
    each.run_down()
    each.boot()
    assert n(2) not in each.topology.nodes
    each.lead()
    each.run_down()
    assert states(each) == {"ACTIVE": 3}


# Nodes that this process never saw


GHOST = n(50)


def haunted(each: World, count: int = 4, **more: Any) -> None:
    """What an older backup brings: the memory of a node that is no more, and slices that once ran there."""
    each.seen[GHOST] = (Seen(Registration()), each.now)
    each.route(ValuePut(SeenKey(GHOST), Seen(Registration()), 1, each.now))
    for ordinal in range(1, count + 1):
        each.store(SliceKey(GHOST, APP, ordinal), SliceValue(S.ACTIVE, 1, **more))
    each.run_down()


def test_slices_on_a_node_that_this_process_never_saw_take_no_instances_place() -> None:
    each = running(3)
    haunted(each)
    assert not each.decided, "they may be there, and are left alone"
    assert condition(each) == (Condition.READY, "")
    each.want(APP, 7)
    each.run_down()
    assert Counter(key.node == GHOST for key in each.slices) == {False: 7, True: 4}
    assert each.statuses[NAME].active == 7
    assert condition(each) == (Condition.READY, "")
    slept(each, 10.0)
    each.run_down()
    assert states(each) == {"ACTIVE": 7}
    assert all(key.node != GHOST for key in each.slices)


def test_ready_counts_no_slice_on_a_node_that_this_process_never_saw() -> None:
    each = world()
    haunted(each, 3)
    for node in (n(1), n(2), n(3)):
        each.intend(node, Schedule.CORDON)
    each.want(APP, 3)
    each.run_down()
    status = each.statuses[NAME]
    assert (status.condition, status.active) == (Condition.UNSCHEDULABLE, 0)


def test_a_node_that_this_process_never_saw_and_that_registers_keeps_its_slices() -> None:
    each = running(3)
    haunted(each, 3)
    each.want(APP, 6)
    each.run_down()
    each.join(GHOST)
    each.want(APP, 9)
    each.run_down()
    assert states(each) == {"ACTIVE": 9}
    assert spread(each)[GHOST] == 3


def test_what_must_not_run_twice_is_not_replaced_while_it_may_run_on_a_node_that_this_process_never_saw() -> None:
    each = world()
    overrides = Overrides(stop_after=20.0)
    haunted(each, 1, overrides=overrides)
    each.apply(APP, Blueprint(1, overrides, min_healthy=0.0))
    each.run_down()
    assert set(spread(each)) == {GHOST}
    status = each.statuses[NAME]
    assert (status.condition, status.active) == (Condition.PROGRESSING, 0)
    slept(each, 20.0)
    each.run_down()
    assert set(spread(each)) == {GHOST}
    slept(each, overrides.gone_after or 0.0)
    each.run_down()
    assert len(each.slices) == 1
    assert GHOST not in spread(each)


def test_a_cluster_of_nodes_that_this_process_never_saw_has_none() -> None:
    each = world(0)
    haunted(each, 3)
    each.want(APP, 3)
    each.settle()
    assert condition(each) == (Condition.DEGRADED, "no nodes")


# Nodes that are waited for


def cold(*names: int, markers: bool = True, settle: float = 3.0) -> World:
    """A process that begins after a power cut, in which three nodes were known; only these are back."""
    before = running(6) if markers else World()
    each = World(policy=Policy(settle=settle))
    each.seen, each.statuses, each.blueprints = before.seen, before.statuses, before.blueprints
    each.now, each.sequence, each.term = before.now + 100.0, before.sequence, before.term
    each.boot()
    for number in names:
        each.join(n(number))
    each.lead()
    return each


def spread(each: World) -> dict[str, int]:
    return dict(Counter(key.node for key in each.slices))


def test_after_a_power_cut_the_first_node_up_does_not_get_everything() -> None:
    each = cold(1)
    each.run_down()
    assert each.slices == {}
    assert condition(each) == (
        Condition.PROGRESSING,
        "6 of 6 instances not placed yet; waiting for nodes to register",
    )
    each.tick(5.0)
    each.join(n(2))
    each.run_down()
    assert each.slices == {}
    each.join(n(3))
    each.run_down()
    assert spread(each) == {n(1): 2, n(2): 2, n(3): 2}


def test_nodes_that_do_not_come_back_are_waited_for_one_ttl_at_most() -> None:
    each = cold(1, 2)
    slept(each, 9.9)
    assert each.slices == {}
    slept(each, 0.1)
    each.run_down()
    assert spread(each) == {n(1): 3, n(2): 3}


def test_a_node_that_left_for_good_or_runs_nothing_is_not_waited_for() -> None:
    each = cold(1, 2)
    each.seen[n(3)] = (Seen(Registration(), LEFT), 0.0)
    each.seen[n(4)] = (Seen(Registration(), LOST), 0.0)
    each.seen[n(5)] = (Seen(Registration(role=Role.MANAGER)), 0.0)
    each.boot()
    each.lead()
    each.run_down()
    assert spread(each) == {n(1): 3, n(2): 3}


def test_a_very_first_start_waits_for_a_moment_from_the_first_registration() -> None:
    each = cold(1, markers=False)
    each.want(APP, 3)
    slept(each, 2.0)
    each.join(n(2))
    each.join(n(3))
    slept(each, 0.9)
    assert each.slices == {}
    slept(each, 0.1)
    each.run_down()
    assert spread(each) == {n(1): 1, n(2): 1, n(3): 1}


def stopped(each: World, cause: Cause = Cause.DELETED) -> None:
    """All nodes go, and the last leader tells of it."""
    for node in list(each.nodes):
        each.expire(node, cause)
    slept(each, 100.0)
    each.run_down()
    assert each.slices == {}
    assert all(seen.gone for seen, _ in each.seen.values())


@pytest.mark.parametrize("cause", [Cause.DELETED, Cause.EXPIRED])
@pytest.mark.parametrize("fresh", [True, False])
def test_after_all_nodes_have_left_a_start_is_like_the_very_first(fresh: bool, cause: Cause) -> None:
    each = running(6)
    each.policy = Policy(settle=3.0)
    stopped(each, cause)
    each.step_down()
    each.boot()
    if not fresh:  # a manager that heard of a node that has left since
        each.join(n(1))
        each.expire(n(1), cause=Cause.DELETED)
        each.tick(50.0)
    else:
        each.join(n(1))
    each.lead()
    if not fresh:
        slept(each, 50.0)
        each.join(n(1))
    slept(each, 0.8)
    assert each.slices == {}
    assert "waiting for nodes to register" in condition(each)[1]
    each.join(n(2))
    slept(each, 0.8)
    each.join(n(3))
    each.run_down()
    assert each.slices == {}
    slept(each, 1.4)
    each.run_down()
    assert spread(each) == {n(1): 2, n(2): 2, n(3): 2}


def test_slices_that_nodes_left_behind_in_good_order_make_a_start_no_other() -> None:
    each = running(6)
    each.policy = Policy(settle=3.0)
    for node in list(each.nodes):
        each.expire(node, Cause.DELETED)
    each.tell()
    each.boot()
    each.join(n(1))
    each.seen = {node: (Seen(Registration(), LEFT), 0.0) for node in each.seen}
    each.boot()
    each.lead()
    each.run_down()
    assert spread(each) == {n(1): 2}, "its own"
    slept(each, 1.0)
    each.join(n(2))
    each.join(n(3))
    slept(each, 2.0)
    each.run_down()
    assert spread(each) == {n(1): 2, n(2): 2, n(3): 2}


def test_the_last_leader_is_at_rest_only_when_it_is_remembered_that_all_have_left() -> None:
    each = running(3)
    for node in list(each.nodes):
        each.expire(node, Cause.DELETED)
    while each.write():
        pass
    each.deliver()
    each.acknowledge()
    remembered = dict(each.outbox.seen)
    each.outbox.seen.clear()  # taken, and not stored yet
    each.settle()
    assert isinstance(each.manager.state, Active)
    assert each.slices == {}
    assert not each.manager.state.at_rest
    for node, seen in remembered.items():
        each.outbox.remember(node, seen)
    each.settle()
    assert each.manager.state.at_rest


def test_scaling_down_and_deleting_never_wait() -> None:
    each = running(6)
    each.nodes.pop(n(3))
    each.boot()
    each.lead()
    each.want(APP, 1)
    each.settle()
    assert states(each) == {"ACTIVE": 3, "UNLOAD": 3}
    each.drop(APP)
    each.settle()
    assert states(each) == {"ACTIVE": 2, "UNLOAD": 4}, "all but those of the node that may come back"


@pytest.mark.parametrize("fresh", [True, False])
def test_a_fail_over_in_a_running_cluster_never_waits(fresh: bool) -> None:
    each = running(6)
    each.policy = Policy()
    each.step_down()
    if fresh:
        each.boot()
    each.lead()
    each.want(APP, 9)
    each.run_down()
    assert states(each) == {"ACTIVE": 9}


def test_a_new_leader_begins_where_something_is_to_be_done() -> None:
    each = world()
    artifacts = [Artifact("org.example", name, "1") for name in "abcdefgh"]
    for artifact in artifacts:
        each.want(artifact, 3)
    each.run_down()
    each.step_down()
    missing = artifacts[4]
    each.store(next(key for key in each.slices if key.artifact == missing), None)
    each.lead()
    each.decided.clear()
    turn = iter(range(1_000_000))
    each.clock = lambda: each.now + next(turn) * WORK_BUDGET  # one artifact has its turn before others have theirs
    each.now += 1
    each.tick()
    assert [order.artifact for order in each.decided] == [missing]
    assert each.active


# Failures and deadlines


def failed_once(each: World) -> SliceKey:
    key = next(key for key, put in each.slices.items() if put.value.state is S.ACTIVE)
    each.report(key, S.FAILED)
    each.settle()
    return key


def test_a_failed_slice_is_degraded_until_it_is_replaced_and_why_is_told_meanwhile() -> None:
    each = running(1)
    failed_once(each)
    assert each.statuses[NAME].condition is Condition.DEGRADED
    assert "it broke" in each.statuses[NAME].reason
    each.tick(1.0)
    each.settle()
    assert condition(each) == (Condition.PROGRESSING, "0 of 1 active; failed once before: it broke")
    each.run_down()
    assert each.statuses[NAME].condition is Condition.READY


def test_the_manager_wakes_itself_for_retries() -> None:
    each = running(1)
    failed_once(each)
    due = each.manager.wake_at()
    assert due == each.now + 1.0
    each.tick(1.0)
    assert each.decided


def test_failures_are_counted_up_though_the_agent_drops_them() -> None:
    each = world(1)
    each.want(APP, 1)
    each.settle()
    pauses: list[float] = []
    for _ in range(6):
        (key,) = each.slices
        each.report(key, S.LOADING, copy=False)
        each.report(key, S.FAILED, copy=False)
        failed_at = each.now
        each.settle()
        while each.slices[key].value.state is S.FAILED:
            due = each.manager.wake_at()
            assert due is not None
            each.tick(max(due - each.now, 0.0))
            each.settle()
        pauses.append(each.now - failed_at)
    assert each.slices[key].value.failures == 6
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]


def test_the_backoff_survives_a_change_of_leaders() -> None:
    each = world(1)
    each.want(APP, 1)
    each.settle()
    (key,) = each.slices
    for _ in range(4):
        each.report(key, S.LOADING)
        each.report(key, S.FAILED)
        each.settle()
        each.tick(20.0)
        each.settle()
    each.report(key, S.LOADING)
    each.report(key, S.FAILED)
    each.boot()
    each.lead()
    each.settle()
    assert each.manager.wake_at() == each.now + 16.0


def test_a_command_that_is_not_answered_is_given_up_after_its_deadline() -> None:
    each = world()
    each.want(APP, 1)
    each.settle()
    (key,) = each.slices
    began = each.now
    while each.slices[key].value.state is S.LOAD:
        due = each.manager.wake_at()
        assert due is not None
        each.tick(max(due - each.now, 0.0))
        each.settle()
    assert each.now == began + 60.0
    assert states(each) == {"UNLOAD": 1, "LOAD": 1}


def test_an_unreadable_slice_is_replaced() -> None:
    each = running(1)
    (key,) = each.slices
    each.sequence += 1
    each.route(ValueRejected(key, "not JSON", each.sequence, each.now))
    each.settle()
    assert each.statuses[NAME].condition is Condition.DEGRADED
    each.tick(1.0)
    assert each.decided


def test_a_slice_on_a_full_node_that_failed_is_tried_again() -> None:
    each = world(0)
    each.join(n(1), Registration(capacity=3))
    each.want(APP, 3)
    each.run_down()
    failed_once(each)
    for _ in range(20):
        each.tick(31.0)
        each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert each.statuses[NAME].condition is Condition.READY


# Ready means served


OLDER, NEWER = Blueprint(3, min_healthy=0.0), Blueprint(3, Overrides({"LEVEL": "debug"}), 0.0)


def condition(each: World) -> tuple[Condition, str]:
    return each.statuses[NAME].condition, each.statuses[NAME].reason


def woken(each: World) -> float:
    """Let time pass until the manager asks to be woken; returns how long that was."""
    due = each.manager.wake_at()
    assert due is not None
    pause = max(due - each.now, 0.0)
    each.tick(pause)
    each.settle()
    return pause


def slept(each: World, seconds: float) -> None:
    """Let so much time pass, with the manager woken whenever it asks to be."""
    end = each.now + seconds
    while (due := each.manager.wake_at()) is not None and due < end:
        woken(each)
    each.tick(end - each.now)
    each.settle()


def test_ready_means_that_all_instances_have_been_active_for_long_enough() -> None:
    each = world()
    each.want(APP, 3, min_healthy=10.0)
    each.run_down()
    assert condition(each) == (Condition.PROGRESSING, "3 of 3 active, but not all of them for 10 s yet")
    assert woken(each) == 10.0
    assert condition(each) == (Condition.READY, "")
    each.want(APP, 4, min_healthy=10.0)
    each.run_down()
    assert condition(each)[0] is Condition.PROGRESSING
    slept(each, 9.9)
    assert condition(each)[0] is Condition.PROGRESSING
    slept(each, 0.1)
    assert condition(each) == (Condition.READY, "")


def test_instances_are_counted_as_healthy_once_they_are_whatever_else_is_wrong() -> None:
    each = World(interval=1e6)
    each.join(n(1), Registration(version="1", features=FEATURES, capacity=2))
    each.lead()
    each.want(APP, 3, min_healthy=10.0)
    each.run_down()
    slept(each, 9.9)
    told = each.statuses[NAME]
    assert (told.condition, told.active, told.healthy) == (Condition.UNSCHEDULABLE, 2, 0)
    slept(each, 0.1)
    assert each.statuses[NAME].healthy == 2
    due = each.manager.wake_at()
    assert due is not None
    assert due > each.now + 1, "there is nothing to look for any more"


def test_a_young_instance_that_is_removed_does_not_hold_up_the_others() -> None:
    each = running(1, 1)
    each.want(APP, 1, min_healthy=100.0)
    each.run_down()
    slept(each, 100.0)
    assert condition(each)[0] is Condition.READY
    each.want(APP, 2, min_healthy=100.0)
    each.run_down()
    each.want(APP, 1, min_healthy=100.0)
    each.run_down()
    assert condition(each)[0] is Condition.READY


def test_why_an_instance_failed_is_told_until_it_runs_there() -> None:
    each = running(1, 1)
    key = failed_once(each)
    each.tick(1.0)
    each.run_down()
    assert each.states(APP) == {key: S.ACTIVE}
    each.want(APP, 2)
    each.settle()
    (other,) = each.states(APP).keys() - {key}
    each.report(other, S.LOADING)
    each.settle()
    slept(each, 120.0)
    assert "before" not in condition(each)[1], "that it did not answer in time has nothing to do with it"


@pytest.mark.parametrize("fresh", [True, False])
def test_a_change_of_leaders_does_not_begin_the_count_anew(fresh: bool) -> None:
    each = world()
    each.want(APP, 3, min_healthy=10.0)
    each.run_down()
    slept(each, 6.0)
    each.step_down()
    if fresh:
        each.boot()
    each.lead()
    each.settle()
    slept(each, 3.9)
    assert condition(each)[0] is Condition.PROGRESSING
    slept(each, 0.1)
    assert condition(each)[0] is Condition.READY


def test_a_slice_that_says_again_that_it_is_active_has_been_so_all_the_time() -> None:
    each = running()
    each.want(APP, 3, min_healthy=10.0)
    slept(each, 10.0)
    key = next(iter(each.slices))
    each.store(key, SliceValue(S.ACTIVE, 1, port=8080, blueprint=1))
    each.settle()
    assert condition(each)[0] is Condition.READY
    each.store(key, SliceValue(S.ACTIVE, 1, port=8080, blueprint=1, restarts=1))
    each.settle()
    assert condition(each)[0] is Condition.PROGRESSING, "it was started again in between"


def test_a_program_that_ended_once_is_not_ready_until_it_has_been_up_again_for_long_enough() -> None:
    each = running()
    each.want(APP, 3, min_healthy=10.0)
    slept(each, 10.0)
    each.end(next(iter(each.slices)))
    each.settle()
    assert condition(each) == (Condition.PROGRESSING, "2 of 3 active")
    each.run_down()
    assert condition(each)[0] is Condition.PROGRESSING
    slept(each, 10.0)
    assert condition(each)[0] is Condition.READY


@pytest.mark.parametrize("stable", [None, 20.0])
def test_a_program_that_ends_again_and_again_is_never_ready_in_between(stable: float | None) -> None:
    each = running()
    key = next(iter(each.slices))
    for count in range(1, 8):
        each.end(key, stable=stable)
        slept(each, 4.0)
        for pause in (0.0, 12.0):  # just started, and about to end
            if pause:
                each.report(key, S.ACTIVE, stable=stable)
            slept(each, pause)
            if count > 1:
                assert condition(each) == (Condition.DEGRADED, "crash loop: 1 of 3 instances: exit status 1")
    left = (stable or 60.0) - 12.0
    slept(each, left - 0.1)
    assert condition(each)[0] is Condition.DEGRADED
    slept(each, 0.1)
    assert condition(each) == (Condition.READY, "")


def test_a_crash_loop_is_told_of_as_long_as_it_lasts_though_a_newer_blueprint_is_refused() -> None:
    each = running(1)
    (key,) = each.slices
    for _ in range(2):
        each.end(key)
        each.run_down()
    each.refuse(APP, "foo: there is no such field")
    each.settle()
    loop = "foo: there is no such field; in force: crash loop: 1 of 1 instances: exit status 1"
    assert condition(each) == (Condition.INVALID, loop)
    slept(each, 60.0)
    assert condition(each) == (Condition.INVALID, "foo: there is no such field")


def test_ends_that_are_far_apart_and_of_different_instances_are_no_crash_loop() -> None:
    each = running()
    first, second, _ = each.slices
    for key, pause in ((first, 1.0), (second, 301.0), (first, 1.0)):
        each.end(key)
        each.run_down()
        assert condition(each)[0] is Condition.READY
        slept(each, pause)


def test_instances_that_fail_one_after_another_are_a_crash_loop_wherever_they_are_replaced() -> None:
    each = running(1)
    for pause in (1.0, 2.0, 4.0):
        failed_once(each)
        assert condition(each)[0] is Condition.DEGRADED
        slept(each, pause)
        each.run_down()
    assert condition(each) == (Condition.DEGRADED, "crash loop: 1 of 1 instances: it broke")
    slept(each, 59.9)
    assert condition(each)[0] is Condition.DEGRADED
    slept(each, 0.1)
    assert condition(each) == (Condition.READY, "")


def test_a_process_that_began_later_takes_what_was_started_often_for_a_crash_loop() -> None:
    each = running()
    key = next(iter(each.slices))
    each.store(key, SliceValue(S.ACTIVE, 1, restarts=7))
    each.boot()
    each.lead()
    each.settle()
    assert condition(each)[0] is Condition.DEGRADED
    slept(each, 60.0)
    assert condition(each)[0] is Condition.READY


@pytest.mark.parametrize("copy", [True, False])
def test_another_number_of_instances_is_no_other_setting_even_if_the_agent_drops_the_settings(copy: bool) -> None:
    each = world()
    each.apply(APP, NEWER)
    each.settle()
    for _ in range(5):
        for key, put in list(each.slices.items()):
            if put.value.state in NEXT:
                each.report(key, NEXT[put.value.state], copy=copy)
        each.settle()
    for instances in (2, 1):
        each.apply(APP, Blueprint(instances, NEWER.overrides, 0.0))
        each.run_down()
        assert condition(each)[0] is Condition.READY


def dropped(each: World) -> None:
    """Agents that copy nothing but the blueprint's revision go on until nothing is left to do."""
    for _ in range(5):
        for key, put in list(each.slices.items()):
            if put.value.state in NEXT:
                each.report(key, NEXT[put.value.state], copy=False, blueprint=put.value.blueprint)
        each.settle()


def test_an_exclusive_slice_whose_agent_drops_the_settings_is_waited_for_all_the_same() -> None:
    each = world(2)
    overrides = Overrides(stop_after=20.0)
    each.apply(APP, Blueprint(1, overrides, 0.0))
    each.settle()
    dropped(each)
    ((key, put),) = each.slices.items()
    assert (put.value.state, put.value.overrides) == (S.ACTIVE, None)
    each.expire(key.node)
    slept(each, 20.0)
    assert list(each.slices) == [key]
    assert condition(each) == (Condition.PROGRESSING, "waiting for 1 exclusive instance to stop")
    slept(each, overrides.gone_after or 0.0)
    each.run_down()
    assert key not in each.slices
    assert len(each.slices) == 1


def test_what_drops_the_settings_is_not_taken_for_outdated_by_a_leader_that_did_not_see_the_command() -> None:
    each = world()
    each.apply(APP, NEWER)
    each.settle()
    dropped(each)
    each.apply(APP, Blueprint(2, NEWER.overrides, 0.0))
    each.settle()
    dropped(each)
    each.boot()
    each.lead()
    each.settle()
    assert condition(each) == (Condition.READY, "")


def test_what_a_command_sets_no_more_is_not_kept() -> None:
    each = world(1)
    each.apply(APP, NEWER)
    each.settle()
    dropped(each)
    (key, *_) = each.slices
    each.report(key, S.FAILED, copy=False)
    each.apply(APP, OLDER)
    each.run_down()
    assert each.manager.cluster.group(APP).slices[key].value.overrides is None


def test_what_does_not_say_which_blueprint_it_serves_is_never_outdated() -> None:
    each = running(1)
    (key,) = each.slices
    each.step_down()
    each.store(key, SliceValue(S.ACTIVE))
    each.boot()
    each.apply(APP, Blueprint(1, NEWER.overrides, 0.0))
    each.lead()
    each.settle()
    assert condition(each)[0] is Condition.READY


# Time and pressure


def test_the_timer_of_rounds_is_told_and_kept() -> None:
    each = running()
    due = each.manager.wake_at()
    assert due is not None
    assert each.now < due <= each.now + 30.0
    each.tick(due - each.now)
    assert each.manager.wake_at() == due + 30.0


def test_a_full_outbox_stops_deciding_until_something_is_written() -> None:
    each = world(1)
    artifacts = [Artifact("g", f"a{number}", "1") for number in range(4)]
    for artifact in artifacts:
        each.want(artifact, HIGH_WATER // 2)
    each.tick()
    assert each.outbox.full
    assert len(each.decided) == 2
    assert each.manager.wake_at() != float("-inf"), "no spinning on a full outbox"
    each.tick()
    assert len(each.decided) == 2
    each.wakes = 0
    order = each.outbox.take_order()
    assert order is not None
    each.route(Written(order.artifact, order.term, 1))
    assert each.wakes > 0, "room in the outbox wakes the manager"
    each.tick()
    assert len(each.decided) == 3


def test_a_long_list_is_worked_off_in_turns() -> None:
    each = world()
    clock = iter(range(1_000_000))
    each.clock = lambda: float(next(clock))  # every look at the clock is a second later
    for number in range(5):
        each.want(Artifact("g", f"a{number}", "1"), 1)
    each.tick()
    assert len(each.decided) == 1
    assert each.manager.wake_at() == float("-inf")
    for _ in range(4):
        each.tick()
    assert len(each.decided) == 5
    assert each.manager.wake_at() != float("-inf")


CHANGES: dict[str, Callable[[World], None]] = {
    "applied": lambda each: each.want(APP, 4),
    "refused": lambda each: each.refuse(APP),
    "deleted": lambda each: each.drop(APP),
    "joined": lambda each: each.join(n(8)),
    "gone": lambda each: each.expire(n(1)),
    "cordoned": lambda each: each.intend(n(1), Schedule.CORDON),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_wakes_the_manager(change: str) -> None:
    each = running()
    each.wakes = 0
    CHANGES[change](each)
    assert each.wakes > 0


# The outbox


def test_the_outbox_keeps_the_order_and_counts_commands() -> None:
    heard: list[str] = []
    outbox = Outbox(lambda: heard.append("order"), lambda: heard.append("status"))
    command = Command(SliceKey(n(1), APP), S.LOAD, "because")
    many, one = Order(APP, 1, [command] * (HIGH_WATER - 1)), Order(OTHER, 1, [command])
    full: list[bool] = []
    for order in (many, one):
        outbox.order(order)
        full.append(outbox.full)
    assert full == [False, True]
    assert heard == ["order", "order"]
    assert [outbox.take_order() for _ in range(3)] == [many, one, None]
    full.append(outbox.full)
    assert full[-1] is False


def test_a_later_status_replaces_an_earlier_one() -> None:
    outbox = Outbox(lambda: None, lambda: None)
    for condition in (Condition.PROGRESSING, Condition.READY):
        outbox.status("a", Status(condition))
    outbox.status("b", None)
    outbox.status("c", None)
    assert outbox.take_statuses(2) == {"a": Status(Condition.READY), "b": None}
    assert outbox.take_statuses(2) == {"c": None}
    assert outbox.take_statuses(2) == {}


def test_a_cleared_outbox_is_empty_and_has_room() -> None:
    outbox = Outbox(lambda: None, lambda: None)
    outbox.order(Order(APP, 1, [Command(SliceKey(n(1), APP), S.LOAD, "because")] * HIGH_WATER))
    outbox.status("a", None)
    outbox.clear()
    assert not outbox.full
    assert outbox.take_order() is None
    assert outbox.take_statuses(9) == {}


def test_this_nodes_id_is_known() -> None:
    assert world().manager.node == ME
