from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cdm.allocation.evenly import Ranking
from cdm.dispatch.messages import ValuePut
from cdm.manager.cluster import Cluster, Desired
from cdm.manager.group import STABLE_AFTER, SlicePut
from cdm.manager.plan import WHOLE, Command, Plan
from cdm.manager.policy import Policy
from cdm.manager.reconciliation import reconcile, settled
from cdm.manager.standing import MAY_RUN, NEVER_RAN, Fleet, LiveNode
from cdm.manager.status import refused_status, status_of
from cdm.manager.wanted import wanted_of
from cdm.model.artifact import NodeId
from cdm.model.blueprint import LAST_MARGIN, LONGEST_LAST_GRACE, Blueprint, Overrides
from cdm.model.keys import SliceKey
from cdm.model.slice import Kind, SliceState, SliceValue, legal
from cdm.model.status import Condition, Status
from cdm.model.template import PLAIN
from tests.unit.support import APP, OTHER, S, cluster_of, group_of, n, put, wanted

POLICY = Policy()
NOW = 10_000.0


def places(count: int = 3, **kinds: str) -> dict[NodeId, LiveNode]:
    """Open nodes n1, n2 …; by name some may be "cordon", "drain", "missing", "dead" or their capacity."""
    found: dict[NodeId, LiveNode] = {}
    for number in range(1, count + 1):
        kind = kinds.get(f"n{number}", "")
        if kind != "dead":
            capacity = int(kind) if kind.isdigit() else None
            is_open = kind == "" or kind.isdigit()
            found[n(number)] = LiveNode(n(number), is_open, kind == "drain", capacity, kind != "missing")
    return found


def plan(
    desired: Desired | None,
    *puts: SlicePut,
    nodes: Mapping[NodeId, LiveNode] | None = None,
    now: float = NOW,
    failed_unloading: Iterable[SliceKey] = (),
    cursor: NodeId | None = None,
    more: Mapping[NodeId, int] | None = None,
    lost: Mapping[NodeId, float] | None = None,
) -> Plan:
    cluster = with_failures(puts, failed_unloading)
    return reconcile(
        APP,
        wanted_of(desired),
        cluster.group(APP),
        fleet(cluster, places() if nodes is None else nodes, more, lost),
        now,
        POLICY,
        cursor,
    )


def fleet(
    cluster: Cluster,
    nodes: Mapping[NodeId, LiveNode],
    more: Mapping[NodeId, int] | None = None,
    lost: Mapping[NodeId, float] | None = None,
    ranking: Ranking | None = None,
) -> Fleet:
    extra = more or {}
    return Fleet(nodes, lambda node: len(cluster.on_node.get(node, ())) + extra.get(node, 0), lost or {}, ranking)


def with_failures(puts: Iterable[SlicePut], failed_unloading: Iterable[SliceKey]) -> Cluster:
    cluster = cluster_of(*puts)
    for key in failed_unloading:
        cluster.group(key.artifact).failed_unloading |= {key}
    return cluster


def shown(commands: Sequence[Command]) -> set[tuple[str, int, SliceState | None]]:
    return {(command.key.node, command.key.ordinal, command.state) for command in commands}


def active(*numbers: int, ordinal: int = 0) -> list[SlicePut]:
    return [put(n(number), S.ACTIVE, ordinal) for number in numbers]


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


# Failures


@pytest.mark.parametrize(("failures", "pause"), [(None, 1), (0, 1), (1, 2), (3, 8), (8, 256), (9, 300), (50, 300)])
def test_a_failed_slice_is_retried_after_an_exponential_pause(failures: int | None, pause: float) -> None:
    failed = put(n(1), S.FAILED, at=NOW, failures=failures, blueprint=1)
    early = plan(wanted(1), failed, now=NOW + pause - 0.01)
    assert early.commands == []
    assert early.wake_at == NOW + pause
    assert early.unplaced == 0
    late = plan(wanted(1), failed, now=NOW + pause)
    assert shown(late.commands) == {("n1", 0, S.UNLOAD), ("n2", 0, S.LOAD)}
    load = next(command for command in late.commands if command.state is S.LOAD)
    assert load.failures == (failures or 0) + 1


def test_a_fatal_failure_is_retried_after_the_longest_pause() -> None:
    failed = put(n(1), S.FAILED, at=NOW, fatal=True, blueprint=1)
    assert plan(wanted(1), failed, now=NOW + 299.9).commands == []
    assert plan(wanted(1), failed, now=NOW + 300).commands


