"""What is told to monitoring, worked out without a cluster."""

from __future__ import annotations

import json
from math import inf
from typing import Any

import pytest

from cdm.allocation.verdict import summary, verdicts
from cdm.dispatch.messages import Message, ValuePut, ValueRemove
from cdm.http.answers import scraped
from cdm.http.beat import Standstill
from cdm.http.lives import Lives
from cdm.http.readiness import problems
from cdm.http.unplaced import REASONS, Unplaced, unplaced
from cdm.manager.cluster_view import ClusterView
from cdm.model.artifact import NodeId
from cdm.model.keys import LeaseKey, NodeKey, SeenKey, SliceKey
from cdm.model.node import HttpAt, Lease, Registration, Role, Seen
from cdm.model.rules import GIVES_SECRETS, Needs, Neighbour, Rules
from cdm.model.slice import SliceValue
from cdm.store.progress import Lag
from tests.unit.placing import FRIEND, case, require, site
from tests.unit.support import APP, S, n, put

pytestmark = pytest.mark.quick

KEEP_OUT: dict[str, tuple[Rules, dict[str, Any], dict[str, Any]]] = {
    "capacity": (Rules(), {"capacity": 3, "total": 3}, {}),
    "cordoned": (Rules(), {"open": False}, {}),
    "cpu": (Rules(needs=Needs(cpu=2)), {"cpu": 2.0, "cpu_reserved": 1.0}, {}),
    "draining": (Rules(), {"open": False, "draining": True}, {}),
    "label": (Rules(require=require("zone in (mars, moon)")), {}, {}),
    "max_per_node": (Rules(max_per_node=1), {}, {"mine": {n(1): 1}}),
    "memory": (Rules(needs=Needs(memory=2)), {"memory": 1}, {}),
    "missing": (Rules(), {"open": False, "registered": False}, {}),
    "neighbours": (Rules(near=(Neighbour(FRIEND, hard=True),)), {}, {}),
    "secrets": (Rules(require=(GIVES_SECRETS,)), {}, {}),
    "spread": (Rules(), {}, {}),
}
"""What keeps the only node out, by the reason that is told: rules, the node, and the rest of the case."""


@pytest.mark.parametrize("reason", KEEP_OUT)
def test_what_keeps_nodes_out_is_one_reason_of_a_few(reason: str) -> None:
    rules, node, facts = KEEP_OUT[reason]
    if reason == "spread":
        why = "0 of 2 nodes take it: 2 in a zone that has its share (zone a has 1 of 1)"
    else:
        why = summary(verdicts(case(rules, 1, site(1, "a", **node), **facts)))
    assert unplaced(f"2 of 3 instances cannot be placed: {why}; reverted before: x") == Unplaced(2, reason)


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("", Unplaced(0, "other")),
        ("2 of 3 active", Unplaced(0, "other")),
        ("no field x; in force: 1 of 3 instances cannot be placed: there is no node", Unplaced(1, "no_nodes")),
        (
            "1 of 3 instances cannot be placed, and 2 cannot be moved: 0 of 1 node takes it: 1 full",
            Unplaced(1, "capacity"),
        ),
        ("3 of 3 instances not placed yet; waiting for nodes to register", Unplaced(3, "settling")),
        ("1 of 3 instances cannot be placed: who knows", Unplaced(1, "other")),
        ("1 of 3 instances cannot be placed: 0 of 1,204 nodes take it: 1,204 zone < 5", Unplaced(1, "other")),
    ],
)
def test_reasons_of_statuses(told: str, found: Unplaced) -> None:
    assert unplaced(told) == found
    assert found.reason in REASONS


