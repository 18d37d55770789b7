"""How one slice stands: every case by its name, and each slice of an artifact in exactly one list."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cdm.manager.group import SlicePut
from cdm.manager.policy import Policy
from cdm.manager.standing import CATCH_UP, Fleet, LiveNode, Standing, lingering, sort, standing_of
from cdm.model.artifact import NodeId
from cdm.model.blueprint import Overrides
from cdm.model.node import HEARING_PACE
from cdm.model.slice import Kind, SliceState
from tests.unit.support import S, group_of, n, put

NOW = 10_000.0
POLICY = Policy()
OPEN = LiveNode(n(1), open=True, draining=False)
EMPTYING = LiveNode(n(1), open=False, draining=True)
FULL = LiveNode(n(1), open=True, draining=False, capacity=1)
MISSING = LiveNode(n(1), open=False, draining=False, registered=False)
LATE = 500.0
"""Seconds that are past every deadline."""


def fleet(*nodes: LiveNode, lost: Mapping[NodeId, float] | None = None) -> Fleet:
    return Fleet({n(number): node for number, node in enumerate(nodes, 1)}, lambda node: 1, lost or {})


def judge(each: SlicePut, where: Fleet, *, failed_unloading: bool = False) -> Standing:
    return standing_of(each, {each.key} if failed_unloading else set(), where, POLICY, NOW)


def at_most_once(each: SlicePut) -> SlicePut:
    return replace(each, value=replace(each.value, overrides=Overrides(stop_after=20.0)))


@pytest.mark.parametrize("state", SliceState)
@pytest.mark.parametrize("late", [False, True])
def test_on_a_node_that_takes_slices(state: SliceState, late: bool) -> None:
    each = put(n(1), state, at=NOW - LATE if late else NOW)
    overdue = late and state.kind is not Kind.REST
    if state is S.FAILED:
        expected = Standing.FAILED
    elif state in (S.UNLOAD, S.UNLOADING):
        expected = Standing.UNANSWERED if overdue else Standing.LEAVING
    else:
        expected = Standing.STUCK if overdue else Standing.LIVE
    assert judge(each, fleet(OPEN)) is expected


@pytest.mark.parametrize("state", SliceState)
@pytest.mark.parametrize("late", [False, True])
def test_on_a_node_that_is_missing_what_is_live_is_awaited(state: SliceState, late: bool) -> None:
    found = judge(put(n(1), state, at=NOW - LATE if late else NOW), fleet(MISSING))
    assert (found is Standing.AWAITED) == state.live
    assert found not in (Standing.GONE, Standing.UNANSWERED)


@pytest.mark.parametrize("state", [each for each in SliceState if each.kind is not Kind.REST])
@pytest.mark.parametrize("back", ["the node", "this process"])
def test_what_could_not_be_told_in_time_has_some_time_once_it_can(state: SliceState, back: str) -> None:
    def after(seconds: float) -> Standing:
        since = NOW - seconds
        if back == "the node":
            return judge(late, fleet(replace(OPEN, since=since)))
        return judge(late, replace(fleet(OPEN), connected_since=since))

    late = put(n(1), state, at=NOW - LATE)
    leaves = state in (S.UNLOAD, S.UNLOADING)
    assert after(CATCH_UP - 1.0) is (Standing.LEAVING if leaves else Standing.LIVE)
    assert after(CATCH_UP) is (Standing.UNANSWERED if leaves else Standing.STUCK)


def test_where_nodes_hear_one_after_the_other_all_have_the_time_for_that() -> None:
    def silent_from(count: int) -> float:
        nodes = {n(number): OPEN for number in range(count)}
        return replace(fleet(OPEN), nodes=nodes, connected_since=NOW).silent_from(OPEN)

    assert silent_from(100) == silent_from(1_000) == NOW + CATCH_UP
    assert silent_from(10_000) == NOW + 2 * 10_000 * HEARING_PACE


def test_what_failed_while_it_was_unloaded_is_told_apart() -> None:
    assert judge(put(n(1), S.FAILED), fleet(OPEN), failed_unloading=True) is Standing.UNLOAD_FAILED


@pytest.mark.parametrize("state", SliceState)
def test_on_a_dead_node_it_is_gone(state: SliceState) -> None:
    assert judge(put(n(9), state, at=NOW), fleet(OPEN)) is Standing.GONE
    assert judge(put(n(9), state, at=NOW), fleet(OPEN, lost={n(9): NOW})) is Standing.GONE


def test_an_exclusive_slice_on_a_lost_node_may_run_unheard_for_a_time() -> None:
    each = at_most_once(put(n(9), S.ACTIVE))
    assert judge(each, fleet(OPEN, lost={n(9): NOW - 10.0})) is Standing.UNHEARD
    assert judge(each, fleet(OPEN, lost={n(9): NOW - 40.0})) is Standing.GONE
    assert judge(at_most_once(put(n(9), S.LOADED)), fleet(OPEN, lost={n(9): NOW})) is Standing.GONE


def test_on_a_draining_node_it_serves_on() -> None:
    assert judge(put(n(1), S.ACTIVE), fleet(EMPTYING, OPEN)) is Standing.DRAINING
    assert judge(at_most_once(put(n(1), S.ACTIVE)), fleet(EMPTYING, OPEN)) is Standing.DRAINING


def test_an_exclusive_slice_that_is_unloaded_is_waited_for_however_long() -> None:
    assert judge(at_most_once(put(n(1), S.UNLOADING, at=NOW - LATE)), fleet(OPEN)) is Standing.LEAVING


puts = st.lists(
    st.builds(
        put,
        st.integers(1, 4).map(n),
        st.sampled_from(SliceState),
        st.integers(0, 3),
        at=st.sampled_from([NOW, NOW - LATE]),
    ),
    unique_by=lambda each: each.key,
    max_size=12,
)


@given(puts, st.booleans())
def test_every_slice_stands_in_exactly_one_way(slices: list[SlicePut], exclusive: bool) -> None:
    slices = [at_most_once(each) for each in slices] if exclusive else slices
    found = sort(group_of(*slices), fleet(OPEN, EMPTYING, FULL, lost={n(4): NOW}), POLICY, NOW)
    assert set(found) == set(Standing)
    keys = [each.key for standing in Standing for each in found[standing]]
    assert sorted(keys) == sorted(each.key for each in slices)
    waited_for = lingering(found)
    assert not waited_for or exclusive
    assert not any(each.value.state in (S.LOAD, S.LOADING, S.LOADED) for each in waited_for)
    assert not set(map(id, waited_for)) & set(map(id, found[Standing.LIVE]))