def test_a_newer_blueprint_is_tried_at_once() -> None:
    failed = put(n(1), S.FAILED, at=NOW, fatal=True, failures=30, blueprint=4)
    assert plan(wanted(1, 4), failed, now=NOW).commands == []
    found = plan(wanted(1, 5), failed, now=NOW)
    assert shown(found.commands) == {("n1", 0, S.UNLOAD), ("n2", 0, S.LOAD)}
    assert {command.blueprint for command in found.commands} == {5}


def test_a_retry_on_the_only_node_goes_over_the_failed_slice() -> None:
    found = plan(wanted(1, 2), put(n(1), S.FAILED, at=NOW - 10, failures=1, blueprint=2), nodes=places(1))
    assert found.commands == [Command(SliceKey(n(1), APP), S.LOAD, "retry", 2, 2, template=PLAIN.digest)]


def loads(found: Plan) -> Counter[NodeId]:
    return Counter(command.key.node for command in found.commands if command.state is S.LOAD)


def test_what_runs_elsewhere_is_not_tried_again_where_it_failed() -> None:
    failed = [put(n(1), S.FAILED, at=NOW - 10), put(n(2), S.FAILED, at=NOW - 10)]
    assert loads(plan(wanted(3), *active(3), *failed)) == {n(3): 2}


def test_what_runs_nowhere_is_tried_on_other_nodes_first_and_spread_all_the_same() -> None:
    """The artifact was not there, for example: the one node that was not to be asked must not get all of them."""
    assert loads(plan(wanted(1), put(n(1), S.FAILED, at=NOW - 10)))[n(1)] == 0
    found = loads(plan(wanted(2), *(put(n(each), S.FAILED, at=NOW - 10) for each in (1, 2))))
    assert found[n(3)] == 1
    assert found.total() == 2
    found = loads(plan(wanted(4), *(put(n(each), S.FAILED, at=NOW - 10) for each in range(1, 5)), nodes=places(5)))
    assert found[n(5)] == 1
    assert found.total() == len(found) == 4


def test_a_failed_instance_visits_every_node_before_it_comes_back_to_one() -> None:
    cluster = cluster_of(*(put(n(1), S.ACTIVE, ordinal, artifact=OTHER) for ordinal in range(6)))
    visited = []
    now = NOW
    for failures in range(3):
        found = reconcile(APP, wanted_of(wanted(1)), cluster.group(APP), fleet(cluster, places(3)), now, POLICY)
        (load,) = (command for command in found.commands if command.state is S.LOAD)
        visited.append(load.key.node)
        cluster.put_slice(put(load.key.node, S.FAILED, load.key.ordinal, at=now, failures=failures))
        for command in found.commands:
            if command.state is S.UNLOAD:
                cluster.remove_slice(command.key)
        now += 1000
    assert sorted(visited) == [n(1), n(2), n(3)]


def test_failed_ones_that_are_not_needed_are_unloaded() -> None:
    found = plan(wanted(1), *active(1), put(n(2), S.FAILED, at=NOW))
    assert shown(found.commands) == {("n2", 0, S.UNLOAD)}


def test_other_instances_do_not_wait_for_a_failed_one() -> None:
    found = plan(wanted(3), put(n(1), S.FAILED, at=NOW, failures=5, blueprint=1))
    assert Counter(command.state for command in found.commands) == {S.LOAD: 2}


@pytest.mark.parametrize("room", [1, 2, 3])
def test_a_failed_slice_on_a_full_node_is_tried_again_all_the_same(room: int) -> None:
    # The slice that failed holds a place already: trying it again takes no other.
    running = [put(n(1), S.ACTIVE, ordinal) for ordinal in range(1, room)]
    found = plan(wanted(room), put(n(1), S.FAILED, at=NOW - 400), *running, nodes=places(1, n1=str(room)))
    assert ("n1", 0) in {(command.key.node, command.key.ordinal) for command in found.commands}
    assert found.unplaced == 0


def test_failures_travel_with_their_retries_whichever_node_is_served_first() -> None:
    # n3 has room for one only, so one retry goes there and the other one back to where it failed.
    failed = [
        put(n(1), S.FAILED, at=NOW - 400, failures=5, blueprint=1),
        put(n(2), S.FAILED, at=NOW - 400, failures=0, blueprint=1),
    ]
    found = plan(wanted(2), *failed, nodes=places(3, n3="1"))
    loads = [command for command in found.commands if command.state is S.LOAD]
    assert {command.key.node for command in loads} >= {n(3)}
    assert sorted(command.failures for command in loads) == [1, 6]


def test_a_slice_that_fails_to_unload_is_asked_again_only_after_a_pause() -> None:
    failed = put(n(1), S.FAILED, at=NOW, failures=2)
    early = plan(None, failed, failed_unloading=[failed.key], now=NOW + 3.9)
    assert early.commands == []
    assert early.wake_at == NOW + 4
    late = plan(None, failed, failed_unloading=[failed.key], now=NOW + 4)
    assert late.commands == [Command(SliceKey(n(1), APP), S.UNLOAD, "unloading failed", 3, 0)]


