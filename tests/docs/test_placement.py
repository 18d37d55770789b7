"""The examples of docs/placement.md do what is said of them, on the nodes of its table."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.keys import encode_artifact
from cdm.model.node import Registration
from cdm.model.quantity import memory_of
from cdm.model.rules_typed import TypedRules
from cdm.model.status import Condition
from tests.docs.documents import BLOCKS, DOCUMENTS, blocks
from tests.unit.support import APP
from tests.unit.world import World

pytestmark = pytest.mark.quick

DOCUMENT = "docs/placement.md"
DB, BATCH = Artifact("org.example", "db", "1"), Artifact("org.example", "batch", "1")
OUTCOMES: dict[str, list[dict[str, int] | set[str]]] = {
    "Conditions": [{"n1", "n2"}],
    "Preferences": [{"n1"}],
    "Spread": [{"a": 2, "b": 2, "c": 2}, {"a": 4, "b": 2, "c": 2}],
    "Near and apart": [{"n1", "n2", "n3", "n4", "n5", "n6"}, {"b": 2}],
    "Needs": [{"n1", "n2", "n3"}],
    "At most so many on a node": [{"n1", "n2", "n3", "n4", "n5", "n6"}],
    "One on each node": [{"n1", "n2", "n3", "n5"}],
    "Strategy": [{"n1"}],
    "Violations": [{"a": 2}],
    "Balance": [{"a": 2, "b": 2, "c": 2}, {"a": 2, "b": 2, "c": 2}],
}
"""For each heading, where the instances of each example are: their nodes, or how many there are in each zone."""


def nodes() -> dict[NodeId, Registration]:
    """Those of the table."""
    rows = re.findall(r"^\| `(n\d)` \| ([^|]*) \| (\d+) \| (\w+) \|$", DOCUMENTS[DOCUMENT], re.MULTILINE)
    assert len(rows) == 6
    return {
        NodeId(node): Registration(
            labels=dict(re.findall(r"`(\w+)=([\w.]+)`", labels)), cpu=float(cpu), memory=memory_of(memory)
        )
        for node, labels, cpu, memory in rows
    }


@pytest.mark.parametrize(
    ("heading", "number"), [(name, i) for name, all_ in OUTCOMES.items() for i in range(len(all_))]
)
def test_an_example_is_placed_as_is_said(heading: str, number: int) -> None:
    it = World()
    for node, registration in nodes().items():
        it.join(node, registration)
    it.lead()
    if heading == "Near and apart":
        for other in (DB, BATCH):
            it.apply(other, Blueprint.parse(b'{"instances": 1, "require": ["node = n3"]}'))
        it.run_down()
    it.apply(APP, Blueprint.parse(blocks(heading, "json")[number].encode()))
    it.run_down()
    it.tick(10.0)
    it.run_down()
    found = Counter(key.node for key, state in it.states(APP).items() if state.live)
    wanted = OUTCOMES[heading][number]
    if isinstance(wanted, set):
        assert found.keys() == wanted
    else:
        zones = nodes()
        assert Counter(zones[node].labels["zone"] for node in found.elements()) == wanted
    told = it.statuses[encode_artifact(APP)]
    assert told.condition is Condition.READY
    if heading == "Balance" and number == 1:
        assert told.rebalanced == "after the maintenance"


def test_every_example_has_its_outcome_and_every_field_an_example() -> None:
    examples = {block.section: 0 for block in BLOCKS if block.section in OUTCOMES}
    text = DOCUMENTS[DOCUMENT]
    assert text.count("```json") == sum(map(len, OUTCOMES.values()))
    assert examples.keys() == OUTCOMES.keys()
    shown = " ".join(re.findall(r"^```json\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    missing = {field for field in TypedRules.__struct_encode_fields__ if f'"{field}"' not in shown}
    assert not missing


def test_the_reason_is_the_one_that_is_shown() -> None:
    it = World()
    for node, registration in nodes().items():
        it.join(node, registration)
    it.lead()
    it.apply(DB, Blueprint.parse(b'{"instances": 8, "needs": {"cpu": 1}, "require": ["zone = c"]}'))
    it.run_down()
    it.apply(APP, Blueprint.parse(b'{"instances": 1, "needs": {"cpu": 1}, "require": ["zone = c"]}'))
    it.run_down()
    told = it.statuses[encode_artifact(APP)]
    (shown,) = re.findall(r"^Unschedulable: .*?^```$", DOCUMENTS[DOCUMENT], re.DOTALL | re.MULTILINE)
    said = " ".join(shown.replace("```", "").split())
    assert said == f"{told.condition}: {told.reason}"
