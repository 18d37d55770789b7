"""What rules say of nodes and of slices is told of one look at the buckets, as the leader would judge it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest

from cdm.dispatch.messages import Message, ValuePut, ValueRejected
from cdm.manager.choosing import violations
from cdm.manager.explanation import Explanation, HeldRule, explained, explained_slice
from cdm.manager.onlooker import Onlooker
from cdm.manager.rebalancing import balancing
from cdm.manager.standing import Standing
from cdm.model.artifact import Artifact, NodeId, node_id
from cdm.model.blueprint import Blueprint
from cdm.model.condition import LabelCondition
from cdm.model.keys import BlueprintKey, NodeKey, RolloutKey, SliceKey, StatusKey
from cdm.model.node import Registration
from cdm.model.record import Rollout, RolloutPhase, Side
from cdm.model.rules import Needs, Neighbour, Preference, Rules, Spread
from cdm.model.slice import SliceState, SliceValue
from cdm.model.status import Condition, Status

pytestmark = pytest.mark.quick

WEB, DB = Artifact("g", "web", "1"), Artifact("g", "db", "1")
N1, N2, N3 = (node_id(f"n{each}") for each in (1, 2, 3))
GPU = LabelCondition.parse("gpu")
MB = 10**6


def look(
    blueprint: Blueprint,
    nodes: Mapping[str, Registration],
    slices: Iterable[tuple[SliceKey, SliceValue]] = (),
    more: Iterable[Message] = (),
) -> Onlooker:
    messages: list[Message] = [ValuePut(BlueprintKey(WEB), blueprint, 5)]
    messages += (ValuePut(key, value, 7 + index) for index, (key, value) in enumerate(slices))
    messages += (ValuePut(NodeKey(node_id(name)), registration, 1) for name, registration in nodes.items())
    return Onlooker([*messages, *more], 100.0)


def explanation(blueprint: Blueprint, nodes: Mapping[str, Registration], **others: object) -> Explanation:
    return explained(look(blueprint, nodes, **others), WEB)  # type: ignore[arg-type]


def active(artifact: Artifact, node: str, ordinal: int = 0, needs: Needs | None = None) -> tuple[SliceKey, SliceValue]:
    return SliceKey(node_id(node), artifact, ordinal), SliceValue(SliceState.ACTIVE, 1, needs=needs)


def test_all_rules_that_keep_an_instance_off_a_node_are_told_with_their_numbers() -> None:
    rules = Rules(require=(GPU,), needs=Needs(0.5, 256 * MB), max_per_node=1, apart=(Neighbour("g:db", hard=True),))
    held = Needs(0.0, 900 * MB)
    found = explanation(
        Blueprint(2, rules=rules),
        {
            "n1": Registration(cpu=2.0, memory=1000 * MB, labels={"gpu": ""}),
            "n2": Registration(cpu=2.0, memory=1000 * MB, labels={"gpu": ""}),
            "n3": Registration(memory=1000 * MB),
        },
        slices=[active(WEB, "n1"), active(DB, "n2", needs=held), active(DB, "n3")],
    )
    assert found.rules == ["require gpu", "apart from g:db", "needs cpu 0.5, memory 256M", "at most 1 on a node"]
    assert (found.desired, found.placed, found.others) == (2, 1, {})
    assert {each.node: [one.what for one in each.obstacles] for each in found.nodes} == {
        N1: ["max_per_node"],
        N2: ["apart from g:db", "memory"],
        N3: ["gpu", "apart from g:db", "cpu"],
    }
    assert found.summary.startswith("0 of 3 nodes take it: ")
    assert found.nearest == ["only max_per_node keeps n1 out: 1 of 1 on a node"]
    memory = found.nodes[1].obstacles[1]
    assert (memory.numbers, memory.miss) == ("memory 900M of 1G reserved", "256M needed, 100M free")


def test_where_a_slice_is_the_rules_are_told_that_hold_and_those_that_do_not() -> None:
    rules = Rules(
        require=(LabelCondition.parse("zone = a"), GPU),
        prefer=(Preference(LabelCondition.parse("ssd"), 30),),
        spread=(Spread("zone", max_skew=2),),
        near=(Neighbour("g:db", by="zone"),),
        max_per_node=1,
    )
    onlooker = look(
        Blueprint(2, rules=rules),
        {
            "n1": Registration(labels={"zone": "a", "ssd": ""}),
            "n2": Registration(labels={"zone": "a", "gpu": ""}),
        },
        [active(WEB, "n1"), active(WEB, "n1", 1)],
    )
    found = explained_slice(onlooker, SliceKey(N1, WEB))
    assert found is not None
    assert found.rules == [
        HeldRule("require zone = a", True),
        HeldRule("require gpu", False, "it has no gpu"),
        HeldRule("at most 1 on a node", False, "2 of 1"),
    ]
    assert (found.score, found.preferred) == (30, ("ssd",))
    assert found.better == "n2, for a hard rule: without gpu"
    assert found.in_force == 5
    told = explained(onlooker, WEB).rules
    assert told[2:] == [
        "near g:db by zone, where that can be",
        "at most 1 on a node",
        "spread by zone, max_skew 2",
        told[5],
    ]
    assert told[5] == "prefer ssd, weight 30"
    assert explained_slice(onlooker, SliceKey(N3, WEB)) is None


def test_one_on_each_node_counts_those_that_fit() -> None:
    found = explanation(
        Blueprint(0, each=True),
        {"n1": Registration(), "n2": Registration(role="manager", capacity=0), "n3": Registration(capacity=0)},
        slices=[active(WEB, "n1")],
    )
    assert (found.desired, found.placed, found.rules) == (1, 1, ["one on every node that fits"])
    assert [(each.node, each.fits, each.obstacles[0].why) for each in found.nodes] == [
        (N1, False, "with one already"),
        (N2, False, "running no slices"),
        (N3, False, "taking none"),
    ]


OLD = WEB.service.version("0")
NEW_SETTINGS = Rollout(Side("1", 5, digest="old"), Side("1", 6, digest="new"), RolloutPhase.ROLLING)
NEW_VERSION = Rollout(Side("0", 5), Side("1", 6), RolloutPhase.ROLLING)
COMPLETE = Rollout(Side("0", 5), Side("1", 6), RolloutPhase.COMPLETE)


@pytest.mark.parametrize(
    ("rollout", "taken"), [(NEW_SETTINGS, [N1]), (NEW_VERSION, [N1, N2]), (COMPLETE, [N1])], ids=lambda each: ""
)
def test_instances_of_both_sides_of_a_rollout_count_for_the_most_on_a_node(
    rollout: Rollout, taken: list[NodeId]
) -> None:
    record: Message = ValuePut(RolloutKey(WEB.service), rollout, 90)
    slices = [active(WEB, "n1"), active(OLD, "n2")]
    for blueprint in (Blueprint(3, rules=Rules(max_per_node=1)), Blueprint.parse(b'{"instances": "each"}')):
        it = look(blueprint, dict.fromkeys(("n1", "n2", "n3"), Registration()), slices, [record])
        found = explained(it, WEB)
        assert [each.node for each in found.nodes if not each.fits] == taken
        assert explained_slice(it, slices[0][0]) is not None
        assert not balancing(it, WEB).moves


def test_a_strategy_that_is_not_installed_where_it_is_asked_is_told() -> None:
    rules = Rules(strategy="mine")
    assert explanation(Blueprint(1, rules=rules), {"n1": Registration()}).rules == [
        "strategy mine, which is not installed here"
    ]


def test_a_version_that_was_replaced_wants_what_its_status_says() -> None:
    status = Status(Condition.SUPERSEDED, "replaced by 2", observed_revision=5)
    told = ValuePut(StatusKey("g/web/1"), status, 1)
    found = explanation(Blueprint(3), {"n1": Registration()}, more=[told])
    assert (found.desired, found.condition, found.reason) == (0, "Superseded", "replaced by 2")
    newer = ValuePut(StatusKey("g/web/1"), Status(Condition.SUPERSEDED, observed_revision=4), 1)
    assert explanation(Blueprint(3), {"n1": Registration()}, more=[newer]).desired == 3


def test_a_blueprint_that_is_refused_stays_in_force_as_its_status_has_it() -> None:
    refused: Message = ValueRejected(BlueprintKey(WEB), "no", 9, 0.0)
    status = Status(Condition.INVALID, "no", desired=3, observed_revision=9, in_force_revision=5)
    messages = [refused, ValuePut(StatusKey("g/web/1"), status, 1), ValuePut(NodeKey(N1), Registration(), 1)]
    assert explained(Onlooker(messages, 100.0), WEB).desired == 3


def test_what_failed_beside_an_instance_makes_it_no_violation() -> None:
    failed = (SliceKey(N1, WEB, 1), SliceValue(SliceState.FAILED, 1, reason="it broke"))
    nodes = {"n1": Registration(), "n2": Registration()}
    onlooker = look(Blueprint(1, rules=Rules(max_per_node=1)), nodes, [active(WEB, "n1"), failed])
    found = explained_slice(onlooker, SliceKey(N1, WEB))
    assert found is not None
    assert found.rules == [HeldRule("at most 1 on a node", True)]
    assert found.better == ""
    assert not violations(onlooker.lookup(WEB).at)


def test_what_is_overdue_is_so_in_one_look_too() -> None:
    loading = (SliceKey(N1, WEB), SliceValue(SliceState.LOAD, 1))
    heard = ValuePut(NodeKey(N1), Registration(), 2, 99.0)
    standings = look(Blueprint(1), {}, [loading], [heard]).lookup(WEB).at.standings
    assert [each.key for each in standings[Standing.STUCK]] == [SliceKey(N1, WEB)]