def test_a_slice_that_fails_to_unload_is_not_loaded_again() -> None:
    failed = put(n(1), S.FAILED, at=NOW - 500)
    found = plan(wanted(1), failed, failed_unloading=[failed.key])
    assert shown(found.commands) == {("n1", 0, S.UNLOAD), ("n2", 0, S.LOAD)} or shown(found.commands) == {
        ("n1", 0, S.UNLOAD),
        ("n1", 1, S.LOAD),
    }


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


# Nodes


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


# Counts alone


def test_settled_is_a_matter_of_counts() -> None:
    assert settled(wanted_of(wanted(2)), group_of(*active(1, 2)))
    assert settled(wanted_of(wanted(2)), group_of(put(n(1), S.LOADING), put(n(2), S.ACTIVE), put(n(3), S.UNLOADING)))
    assert settled(wanted_of(None), group_of(put(n(1), S.UNLOAD)))
    assert settled(wanted_of(Desired(None, 0, 1, "bad")), group_of(*active(1)))
    assert not settled(wanted_of(wanted(2)), group_of(*active(1)))
    assert not settled(wanted_of(wanted(1)), group_of(*active(1, 2)))
    assert not settled(wanted_of(wanted(1)), group_of(put(n(1), S.LOADED)))
    assert not settled(wanted_of(wanted(1)), group_of(put(n(1), S.ACTIVE), put(n(2), S.FAILED)))
    assert not settled(wanted_of(None), group_of(*active(1)))


# Status


@pytest.mark.parametrize(
    ("puts", "desired", "unplaced", "status"),
    [
        (active(1, 2), wanted(2, 7), 0, Status(Condition.READY, "", 7, 7, 2, 2, 0, 0, 5)),
        ([], wanted(0, 7), 0, Status(Condition.READY, "", 7, 7, 0, 0, 0, 0, 5)),
        (
            [put(n(1), S.LOADING), *active(2)],
            wanted(2, 7),
            0,
            Status(Condition.PROGRESSING, "1 of 2 active", 7, 7, 2, 1, 1, 0, 5),
        ),
        (
            active(1, 2, 3),
            wanted(2, 7),
            0,
            Status(Condition.PROGRESSING, "1 more than 2 active; unloading", 7, 7, 2, 3, 0, 0, 5),
        ),
        (
            [put(n(1), S.FAILED, reason="boom"), *active(2)],
            wanted(2, 7),
            0,
            Status(Condition.DEGRADED, "1 failed: boom", 7, 7, 2, 1, 0, 1, 5),
        ),
        (
            active(1),
            Desired(Blueprint(2), 3, 9, "instances: must be …"),
            0,
            Status(Condition.INVALID, "instances: must be …", 9, 3, 2, 1, 0, 0, 5),
        ),
        ([], Desired(None, 0, 9, "bad"), 0, Status(Condition.INVALID, "bad", 9, 0, 0, 0, 0, 0, 5)),
    ],
)
def test_the_status_says_what_is(puts: list[SlicePut], desired: Desired, unplaced: int, status: Status) -> None:
    assert status_of(desired, group_of(*puts), Plan(unplaced=unplaced), 5, NOW)[0] == status


@pytest.mark.parametrize(("said", "why"), [("", "no node takes new slices"), ("2 nodes full", "2 nodes full")])
def test_an_unschedulable_blueprint_says_why(said: str, why: str) -> None:
    status = status_of(wanted(3), group_of(*active(1)), Plan(unplaced=2, why=said), 1, NOW)[0]
    assert status.condition is Condition.UNSCHEDULABLE
    assert why in status.reason
    assert "2 of 3" in status.reason


def test_what_serves_on_a_draining_node_is_not_missing() -> None:
    """Seven are wanted, and the nodes that six of them serve on are draining."""
    status = status_of(wanted(7), group_of(*active(*range(1, 7))), Plan(unplaced=7), 1, NOW)[0]
    assert status.reason == "1 of 7 instances cannot be placed, and 6 cannot be moved: no node takes new slices"
    status = status_of(wanted(6), group_of(*active(*range(1, 7))), Plan(unplaced=6), 1, NOW)[0]
    assert status.reason == "6 cannot be moved: no node takes new slices"


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_long_reasons_are_cut_and_none_hides_another(count: int) -> None:
    puts = [put(n(number), S.FAILED, reason=f"{number} " + "x" * 1000) for number in range(count)]
    reason = status_of(wanted(count), group_of(*puts), WHOLE, 1, NOW)[0].reason
    assert 400 < len(reason) <= 500
    for number in range(min(count, 3)):
        assert f" {number} xxx" in reason
    assert reason.count("x…x") == min(count, 3)
    assert reason.endswith("; …") == (count > 3)


