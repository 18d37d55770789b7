"""Read your writes: nothing is decided twice before the mirror shows what was written, if it was."""

from __future__ import annotations

import pytest

from cdm.dispatch.messages import FenceRenewal, ValuePut, WriteFailed, Written
from cdm.model.keys import BlueprintKey, FenceKey, encode
from cdm.model.node import Fence, Registration
from cdm.model.status import Condition
from tests.unit.leading import NAME, states, world
from tests.unit.support import APP, OTHER, n
from tests.unit.world import ME


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