def test_nodes_are_scraped_where_others_reach_them_and_until_they_are_forgotten() -> None:
    said = {
        "n1": Registration(address="10.0.0.1", labels={"zone-1": "a"}, http=HttpAt(8280)),
        "n2": Registration(address="10.0.0.2", role=Role.MANAGER, http=HttpAt(8281, "fd00::2", tls=True)),
        "here": Registration(address="10.0.0.3", http=HttpAt(8280, "127.0.0.1")),
        "silent": Registration(address="10.0.0.4"),
        "unknown": Registration(http=HttpAt(8280)),
        "hostile": Registration(address="10.0.0.5/x?", http=HttpAt(8280)),
        "odd": Registration(address="10.0.0.6", http=HttpAt(0)),
    }
    view = ClusterView.of([ValuePut(NodeKey(NodeId(node)), each, 1) for node, each in said.items()])
    for gone in ("lost", "left", None):
        seen = Seen(Registration(address="10.0.0.7", http=HttpAt(8280)), gone)
        view.take(ValuePut(SeenKey(NodeId(f"was {gone}")), seen, 2))
    told = {each["labels"].pop("__meta_cdm_node"): each for each in json.loads(scraped(view).body)}
    assert told == {
        "n1": {
            "targets": ["10.0.0.1:8280"],
            "labels": {"__meta_cdm_role": "all", "__meta_cdm_node_label_zone_1": "a"},
        },
        "n2": {"targets": ["[fd00::2]:8281"], "labels": {"__meta_cdm_role": "manager", "__scheme__": "https"}},
        "was lost": {"targets": ["10.0.0.7:8280"], "labels": {"__meta_cdm_role": "all"}},
    }
    alone = Registration(address="127.0.0.1", http=HttpAt(8280, "127.0.0.1"))
    (told_here,) = json.loads(scraped(ClusterView.of([ValuePut(NodeKey(NodeId("n")), alone, 1)])).body)
    assert told_here["targets"] == ["127.0.0.1:8280"]


def test_what_was_there_before_is_where_it_begins_to_count() -> None:
    lives = Lives()

    def told(state: S, at: float = 0.0, **more: Any) -> None:
        lives.take(put(n(1), state, at=at, value=SliceValue(state, **more)))

    told(S.ACTIVE, restarts=3)
    told(S.ACTIVE, restarts=5)
    assert (lives.restarts, sum(lives.to_active.counts)) == ({APP: 2}, 0)
    told(S.FAILED)
    told(S.FAILED, reason="more is known of it")
    told(S.LOAD, 10.0)
    told(S.LOADED, 11.0)
    told(S.ACTIVE, 12.0)
    told(S.ACTIVATING, 20.0, restarts=1)
    told(S.ACTIVE, 21.0, restarts=1)
    assert lives.failures == {APP: 1}
    assert lives.restarts == {APP: 3}
    assert (sum(lives.to_active.counts), lives.to_active.total) == (1, 2.0)
    told(S.LOAD, 30.0)
    lives.take(ValueRemove(SliceKey(n(1), APP), 9))
    told(S.ACTIVE, 40.0)
    assert sum(lives.to_active.counts) == 1
    terms: list[Message] = [
        ValuePut(LeaseKey(), Lease(n(1), term), revision) for revision, term in enumerate((7, 7, 8))
    ]
    for each in terms:
        lives.take(each)
    assert lives.leader_changes == 1


FINE = {
    "connected": True,
    "registered": True,
    "mirrors": {"slices": Lag(True, 0, 0.0)},
    "still": None,
    "recovered": True,
    "now": 100.0,
}


@pytest.mark.parametrize(
    ("but", "problem"),
    [
        ({}, None),
        ({"mirrors": {"slices": Lag(False, None, 0.3)}}, None),
        ({"still": Standstill(90.0, 3.0)}, None),
        ({"connected": None, "registered": False, "mirrors": {}}, "NATS was not reached so far"),
        ({"connected": False}, "there is no connection to NATS"),
        ({"registered": False}, "the node has not registered yet"),
        ({"mirrors": {}}, "no bucket is followed"),
        ({"mirrors": {"slices": Lag(True, 70, 6.0)}}, "what is known of slices is 6 s old"),
        ({"mirrors": {"slices": Lag(False, 3, inf)}}, "slices has not been read yet"),
        ({"still": Standstill(99.0, 3.0)}, "the event loop stood still for 3.0 s, until 1.0 s ago"),
        (
            {"still": Standstill(80.0, 3.0), "recovered": False},
            "the event loop stood still for 3.0 s, and what happened meanwhile is not known yet",
        ),
    ],
)
def test_a_process_is_ready_that_knows_the_newest(but: dict[str, Any], problem: str | None) -> None:
    assert list(problems(**{**FINE, **but})) == ([problem] if problem else [])
