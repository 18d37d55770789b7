from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Event
from time import sleep

import pytest

from cdm.allocation import installed
from cdm.allocation.choice import choose
from cdm.allocation.installed import Checked, strategy_named
from cdm.allocation.moving import moves
from cdm.allocation.removal import surplus
from cdm.allocation.site import Site
from cdm.allocation.strategy import SHIPPED, AllocationStrategy, Rank
from cdm.errors import UsageError
from cdm.model.artifact import Artifact
from cdm.model.keys import SliceKey
from cdm.model.rules import Rules, Spread
from tests.unit.placing import case, site
from tests.unit.support import APP, n


def placed(name: str, count: int, *sites: Site) -> list[int]:
    counts = choose(case(Rules(), count, *sites, strategy=strategy_named(name)), count).counts
    return [counts.get(each.node, 0) for each in sites]


def test_every_strategy_of_the_documents_is_shipped() -> None:
    assert list(SHIPPED) == ["round-robin", "pack", "least-loaded", "cheapest"]
    assert all(strategy_named(name).name == name for name in SHIPPED)


def test_packing_goes_by_what_is_scarcest() -> None:
    sites = [site(0, total=9), site(1, capacity=10, total=5), site(2, cpu=8.0, cpu_reserved=7.0)]
    assert placed("pack", 1, *sites) == [0, 0, 1]
    assert placed("pack", 7, site(0, capacity=10, total=2), site(1, capacity=10, total=4)) == [1, 6]
    assert placed("pack", 2, site(0, total=1), site(1, total=2)) == [0, 2]


def test_the_idlest_node_comes_first_and_does_not_get_all() -> None:
    assert placed("least-loaded", 1, site(0, load=0.9), site(1, load=0.1), site(2, load=0.5)) == [0, 1, 0]
    assert placed("least-loaded", 4, site(0, load=0.5), site(1, load=0.0)) == [1, 3]


def test_a_small_difference_of_load_makes_none() -> None:
    assert placed("least-loaded", 4, site(0, load=0.26), site(1, load=0.3)) == [2, 2]


def test_the_cheapest_are_filled_first_and_those_without_a_cost_last() -> None:
    costs = [{"cost": "2"}, {"cost": "0.5"}, {}, {"cost": "much"}, {"cost": "nan"}]
    sites = [site(i, labels=labels, capacity=1) for i, labels in enumerate(costs)]
    assert placed("cheapest", 1, *sites) == [0, 1, 0, 0, 0]
    assert placed("cheapest", 2, *sites) == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(("name", "gone"), [("round-robin", n(1)), ("pack", n(0)), ("cheapest", n(2))])
def test_what_the_strategy_puts_last_goes_first(name: str, gone: str) -> None:
    sites = [
        site(0, total=2, labels={"cost": "1"}),
        site(1, total=5, labels={"cost": "1"}),
        site(2, total=5, labels={"cost": "2"}),
    ]
    keys = [SliceKey(n(i), APP, ordinal) for i in range(3) for ordinal in range(3 if i == 1 else 2)]
    given = case(Rules(), 6, *sites, mine={n(0): 2, n(1): 3, n(2): 2}, strategy=strategy_named(name))
    assert [key.node for key in surplus(given, 1, [keys])] == [gone]


class Own:
    """A strategy of a user's."""

    name = "own"

    def __init__(self, answer: Callable[[Site], Rank]) -> None:
        self._answer = answer

    def rank(self, artifact: Artifact, site: Site, count: int) -> Rank:
        return self._answer(site)


def _raises(site: Site) -> Rank:
    raise LookupError("no such thing")


