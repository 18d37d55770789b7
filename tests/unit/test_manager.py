"""The manager: dormant until its node leads, woken when there is something to do, held up by a full outbox."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from cdm.dispatch.messages import LeaderChange, Written
from cdm.manager.active import WORK_BUDGET, Active
from cdm.manager.dormant import Dormant
from cdm.manager.outbox import HIGH_WATER, Order, Outbox
from cdm.manager.plan import Command
from cdm.model.artifact import Artifact
from cdm.model.blueprint import Blueprint
from cdm.model.keys import SliceKey
from cdm.model.node import Schedule
from cdm.model.status import Condition, Status
from tests.unit.leading import NAME, running, states, world
from tests.unit.support import APP, OTHER, S, n
from tests.unit.world import ME, World

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
