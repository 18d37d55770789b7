"""What failed: when it is tried again, on which node, and how often that was before."""

from __future__ import annotations

from collections import Counter

import pytest

from cdm.manager.plan import Command, Plan
from cdm.manager.reconciliation import reconcile
from cdm.manager.wanted import wanted_of
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey
from cdm.model.template import PLAIN
from tests.unit.reconciling import NOW, POLICY, active, fleet, places, plan, shown
from tests.unit.support import APP, OTHER, S, cluster_of, n, put, wanted


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
