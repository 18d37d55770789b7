from __future__ import annotations

from collections import Counter

import pytest
from msgspec.structs import replace

from cdm.allocation.case import Case
from cdm.allocation.choice import choose
from cdm.allocation.installed import strategy_named
from cdm.allocation.removal import surplus
from cdm.allocation.site import Site
from cdm.allocation.sites import Sites
from cdm.allocation.verdict import nearest, summary, verdicts
from cdm.model.keys import SliceKey
from cdm.model.rules import Needs, Neighbour, Preference, Rules, Spread
from tests.unit.placing import FRIEND, by_label, case, require, site
from tests.unit.support import APP, n

NINE = [site(i, "abc"[i % 3]) for i in range(9)]
BY_ZONE = (Spread("zone"),)


def test_only_nodes_whose_labels_fulfil_every_condition_get_any() -> None:
    given = case(Rules(require=require("zone in (a, b)", "node != n0")), 10, *NINE)
    assert set(choose(given, 10).counts) == {n(1), n(3), n(4), n(6), n(7)}


def test_a_spread_gives_each_domain_its_share_by_weight() -> None:
    given = case(Rules(spread=(Spread("zone", {"a": 2, "*": 1}),)), 8, *NINE)
    assert by_label(given, choose(given, 8).counts) == {"a": 4, "b": 2, "c": 2}


def test_a_domain_whose_nodes_are_gone_keeps_its_share_while_the_spread_waits() -> None:
    for anyway, counts in ((False, {"a": 2, "b": 2}), (True, {"a": 3, "b": 3})):
        given = case(Rules(spread=(Spread("zone", anyway=anyway),)), 6, *(each for each in NINE if n(2) != each.node))
        for each in NINE:
            if each.labels["zone"] == "c":
                given.sites.gone(each.node, each.labels)
        assert by_label(given, choose(given, 6).counts) == counts


def test_domains_whose_nodes_do_not_fulfil_the_conditions_are_none() -> None:
    rules = Rules(require=require("zone in (a, b)"), spread=(Spread("zone", anyway=False),))
    given = case(rules, 6, *NINE)
    assert by_label(given, choose(given, 6).counts) == {"a": 3, "b": 3}


def test_nodes_without_the_label_are_a_domain_of_their_own() -> None:
    given = case(Rules(spread=BY_ZONE), 4, site(0, "a"), site(1), site(2))
    assert by_label(given, choose(given, 4).counts) == {"a": 2, None: 2}


def test_a_domain_that_is_named_and_that_nobody_has_seen_keeps_its_share() -> None:
    given = case(Rules(spread=(Spread("zone", {"a": 1, "z": 1}, anyway=False),)), 4, *NINE)
    assert by_label(given, choose(given, 4).counts) == {"a": 2}


def test_a_second_spread_is_kept_within_the_first() -> None:
    racks = [site(i, "ab"[i % 2], labels={"rack": "xyz"[i % 3]}) for i in range(12)]
    given = case(Rules(spread=(Spread("zone"), Spread("rack"))), 6, *racks)
    counts = choose(given, 6).counts
    assert by_label(given, counts) == {"a": 3, "b": 3}
    assert by_label(given, counts, "rack") == {"x": 2, "y": 2, "z": 2}


def test_a_node_on_which_it_failed_is_the_last_resort_where_it_runs_elsewhere() -> None:
    sites = [site(0, "a"), site(1, "b", capacity=1)]
    given = case(Rules(spread=BY_ZONE), 3, *sites, shun={n(0): 1.0}, runs_elsewhere=True)
    assert choose(given, 1).counts == {n(1): 1}
    assert choose(given, 3).counts == {n(0): 2, n(1): 1}


def test_near_is_a_rule_or_a_wish() -> None:
    friends = {FRIEND: {n(1): 1}}
    wish = Rules(near=(Neighbour(FRIEND, "zone"),))
    sites = [site(0, "a"), site(1, "b", capacity=1), site(2, "b", capacity=1)]
    assert choose(case(wish, 3, *sites, of_service=friends), 3).counts == {n(0): 1, n(1): 1, n(2): 1}
    rule = Rules(near=(Neighbour(FRIEND, "zone", hard=True),))
    assert choose(case(rule, 3, *sites, of_service=friends), 3).counts == {n(1): 1, n(2): 1}


