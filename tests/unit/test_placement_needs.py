"""A leader that places by what instances need: no node is promised more than it has, at any moment."""

from __future__ import annotations

import pytest

from cdm.manager.planning import ROOM_PAUSE, TOLD_FOR
from cdm.model.artifact import Artifact, NodeId
from cdm.model.node import Registration
from cdm.model.status import Condition
from tests.unit.placement_world import live, status, typed, world
from tests.unit.support import APP, OTHER, S, n
from tests.unit.world import World

pytestmark = pytest.mark.quick


def reserved(it: World, node: NodeId) -> float:
    """What the values of slices on a node come to, whatever their state."""
    return sum(put.value.needs.cpu for key, put in it.slices.items() if key.node == node and put.value.needs)


def test_blueprints_that_come_at_once_never_reserve_more_than_a_node_has() -> None:
    it = world()
    artifacts = [Artifact("g", f"a{number}", "1") for number in range(10)]
    for artifact in artifacts:
        it.apply(artifact, typed(2, needs={"cpu": 0.9}))
    it.tick()  # decided one after another, before the mirror shows any of it
    it.run_down()
    assert sum(len(it.states(artifact)) for artifact in artifacts) == 12
    assert all(reserved(it, n(i)) <= 4.0 for i in (1, 2, 3))
    waiting = [artifact for artifact in artifacts if status(it, artifact).condition is Condition.UNSCHEDULABLE]
    assert len(waiting) == 4
    reason = status(it, waiting[0]).reason
    assert "0 of 3 nodes take it: 3 full (cpu 3.6 of 4 reserved)" in reason
    assert "only cpu keeps n1 out: 0.9 needed, 0.4 free" in reason


def test_the_next_leader_knows_what_is_reserved_from_the_slices_alone() -> None:
    it = world()
    it.apply(APP, typed(6, needs={"memory": "4Gi"}))
    it.settle()
    it.boot()
    it.lead()
    it.apply(OTHER, typed(1, needs={"memory": "1Gi"}))
    it.run_down()
    assert len(it.states(APP)) == 6
    assert it.states(OTHER) == {}
    assert "full (memory 8Gi of 8Gi reserved)" in status(it, OTHER).reason


def test_an_agent_that_drops_what_is_reserved_does_not_free_it() -> None:
    it = world(n1=Registration(cpu=1.0))
    it.apply(APP, typed(1, needs={"cpu": 1}))
    it.settle()
    (key,) = it.slices
    it.report(key, S.LOADING, needs=None)
    it.apply(OTHER, typed(1, needs={"cpu": 1}))
    it.settle()
    assert it.states(OTHER) == {}


def test_what_is_stopped_counts_until_it_is_gone_and_what_waits_for_the_room_has_it_soon() -> None:
    it = world(n1=Registration(cpu=1.0))
    it.apply(APP, typed(1, needs={"cpu": 1}))
    it.run_down()
    it.apply(OTHER, typed(1, needs={"cpu": 1}))
    it.run_down()
    it.drop(APP)
    it.settle()
    assert set(it.states(APP).values()) == {S.UNLOAD}
    assert it.states(OTHER) == {}
    it.run_down()
    assert it.states(APP) == {}
    it.tick(1.0)  # not the next round over everything
    it.run_down()
    assert live(it, OTHER) == {"n1": 1}


def test_why_there_is_no_room_is_looked_into_again_soon_however_much_becomes_free() -> None:
    it = world(n1=Registration(cpu=2.0))
    it.apply(APP, typed(2, needs={"cpu": 1}))
    it.run_down()
    it.tick(TOLD_FOR)
    it.apply(OTHER, typed(1, needs={"cpu": 2}))
    it.run_down()
    assert "cpu 2 of 2 reserved" in status(it, OTHER).reason
    it.apply(APP, typed(1, needs={"cpu": 1}))
    it.run_down()
    it.tick(ROOM_PAUSE)
    it.run_down()
    assert "1 of 1 instances cannot be placed" in status(it, OTHER).reason
    it.tick(TOLD_FOR)
    it.run_down()
    assert "cpu 1 of 2 reserved" in status(it, OTHER).reason
    it.apply(APP, typed(0, needs={"cpu": 1}))
    it.run_down()
    it.tick(ROOM_PAUSE)
    it.run_down()
    assert live(it, OTHER) == {"n1": 1}


def test_a_failed_slice_is_tried_again_in_the_room_that_it_has() -> None:
    it = world(n1=Registration(cpu=1.0))
    it.apply(APP, typed(1, needs={"cpu": 1}))
    it.settle()
    (key,) = it.slices
    it.report(key, S.LOADING)
    it.report(key, S.FAILED)
    it.settle()
    it.tick(5.0)
    it.run_down()
    assert it.states(APP) == {key: S.ACTIVE}


def test_a_node_that_does_not_say_what_it_has_takes_nothing_that_needs_any() -> None:
    it = world(n1=Registration(), n2=Registration(cpu=0.5))
    it.apply(APP, typed(2, needs={"cpu": 0.5}))
    it.run_down()
    assert live(it) == {"n2": 1}
    assert "1 not telling its cpu" in status(it).reason


# What goes first


def test_scaled_down_it_gives_from_the_node_that_has_less_than_is_reserved_there() -> None:
    it = world(n1=Registration(cpu=4.0), n2=Registration(cpu=4.0))
    it.apply(APP, typed(4, needs={"cpu": 1}))
    it.run_down()
    it.join(n(1), Registration(cpu=1.0))
    it.run_down()
    it.apply(APP, typed(3, needs={"cpu": 1}))
    it.run_down()
    assert live(it) == {"n1": 1, "n2": 2}
    it.tick(31.0)
    it.tell()
    assert not status(it).violations