def crashed(
    after: str = "0.4", folder: str = "/var/n1", line: int = 4, status: int = 1, error: str = "KeyError: 'X'"
) -> str:
    """As the runtime says it, longer than a status has room for."""
    trace = f'Traceback (most recent call last): |   File "{folder}/app/main.py", line {line}, in <module> | '
    return f"exit status {status} after {after} s; last output: {'starting up | ' * 40}{trace}{error}"


def failed_status(*reasons: str) -> str:
    puts = [put(n(number), S.FAILED, reason=reason) for number, reason in enumerate(reasons, 1)]
    return status_of(wanted(len(puts)), group_of(*puts), WHOLE, 1, NOW)[0].reason


def test_of_a_long_reason_its_end_is_told_and_how_it_ended() -> None:
    reason = failed_status(crashed())
    assert reason.startswith("1 failed: exit status 1 after 0.4 s; last output: starting up")
    assert reason.endswith("in <module> | KeyError: 'X'")


def test_reasons_that_differ_only_in_a_duration_a_folder_or_a_line_are_told_once() -> None:
    reason = failed_status(crashed(), crashed(after="12"), crashed(folder="/srv/n2"), crashed(line=17))
    assert reason.count("KeyError") == 1
    assert reason.startswith("4 failed: ")
    assert not reason.endswith("…")
    for other in (crashed(status=2), crashed(error="KeyError: 'Y'"), "exit status 1 after 0.4 s"):
        assert failed_status(crashed(), other).count("exit status") == 2


def test_a_failure_of_which_nothing_is_owed_is_told_without_its_reason() -> None:
    group = group_of(put(n(1), S.FAILED, reason="boom"))
    group.owed.clear()
    assert status_of(wanted(1), group, WHOLE, 1, NOW)[0].reason == "1 failed: no reason given"


def test_of_a_failure_that_is_not_tried_again_soon_it_is_told_when_it_is() -> None:
    group = group_of(put(n(1), S.FAILED, reason="boom", fatal=True))
    reason = status_of(wanted(1), group, WHOLE, 1, NOW)[0].reason
    assert reason == "1 failed: boom; tried again within 5 minutes, or at once by `cdm restart`"
    assert Policy().retry_limit == 300.0


def test_a_refused_blueprint_does_not_hide_what_troubles_the_one_in_force() -> None:
    failed, loading = put(n(1), S.FAILED, reason="boom"), put(n(1), S.LOADING)
    refused = Desired(Blueprint(1), 3, 9, "foo: there is no such field")
    for each, unplaced, reason in (
        (failed, 0, "foo: there is no such field; in force: 1 failed: boom"),
        (loading, 1, "foo: there is no such field; in force: 1 cannot be moved: no node takes new slices"),
        (loading, 0, "foo: there is no such field"),
    ):
        status = status_of(refused, group_of(each), Plan(unplaced=unplaced), 1, NOW)[0]
        assert (status.condition, status.reason) == (Condition.INVALID, reason)
    status = status_of(Desired(None, 0, 9, "bad"), group_of(failed), WHOLE, 1, NOW)[0]
    assert status.reason == "bad", "nothing is in force"


def test_a_blueprint_whose_key_does_not_parse_has_a_status_too() -> None:
    assert refused_status("bad key", 4, 2) == Status(Condition.INVALID, "bad key", observed_revision=4, term=2)


def test_another_term_alone_is_no_news() -> None:
    one = Status(Condition.READY, "", 7, 7, 2, 2, 0, 0, 5)
    assert one.same_as(Status(Condition.READY, "", 7, 7, 2, 2, 0, 0, 6))
    assert not one.same_as(Status(Condition.READY, "", 7, 7, 2, 1, 0, 0, 5))
    assert not one.same_as(None)


# What the records remember


def test_an_agent_that_drops_the_fields_does_not_make_failures_forgotten() -> None:
    cluster = cluster_of(
        put(n(1), S.LOAD, failures=4, blueprint=7), put(n(1), S.LOADING, at=1.0), put(n(1), S.FAILED, at=2.0)
    )
    value = cluster.group(APP).slices[SliceKey(n(1), APP)].value
    assert (value.state, value.failures, value.blueprint) == (S.FAILED, 4, 7)


def test_a_zero_that_an_agent_says_is_believed() -> None:
    cluster = cluster_of(put(n(1), S.LOAD, failures=4), put(n(1), S.FAILED, failures=0))
    assert cluster.group(APP).slices[SliceKey(n(1), APP)].value.failures == 0