def test_needs_are_never_exceeded() -> None:
    full = [site(0, cpu=2.0, cpu_reserved=1.5), site(1, cpu=1.0), site(2)]
    assert choose(case(Rules(needs=Needs(cpu=0.5)), 9, *full), 9).counts == {n(0): 1, n(1): 2}


def test_apart_from_itself_is_one_in_each_domain() -> None:
    given = case(Rules(apart=(Neighbour(str(APP.service), "zone", hard=True),)), 5, *NINE)
    assert by_label(given, choose(given, 5).counts) == {"a": 1, "b": 1, "c": 1}


def test_the_preferred_come_first_and_others_when_they_are_full() -> None:
    prefer = (Preference(require("zone = b")[0], 10),)
    sites = [site(0, "a"), site(1, "b", capacity=2)]
    assert choose(case(Rules(prefer=prefer), 3, *sites), 3).counts == {n(0): 1, n(1): 2}


def test_packing_fills_one_node_after_the_other() -> None:
    sites = [site(i, capacity=4) for i in range(3)]
    given = case(Rules(), 6, *sites, strategy=strategy_named("pack"))
    assert sorted(choose(given, 6).counts.values()) == [2, 4]


def test_what_goes_leaves_the_spread_as_it_was() -> None:
    keys = [SliceKey(n(i % 6), APP, i // 6) for i in range(12)]
    mine = Counter(key.node for key in keys)
    given = case(Rules(spread=BY_ZONE), 5, *NINE, mine=mine)
    gone = surplus(given, 7, [keys])
    left = Counter(key.node for key in keys if key not in gone)
    assert sorted(by_label(given, left).values()) == [1, 2, 2]


def test_a_summary_says_what_keeps_out_how_many() -> None:
    sites = [
        *(site(i, "us-1") for i in range(7)),
        *(site(i, "eu-1", cpu=8.0, cpu_reserved=7.5) for i in range(7, 10)),
        *(site(i, "eu-1", cpu=8.0, open=False, draining=True) for i in range(10, 12)),
    ]
    found = verdicts(case(Rules(require=require("zone = eu-1"), needs=Needs(cpu=1.0)), 1, *sites))
    assert summary(found) == ("0 of 12 nodes take it: 7 zone is not eu-1, 3 full (cpu 7.5 of 8 reserved), 2 draining")
    assert nearest(found)[:2] == [
        "only cpu keeps n7 out: 1 needed, 0.5 free",
        "only cpu keeps n8 out: 1 needed, 0.5 free",
    ]


def test_one_more_on_many_nodes_looks_at_few_of_them() -> None:
    looked_at: list[Site] = []

    class Counting(Case, frozen=True):
        def room(self, site: Site) -> int:
            looked_at.append(site)
            return Case.room(self, site)

    sites = Sites(site(i, "abc"[i % 3], cpu=1.0) for i in range(300))
    rules = Rules(require=require("zone in (a, b)"), spread=(Spread("zone"),), needs=Needs(cpu=0.5))
    for number in range(100):
        given = Counting(APP, rules, sites, 3, mine={n(0): 1, n(1): 1})
        (node,) = choose(given, 1).counts
        sites.put(replace(sites.all[node], total=number))
    assert len(looked_at) < 500


def test_the_rule_that_was_asked_for_longest_ago_is_worked_out_again_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdm.allocation.sites.KEPT", 3)
    sites = Sites(site(i, "abc"[i % 3]) for i in range(9))
    rules = [require(f"zone = {zone}") for zone in "abcd"]
    kept = [sites.fitting(each) for each in rules[:3]]
    assert sites.fitting(rules[0]) is kept[0]
    assert sites.fitting(rules[3]) == []
    assert sites.fitting(rules[0]) is kept[0]
    assert sites.fitting(rules[2]) is kept[2]
    again = sites.fitting(rules[1])
    assert again is not kept[1]
    assert again == kept[1]
