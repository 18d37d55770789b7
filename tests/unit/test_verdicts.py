from __future__ import annotations

from hypothesis import given

from cdm.allocation.case import Case
from cdm.allocation.choice import choose
from cdm.allocation.site import Freed
from cdm.allocation.verdict import broken, nearest, summary, verdicts
from cdm.model.rules import Needs, Neighbour, Preference, Rules, Spread
from tests.unit.placing import FRIEND, OWN, case, cases, require, site
from tests.unit.support import n

MIB = 1024 * 1024


def why(given_: Case, number: int = 0) -> list[str]:
    """Everything that keeps an instance off a node."""
    (found,) = [each for each in verdicts(given_) if each.node == n(number)]
    return [f"{each.why} ({each.numbers})" if each.numbers else each.why for each in found.obstacles]


def test_every_rule_is_told_of_every_node() -> None:
    rules = Rules(
        require=require("gpu", "!spot", "zone = a", "zone in (a, c)", "class != small", "kernel >= 6.1"),
        near=(Neighbour(FRIEND, "zone", hard=True),),
        apart=(Neighbour(OWN, hard=True),),
        needs=Needs(cpu=1.0, memory=256 * MIB),
        max_per_node=1,
    )
    worst = site(
        0,
        "b",
        labels={"spot": "", "class": "small", "kernel": "5.10"},
        open=False,
        draining=True,
        capacity=3,
        total=3,
        cpu=4.0,
        cpu_reserved=3.5,
        memory=512 * MIB,
        memory_reserved=400 * MIB,
    )
    given_ = case(rules, 2, worst, mine={n(0): 1}, of_service={OWN: {n(0): 1}})
    assert why(given_) == [
        "without gpu",
        "with spot",
        "zone is not a",
        "zone is not one of a, c",
        "class is small",
        "kernel is not >= 6.1",
        "draining",
        f"not near {FRIEND}",
        f"beside {OWN}",
        "with as many as may be (1 of 1 on a node)",
        "full (3 of 3 slices)",
        "full (cpu 3.5 of 4 reserved)",
        "full (memory 400Mi of 512Mi reserved)",
    ]


def test_what_a_node_does_not_tell_does_not_fit() -> None:
    given_ = case(Rules(needs=Needs(cpu=1.0, memory=1)), 1, site(0), site(1, open=False), site(2, registered=False))
    assert why(given_) == ["not telling its cpu", "not telling its memory"]
    assert why(given_, 1)[0] == "cordoned"
    assert why(given_, 2)[0] == "missing"
    assert nearest(verdicts(given_)) == []


def test_the_nearest_miss_is_told_with_what_it_falls_short_of() -> None:
    sites = [
        site(3, "a", memory=500 * MIB, memory_reserved=400 * MIB),
        site(4, "b", memory=500 * MIB),
        site(5, "a", open=False, draining=True, memory=500 * MIB),
        site(6, memory=0),
    ]
    found = verdicts(case(Rules(require=require("zone = a"), needs=Needs(memory=256 * MIB)), 1, *sites))
    assert nearest(found) == [
        "only memory keeps n3 out: 256Mi needed, 100Mi free",
        "only zone keeps n4 out: a needed, it is b",
        "only draining keeps n5 out",
    ]
    assert nearest(found, 1) == nearest(found)[:1]


def test_a_spread_that_waits_says_who_has_its_share() -> None:
    given_ = case(Rules(spread=(Spread("zone", anyway=False),)), 4, site(0, "a"), mine={n(0): 2})
    given_.sites.gone(n(1), {"node": n(1), "zone": "b"})
    found = verdicts(given_)
    assert summary(found) == "0 of 1 node takes it: 1 in a zone that has its share (zone a has 2 of 2)"
    assert nearest(found) == ["only spread by zone keeps n0 out: zone a has 2 of 2"]


def test_nodes_that_differ_in_numbers_are_told_together() -> None:
    sites = [site(i, cpu=8.0, cpu_reserved=7.5 + i / 10) for i in range(3)]
    told = summary(verdicts(case(Rules(needs=Needs(cpu=1.0)), 1, *sites)))
    assert told == "0 of 3 nodes take it: 3 full (cpu 7.5 of 8 reserved and the like)"
    assert summary([]) == "there is no node"
    assert summary(verdicts(case(Rules(), 1, site(0)))) == "1 of 1 node takes it"


def test_a_node_that_fits_says_what_speaks_for_it() -> None:
    rules = Rules(spread=(Spread("zone", {"a": 2, "*": 1}),), prefer=(Preference(require("fast")[0], 7),))
    given_ = case(rules, 3, site(0, "a", labels={"fast": ""}), site(1, "b"), mine={n(0): 1})
    first, second = verdicts(given_)
    assert (first.fits, first.score, first.preferred) == (True, 7, ("fast",))
    assert first.domains == ("zone a has 1 of 2",)
    assert second.domains == ("zone b has 0 of 1",)


def test_a_failed_slice_is_tried_again_in_what_it_holds() -> None:
    full = site(0, cpu=1.0, cpu_reserved=1.0, capacity=1, total=1)
    rules = Rules(needs=Needs(cpu=1.0))
    assert why(case(rules, 1, full)) == ["full (1 of 1 slices)", "full (cpu 1 of 1 reserved)"]
    again = case(rules, 1, full, retried={n(0): Freed(1, 1.0)})
    assert why(again) == []
    assert choose(again, 2).counts == {n(0): 1}
    assert why(again.placed({n(0): 1})) == ["full (1 of 1 slices)", "full (cpu 1 of 1 reserved)"]
    larger = case(Rules(needs=Needs(cpu=1.5)), 1, full, retried={n(0): Freed(1, 1.0)})
    assert not choose(larger, 1).counts
    assert why(larger) == ["full"]


def test_instances_where_a_rule_forbids_them_by_now_are_told() -> None:
    rules = Rules(
        require=require("zone = a"), max_per_node=1, needs=Needs(cpu=1.0), apart=(Neighbour(OWN, "rack", hard=True),)
    )
    sites = [
        site(0, "b"),
        site(1, "a", labels={"rack": "x"}),
        site(2, "a", labels={"rack": "x"}),
        site(3, "a", cpu=1.0, cpu_reserved=2.0),
        site(4, "a"),
    ]
    mine = {n(0): 1, n(1): 1, n(2): 1, n(3): 2, n(4): 1}
    found = broken(case(rules, 6, *sites, mine=mine, of_service={OWN: mine}))
    assert {node: [each.why for each in obstacles] for node, obstacles in found.items()} == {
        n(0): ["zone is not a"],
        n(1): [f"beside {OWN}"],
        n(2): [f"beside {OWN}"],
        n(3): ["more than may be", "too full"],
    }


@given(cases())
def test_every_node_has_a_verdict_and_one_that_does_not_fit_a_reason(drawn: tuple[Case, int]) -> None:
    given_, missing = drawn
    found = verdicts(given_)
    assert [each.node for each in found] == sorted(each.node for each in given_.sites)
    fitting = {each.node for each in found if each.fits}
    if missing:
        assert set(choose(given_, 1).counts) <= fitting
    assert summary(found).startswith(f"{len(fitting)} of {len(found)} node" if found else "there is no node")
    assert len(nearest(found)) <= 3
