"""What waits for which services: the index, circles, and one manager whose instances wait for others."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.dispatch.messages import Cause
from cdm.manager.dependencies import Dependencies, told_of_circle, told_of_waiting, waiting
from cdm.model.artifact import Artifact, Service
from cdm.model.blueprint import Blueprint, Overrides
from cdm.model.keys import encode_artifact
from cdm.model.node import Registration
from cdm.model.record import RolloutPhase
from cdm.model.rollout import RolloutSettings
from cdm.model.status import Condition
from tests.unit.rollout_world import finish, phase
from tests.unit.support import S, n
from tests.unit.world import World

pytestmark = pytest.mark.quick
DATABASE = Artifact("org.example", "database", "1.0.0")
WEB = Artifact("org.example", "web", "1.0.0")
NEXT_WEB = Artifact("org.example", "web", "1.1.0")
MIN_HEALTHY = 5.0
ON_DATABASE = (str(DATABASE.service),)
WAITS = "waiting for org.example:database to have a healthy instance"


def blueprint(instances: int = 2, after: tuple[str, ...] = (), env: dict[str, str] | None = None) -> Blueprint:
    return Blueprint(instances, Overrides({**env}) if env else None, MIN_HEALTHY, after=after)


@pytest.fixture
def world() -> World:
    each = World()
    for number in range(1, 4):
        each.join(n(number))
    each.lead()
    return each


def later(each: World, seconds: float) -> None:
    each.tick(seconds)
    each.run_down()


def states(each: World, artifact: Artifact) -> list[str]:
    return sorted(each.states(artifact).values())


def told(each: World, artifact: Artifact) -> tuple[Condition, str]:
    status = each.statuses[encode_artifact(artifact)]
    return status.condition, status.reason


# One manager


def test_instances_wait_loaded_until_the_service_is_healthy(world: World) -> None:
    world.apply(WEB, blueprint(after=ON_DATABASE))
    later(world, 600.0)
    assert states(world, WEB) == [S.LOADED] * 2
    assert told(world, WEB) == (Condition.PROGRESSING, WAITS)
    world.apply(DATABASE, blueprint(1))
    world.run_down()
    assert states(world, DATABASE) == [S.ACTIVE]
    assert states(world, WEB) == [S.LOADED] * 2, "active is not healthy yet"
    later(world, MIN_HEALTHY - 0.5)
    assert states(world, WEB) == [S.LOADED] * 2
    later(world, 0.5)
    assert states(world, WEB) == [S.ACTIVE] * 2
    later(world, MIN_HEALTHY)
    assert told(world, WEB) == (Condition.READY, "")


def test_it_is_looked_at_when_the_service_will_be_healthy_and_not_before(world: World) -> None:
    world.apply(WEB, blueprint(after=ON_DATABASE))
    world.apply(DATABASE, blueprint(1))
    world.run_down()
    assert world.manager.wake_at() == world.now + MIN_HEALTHY


def test_any_version_will_do_and_all_services_are_waited_for(world: World) -> None:
    other = Artifact("org.example", "cache", "3.0.0")
    world.apply(WEB, blueprint(1, after=(*ON_DATABASE, str(other.service))))
    world.apply(Artifact("org.example", "database", "0.9.0"), blueprint(1))
    world.run_down()
    later(world, MIN_HEALTHY)
    assert told(world, WEB) == (Condition.PROGRESSING, "waiting for org.example:cache to have a healthy instance")
    world.apply(other, blueprint(1))
    world.run_down()
    later(world, MIN_HEALTHY)
    assert states(world, WEB) == [S.ACTIVE]


def test_a_service_that_is_lost_later_stops_nothing(world: World) -> None:
    world.apply(DATABASE, blueprint(1))
    world.run_down()
    later(world, MIN_HEALTHY)
    world.apply(WEB, blueprint(after=ON_DATABASE))
    world.run_down()
    world.drop(DATABASE)
    later(world, MIN_HEALTHY)
    assert states(world, DATABASE) == []
    assert states(world, WEB) == [S.ACTIVE] * 2
    key = next(iter(world.states(WEB)))
    world.end(key)
    world.run_down()
    later(world, MIN_HEALTHY)
    assert told(world, WEB) == (Condition.READY, ""), "a restart on the node waits for nothing"
    world.apply(WEB, blueprint(3, after=ON_DATABASE))
    world.run_down()
    assert states(world, WEB) == [S.ACTIVE, S.ACTIVE, S.LOADED], "a further one does"


def test_an_instance_on_a_missing_node_is_not_healthy(world: World) -> None:
    world.apply(DATABASE, blueprint(1))
    world.run_down()
    later(world, MIN_HEALTHY)
    node = next(iter(world.states(DATABASE))).node
    world.expire(node, Cause.MISSING)
    world.apply(WEB, blueprint(1, after=ON_DATABASE))
    world.run_down()
    assert states(world, WEB) == [S.LOADED]
    world.join(node, Registration())
    world.run_down()
    assert states(world, WEB) == [S.ACTIVE]


def test_a_blueprint_that_waits_no_more_goes_on(world: World) -> None:
    world.apply(WEB, blueprint(after=ON_DATABASE))
    world.run_down()
    world.apply(WEB, blueprint())
    world.run_down()
    assert states(world, WEB) == [S.ACTIVE] * 2


def test_a_new_leader_waits_as_well(world: World) -> None:
    world.apply(WEB, blueprint(after=ON_DATABASE))
    world.run_down()
    world.boot()
    world.lead()
    world.run_down()
    assert states(world, WEB) == [S.LOADED] * 2
    assert told(world, WEB) == (Condition.PROGRESSING, WAITS)


# In the middle of a rollout


def test_new_instances_wait_and_the_deadline_runs(world: World) -> None:
    world.apply(WEB, blueprint())
    world.run_down()
    later(world, MIN_HEALTHY)
    rollout = RolloutSettings(source="1.0.0", deadline=60.0)
    world.apply(NEXT_WEB, Blueprint(2, None, MIN_HEALTHY, after=ON_DATABASE, rollout=rollout))
    world.run_down()
    assert (states(world, WEB), states(world, NEXT_WEB)) == ([S.ACTIVE] * 2, [S.LOADED])
    assert told(world, NEXT_WEB) == (Condition.PROGRESSING, f"0 of 2 new instances healthy; {WAITS}")
    later(world, 60.0)
    assert phase(world, WEB) is RolloutPhase.REVERTED
    assert (states(world, WEB), states(world, NEXT_WEB)) == ([S.ACTIVE] * 2, [])


def test_a_rollout_goes_on_with_the_service_it_waited_for(world: World) -> None:
    world.apply(WEB, blueprint())
    world.run_down()
    later(world, MIN_HEALTHY)
    rollout = RolloutSettings(source="1.0.0")
    world.apply(NEXT_WEB, Blueprint(2, None, MIN_HEALTHY, after=ON_DATABASE, rollout=rollout))
    world.run_down()
    world.apply(DATABASE, blueprint(1))
    world.run_down()
    finish(world, artifact=WEB)
    assert phase(world, WEB) is RolloutPhase.COMPLETE
    assert (states(world, WEB), states(world, NEXT_WEB)) == ([], [S.ACTIVE] * 2)


# Circles


def test_services_that_wait_for_each_other_say_so_and_so_does_nobody_else(world: World) -> None:
    third = Artifact("org.example", "third", "1.0.0")
    world.apply(DATABASE, blueprint(1, after=(str(WEB.service),)))
    world.apply(third, blueprint(1, after=(str(WEB.service),)))
    world.run_down()
    assert told(world, DATABASE)[0] is Condition.PROGRESSING
    world.apply(WEB, blueprint(1, after=ON_DATABASE))
    world.run_down()
    way = "org.example:database after org.example:web after org.example:database"
    assert told(world, DATABASE)[0] is Condition.DEGRADED
    assert way in told(world, DATABASE)[1]
    assert told(world, WEB)[0] is Condition.DEGRADED
    assert told(world, third) == (Condition.PROGRESSING, "waiting for org.example:web to have a healthy instance")
    world.apply(WEB, blueprint(1))
    world.run_down()
    assert states(world, WEB) == [S.ACTIVE]
    later(world, MIN_HEALTHY)
    later(world, MIN_HEALTHY)
    assert [told(world, each)[0] for each in (WEB, DATABASE, third)] == [Condition.READY] * 3


def test_a_version_that_is_not_wanted_makes_no_circle(world: World) -> None:
    world.apply(DATABASE, blueprint(0, after=(str(WEB.service),)))
    world.apply(WEB, blueprint(1, after=ON_DATABASE))
    world.run_down()
    assert told(world, WEB) == (Condition.PROGRESSING, WAITS)
    world.apply(DATABASE, blueprint(1, after=(str(WEB.service),)))
    world.run_down()
    assert told(world, WEB)[0] is Condition.DEGRADED


# The index

SERVICES = [Service("g", name) for name in "abcde"]
edits = st.lists(
    st.tuples(
        st.sampled_from(SERVICES),
        st.sampled_from(["1", "2"]),
        st.none() | st.sets(st.sampled_from(SERVICES), max_size=3),
    ),
    max_size=20,
)


@given(edits)
def test_index_and_circles_are_what_the_blueprints_say(
    written: list[tuple[Service, str, set[Service] | None]],
) -> None:
    index = Dependencies()
    after: dict[Artifact, set[Service]] = {}
    for service, version, names in written:
        artifact = service.version(version)
        named = names - {service} if names is not None else None
        index.note(artifact, None if named is None else Blueprint(1, after=tuple(sorted(map(str, named)))))
        after[artifact] = named or set()
    for artifact, named in after.items():
        assert set(index.of(artifact)) == named
    edges = {one: {each for a, named in after.items() if a.service == one for each in named} for one in SERVICES}
    for service in SERVICES:
        assert index.dependents(service) == {artifact for artifact, named in after.items() if service in named}
        reached = _reachable(edges, edges[service])
        circle = index.circle(service, lambda _: True)
        assert bool(circle) == (service in reached)
        if circle:
            assert circle[0] == circle[-1] == service
            assert all(then in edges[one] for one, then in pairwise(circle))
            assert len(set(circle)) == len(circle) - 1
        assert index.circle(service, lambda _: False) == ()
        waits = {artifact for artifact, named in after.items() if service in _reachable(edges, named)}
        assert index.downstream(service) == waits


def _reachable(edges: dict[Service, set[Service]], begin: set[Service]) -> set[Service]:
    reached, todo = set(begin), list(begin)
    while todo:
        more = edges[todo.pop()] - reached
        reached |= more
        todo += more
    return reached


@given(st.dictionaries(st.sampled_from(SERVICES), st.floats(0, 20), min_size=1))
def test_what_is_waited_for_is_what_is_not_healthy_yet(times: dict[Service, float]) -> None:
    found = waiting(times, times.__getitem__, 10.0)
    assert set(found.services) == {service for service, at in times.items() if at > 10.0}
    assert found.until > 10.0


def test_wording() -> None:
    assert told_of_waiting(["g:a"]) == "waiting for g:a to have a healthy instance"
    assert told_of_waiting(["g:a", "g:b", "g:c"]) == "waiting for g:a, g:b and g:c to have a healthy instance"
    assert told_of_circle(()) == ""