@pytest.mark.parametrize(("after", "failures"), [(STABLE_AFTER, 0), (STABLE_AFTER - 1, 4)])
def test_a_slice_that_served_for_long_begins_anew(after: float, failures: int) -> None:
    cluster = cluster_of(put(n(1), S.ACTIVE, failures=4, at=10.0), put(n(1), S.FAILED, at=10.0 + after))
    assert cluster.group(APP).slices[SliceKey(n(1), APP)].value.failures == failures


def test_what_served_for_long_and_could_not_be_started_again_begins_anew_too() -> None:
    """The agent goes on copying the failures of the command."""
    cluster = cluster_of(
        put(n(1), S.ACTIVE, failures=4, at=10.0),
        put(n(1), S.ACTIVATING, failures=4, at=10.0 + STABLE_AFTER),
        put(n(1), S.FAILED, failures=4, at=11.0 + STABLE_AFTER),
    )
    assert cluster.group(APP).slices[SliceKey(n(1), APP)].value.failures == 0
    cluster.put_slice(put(n(1), S.LOAD, failures=1, at=12.0 + STABLE_AFTER))
    assert cluster.group(APP).slices[SliceKey(n(1), APP)].value.failures == 1


def test_failing_while_unloading_is_remembered_until_something_else_happens() -> None:
    key = SliceKey(n(1), APP)
    cluster = cluster_of(put(n(1), S.UNLOADING), put(n(1), S.FAILED))
    assert cluster.group(APP).failed_unloading == {key}
    cluster.put_slice(put(n(1), S.FAILED))
    assert cluster.group(APP).failed_unloading == {key}
    cluster.put_slice(put(n(1), S.UNLOAD))
    assert cluster.group(APP).failed_unloading == set()
    cluster.put_slice(put(n(1), S.FAILED))
    cluster.remove_slice(key)
    assert cluster.groups == {}
    assert cluster.on_node == {}


slice_steps = st.lists(
    st.tuples(st.integers(0, 2).map(n), st.integers(0, 2), st.none() | st.sampled_from(SliceState)), max_size=40
)


@given(slice_steps)
def test_counts_stay_what_the_slices_are(steps: list[tuple[NodeId, int, SliceState | None]]) -> None:
    cluster = Cluster()
    expected: dict[SliceKey, SliceState] = {}
    for node, ordinal, state in steps:
        key = SliceKey(node, APP, ordinal)
        if state is None:
            cluster.remove_slice(key)
            expected.pop(key, None)
        else:
            cluster.put_slice(put(node, state, ordinal))
            expected[key] = state
        group = cluster.group(APP)
        assert {key: each.value.state for key, each in group.slices.items()} == expected
        assert group.live == sum(each.live for each in expected.values())
        assert group.active == sum(each is S.ACTIVE for each in expected.values())
        assert group.failed == sum(each is S.FAILED for each in expected.values())
        assert group.owed == {key for key, each in expected.items() if each in (S.LOADED, S.FAILED)}
        assert group.moving == any(each.kind is not Kind.REST for each in expected.values())
        assert cluster.on_node == {
            node: {key for key in expected if key.node == node} for node in {key.node for key in expected}
        }
        assert cluster.artifacts_on(node) == ([APP] if node in cluster.on_node else [])
        assert group.failed_unloading <= {key for key, each in expected.items() if each is S.FAILED}


# Everything at once


@st.composite
def situations(
    draw: st.DrawFn,
) -> tuple[Desired | None, list[SlicePut], dict[NodeId, LiveNode], set[SliceKey], dict[NodeId, int], NodeId | None]:
    kinds = draw(st.lists(st.sampled_from(["", "", "", "1", "2", "4", "cordon", "drain", "missing"]), max_size=6))
    nodes = places(len(kinds), **{f"n{i}": kind for i, kind in enumerate(kinds, 1)})
    keys = draw(
        st.lists(
            st.builds(SliceKey, st.integers(1, 7).map(n), st.just(APP), st.integers(0, 3)), unique=True, max_size=12
        )
    )
    puts: list[SlicePut] = [
        ValuePut(
            key,
            SliceValue(
                draw(st.sampled_from(SliceState)),
                fatal=draw(st.booleans()),
                failures=draw(st.none() | st.integers(0, 4)),
                blueprint=draw(st.none() | st.integers(1, 5)),
            ),
            1,
            NOW - draw(st.sampled_from([0.0, 1.0, 3.0, 70.0, 130.0, 400.0])),
        )
        for key in keys
    ]
    failed = [each.key for each in puts if each.value.state is S.FAILED]
    unloading = draw(st.sets(st.sampled_from(failed))) if failed else set()
    desired = draw(st.none() | st.builds(wanted, st.integers(0, 10), st.integers(1, 5)))
    more = {node: draw(st.integers(0, 2)) for node in nodes}
    return desired, puts, nodes, unloading, more, draw(st.none() | st.sampled_from(sorted(nodes) or [n(1)]))


