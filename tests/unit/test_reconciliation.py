"""What is loaded, brought up and unloaded of an artifact, so that there is what its blueprint wants, and no more."""

from __future__ import annotations

from collections import Counter

import pytest
from msgspec.structs import replace

from cdm.manager.cluster import Desired
from cdm.manager.plan import Command, Plan
from cdm.model.blueprint import Blueprint
from cdm.model.keys import SliceKey
from cdm.model.slice import Kind, SliceState, SliceValue
from cdm.model.template import PLAIN
from tests.unit.reconciling import NOW, active, places, plan, shown
from tests.unit.support import APP, OTHER, S, n, put, wanted

# Up and down


def test_a_new_blueprint_is_loaded_evenly() -> None:
    assert shown(plan(wanted(5)).commands) == {
        ("n1", 0, S.LOAD),
        ("n1", 1, S.LOAD),
        ("n2", 0, S.LOAD),
        ("n2", 1, S.LOAD),
        ("n3", 0, S.LOAD),
    }


def test_what_needs_no_change_gets_no_command() -> None:
    assert plan(wanted(3), *active(1, 2, 3)) == Plan([])


def test_scaling_up_only_adds_and_exactly_the_difference() -> None:
    found = plan(wanted(5), *active(1, 1), *active(2), nodes=places(3))
    assert Counter(command.state for command in found.commands) == {S.LOAD: 3}
    found = plan(wanted(4), put(n(1), S.LOADING, at=NOW), *active(2, 3))
    assert shown(found.commands) == {("n1", 1, S.LOAD)}


def test_scaling_down_only_removes_and_exactly_the_difference() -> None:
    found = plan(wanted(2), *active(1, 2, 3), *active(1, 2, ordinal=1))
    assert [command.state for command in found.commands] == [S.UNLOAD] * 3


@pytest.mark.parametrize(("count", "told"), [(1, "1 instance, 0 wanted"), (2, "2 instances, 0 wanted")])
def test_scaling_down_says_how_many_there_are(count: int, told: str) -> None:
    found = plan(wanted(0), *active(*range(1, count + 1)))
    assert {command.reason for command in found.commands} == {told}


def test_what_is_told_to_go_keeps_the_folder_in_which_it_runs() -> None:
    (each,) = active(1)
    named = replace(each, value=replace(each.value, folder="a1"))
    (command,) = plan(wanted(0), named).commands
    assert command.value(7).folder == "a1"


def test_scaling_down_takes_not_yet_active_ones_first() -> None:
    found = plan(wanted(2), *active(1, 2), put(n(3), S.LOADING, at=NOW), put(n(3), S.LOADED, 1))
    assert shown(found.commands) == {("n3", 0, S.UNLOAD), ("n3", 1, S.UNLOAD)}


def test_scaling_down_takes_what_has_not_served_for_long_before_what_is_healthy() -> None:
    old = [put(n(1), S.ACTIVE, 1, at=NOW - 100), put(n(1), S.ACTIVE, at=NOW - 100)]
    found = plan(Desired(Blueprint(2, min_healthy=10.0), 1, 1), *old, put(n(2), S.ACTIVE, at=NOW - 9))
    assert shown(found.commands) == {("n2", 0, S.UNLOAD)}


def test_scaling_down_then_takes_from_the_fullest_node_the_highest_ordinal() -> None:
    found = plan(wanted(3), *active(1, 2, 3), *active(2, ordinal=1), *active(2, ordinal=7))
    assert shown(found.commands) == {("n2", 7, S.UNLOAD), ("n2", 1, S.UNLOAD)}


def test_scaling_down_unloads_failed_ones_and_no_more_live_ones_than_the_difference() -> None:
    found = plan(wanted(2), *active(1, 2, 3), put(n(1), S.FAILED, 1, at=NOW))
    assert shown(found.commands) == {("n1", 1, S.UNLOAD), ("n3", 0, S.UNLOAD)}


