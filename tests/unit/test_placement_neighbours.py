"""A leader that keeps instances near those of another service, or apart from them."""

from __future__ import annotations

import pytest

from cdm.manager.planning import ROOM_PAUSE, TOLD_FOR
from cdm.model.artifact import Artifact
from cdm.model.node import Registration
from tests.unit.placement_world import in_zones, live, status, typed, world
from tests.unit.support import APP, OTHER, S, n

pytestmark = pytest.mark.quick


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
