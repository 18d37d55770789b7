"""What is foreseen of a change is what a leader does first once it is made, and nothing that it would do anyway."""

from __future__ import annotations

import pytest

from cdm.dispatch.messages import Message, ValuePut
from cdm.manager.foresight import Foreseen, foresee
from cdm.model.artifact import Artifact
from cdm.model.blueprint import Blueprint, Overrides
from cdm.model.keys import BlueprintKey, IntentKey, NodeKey, SeenKey, StatusKey
from cdm.model.node import PLACEMENT, ROLLOUTS, Intent, Registration, Schedule
from cdm.model.record import RolloutPhase
from cdm.model.status import Condition
from tests.unit.support import APP, OTHER, S, n
from tests.unit.world import World

pytestmark = pytest.mark.quick

FEATURES = (ROLLOUTS, PLACEMENT)
NEXT = Artifact(APP.group, APP.name, "1.1.0")
Changes = dict[Artifact, Blueprint | None]


def running() -> World:
    """Three nodes in two zones, one of which takes no more; an artifact with three instances that have been up."""
    world = World()
    for number, zone in ((1, "a"), (2, "a"), (3, "b")):
        world.join(n(number), Registration(capacity=4, labels={"zone": zone}, features=FEATURES))
    world.lead()
    world.apply(APP, Blueprint(3, Overrides({"LEVEL": "info"}), min_healthy=1.0, drain_delay=0.0))
    world.apply(OTHER, Blueprint(2, min_healthy=1.0))
    world.run_down()
    world.tick(5.0)
    world.run_down()
    return world


def messages(world: World) -> list[Message]:
    """One look at the buckets."""
    blueprints = ((key, *rest) for key, rest in world.blueprints.items())
    return [
        *(ValuePut(SeenKey(node), seen, 1, at) for node, (seen, at) in world.seen.items()),
        *(ValuePut(NodeKey(node), registration, 1, at) for node, (registration, at) in world.nodes.items()),
        *(ValuePut(IntentKey(node), Intent(schedule), 1) for node, schedule in world.intents.items()),
        *(ValuePut(BlueprintKey(key), value, revision) for key, value, revision, _ in blueprints if value is not None),
        *sorted([*world.slices.values(), *world.records.values()], key=lambda put: put.revision),
        *(ValuePut(StatusKey(name), status, 1) for name, status in world.statuses.items()),
    ]


def _foreseen(world: World, changes: Changes) -> Foreseen:
    return foresee(messages(world), world.now, changes)


def _done(world: World, changes: Changes) -> list[tuple[str, S | None, str]]:
    """What a leader that begins now does once these are written."""
    world.lead()
    world.decided.clear()
    for artifact, blueprint in changes.items():
        if blueprint is None:
            world.drop(artifact)
        else:
            world.apply(artifact, blueprint)
    world.settle()
    return sorted((str(each.key), each.state, each.reason) for order in world.decided for each in order.commands)


def _told(seen: Foreseen) -> list[tuple[str, S | None, str]]:
    return sorted((str(each.key), each.state, each.reason) for each in seen.commands)


WITH_DEBUG = Overrides({"LEVEL": "debug"})
CHANGES: dict[str, Changes] = {
    "created": {NEXT: Blueprint(4)},
    "more": {APP: Blueprint(7, Overrides({"LEVEL": "info"}), min_healthy=1.0)},
    "fewer": {APP: Blueprint(1, Overrides({"LEVEL": "info"}), min_healthy=1.0, drain_delay=0.0)},
    "removed": {APP: None},
    "other settings": {APP: Blueprint(3, WITH_DEBUG, min_healthy=1.0)},
    "another version": {NEXT: Blueprint.parse(b'{"instances": 3, "rollout": {"from": "1.0.0", "max_surge": 2}}')},
    "rules": {APP: Blueprint.parse(b'{"instances": 5, "env": {"LEVEL": "info"}, "spread": [{"by": "zone"}]}')},
    "no room": {NEXT: Blueprint(20)},
    "each": {NEXT: Blueprint.parse(b'{"instances": "each", "require": ["zone = a"]}')},
    "two at once": {NEXT: Blueprint(5), OTHER: None},
    "the same": {APP: Blueprint(3, Overrides({"LEVEL": "info"}), min_healthy=1.0, drain_delay=0.0)},
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_is_foreseen_is_what_is_done(case: str) -> None:
    world = running()
    seen = _foreseen(world, CHANGES[case])
    assert _told(seen) == _done(world, CHANGES[case])
    assert bool(seen.commands) is (case != "the same")
    assert {service: record.phase for service, record in seen.rollouts.items()} == (
        {APP.service: RolloutPhase.ROLLING} if case in ("other settings", "another version") else {}
    )
    for artifact, status in seen.statuses.items():
        known = world.statuses[f"{artifact.group}/{artifact.name}/{artifact.version}"]
        assert (status.condition, status.reason) == (known.condition, known.reason), artifact


def test_what_a_leader_would_do_anyway_is_not_foreseen() -> None:
    world = running()
    world.blueprints[OTHER] = (Blueprint(4), world.sequence + 1, None)  # no leader has seen it yet
    world.sequence += 1
    assert _told(_foreseen(world, {})) == []
    assert {each.key.artifact for each in _foreseen(world, {APP: None}).commands} == {APP}


def test_what_cannot_be_placed_is_told_with_its_reason() -> None:
    world = running()
    world.intend(n(3), Schedule.CORDON)
    status = _foreseen(world, {NEXT: Blueprint.parse(b'{"instances": 2, "require": ["zone = b"]}')}).statuses[NEXT]
    assert status.condition is Condition.UNSCHEDULABLE
    assert "only cordon keeps n3 out" in status.reason


def test_an_empty_cluster_has_no_nodes() -> None:
    seen = foresee([], 1_000.0, {APP: Blueprint(2)})
    assert (seen.commands, seen.statuses[APP].reason) == ([], "no nodes")
