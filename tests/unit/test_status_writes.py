"""When statuses are written: on a change, by a round that finds another one there, as soon as there is room."""

from __future__ import annotations

import pytest

from cdm.dispatch.messages import ValuePut, ValueRemove
from cdm.model.keys import StatusKey
from cdm.model.node import Registration, Role
from cdm.model.status import Condition, Status
from tests.unit.leading import NAME, running, states, world
from tests.unit.support import APP, OTHER, n


def test_a_status_is_written_on_change_only() -> None:
    each = running()
    each.want(APP, 3)
    each.settle()
    changed = [told[NAME] for told in each.told]
    assert [status.observed_revision for status in changed if status] == [each.blueprints[APP][1]]


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
