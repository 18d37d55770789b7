"""A leader that places by conditions: they keep nodes out, and what violates them later is told, or moved."""

from __future__ import annotations

import msgspec
import pytest

from cdm.model.artifact import NodeId
from cdm.model.node import FEATURES, RUNS_SIGNED, Registration
from cdm.model.status import Condition
from tests.unit.placement_world import in_zones, live, status, typed, world
from tests.unit.support import APP, OTHER, S, n

pytestmark = pytest.mark.quick


def test_a_condition_keeps_nodes_out_and_the_status_says_which() -> None:
    it = world(**in_zones("a", "a", "b"), n4=Registration(labels={"zone": "b"}, capacity=1))
    it.apply(APP, typed(3, require=["zone = b"], max_per_node=1))
    it.run_down()
    assert live(it) == {"n3": 1, "n4": 1}
    told = status(it)
    assert told.condition is Condition.UNSCHEDULABLE
    assert told.reason.startswith(
        "1 of 3 instances cannot be placed: 0 of 4 nodes take it: "
        "2 with as many as may be (1 of 1 on a node), 2 zone is not b; only max_per_node keeps n3 out: 1 of 1 on a node"
    )


def test_the_label_node_is_the_nodes_id_whatever_a_node_says() -> None:
    it = world(n1=Registration(labels={"node": "n2"}), n2=Registration(labels={"node": "n1"}), n3=Registration())
    it.apply(APP, typed(2, require=["node = n1"]))
    it.settle()
    assert live(it) == {"n1": 2}


def test_labels_that_change_are_violations_and_nothing_moves_unless_it_is_to() -> None:
    it = world(**in_zones("a", "a", "b"))
    it.apply(APP, typed(2, require=["zone = a"]))
    it.run_down()
    it.join(n(1), Registration(labels={"zone": "b"}))
    it.run_down()
    assert live(it) == {"n1": 1, "n2": 1}
    assert status(it).violations == 1
    assert status(it).condition is Condition.READY
    it.join(n(1), Registration(labels={"zone": "a"}))
    it.run_down()
    assert status(it).violations is msgspec.UNSET


def test_a_violation_is_moved_as_a_rollout_would_one_at_a_time() -> None:
    it = world(**in_zones("a", "a", "a", "a"))
    it.apply(APP, typed(2, require=["zone = a"], on_violation="move", min_healthy=10))
    it.run_down()
    it.tick(10.0)
    before = live(it)
    for node in before:
        it.join(NodeId(node), Registration(labels={"zone": "b"}))
    it.run_down()
    assert sum(live(it).values()) == 3, "the first has its replacement, and serves until that is healthy"
    assert "moved off" in status(it).reason
    it.tick(5.0)
    it.run_down()
    assert sum(live(it).values()) == 3
    it.tick(5.0)
    it.run_down()
    assert sum(live(it).values()) == 3, "then it is the other one's turn"
    it.tick(10.0)
    it.run_down()
    assert set(live(it)) == {"n1", "n2", "n3", "n4"} - before.keys()
    assert status(it).violations is msgspec.UNSET


def test_where_nothing_else_fits_a_violation_stays() -> None:
    it = world(**in_zones("a", "b"))
    it.apply(APP, typed(1, require=["zone = a"], on_violation="move"))
    it.run_down()
    it.join(n(1), Registration(labels={"zone": "b"}))
    it.run_down()
    it.tick(60.0)
    it.run_down()
    assert live(it) == {"n1": 1}
    assert status(it).violations == 1
    assert status(it).condition is Condition.READY


def test_what_failed_beside_an_instance_is_no_violation() -> None:
    it = world(n1=Registration(cpu=4.0), n2=Registration())
    it.apply(APP, typed(2, needs={"cpu": 1}))
    it.run_down()
    it.report(sorted(it.slices)[1], S.FAILED)
    it.apply(APP, typed("each", needs={"cpu": 1}))  # n2 does not say what it has, and waits
    it.run_down()
    assert live(it) == {"n1": 1}
    assert status(it).condition is Condition.UNSCHEDULABLE
    assert status(it).violations is msgspec.UNSET


def test_conditions_know_the_nodes_that_run_only_what_is_signed() -> None:
    it = world(n1=Registration(version="0.9", features=(*FEATURES, RUNS_SIGNED)))
    it.apply(APP, typed(2, require=["!cdm.trust"]))
    it.run_down()
    assert "0 of 1 node takes it: 1 running only what is signed" in status(it).reason
    it.join(n(2), Registration(version="0.9", features=FEATURES, labels={"cdm.trust": "yes"}))
    it.apply(OTHER, typed(2, require=["cdm.trust"]))
    it.run_down()
    assert (live(it), live(it, OTHER)) == ({"n2": 2}, {"n1": 2})
