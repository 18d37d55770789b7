"""Rollouts of programs whose manifests fix their port: no two run on one node, and what waits for a port says so."""

from __future__ import annotations

from collections import Counter

import pytest
from msgspec.structs import replace

from cdm.model.artifact import Artifact
from cdm.model.record import RolloutPhase
from cdm.model.rollout import RolloutKind, RolloutSettings
from cdm.model.status import Condition
from tests.unit.rollout_world import FROM, MIN_HEALTHY, NEXT_VERSION, blueprint, condition, count, env_of, phase
from tests.unit.support import APP, S, n
from tests.unit.world import NEXT, World

pytestmark = pytest.mark.quick
BLUE_GREEN = RolloutSettings(source="1.0.0", kind=RolloutKind.BLUE_GREEN, deadline=60.0, keep_old=0.0)
PORT = 8080
TELLING = (S.LOADED, S.ACTIVATING, S.ACTIVE)


def goes_on(each: World, seconds: float = 0.0) -> None:
    """Time passes, and everybody goes on; what may not start is not started."""
    each.tick(seconds)
    for _ in range(40):
        each.settle()
        moving = [(key, put.value.state) for key, put in each.slices.items() if put.value.state in NEXT]
        if not moving:
            return
        for key, state in moving:
            each.report(key, NEXT[state], port=PORT if NEXT[state] in TELLING else None)
        running = Counter(key.node for key, put in each.slices.items() if put.value.state in (S.ACTIVATING, S.ACTIVE))
        assert max(running.values(), default=0) <= 1, "two on one node"
    raise AssertionError("it never comes to rest")


def serving(instances: int, nodes: int) -> World:
    each = World()
    for number in range(1, nodes + 1):
        each.join(n(number))
    each.lead()
    each.apply(APP, blueprint(instances))
    goes_on(each)
    goes_on(each, MIN_HEALTHY)
    assert count(each, APP) == instances
    return each


def there(each: World) -> tuple[int, int]:
    return count(each, APP), count(each, NEXT_VERSION)


def over(each: World, artifact: Artifact = APP) -> RolloutPhase:
    for _ in range(40):
        goes_on(each, MIN_HEALTHY)
        if not phase(each, artifact).under_way:
            break
    goes_on(each, MIN_HEALTHY)
    return phase(each, artifact)


def test_blue_green_on_too_few_nodes_says_at_once_what_it_lacks_and_starts_nothing_beside_another() -> None:
    each = serving(3, 3)
    each.apply(NEXT_VERSION, blueprint(rollout=BLUE_GREEN))
    goes_on(each)
    needs = "blue-green needs a node without one for each new instance"
    why = f"port 8080 is held by old instances on n1, n2, n3, and {needs}"
    assert condition(each, NEXT_VERSION) == (Condition.PROGRESSING, f"0 of 3 new instances healthy; {why}")
    assert over(each) is RolloutPhase.REVERTED
    assert there(each) == (3, 0)
    assert condition(each, NEXT_VERSION) == (
        Condition.REVERTED,
        f"no instance became healthy for 60 s: {why}",
    )


def test_blue_green_with_a_node_for_each_goes_on() -> None:
    each = serving(2, 4)
    each.apply(NEXT_VERSION, blueprint(2, rollout=BLUE_GREEN))
    assert over(each) is RolloutPhase.COMPLETE
    assert there(each) == (0, 2)


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_fixed_port_is_handed_over_one_after_another_and_back(nodes: int) -> None:
    each = serving(nodes, nodes)
    each.apply(NEXT_VERSION, blueprint(nodes, rollout=FROM))
    assert over(each) is RolloutPhase.COMPLETE
    assert there(each) == (0, nodes)
    each.apply(NEXT_VERSION, blueprint(nodes, rollout=replace(FROM, abort=True)))
    assert over(each) is RolloutPhase.REVERTED
    assert there(each) == (nodes, 0)
    each.apply(APP, blueprint(nodes, LEVEL="debug"))
    assert over(each) is RolloutPhase.COMPLETE
    assert env_of(each) == [{"LEVEL": "debug"}] * nodes


def test_what_may_not_be_unavailable_keeps_its_port_and_the_rollout_says_so() -> None:
    each = serving(3, 3)
    each.apply(NEXT_VERSION, blueprint(rollout=replace(FROM, max_unavailable=0)))
    goes_on(each)
    goes_on(each, 60.0)
    assert there(each) == (3, 0)
    why = "0 of 3 new instances healthy; port 8080 is held by old instances on n1"
    assert condition(each, NEXT_VERSION) == (Condition.PROGRESSING, why)