def test_a_slice_that_is_removed_is_not_activated_first() -> None:
    found = plan(wanted(0), put(n(1), S.LOADED))
    assert shown(found.commands) == {("n1", 0, S.UNLOAD)}


def test_slices_that_are_leaving_do_not_count() -> None:
    found = plan(wanted(1), put(n(1), S.UNLOAD, at=NOW), put(n(2), S.UNLOADING, at=NOW))
    assert shown(found.commands) == {("n3", 0, S.LOAD)} | (shown(found.commands) - {("n3", 0, S.LOAD)})
    assert Counter(command.state for command in found.commands) == {S.LOAD: 1}


def test_no_ordinal_is_used_twice() -> None:
    found = plan(wanted(4), put(n(1), S.UNLOADING, 0, at=NOW), put(n(1), S.ACTIVE, 2), nodes=places(1))
    assert shown(found.commands) == {("n1", 1, S.LOAD), ("n1", 3, S.LOAD), ("n1", 4, S.LOAD)}


def test_more_instances_than_nodes_are_spread_two_two_one() -> None:
    counts = Counter(command.key.node for command in plan(wanted(5)).commands)
    assert sorted(counts.values()) == [1, 2, 2]


def test_round_robin_goes_on_behind_the_node_that_was_served_last() -> None:
    found = plan(wanted(1), cursor=n(1))
    assert shown(found.commands) == {("n2", 0, S.LOAD)}
    assert found.cursor == n(2)
    assert plan(wanted(1), cursor=n(3)).cursor == n(1)


def test_round_robin_survives_decisions_that_place_nothing() -> None:
    assert plan(wanted(1), *active(1), cursor=n(2)).cursor == n(2)
    assert plan(None, cursor=n(2)).cursor == n(2)
    assert plan(Desired(None, 0, 3, "bad"), cursor=n(2)).cursor == n(2)


def test_round_robin_remembers_who_was_served_when_the_shunned_nodes_are_full() -> None:
    failed = put(n(2), S.FAILED, at=NOW, failures=9, blueprint=1)
    found = plan(wanted(3), failed, nodes=places(2, n1="1", n2="1"))
    assert shown(found.commands) == {("n1", 0, S.LOAD)}
    assert found.cursor == n(1)


def test_ties_go_to_the_node_with_the_fewest_slices_of_all_artifacts() -> None:
    assert shown(plan(wanted(1), more={n(1): 4, n(2): 3, n(3): 5}).commands) == {("n2", 0, S.LOAD)}


def test_other_artifacts_are_counted_but_not_touched() -> None:
    other = put(n(1), S.ACTIVE, artifact=OTHER)
    assert shown(plan(wanted(1), other, nodes=places(2)).commands) == {("n2", 0, S.LOAD)}


# The way up


def test_loaded_is_answered_with_activate() -> None:
    found = plan(wanted(1, 9), put(n(1), S.LOADED, failures=2))
    assert found.commands == [Command(SliceKey(n(1), APP), S.ACTIVATE, "loaded", 2, 9, loaded=1, template=PLAIN.digest)]


@pytest.mark.parametrize("state", [S.LOAD, S.LOADING, S.ACTIVATE, S.ACTIVATING, S.DEACTIVATE, S.DEACTIVATING])
def test_what_is_on_its_way_is_left_alone_until_its_deadline(state: SliceState) -> None:
    found = plan(wanted(1), put(n(1), state, at=NOW - 1))
    assert found.commands == []
    assert found.wake_at == NOW - 1 + (60.0 if state.kind is Kind.COMMAND else 120.0)


def test_the_earliest_deadline_is_told() -> None:
    found = plan(wanted(2), put(n(1), S.LOAD, at=NOW - 50), put(n(2), S.LOADING, at=NOW - 115))
    assert found.wake_at == NOW + 5