@given(situations())
def test_every_plan_is_legal_exact_and_final(
    situation: tuple[
        Desired | None, list[SlicePut], dict[NodeId, LiveNode], set[SliceKey], dict[NodeId, int], NodeId | None
    ],
) -> None:
    desired, puts, nodes, unloading, more, cursor = situation
    found = plan(desired, *puts, nodes=nodes, failed_unloading=unloading, cursor=cursor, more=more)
    states = {each.key: each.value.state for each in puts}
    at = {each.key: each for each in puts}
    instances = desired.blueprint.instances if desired and desired.blueprint else 0

    # Each key is written once, and legally.
    assert len({command.key for command in found.commands}) == len(found.commands)
    for command in found.commands:
        state = states.get(command.key)
        if command.state is not None:
            assert legal(state, command.state), (state, command)
        else:
            assert command.key.node not in nodes or state in (S.UNLOAD, S.UNLOADING)
        assert command.reason
    assert all(command.key.artifact == APP for command in found.commands)

    # Nothing new where nothing new is taken, or where there is no room.
    loads = [command for command in found.commands if command.state is S.LOAD]
    for node, many in Counter(command.key.node for command in loads if command.key not in states).items():
        place = nodes[node]
        assert place.open
        held = more.get(node, 0) + sum(key.node == node for key in states)
        assert place.capacity is None or held + many <= place.capacity
    assert all(nodes[command.key.node].open for command in loads)

    # The smallest change: exactly the difference.
    def overdue(each: SlicePut) -> bool:
        deadline = POLICY.deadline(each)
        return deadline is not None and deadline <= NOW

    kept = [
        key
        for key, state in states.items()
        if state.live and key.node in nodes and not nodes[key.node].draining and not overdue(at[key])
    ]
    awaited = [key for key in kept if not nodes[key.node].registered]
    kept = [key for key in kept if key not in awaited]
    unloaded = {command.key for command in found.commands if command.state is S.UNLOAD}
    assert len([key for key in kept if key in unloaded]) == max(len(kept) - instances, 0)
    assert not unloaded.intersection(awaited)
    if len(kept) + len(awaited) >= instances:
        assert loads == []
        assert found.unplaced == 0
    else:
        waiting = [
            key
            for key, state in states.items()
            if state is S.FAILED
            and key.node in nodes
            and key not in unloading
            and key not in {command.key for command in found.commands}
        ]
        missing = instances - len(kept) - len(awaited)
        assert len(loads) + found.unplaced <= missing
        assert missing <= len(loads) + found.unplaced + len(waiting)
        if found.unplaced == 0:
            assert missing == len(loads) + len(waiting)

    # The smallest change: what is removed is not yet active as long as there is such a one.
    if any(states[key] is S.ACTIVE for key in kept if key in unloaded):
        assert all(key in unloaded for key in kept if states[key] is not S.ACTIVE)

    # A plan never leaves less serving than there was, as long as no more are wanted than that.
    serving = [key for key, state in states.items() if state is S.ACTIVE and key.node in nodes]
    still = [key for key in serving if key not in unloaded]
    assert len(still) >= min(len(serving), instances)

    # Reconciling what needs no change writes nothing: once it is carried out, nothing is left to do.
    cluster = with_failures(puts, unloading)
    for command in found.commands:
        if command.state is None:
            cluster.remove_slice(command.key)
        else:
            value = SliceValue(command.state, failures=command.failures or None, blueprint=command.blueprint or None)
            cluster.put_slice(ValuePut(command.key, value, 2, NOW))
    again = reconcile(
        APP,
        wanted_of(desired),
        cluster.group(APP),
        fleet(cluster, nodes, more),
        NOW,
        POLICY,
        found.cursor,
    )
    if any(command.state is None and command.key.node in nodes for command in found.commands):
        # A deleted key made room, which what could not be placed before may use now.
        assert len(again.commands) <= found.unplaced
        assert {command.state for command in again.commands} <= {S.LOAD}
    else:
        assert list(again.commands) == []


