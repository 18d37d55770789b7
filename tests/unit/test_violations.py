"""Violations are counted anew only where something that they depend on changed: the count is always the right one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.manager.active import Active
from cdm.manager.releases import Job
from cdm.manager.violations import Violations
from cdm.model.artifact import Artifact, NodeId
from cdm.model.node import Registration, Schedule
from tests.unit.placement_world import in_zones, typed, world
from tests.unit.support import APP, OTHER, S, n
from tests.unit.world import World

pytestmark = pytest.mark.quick

NODES = [n(1), n(2), n(3)]
RULES: list[dict[str, Any]] = [
    {},
    {"require": ["zone = a"]},
    {"require": ["zone in (a, b)"], "on_violation": "move"},
    {"needs": {"cpu": 1}},
    {"needs": {"memory": "1G"}, "rebalance": "on-join"},
    {"max_per_node": 1},
    {"apart": [str(OTHER.service)]},
    {"apart": [{"from": str(APP.service), "by": "zone"}]},
    {"near": [{"with": str(OTHER.service), "by": "zone", "hard": True}]},
    {"spread": [{"by": "zone"}], "rebalance": "on-join"},
]

registrations = st.builds(
    Registration,
    labels=st.sampled_from([{}, {"zone": "a"}, {"zone": "b"}]),
    cpu=st.sampled_from([None, 1.0, 4.0]),
    memory=st.sampled_from([None, 10**9, 4 * 10**9]),
    capacity=st.sampled_from([None, 2]),
)
artifacts, nodes = st.sampled_from([APP, OTHER]), st.sampled_from(NODES)
steps = st.one_of(
    st.tuples(st.just("join"), nodes, registrations),
    st.tuples(st.just("expire"), nodes),
    st.tuples(st.just("intend"), nodes, st.sampled_from(Schedule)),
    st.tuples(st.just("apply"), artifacts, st.integers(0, 4), st.sampled_from(RULES)),
    st.tuples(st.just("each"), artifacts, st.sampled_from(RULES[:2])),
    st.tuples(st.just("drop"), artifacts),
    st.tuples(st.just("fail"), artifacts),
    st.tuples(st.just("tick"), st.sampled_from([1.0, 30.0, 100.0])),
    st.tuples(st.just("deliver"), st.integers(1, 3)),
    st.tuples(st.just("answer")),
    st.tuples(st.just("write")),
    st.tuples(st.just("run_down")),
)


def counted(it: World, artifact: Artifact, *, anew: bool) -> int:
    """How many violations the leader counts, or one that kept nothing would."""
    state = it.manager.state
    assert isinstance(state, Active)
    planning, placement = state._planning, state._placement
    job = Job(artifact, state._wishes.wanted(artifact), placement.counted(it.manager.cluster.group(artifact)))
    if anew:
        fresh = Violations(it.manager.cluster, placement)
        return fresh.of(job, lambda: planning._situation(job, planning.fleet(), it.now)).number
    return planning.forbidden(job, it.now).number


def take(it: World, step: tuple[Any, ...]) -> None:
    match step:
        case ("join", node, registration):
            it.join(node, registration)
        case ("expire", node) if node in it.nodes:
            it.expire(node)
        case ("intend", node, schedule):
            it.intend(node, schedule)
        case ("apply", artifact, instances, rules):
            it.apply(artifact, typed(instances, **rules))
        case ("each", artifact, rules):
            it.apply(artifact, typed("each", **rules))
        case ("drop", artifact) if artifact in it.blueprints:
            it.drop(artifact)
        case ("fail", artifact):
            active = sorted(key for key, state in it.states(artifact).items() if state is S.ACTIVE)
            if active and active[0].node in it.nodes:
                it.report(active[0], S.FAILED)
        case ("tick", seconds):
            it.tick(seconds)
        case ("deliver", count):
            it.deliver(count)
        case ("answer" | "run_down" | "write" as name,):
            getattr(it, name)()
        case _:
            pass


@given(st.lists(steps, max_size=40))
def test_what_is_kept_is_what_a_count_comes_to(order: list[tuple[Any, ...]]) -> None:
    it = world(**in_zones("a", "a", "b"))
    for artifact, rules in ((APP, RULES[1]), (OTHER, RULES[5])):
        it.apply(artifact, typed(2, **rules))
    it.run_down()
    for step in order:
        take(it, step)
        for artifact in (APP, OTHER):
            assert counted(it, artifact, anew=False) == counted(it, artifact, anew=True), step


def test_nothing_is_counted_while_nothing_changes() -> None:
    it = world(**in_zones("a", "b"))
    it.apply(APP, typed(2, require=["zone in (a, b)"]))
    it.run_down()
    state = it.manager.state
    assert isinstance(state, Active)
    job = Job(APP, state._wishes.wanted(APP), it.manager.cluster.group(APP))
    violations = Violations(it.manager.cluster, state._placement)

    def asked() -> Any:
        raise AssertionError("counted")

    assert violations.of(job, lambda: state._planning._situation(job, state._planning.fleet(), it.now)).number == 0
    it.apply(OTHER, typed(2))
    it.run_down()
    assert violations.of(job, asked).number == 0
    it.join(NodeId("n1"), Registration(labels={"zone": "c"}))
    with pytest.raises(AssertionError, match="counted"):
        violations.of(job, asked)