@pytest.mark.parametrize(
    ("state", "limit"),
    [(S.LOAD, 60.0), (S.ACTIVATE, 60.0), (S.LOADING, 120.0), (S.ACTIVATING, 120.0), (S.DEACTIVATING, 120.0)],
)
def test_a_stuck_slice_is_replaced_elsewhere(state: SliceState, limit: float) -> None:
    assert plan(wanted(1), put(n(1), state, at=NOW - limit + 0.1)).commands == []
    found = plan(wanted(1, 4), put(n(1), state, at=NOW - limit, failures=3))
    assert sorted(found.commands, key=lambda command: command.key) == [
        Command(SliceKey(n(1), APP), S.UNLOAD, f"stuck in {state}", 4, 4),
        Command(SliceKey(n(2), APP), S.LOAD, "replaces a failed instance", 4, 4, template=PLAIN.digest),
    ]


def test_a_stuck_slice_on_the_only_node_is_replaced_there_under_another_ordinal() -> None:
    found = plan(wanted(1), put(n(1), S.LOADING, at=NOW - 500), nodes=places(1))
    assert shown(found.commands) == {("n1", 0, S.UNLOAD), ("n1", 1, S.LOAD)}


@pytest.mark.parametrize("state", [S.LOADING, S.ACTIVATING, S.DEACTIVATING])
@pytest.mark.parametrize(("told", "believed"), [(300.0, 300.0), (5.0, 5.0), (1e9, 86_400.0), (-1.0, 0.0)])
def test_a_transition_that_says_how_long_it_may_take_is_believed_up_to_a_day(
    state: SliceState, told: float, believed: float
) -> None:
    each = put(n(1), state, at=NOW, value=SliceValue(state, deadline=told))
    early = plan(wanted(1), each, now=NOW + believed - 0.1)
    assert early.commands == []
    assert early.wake_at == NOW + believed
    assert ("n1", 0, S.UNLOAD) in shown(plan(wanted(1), each, now=NOW + believed).commands)


def test_a_command_has_its_usual_deadline_whatever_it_says() -> None:
    each = put(n(1), S.LOAD, at=NOW, value=SliceValue(S.LOAD, deadline=300.0))
    assert plan(wanted(1), each).wake_at == NOW + 60.0


@pytest.mark.parametrize("state", [S.LOADED, S.ACTIVE])
def test_states_at_rest_have_no_deadline(state: SliceState) -> None:
    found = plan(wanted(1), put(n(1), state, at=NOW - 1e6))
    assert all(command.state is S.ACTIVATE for command in found.commands)
    assert found.wake_at is None


# Unloading


def test_without_a_blueprint_everything_is_unloaded() -> None:
    puts = [
        put(n(1), S.ACTIVE),
        put(n(2), S.LOADING, at=NOW),
        put(n(3), S.FAILED, at=NOW),
        put(n(1), S.LOADED, 1),
        put(n(2), S.UNLOADING, 1, at=NOW),
    ]
    assert shown(plan(None, *puts).commands) == {
        ("n1", 0, S.UNLOAD),
        ("n2", 0, S.UNLOAD),
        ("n3", 0, S.UNLOAD),
        ("n1", 1, S.UNLOAD),
    }


@pytest.mark.parametrize(("state", "limit"), [(S.UNLOAD, 60.0), (S.UNLOADING, 120.0)])
def test_an_unload_that_is_not_answered_ends_in_the_keys_deletion(state: SliceState, limit: float) -> None:
    early = plan(None, put(n(1), state, at=NOW - limit + 1))
    assert early == Plan([], NOW + 1)
    late = plan(None, put(n(1), state, at=NOW - limit))
    assert shown(late.commands) == {("n1", 0, None)}


def test_a_refused_blueprint_without_a_valid_one_before_changes_nothing() -> None:
    found = plan(Desired(None, 0, 3, "instances: must be a whole number"), *active(1), put(n(2), S.LOADED))
    assert list(found.commands) == []


def test_a_refused_blueprint_leaves_the_last_valid_one_in_force() -> None:
    found = plan(Desired(Blueprint(2), 3, 9, "bad"), *active(1))
    assert [command.blueprint for command in found.commands] == [3]
    assert shown(found.commands) == {("n2", 0, S.LOAD)}