BROKEN: dict[str, Callable[[Site], object]] = {
    "raises": _raises,
    "no rank": lambda site: None,
    "a text": lambda site: "first",
    "not a number": lambda site: float("nan"),
    "a tuple of texts": lambda site: ("a", 1),
    "two kinds": lambda site: 1 if site.node == n(0) else (1, 2),
    "exits": lambda site: sys.exit(1),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_strategy_is_as_if_it_were_round_robin(how: str) -> None:
    own: AllocationStrategy = Checked("own", Own(BROKEN[how]))  # type: ignore[arg-type]
    sites = [site(i, "ab"[i % 2]) for i in range(4)]
    keys = [SliceKey(n(0), APP, ordinal) for ordinal in range(4)]
    for rules in (Rules(), Rules(spread=(Spread("zone"),))):
        anew = case(rules, 6, *sites, strategy=own)
        assert choose(anew, 6) == choose(case(rules, 6, *sites), 6)
        there = case(rules, 4, *sites, mine={n(0): 4}, strategy=own)
        assert surplus(there, 2, [keys]) == surplus(case(rules, 4, *sites, mine={n(0): 4}), 2, [keys])
        assert moves(there, keys, 9) == moves(case(rules, 4, *sites, mine={n(0): 4}), keys, 9)


def test_what_is_installed_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def entry_points(group: str) -> tuple[()]:
        looked.append(group)
        return ()

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    for _ in range(3):
        with pytest.raises(UsageError):
            strategy_named("sought")
    assert looked == ["cdm.strategies"]


def test_a_strategy_that_is_not_installed_is_an_error_that_names_the_others() -> None:
    with pytest.raises(
        UsageError, match=r"no strategy 'none' \(installed: cheapest, least-loaded, pack, round-robin\)"
    ):
        strategy_named("none")


# Strategies that take long


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, object]]]:
    """What is logged of strategies."""
    lines: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(installed.log, "warning", lambda line, **more: lines.append((line, more)), raising=False)
    return lines


@pytest.mark.usefixtures("logged")
def test_a_strategy_that_hangs_is_given_up_and_not_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "LIMIT", 0.1)
    monkeypatch.setattr(installed, "PAUSE", 0.0)
    asked, goes_on = list[Site](), Event()

    def hangs(site: Site) -> Rank:
        asked.append(site)
        goes_on.wait()
        return 0

    own = Checked("own", Own(hangs))
    sites = [site(i) for i in range(4)]
    anew = case(Rules(), 6, *sites, strategy=own)
    for _ in range(3):
        assert choose(anew, 6) == choose(case(Rules(), 6, *sites), 6)
    assert len(asked) == 1
    assert own._late is not None
    assert own._late.is_alive()
    goes_on.set()
    own._late.join()
    assert len(asked) == 1, "what nobody waits for ends with the answer"
    assert sum(choose(anew, 6).counts.values()) == 6
    assert len(asked) > 1


@pytest.mark.usefixtures("logged")
def test_a_strategy_that_takes_too_long_in_all_is_not_asked_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "LIMIT", 0.1)
    asked: list[Site] = []

    def slow(site: Site) -> Rank:
        asked.append(site)
        sleep(0.02)
        return 0

    sites = [site(i) for i in range(1000)]
    own = Checked("own", Own(slow))
    for _ in range(2):
        assert choose(case(Rules(), 6, *sites, strategy=own), 6) == choose(case(Rules(), 6, *sites), 6)
    assert own._late is not None
    own._late.join()
    assert 0 < len(asked) < 1000
    assert choose(case(Rules(), 6, *sites, strategy=own), 6) == choose(case(Rules(), 6, *sites), 6)
    assert len(asked) < 1000


def test_a_strategy_that_takes_long_is_logged_with_its_name_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, logged: list[tuple[str, dict[str, object]]]
) -> None:
    monkeypatch.setattr(installed, "SLOW", 0.0)
    monkeypatch.setattr(installed, "LIMIT", 600.0)
    anew = case(Rules(), 2, site(0), site(1), strategy=Checked("own", Own(lambda site: 0)))
    for _ in range(2):
        choose(anew, 2)
    ((line, more),) = logged
    assert (line, more["strategy"], more["asked"]) == ("strategy takes long", "own", 4)