@given(situations())
def test_the_ranking_changes_the_cost_of_a_plan_and_nothing_else(
    situation: tuple[
        Desired | None, list[SlicePut], dict[NodeId, LiveNode], set[SliceKey], dict[NodeId, int], NodeId | None
    ],
) -> None:
    desired, puts, nodes, unloading, more, cursor = situation
    cluster = with_failures(puts, unloading)

    ranking = Ranking()
    unranked, given = fleet(cluster, nodes, more), fleet(cluster, nodes, more, ranking=ranking)
    for node, live in nodes.items():
        if live.open and (live.capacity is None or unranked.total(node) < live.capacity):
            ranking.put(node, unranked.total(node))
    group = cluster.group(APP)
    plain = reconcile(APP, wanted_of(desired), group, unranked, NOW, POLICY, cursor)
    ranked = reconcile(APP, wanted_of(desired), group, given, NOW, POLICY, cursor)
    assert ranked == plain


# What must not run twice


ALONE = Overrides(stop_after=20.0)
GONE_AFTER = 20.0 + LONGEST_LAST_GRACE + LAST_MARGIN


def alone(number: int, state: SliceState = S.ACTIVE, at: float = NOW) -> SlicePut:
    found = put(n(number), state, at=at)
    return replace(found, value=replace(found.value, overrides=ALONE))


@pytest.mark.parametrize("state", sorted(MAY_RUN))
def test_what_must_not_run_twice_is_replaced_when_it_cannot_run_on_its_lost_node(state: SliceState) -> None:
    heard = NOW - 15
    early = plan(wanted(1), alone(1, state), nodes=places(2, n1="dead"), lost={n(1): heard})
    assert early == Plan([], heard + GONE_AFTER, lingering=1)
    late = plan(wanted(1), alone(1, state), nodes=places(2, n1="dead"), lost={n(1): heard}, now=heard + GONE_AFTER)
    assert shown(late.commands) == {("n1", 0, None), ("n2", 0, S.LOAD)}
    assert late.lingering == 0


@pytest.mark.parametrize("state", sorted(set(SliceState) - MAY_RUN))
def test_what_did_not_run_on_a_lost_node_is_replaced_at_once(state: SliceState) -> None:
    found = plan(wanted(1), alone(1, state), nodes=places(2, n1="dead"), lost={n(1): NOW})
    assert shown(found.commands) == {("n1", 0, None), ("n2", 0, S.LOAD)}


def test_what_may_run_twice_does_not_wait() -> None:
    found = plan(wanted(1), put(n(1), S.ACTIVE), nodes=places(2, n1="dead"), lost={n(1): NOW})
    assert shown(found.commands) == {("n1", 0, None), ("n2", 0, S.LOAD)}


def test_a_node_that_said_goodbye_runs_nothing() -> None:
    found = plan(wanted(1), alone(1), nodes=places(2, n1="dead"))
    assert shown(found.commands) == {("n1", 0, None), ("n2", 0, S.LOAD)}


def test_a_lost_node_keeps_its_slices_keys_as_long_as_they_may_run_whatever_is_wanted() -> None:
    for desired in (None, wanted(0), Desired(None, 0, 3, "is not JSON")):
        found = plan(desired, alone(1), nodes=places(2, n1="dead"), lost={n(1): NOW})
        assert found == Plan([], NOW + GONE_AFTER, lingering=1)


def test_others_are_scaled_as_if_those_on_lost_nodes_ran() -> None:
    puts = (alone(1), alone(2), alone(3))
    lost = {n(1): NOW}
    assert plan(wanted(3), *puts, nodes=places(3, n1="dead"), lost=lost).commands == []
    assert plan(wanted(2), *puts, nodes=places(3, n1="dead"), lost=lost).commands == []
    assert shown(plan(wanted(1), *puts, nodes=places(3, n1="dead"), lost=lost).commands) == {("n3", 0, S.UNLOAD)}
    assert [each.state for each in plan(wanted(4), *puts, nodes=places(3, n1="dead"), lost=lost).commands] == [S.LOAD]


@pytest.mark.parametrize("state", [S.UNLOAD, S.UNLOADING])
@pytest.mark.parametrize("since", [0.0, 10_000.0])
def test_what_must_not_run_twice_is_replaced_when_it_is_unloaded_and_not_before(
    state: SliceState, since: float
) -> None:
    found = plan(wanted(1), alone(1, state, at=NOW - since), nodes=places(2))
    assert found.commands == []
    assert found.lingering == 1


@pytest.mark.parametrize("state", sorted(NEVER_RAN))
def test_what_never_ran_is_not_waited_for(state: SliceState) -> None:
    """There may be nobody on its node to unload it."""
    (command,) = plan(wanted(0), alone(1, state)).commands
    assert (command.state, command.overrides) == (S.UNLOAD, None)


