"""A leader that places one instance on each node that fits, whichever nodes come, change and go."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from cdm.model.node import Registration, Schedule
from cdm.model.status import Condition
from tests.unit.placement_world import in_zones, live, status, typed, world
from tests.unit.support import APP, OTHER, S, n

pytestmark = pytest.mark.quick


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
