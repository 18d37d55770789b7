"""Nodes that are dead, missing, cordoned, draining or full: what goes from them, what stays, what they still get."""

from __future__ import annotations

from collections import Counter

import pytest

from cdm.manager.cluster import Desired
from cdm.model.blueprint import Blueprint
from cdm.model.slice import SliceState
from tests.unit.reconciling import NOW, active, places, plan, shown
from tests.unit.support import S, n, put, wanted


def test_a_dead_nodes_slices_are_replaced_and_their_keys_deleted() -> None:
    found = plan(wanted(3), *active(1, 2, 3), nodes=places(3, n3="dead"))
    assert ("n3", 0, None) in shown(found.commands)
    assert Counter(command.state for command in found.commands) == {None: 1, S.LOAD: 1}


@pytest.mark.parametrize("state", SliceState)
def test_whatever_state_a_dead_nodes_slice_is_in_its_key_is_deleted(state: SliceState) -> None:
    found = plan(None, put(n(9), state, at=NOW))
    assert shown(found.commands) == {("n9", 0, None)}


def test_a_missing_node_keeps_its_slices_and_gets_no_new_ones() -> None:
    assert plan(wanted(3), *active(1, 2, 3), nodes=places(3, n3="missing")).commands == []
    found = plan(wanted(4), *active(1, 2, 3), nodes=places(3, n3="missing"))
    assert n(3) not in {command.key.node for command in found.commands}


def test_a_cordoned_node_keeps_its_slices_and_gets_no_new_ones() -> None:
    found = plan(wanted(5), *active(1, 2, 3), nodes=places(3, n1="cordon"))
    assert Counter(command.key.node for command in found.commands) == {n(2): 1, n(3): 1}
    assert plan(wanted(3), *active(1, 2, 3), nodes=places(3, n1="cordon")).commands == []


def test_a_draining_nodes_slice_serves_until_its_replacement_does() -> None:
    nodes = places(3, n3="drain")
    first = plan(wanted(3), *active(1, 2, 3), nodes=nodes)
    assert [(command.state, command.key.node == n(3)) for command in first.commands] == [(S.LOAD, False)]
    for state in (S.LOAD, S.LOADING, S.ACTIVATE, S.ACTIVATING):
        assert plan(wanted(3), *active(1, 2, 3), put(n(1), state, 1, at=NOW), nodes=nodes).commands == []
    loaded = plan(wanted(3), *active(1, 2, 3), put(n(1), S.LOADED, 1), nodes=nodes)
    assert shown(loaded.commands) == {("n1", 1, S.ACTIVATE)}
    last = plan(wanted(3), *active(1, 2, 3), put(n(1), S.ACTIVE, 1), nodes=nodes)
    assert shown(last.commands) == {("n3", 0, S.UNLOAD)}


def test_a_healthy_slice_leaves_a_draining_node_once_its_replacement_is_healthy() -> None:
    nodes, desired = places(3, n3="drain"), Desired(Blueprint(1, min_healthy=10.0), 1, 1)
    old, fresh = put(n(3), S.ACTIVE, at=NOW - 100), put(n(1), S.ACTIVE, at=NOW)
    early = plan(desired, old, fresh, nodes=nodes)
    assert early.commands == []
    assert early.wake_at == NOW + 10.0
    late = plan(desired, old, fresh, nodes=nodes, now=NOW + 10.0)
    assert shown(late.commands) == {("n3", 0, S.UNLOAD)}


def test_of_draining_slices_the_healthy_ones_stay_for_longest() -> None:
    nodes, desired = places(4, n3="drain", n4="drain"), Desired(Blueprint(2, min_healthy=10.0), 1, 1)
    young, old = put(n(3), S.ACTIVE, at=NOW - 1), put(n(4), S.ACTIVE, at=NOW - 100)
    found = plan(desired, young, old, put(n(1), S.ACTIVE, at=NOW), put(n(2), S.LOADING, at=NOW), nodes=nodes)
    assert shown(found.commands) == {("n3", 0, S.UNLOAD)}
    found = plan(desired, young, old, put(n(1), S.LOADING, at=NOW), put(n(2), S.LOADING, at=NOW), nodes=nodes)
    assert found.commands == []


def test_of_several_slices_on_draining_nodes_as_many_go_as_are_replaced() -> None:
    nodes = places(4, n3="drain", n4="drain")
    found = plan(wanted(3), *active(1, 3, 4), put(n(2), S.ACTIVE), nodes=nodes)
    assert Counter(command.state for command in found.commands) == {S.LOAD: 1, S.UNLOAD: 1}


def test_what_is_not_yet_active_on_a_draining_node_goes_at_once() -> None:
    found = plan(wanted(1), put(n(3), S.LOADED), nodes=places(3, n3="drain"))
    assert shown(found.commands) == {("n3", 0, S.UNLOAD), ("n1", 0, S.LOAD)}


def test_scaling_down_takes_the_draining_ones_first() -> None:
    found = plan(wanted(2), *active(1, 2, 3), nodes=places(3, n3="drain"))
    assert shown(found.commands) == {("n3", 0, S.UNLOAD)}


def test_a_drain_without_room_elsewhere_keeps_what_serves_and_says_so() -> None:
    found = plan(wanted(2), *active(1, 2), nodes=places(2, n1="drain", n2="1"))
    assert found.commands == []
    assert found.unplaced == 1


def test_the_only_node_draining_keeps_its_slices() -> None:
    found = plan(wanted(1), *active(1), nodes=places(1, n1="drain"))
    assert found.commands == []
    assert found.unplaced == 1


def test_capacity_is_respected_and_what_does_not_fit_is_counted() -> None:
    found = plan(wanted(9), nodes=places(3, n1="1", n2="2", n3="3"), more={n(3): 1})
    assert Counter(command.key.node for command in found.commands) == {n(1): 1, n(2): 2, n(3): 2}
    assert found.unplaced == 4


def test_without_any_node_everything_is_unplaced() -> None:
    found = plan(wanted(3), nodes={})
    assert found.commands == []
    assert found.unplaced == 3