def test_what_cannot_be_unloaded_and_must_not_run_twice_is_not_replaced() -> None:
    failed = alone(1, S.FAILED)
    assert plan(wanted(1), failed, failed_unloading=[failed.key]).commands == []
    assert plan(wanted(1), failed, failed_unloading=[failed.key]).lingering == 1


@pytest.mark.parametrize("state", [S.ACTIVATE, S.ACTIVATING])
def test_a_stuck_slice_that_must_not_run_twice_is_unloaded_first(state: SliceState) -> None:
    found = plan(wanted(1), alone(1, state, at=NOW - 200), nodes=places(2))
    assert shown(found.commands) == {("n1", 0, S.UNLOAD)}
    assert found.lingering == 1


def test_a_drain_unloads_what_must_not_run_twice_before_it_is_replaced() -> None:
    found = plan(wanted(1), alone(1), nodes=places(2, n1="drain"))
    assert shown(found.commands) == {("n1", 0, S.UNLOAD)}
    assert plan(wanted(1), alone(1), nodes=places(2, n1="drain", n2="cordon")).commands == []


def alone_on_one(count: int) -> list[SlicePut]:
    return [replace(alone(1), key=SliceKey(n(1), APP, ordinal)) for ordinal in range(count)]


def test_a_drain_stops_as_many_that_must_not_run_twice_as_there_are_places_for() -> None:
    nodes, puts = places(2, n1="drain", n2="1"), alone_on_one(3)
    found = plan(wanted(3), *puts, nodes=nodes)
    assert shown(found.commands) == {("n1", 0, S.UNLOAD)}
    assert (found.lingering, found.unplaced) == (1, 2)
    leaving = replace(puts[0], value=replace(puts[0].value, state=S.UNLOADING))
    assert plan(wanted(3), leaving, *puts[1:], nodes=nodes).commands == []
    found = plan(wanted(3), *puts[1:], nodes=nodes)
    assert shown(found.commands) == {("n2", 0, S.LOAD)}
    assert found.unplaced == 2


def test_a_drain_stops_nothing_for_a_place_that_a_missing_instance_gets() -> None:
    found = plan(wanted(3), *alone_on_one(2), nodes=places(2, n1="drain", n2="1"))
    assert shown(found.commands) == {("n2", 0, S.LOAD)}
    assert found.unplaced == 2


def test_a_drain_stops_at_once_what_is_not_needed_of_what_must_not_run_twice() -> None:
    found = plan(wanted(1), *alone_on_one(2), put(n(2), S.LOADED), nodes=places(2, n1="drain"))
    assert ("n1", 0, S.UNLOAD) in shown(found.commands)
    assert ("n1", 1, S.UNLOAD) in shown(found.commands)


def test_an_unload_says_with_what_the_slice_runs() -> None:
    (command,) = plan(wanted(0), alone(1)).commands
    assert command.overrides == ALONE


@given(situations(), st.dictionaries(st.integers(1, 7).map(n), st.sampled_from([0.0, 20.0, 40.0])))
def test_never_more_than_wanted_can_run_of_what_must_not_run_twice(
    situation: tuple[
        Desired | None, list[SlicePut], dict[NodeId, LiveNode], set[SliceKey], dict[NodeId, int], NodeId | None
    ],
    silent: dict[NodeId, float],
) -> None:
    desired, plain, nodes, unloading, more, cursor = situation
    puts = [replace(each, value=replace(each.value, overrides=ALONE)) for each in plain]
    lost = {node: NOW - seconds for node, seconds in silent.items() if node not in nodes}
    found = plan(desired, *puts, nodes=nodes, failed_unloading=unloading, cursor=cursor, more=more, lost=lost)
    instances = desired.blueprint.instances if desired and desired.blueprint else 0
    written = {command.key: command.state for command in found.commands}

    def may_run(each: SlicePut) -> bool:
        if each.key.node not in nodes:
            heard = lost.get(each.key.node)
            return each.value.state in MAY_RUN and heard is not None and heard + GONE_AFTER > NOW
        return each.value.state in MAY_RUN or each.key in unloading

    running = [each.key for each in puts if may_run(each)]
    begun = [
        each.key
        for each in puts
        if each.value.state.live
        and each.key.node in nodes
        and each.key not in running
        and written.get(each.key) is not S.UNLOAD
    ]
    loads = [key for key, state in written.items() if state is S.LOAD]
    assert len(running) + len(begun) + len(loads) <= max(instances, len(running) + len(begun))
    assert all(key not in written or written[key] is not None for key in running)


def test_other_artifacts_are_counted_but_not_touched() -> None:
    other = put(n(1), S.ACTIVE, artifact=OTHER)
    assert shown(plan(wanted(1), other, nodes=places(2)).commands) == {("n2", 0, S.LOAD)}
