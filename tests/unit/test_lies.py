"""Nodes that say what cannot be, and decisions that fail: the leader goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.allocation.installed import Checked, StrategyFailed
from cdm.dispatch.messages import ValuePut, ValueRejected
from cdm.errors import InvalidBlueprint
from cdm.manager import undecided
from cdm.manager.planning import Planning
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.keys import NodeKey, SliceKey
from cdm.model.node import Registration
from cdm.model.quantity import MOST_CPU, MOST_MEMORY
from cdm.model.rules import Needs
from cdm.model.slice import SliceState, SliceValue
from cdm.model.status import Condition
from tests.unit.placement_world import live, status, typed, world
from tests.unit.placing import site
from tests.unit.support import APP, OTHER, S, n

pytestmark = pytest.mark.quick

RULES: dict[str, Any] = {"require": ["!x"], "needs": {"cpu": 1, "memory": 1}, "min_healthy": 1}
WITH_RULES = [
    {**RULES, "strategy": "pack", "spread": [{"by": "zone"}], "prefer": [{"if": "kernel >= 6.1", "weight": 5}]},
    {**RULES, "strategy": "least-loaded", "max_per_node": 2, "apart": ["org.example:other"]},
    {**RULES, "strategy": "cheapest", "rebalance": "on-join", "on_violation": "move", "near": ["org.example:other"]},
    {"stop_after": 5, "after": ["org.example:other"]},
]


# Numbers out of bounds


@pytest.mark.parametrize("cores", [1e-10, 1e-6, 0.0004])
def test_less_than_a_thousandth_of_a_core_is_refused(cores: float) -> None:
    with pytest.raises(InvalidBlueprint, match=r"steps of 0\.001"):
        typed(1, needs={"cpu": cores})


def test_what_is_stored_of_less_than_a_thousandth_of_a_core_needs_none() -> None:
    it = world(n1=Registration(cpu=1.0))
    stored = Blueprint(
        2, min_healthy=0, rules=msgspec.structs.replace(typed(1, needs={"cpu": 1}).rules, needs=Needs(1e-10))
    )
    it.apply(APP, stored)
    it.run_down()
    assert live(it) == {"n1": 2}
    it.apply(APP, msgspec.structs.replace(stored, rebalanced="x"))
    it.run_down()
    assert status(it).rebalanced == "x"


def test_of_what_a_node_says_it_has_no_more_is_believed_than_a_machine_can_have() -> None:
    said = Registration.parse(b'{"cpu": 1e306, "memory": 1%s, "load": 1e308, "capacity": -3, "ttl": -1}' % (b"0" * 400))
    assert said == Registration(cpu=MOST_CPU, memory=MOST_MEMORY, load=1_000.0, capacity=0, ttl=None)
    assert Registration.parse(b'{"cpu": -1, "memory": -1, "load": -1}') == Registration(cpu=0.0, memory=0, load=0.0)
    assert Registration.parse(b'{"cpu": 2.5, "capacity": 3, "ttl": 10}') == Registration(cpu=2.5, capacity=3, ttl=10.0)


@pytest.mark.parametrize("strategy", ["round-robin", "pack", "least-loaded", "cheapest"])
def test_a_node_that_lies_of_its_numbers_stops_nobody(strategy: str) -> None:
    it = world(
        n1=Registration(cpu=1e306, load=1e308), n2=Registration(cpu=-1, memory=-1, capacity=-1), n3=Registration(cpu=1)
    )
    it.apply(APP, typed(3, needs={"cpu": 0.5}, strategy=strategy))
    it.run_down()
    assert sum(live(it).values()) == 3
    it.apply(APP, typed(30_000, needs={"cpu": 1}, strategy=strategy))
    it.tick()
    it.tell()
    assert "-" not in status(it).reason


@pytest.mark.parametrize("rank", [10**400, float("nan"), "1", (1, None), (10**400, 0)])
def test_a_rank_that_cannot_be_compared_is_a_failure_of_the_strategy(rank: Any) -> None:
    class Odd:
        name = "odd"

        def rank(self, *_: Any) -> Any:
            return rank

    with pytest.raises(StrategyFailed):
        Checked("odd", Odd()).rank(APP, site(1), 0)


def test_failures_that_a_node_makes_up_can_still_be_counted_further() -> None:
    it = world(n1=Registration())
    it.apply(APP, typed(1))
    it.settle()
    (key,) = it.slices
    it.report(key, S.LOADING)
    it.report(key, S.FAILED, failures=2**53)
    it.settle()
    it.tick(400.0)
    it.settle()
    assert it.slices[key].value.state is S.LOAD
    value = it.slices[key].value
    assert msgspec.json.decode(msgspec.json.encode(value), type=SliceValue) == value


whole = st.integers(-5, 5) | st.integers(-(2**62), 2**62) | st.just(10**400) | st.just(2**53)
numbers = whole.filter(lambda each: abs(each) < 2**63) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.sampled_from(["", "a", "6.1", "9" * 5_000, "1e999", "-inf", "nan", "٣", "a.b=c*>"]) | st.text(max_size=5)
lies: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "labels": st.dictionaries(st.sampled_from(["zone", "kernel", "cost", "x", "node"]), texts),
        "role": st.sampled_from(["all", "agent", "manager", "?"]),
        "features": st.lists(texts, max_size=2),
        **dict.fromkeys(("runtime", "version", "started", "incarnation", "address"), texts),
        **dict.fromkeys(("capacity", "memory"), whole),
        **dict.fromkeys(("ttl", "cpu", "load"), numbers),
    },
)
values: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"state": st.sampled_from(list(SliceState))},
    optional={
        **dict.fromkeys(("reason", "template", "content", "address"), texts),
        "fatal": st.booleans(),
        **dict.fromkeys(("term", "failures", "blueprint", "restarts", "loaded", "port"), whole),
        **dict.fromkeys(("stable", "deadline", "after"), numbers),
        "needs": st.fixed_dictionaries({}, optional={"cpu": numbers, "memory": whole}),
        "overrides": st.fixed_dictionaries(
            {}, optional={"stop_after": numbers, "env": st.dictionaries(texts, texts), "args": st.lists(texts)}
        ),
    },
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 2, 3]), lies | st.none(), values, st.integers(0, 3), st.sampled_from([0.0, 1.0, 200.0])
        ),
        max_size=6,
    ),
    st.sampled_from(WITH_RULES),
    st.sampled_from(WITH_RULES),
)
def test_whatever_nodes_say_the_leader_decides(
    said: list[tuple[int, dict[str, Any] | None, dict[str, Any], int, float]],
    rules: dict[str, Any],
    other: dict[str, Any],
) -> None:
    it = world()
    own = {name: what for name, what in other.items() if name not in ("apart", "near", "after")}
    it.apply(APP, typed(3, **rules))
    it.apply(OTHER, typed(2, **own))
    for number, registration, value, ordinal, pause in said:
        it.deliver()  # a node may have written what only leaders write
        it.tick(pause)
        while it.write():
            pass
        it.deliver()
        it.acknowledge()
        node = n(number)
        if registration is not None:
            put(it, node, msgspec.json.encode(registration))
        report(it, SliceKey(node, APP if ordinal % 2 else OTHER, ordinal), msgspec.json.encode(value))
    it.tick(31.0)
    it.tell()


def put(it: Any, node: NodeId, raw: bytes) -> None:
    """A node registers so, as its mirror reads it."""
    try:
        value = Registration.parse(raw)
    except msgspec.DecodeError as error:
        it.route(ValueRejected(NodeKey(node), str(error), 1, 0, it.now))
        it.nodes.pop(node, None)
        return
    it.nodes[node] = (value, it.now)
    it.route(ValuePut(NodeKey(node), value, 1, it.now))


def report(it: Any, key: SliceKey, raw: bytes) -> None:
    """A node says this of a slice, as its mirror reads it, whatever it was before."""
    try:
        it.store(key, msgspec.json.decode(raw, type=SliceValue))
    except msgspec.DecodeError as error:
        it.sequence += 1
        it.slices[key] = ValuePut(key, SliceValue(S.FAILED), it.sequence, it.now)  # which is what it counts as
        it.mirror.append(ValueRejected(key, str(error), it.sequence, 0, it.now))


# A decision that fails


def test_a_decision_that_fails_leaves_its_artifact_alone_and_all_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it = world()
    it.apply(APP, typed(2))
    it.run_down()
    plan, broken = Planning.plan, {APP}

    def fails(self: Planning, job: Any, fleet: Any, now: float) -> Any:
        if job.artifact in broken:
            raise ZeroDivisionError("of a test")
        return plan(self, job, fleet, now)

    logged: list[str] = []
    monkeypatch.setattr(undecided, "log", SimpleNamespace(exception=lambda _, artifact: logged.append(artifact)))
    monkeypatch.setattr(Planning, "plan", fails)
    it.may_fail = True
    it.apply(APP, typed(4))
    it.apply(OTHER, typed(3))
    it.run_down()
    it.tick(31.0)
    it.run_down()
    assert sum(live(it).values()) == 2
    assert sum(live(it, OTHER).values()) == 3
    assert status(it).condition is Condition.DEGRADED
    assert status(it).reason.startswith("cannot be decided on, and is left as it is: ZeroDivisionError: of a test")
    assert status(it).observed_revision == it.blueprints[APP][1]
    assert status(it, OTHER).condition is Condition.READY
    assert logged == [str(APP)]
    broken.clear()
    it.tick(31.0)
    it.run_down()
    assert sum(live(it).values()) == 4
    assert status(it).condition is Condition.READY


def test_what_a_failed_decision_was_about_to_command_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    it = world(n1=Registration(capacity=1))
    new = Artifact(APP.group, APP.name, "2.0.0")
    order = type(it.outbox).order
    monkeypatch.setattr(type(it.outbox), "order", lambda *_: 1 / 0)
    it.may_fail = True
    it.apply(new, typed(1))
    it.settle()
    assert it.manager.state.undecided.keys() == {new}  # type: ignore[union-attr]
    monkeypatch.setattr(type(it.outbox), "order", order)
    it.drop(new)
    it.apply(APP, typed(1))
    it.run_down()
    assert live(it) == {"n1": 1}
