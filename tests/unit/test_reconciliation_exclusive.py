"""What must not run twice: it is replaced once it cannot run any more, and not before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cdm.manager.cluster import Desired
from cdm.manager.group import SlicePut
from cdm.manager.plan import Plan
from cdm.manager.standing import MAY_RUN, NEVER_RAN, LiveNode
from cdm.model.artifact import NodeId
from cdm.model.blueprint import LAST_MARGIN, LONGEST_LAST_GRACE, Overrides
from cdm.model.keys import SliceKey
from cdm.model.slice import SliceState
from tests.unit.reconciling import NOW, places, plan, shown, situations
from tests.unit.support import APP, S, n, put, wanted

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
