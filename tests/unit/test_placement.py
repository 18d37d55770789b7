"""A leader that places by rules: needs, one on each node, neighbours, violations, balance."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from cdm.allocation.installed import Checked
from cdm.allocation.site import Site
from cdm.allocation.strategy import SHIPPED, Rank
from cdm.manager import growth
from cdm.manager.planning import ROOM_PAUSE, TOLD_FOR
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.keys import encode_artifact
from cdm.model.node import FEATURES, GIVES_SECRETS, PLACEMENT, RUNS_SIGNED, SECRETS, Registration, Schedule
from cdm.model.rules import NO_RULES, Rules, Spread
from cdm.model.status import Condition, Status
from tests.unit.support import APP, OTHER, S, n
from tests.unit.world import World

pytestmark = pytest.mark.quick

GIB = 2**30


def typed(instances: int | str, **fields: Any) -> Blueprint:
    """A blueprint as people write it; its instances are healthy at once."""
    fields = {"min_healthy": 0, "drain_delay": 0, **fields}
    return Blueprint.parse(msgspec.json.encode({"instances": instances, **fields}))


def world(**nodes: Registration) -> World:
    """A leader with these nodes; without any, with three that have 4 cores and 8 GiB."""
    it = World()
    for name, registration in (nodes or {f"n{i}": Registration(cpu=4.0, memory=8 * GIB) for i in (1, 2, 3)}).items():
        it.join(NodeId(name), registration)
    it.lead()
    return it


def in_zones(*zones: str) -> dict[str, Registration]:
    """Nodes n1, n2 … in these zones."""
    return {f"n{i}": Registration(labels={"zone": zone}) for i, zone in enumerate(zones, 1)}


def live(it: World, artifact: Artifact = APP) -> dict[str, int]:
    """Live instances by node."""
    return dict(Counter(key.node for key, state in it.states(artifact).items() if state.live))


def status(it: World, artifact: Artifact = APP) -> Status:
    return it.statuses[encode_artifact(artifact)]


def reserved(it: World, node: NodeId) -> float:
    """What the values of slices on a node come to, whatever their state."""
    return sum(put.value.needs.cpu for key, put in it.slices.items() if key.node == node and put.value.needs)


# Needs


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


# Conditions, and what is told


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


# One on each node


def test_each_node_that_fits_has_one() -> None:
    it = world(**in_zones("a", "a", "b"))
    it.apply(APP, typed("each", require=["zone = a"]))
    it.run_down()
    assert live(it) == {"n1": 1, "n2": 1}
    assert (status(it).condition, status(it).desired) == (Condition.READY, 2)
    it.join(n(4), Registration(labels={"zone": "a"}))
    it.run_down()
    assert live(it) == {"n1": 1, "n2": 1, "n4": 1}
    it.join(n(1), Registration(labels={"zone": "b"}))
    it.run_down()
    assert live(it) == {"n2": 1, "n4": 1}
    it.drop(APP)
    it.run_down()
    assert live(it) == {}


def test_a_cordoned_node_keeps_its_own_and_gets_none_and_a_draining_one_is_emptied() -> None:
    it = world()
    it.intend(n(2), Schedule.CORDON)
    it.apply(APP, typed("each"))
    it.run_down()
    assert live(it) == {"n1": 1, "n3": 1}
    it.intend(n(1), Schedule.CORDON)
    it.intend(n(3), Schedule.DRAIN)
    it.run_down()
    assert live(it) == {"n1": 1}
    assert (status(it).condition, status(it).desired) == (Condition.READY, 1)


def test_a_full_node_is_wanted_and_told() -> None:
    it = world(n1=Registration(), n2=Registration(capacity=1))
    it.want(OTHER, 2)
    it.run_down()
    it.apply(APP, typed("each"))
    it.run_down()
    assert live(it) == {"n1": 1}
    told = status(it)
    assert (told.condition, told.desired) == (Condition.UNSCHEDULABLE, 2)
    assert "1 of 2 instances cannot be placed" in told.reason
    assert "full (1 of 1 slices)" in told.reason


def test_a_node_that_takes_no_slices_any_more_has_none_and_no_rollout_waits_for_it() -> None:
    it = world()
    it.apply(APP, typed("each"))
    it.run_down()
    it.join(n(1), Registration(capacity=0))
    it.apply(APP, typed("each", restarted="again"))
    for _ in range(60):
        it.run_down()
        it.tick(11.0)
    assert live(it) == {"n2": 1, "n3": 1}
    assert status(it).condition is Condition.READY
    assert status(it).up_to_date == status(it).desired == 2


def test_a_number_that_becomes_each_keeps_one_on_every_node() -> None:
    it = world()
    it.apply(APP, typed(5))
    it.run_down()
    kept = it.states(APP).keys()
    it.apply(APP, typed("each"))
    it.run_down()
    assert live(it) == {"n1": 1, "n2": 1, "n3": 1}
    assert it.states(APP).keys() <= kept


def test_of_several_on_a_node_the_one_that_is_healthy_is_kept() -> None:
    it = world(n1=Registration())
    it.apply(APP, typed(2, min_healthy=10.0))
    it.run_down()
    it.tick(20.0)
    first, second = sorted(it.states(APP))
    it.report(first, S.FAILED)
    it.tick(5.0)
    it.run_down()
    it.tick(5.0)
    it.run_down()
    assert it.states(APP) == {first: S.ACTIVE, second: S.ACTIVE}
    it.apply(APP, typed("each", min_healthy=10.0))
    it.run_down()
    assert it.states(APP) == {second: S.ACTIVE}


def test_a_node_that_died_is_wanted_no_more() -> None:
    it = world()
    it.apply(APP, typed("each"))
    it.run_down()
    it.expire(n(2))
    it.run_down()
    assert status(it).desired == 3, "it may come back"
    it.tick(30.0)
    it.run_down()
    assert live(it) == {"n1": 1, "n3": 1}
    assert status(it).desired == 2


def test_each_is_rolled_out_in_place_one_by_one() -> None:
    it = world()
    it.apply(APP, typed("each"))
    it.run_down()
    it.apply(APP, typed("each", restarted="again"))
    least = 3
    for _ in range(60):
        it.settle()
        least = min(least, sum(state is S.ACTIVE for state in it.states(APP).values()))
        assert all(count == 1 for count in Counter(key.node for key in it.states(APP)).values())
        if not it.answer():
            it.tick(1.0)
    assert least == 2
    assert live(it) == {"n1": 1, "n2": 1, "n3": 1}
    assert status(it).condition is Condition.READY
    assert status(it).outdated == 0


def test_a_copy_has_all_of_a_blueprint_that_wants_each() -> None:
    it = world()
    blueprint = typed("each", require=["!spot"])
    it.apply(APP, blueprint)
    it.run_down()
    assert it.manager.cluster.copies[APP].read() == blueprint
    assert status(it).settings is msgspec.UNSET


# Neighbours


def test_apart_and_near() -> None:
    it = world()
    it.apply(OTHER, typed(1))
    it.run_down()
    (there,) = live(it, OTHER)
    it.apply(APP, typed(2, apart=["org.example:other"]))
    near = Artifact("org.example", "near", "1")
    it.apply(near, typed(1, near=[{"with": "org.example:other", "hard": True}]))
    it.run_down()
    assert live(it).keys() == {"n1", "n2", "n3"} - {there}
    assert live(it, near) == {there: 1}


def test_what_is_decided_in_one_turn_is_kept_apart() -> None:
    it = world(n1=Registration(), n2=Registration())
    it.apply(OTHER, typed(1))
    it.apply(APP, typed(1, apart=["org.example:other"]))
    it.run_down()
    assert live(it).keys().isdisjoint(live(it, OTHER))


def test_what_is_tried_again_is_kept_apart_before_the_mirror_shows_it() -> None:
    it = world(n1=Registration())
    it.apply(OTHER, typed(1))
    it.run_down()
    (key,) = it.slices
    it.report(key, S.FAILED)
    it.settle()
    assert it.states(OTHER) == {key: S.FAILED}
    it.tick(5.0)  # it is tried again, which the mirror does not show yet
    assert it.states(OTHER) == {key: S.FAILED}
    it.apply(APP, typed(1, apart=[str(OTHER.service)]))
    it.run_down()
    assert live(it, OTHER) == {"n1": 1}
    assert it.states(APP) == {}


def test_nothing_comes_beside_what_still_serves_until_it_is_gone() -> None:
    it = world(n1=Registration())
    it.apply(OTHER, typed(1, drain_delay=5))
    it.run_down()
    it.apply(APP, typed(1, apart=[str(OTHER.service)]))
    it.run_down()
    it.drop(OTHER)
    it.settle()
    assert set(it.states(OTHER).values()) == {S.UNLOAD}
    it.tick(TOLD_FOR)
    it.settle()
    assert it.states(APP) == {}
    told = f"beside {OTHER.service}, which is being stopped"
    assert f"0 of 1 node takes it: 1 {told}" in status(it).reason
    assert f"only apart from {OTHER.service} keeps n1 out: {told}" in status(it).reason
    it.run_down()
    it.tick(ROOM_PAUSE)
    it.run_down()
    assert live(it) == {"n1": 1}


def test_what_is_there_already_is_not_forbidden_by_what_leaves() -> None:
    it = world(n1=Registration())
    it.apply(APP, typed(1, apart=[str(OTHER.service)]))
    it.run_down()
    it.apply(OTHER, typed(1, drain_delay=5))
    it.run_down()
    assert status(it).violations == 1
    it.drop(OTHER)
    it.settle()
    assert set(it.states(OTHER).values()) == {S.UNLOAD}
    assert not status(it).violations


def test_a_neighbour_that_comes_later_is_waited_for() -> None:
    it = world()
    it.apply(APP, typed(1, near=[{"with": "org.example:other", "hard": True}]))
    it.run_down()
    assert "3 not near org.example:other" in status(it).reason
    it.apply(OTHER, typed(1))
    it.run_down()
    assert live(it) == live(it, OTHER)


# Spread, on the way up and down


@pytest.mark.parametrize(
    ("rules", "stays"),
    [
        ({"require": ["gpu"]}, True),
        ({"needs": {"cpu": 4}}, True),
        ({"require": ["!gone"]}, False),
        ({"apart": [{"from": str(APP.service), "by": "zone"}]}, False),
    ],
)
def test_what_must_not_run_twice_leaves_a_draining_node_where_the_rules_let_it_be_elsewhere(
    rules: dict[str, Any], *, stays: bool
) -> None:
    it = world(
        n1=Registration(labels={"gpu": "1", "zone": "a"}, cpu=8.0), n2=Registration(labels={"zone": "a"}, cpu=2.0)
    )
    it.intend(n(2), Schedule.CORDON)
    it.apply(APP, typed(1, stop_after=5, **rules))
    it.run_down()
    it.intend(n(2), Schedule.NORMAL)
    it.intend(n(1), Schedule.DRAIN)
    it.run_down()
    assert live(it) == ({"n1": 1} if stays else {"n2": 1})
    if stays:
        assert status(it).condition is Condition.UNSCHEDULABLE
        assert "1 cannot be moved" in status(it).reason


@pytest.mark.parametrize("rules", [{}, {"require": ["!gone"]}])
@pytest.mark.parametrize("at_once", [True, False])
def test_of_two_that_must_not_run_twice_one_leaves_for_the_one_free_place(
    rules: dict[str, Any], *, at_once: bool
) -> None:
    it = world(n1=Registration())
    for artifact in (APP, OTHER):
        it.apply(artifact, typed(1, stop_after=5, **rules))
    it.run_down()
    it.join(n(2), Registration(capacity=1))
    it.intend(n(1), Schedule.DRAIN)
    if not at_once:
        it.settle()
        it.answer()
        for artifact in (APP, OTHER):
            it.apply(artifact, typed(1, stop_after=5, min_healthy=1, **rules))
    it.run_down()
    for _ in range(5):
        it.tick(1.0)
        it.run_down()
    assert sorted([*live(it), *live(it, OTHER)]) == ["n1", "n2"]


@pytest.mark.parametrize(
    ("keeps_out", "placed"),
    [({}, 1), ({"require": ["zone != b"]}, 2), ({"weights": {"b": 0, "*": 1}}, 2)],
)
def test_the_domain_of_a_node_that_takes_nothing_is_waited_for_unless_it_is_kept_out(
    keeps_out: dict[str, Any], placed: int
) -> None:
    it = world(n1=Registration(labels={"zone": "a"}), n2=Registration(labels={"zone": "b"}, capacity=0))
    weights = {"weights": keeps_out["weights"]} if "weights" in keeps_out else {}
    rules = {"require": keeps_out["require"]} if "require" in keeps_out else {}
    it.apply(APP, typed(2, spread=[{"by": "zone", "or": "wait", **weights}], **rules))
    it.run_down()
    assert live(it) == {"n1": placed}


def test_a_spread_is_kept_when_nodes_drain_and_when_it_shrinks() -> None:
    it = world(**in_zones("a", "a", "b", "b", "c", "c"))
    it.apply(APP, typed(6, spread=[{"by": "zone"}]))
    it.run_down()
    assert by_zone(it) == {"a": 2, "b": 2, "c": 2}
    it.intend(n(1), Schedule.DRAIN)
    it.intend(n(3), Schedule.DRAIN)
    it.run_down()
    assert by_zone(it) == {"a": 2, "b": 2, "c": 2}
    assert live(it).keys().isdisjoint({"n1", "n3"})
    it.apply(APP, typed(3, spread=[{"by": "zone"}]))
    it.run_down()
    assert by_zone(it) == {"a": 1, "b": 1, "c": 1}


def by_zone(it: World) -> dict[str, int]:
    found: Counter[str] = Counter()
    for node, count in live(it).items():
        found[it.nodes[NodeId(node)][0].labels["zone"]] += count
    return dict(found)


def test_a_zone_that_is_lost_is_made_up_for_and_balance_comes_back_on_demand() -> None:
    it = world(**in_zones("a", "b", "c"))
    it.apply(APP, typed(6, spread=[{"by": "zone"}], min_healthy=10))
    it.run_down()
    it.tick(10.0)
    it.run_down()
    it.expire(n(3))
    it.tick(30.0)
    it.run_down()
    it.tick(10.0)
    it.run_down()
    assert by_zone(it) == {"a": 3, "b": 3}
    stayed = {key for key in it.states(APP) if key.node != "n3"}
    it.join(n(3), Registration(labels={"zone": "c"}))
    it.run_down()
    it.tick(300.0)
    it.run_down()
    assert by_zone(it) == {"a": 3, "b": 3}, "what is healthy stays"
    assert stayed <= it.states(APP).keys()
    it.apply(APP, typed(6, spread=[{"by": "zone"}], min_healthy=10, rebalanced="once"))
    fewest = run_on(it, 10)
    assert fewest == 6
    assert by_zone(it) == {"a": 2, "b": 2, "c": 2}
    assert status(it).rebalanced == "once"
    before = len(it.decided)
    run_on(it, 10)
    assert len(it.decided) == before, "that was it"


def run_on(it: World, turns: int) -> int:
    """Let agents and manager go on for so many times ten seconds; returns the fewest ACTIVE instances meanwhile."""
    fewest = 100
    for _ in range(turns):
        for _ in range(20):
            it.settle()
            fewest = min(fewest, sum(state is S.ACTIVE for state in it.states(APP).values()))
            if not it.answer():
                break
        it.tick(10.0)
    return fewest


# Rollouts


def test_where_no_surge_can_be_placed_one_goes_first() -> None:
    it = world(n1=Registration(cpu=1.0), n2=Registration(cpu=1.0))
    it.apply(APP, typed(2, needs={"cpu": 1}))
    it.run_down()
    it.apply(APP, typed(2, needs={"cpu": 0.75}))
    assert run_on(it, 3) == 1
    assert live(it) == {"n1": 1, "n2": 1}
    assert {put.value.needs.cpu for put in it.slices.values() if put.value.needs} == {0.75}
    assert status(it).condition is Condition.READY


def test_nothing_goes_for_a_new_one_that_fits_nowhere() -> None:
    it = world(n1=Registration(cpu=1.0), n2=Registration(cpu=1.0))
    it.apply(APP, typed(2, needs={"cpu": 1}))
    it.run_down()
    it.apply(APP, typed(2, needs={"cpu": 1.5}))
    assert run_on(it, 10) == 2
    assert live(it) == {"n1": 1, "n2": 1}
    assert "no room for a new one beside the old ones" in status(it).reason


@pytest.mark.parametrize("rules", [{"max_per_node": 1}, {"apart": ["org.example:slice"]}])
def test_the_most_on_a_node_counts_old_and_new_instances(rules: dict[str, Any]) -> None:
    it = world()
    it.apply(APP, typed(3, **rules))
    it.run_down()
    it.apply(APP, typed(3, restarted="again", **rules))
    fewest = 3
    for _ in range(80):
        it.settle()
        fewest = min(fewest, sum(state is S.ACTIVE for state in it.states(APP).values()))
        assert max(live(it).values()) == 1
        if not it.answer():
            it.tick(1.0)
    assert fewest == 2
    assert status(it).condition is Condition.READY


@pytest.mark.parametrize("rules", [{"max_per_node": 1}, {"apart": ["org.example:slice"]}])
def test_while_an_old_instance_stops_its_place_is_waited_for_and_no_other_one_goes(rules: dict[str, Any]) -> None:
    it = world(**dict.fromkeys(("n1", "n2", "n3", "n4"), Registration()))
    it.apply(APP, typed(3, **rules))
    it.run_down()
    it.apply(APP, typed(3, restarted="again", **rules))
    fewest = 3
    for _ in range(80):
        it.settle()
        fewest = min(fewest, sum(state is S.ACTIVE for state in it.states(APP).values()))
        if not it.answer():
            it.tick(1.0)
    assert fewest == 3
    assert status(it).condition is Condition.READY


def test_another_version_that_is_in_force_is_no_part_of_a_rollout() -> None:
    it = world()
    newer = APP.service.version("2.0.0")
    for artifact in (APP, newer):
        it.apply(artifact, typed("each"))
    it.run_down()
    it.apply(newer, typed("each", restarted="again"))
    run_on(it, 10)
    assert live(it) == live(it, newer) == {"n1": 1, "n2": 1, "n3": 1}
    assert (status(it, newer).condition, status(it, newer).outdated) == (Condition.READY, 0)


# Balance


def test_on_join_waits_until_the_node_has_been_up_for_a_minute() -> None:
    it = world(n1=Registration(), n2=Registration())
    it.apply(APP, typed(6, rebalance="on-join", min_healthy=10))
    it.run_down()
    run_on(it, 8)
    it.join(n(3), Registration())
    it.run_down()
    it.tick(50.0)
    it.run_down()
    assert "n3" not in live(it)
    assert run_on(it, 10) == 6
    assert live(it) == {"n1": 2, "n2": 2, "n3": 2}


def test_nothing_is_moved_while_a_rollout_is_under_way() -> None:
    it = world(n1=Registration(), n2=Registration())
    canary = {"kind": "canary", "steps": [{"weight": 50}, {"pause": "approve"}]}
    it.apply(APP, typed(4, min_healthy=10, rollout=canary))
    it.run_down()
    it.tick(20.0)
    it.run_down()
    it.join(n(3), Registration())
    it.apply(APP, typed(4, min_healthy=10, restarted="x", rebalanced="now", rollout=canary))
    run_on(it, 10)
    assert status(it).rebalanced is msgspec.UNSET
    it.apply(APP, typed(4, min_healthy=10, restarted="x", rebalanced="now", rollout={**canary, "approved": 1}))
    run_on(it, 20)
    assert status(it).rebalanced == "now"
    assert sorted(live(it).values()) == [1, 1, 2]


def test_a_new_leader_goes_on_with_a_rebalance_that_is_not_done() -> None:
    it = world(n1=Registration())
    it.apply(APP, typed(4, min_healthy=10))
    it.run_down()
    it.tick(10.0)
    it.join(n(2), Registration())
    it.apply(APP, typed(4, min_healthy=10, rebalanced="x"))
    it.run_down()
    assert sum(live(it).values()) == 5
    it.boot()
    it.lead()
    assert run_on(it, 10) >= 4
    assert live(it) == {"n1": 2, "n2": 2}
    assert status(it).rebalanced == "x"


# What is told


def test_what_another_label_of_a_neighbours_node_violates_is_told_at_once() -> None:
    it = world(**in_zones("a", "a", "b"))
    it.apply(OTHER, typed(1, require=["node = n1"]))
    it.run_down()
    near = {"with": str(OTHER.service), "by": "zone", "hard": True}
    it.apply(APP, typed(1, require=["node = n2"], near=[near]))
    it.run_down()
    assert live(it) == {"n2": 1}
    it.join(n(1), Registration(labels={"zone": "b"}))
    it.run_down()
    assert status(it).violations == 1


def test_what_waits_for_its_share_does_no_more_when_the_lost_zone_is_forgotten() -> None:
    it = world(**in_zones("a", "a", "b"))
    it.apply(APP, typed(2, spread=[{"by": "zone", "or": "wait"}]))
    it.run_down()
    it.expire(n(3))
    it.tick(30.0)
    it.run_down()
    assert status(it).condition is Condition.UNSCHEDULABLE
    it.forget(n(3))
    it.run_down()
    assert sum(live(it).values()) == 2
    assert status(it).condition is Condition.READY


def test_without_rules_it_is_told_what_keeps_each_node_out() -> None:
    it = world(n1=Registration(capacity=2), n2=Registration(capacity=1), n3=Registration(), n4=Registration())
    it.intend(n(3), Schedule.DRAIN)
    it.intend(n(4), Schedule.CORDON)
    it.apply(APP, typed(5))
    it.run_down()
    assert live(it) == {"n1": 2, "n2": 1}
    assert status(it).reason == (
        "2 of 5 instances cannot be placed: 0 of 4 nodes take it: 2 full (2 of 2 slices and the like), 1 cordoned, "
        "1 draining"
    )


def test_a_strategy_that_is_not_there_is_told_and_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    it = world()
    it.apply(APP, typed(1, strategy="mine"))
    it.run_down()
    assert status(it).condition is Condition.READY
    assert status(it).reason == (
        "there is no strategy 'mine' (installed: cheapest, least-loaded, pack, round-robin); round-robin instead"
    )
    monkeypatch.setitem(SHIPPED, "broken", Checked("broken", Broken()))
    it.apply(APP, typed(2, strategy="broken", min_healthy=10))
    it.run_down()
    told = "strategy 'broken' failed, and it was round-robin instead: LookupError: no such thing"
    assert status(it).condition is Condition.PROGRESSING
    assert status(it).reason.endswith(f"; {told}")
    it.apply(APP, typed(2, strategy="broken"))
    it.run_down()
    assert (status(it).condition, status(it).reason) == (Condition.READY, told)


class Broken:
    """A strategy that never works."""

    name = "broken"

    def rank(self, artifact: Artifact, site: Site, count: int) -> Rank:
        raise LookupError("no such thing")


# Versions side by side


def test_rules_wait_until_every_manager_knows_them() -> None:
    old = tuple(feature for feature in FEATURES if feature != PLACEMENT)
    it = world(
        n1=Registration(version="0.9", features=FEATURES),
        n2=Registration(version="0.8", features=old, labels={"gpu": "yes"}),
    )
    it.apply(APP, typed(1, require=["gpu"]))
    it.run_down()
    assert live(it) == {}
    told = status(it)
    assert told.condition is Condition.PROGRESSING
    assert told.reason == (
        "waiting for manager n2: its cdm 0.8 does not know where instances are to go; upgrade managers first"
    )
    it.join(n(2), Registration(version="0.9", features=FEATURES, labels={"gpu": "yes"}))
    it.run_down()
    assert live(it) == {"n2": 1}
    assert status(it).condition is Condition.READY


def test_secrets_wait_until_every_manager_knows_them_and_go_where_they_are_given() -> None:
    old = tuple(feature for feature in FEATURES if feature != SECRETS)
    giving = (*FEATURES, GIVES_SECRETS)
    it = world(
        n1=Registration(version="0.9", features=FEATURES, labels={"cdm.secrets": "yes"}),
        n2=Registration(version="0.8", features=old, runtime="process"),
    )
    env = {"PASSWORD": {"secret": "db-password"}}
    it.apply(APP, typed(3, env=env))
    it.run_down()
    assert live(it) == {}
    told = status(it)
    assert told.condition is Condition.PROGRESSING
    assert told.reason == "waiting for manager n2: its cdm 0.8 does not know secrets; upgrade managers first"
    it.join(n(2), Registration(version="0.9", features=FEATURES))
    it.run_down()
    assert live(it) == {}
    told = status(it)
    assert told.condition is Condition.UNSCHEDULABLE
    assert "0 of 2 nodes take it: 2 giving no secrets" in told.reason
    it.join(n(2), Registration(version="0.9", features=giving))
    it.run_down()
    assert live(it) == {"n2": 3}
    assert status(it).condition is Condition.READY
    it.apply(APP, typed(4))  # without it, anywhere
    it.run_down()
    it.tick(60.0)
    it.run_down()
    assert set(live(it)) == {"n1", "n2"}


def test_conditions_know_the_nodes_that_run_only_what_is_signed() -> None:
    it = world(n1=Registration(version="0.9", features=(*FEATURES, RUNS_SIGNED)))
    it.apply(APP, typed(2, require=["!cdm.trust"]))
    it.run_down()
    assert "0 of 1 node takes it: 1 running only what is signed" in status(it).reason
    it.join(n(2), Registration(version="0.9", features=FEATURES, labels={"cdm.trust": "yes"}))
    it.apply(OTHER, typed(2, require=["cdm.trust"]))
    it.run_down()
    assert (live(it), live(it, OTHER)) == ({"n2": 2}, {"n1": 2})


def test_how_busy_a_node_is_is_no_news_of_the_node() -> None:
    it = world(n1=Registration(load=0.0), n2=Registration(load=0.0))
    it.apply(OTHER, typed(1, strategy="least-loaded"))
    it.run_down()
    before = len(it.decided)
    it.join(n(1), Registration(load=1.0))
    it.run_down()
    assert len(it.decided) == before
    it.apply(APP, typed(1, strategy="least-loaded"))
    it.run_down()
    assert live(it) == {"n2": 1}


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


def test_what_costs_much_is_placed_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "LOOKS_AT_ONCE", 24)
    it = world(**in_zones("a", "b", "c", "a"))
    spread = [{"by": "zone", "or": "wait"}, {"by": "node"}]
    it.apply(APP, typed(9, spread=spread))
    it.run_down()
    loads = [sum(each.state is S.LOAD for each in order.commands) for order in it.decided]
    assert [count for count in loads if count] == [3, 3, 3]
    assert sum(live(it).values()) == 9
    assert status(it).condition is Condition.READY

    it.apply(APP, typed(9, spread=spread, max_per_node=1))
    it.apply(OTHER, typed(9, spread=spread, max_per_node=1))
    it.run_down()
    assert sum(live(it, OTHER).values()) == 4
    assert status(it, OTHER).reason.startswith("5 of 9 ")


@pytest.mark.parametrize(
    ("spreads", "nodes", "expected"), [(0, 1000, 1_000_000), (1, 1000, 25_000), (10, 1000, 20), (2, 10_000, 10)]
)
def test_no_decision_takes_longer_than_a_leader_has(spreads: int, nodes: int, expected: int) -> None:
    rules = Rules(spread=tuple(Spread(f"l{number}") for number in range(spreads))) if spreads else NO_RULES
    assert growth.most_at_once(rules, nodes) == expected
