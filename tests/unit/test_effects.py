"""What is foreseen, in words: how a rollout goes, which labels a spread looked at, and of many commands how many."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from cdm.cli.changes import changes_of
from cdm.cli.documents import Document
from cdm.cli.effects import EffectKind, effects_of, shortened
from cdm.cli.service import look_of
from cdm.manager.foresight import foresee
from cdm.model.artifact import Artifact
from cdm.model.blueprint import Blueprint
from cdm.model.keys import RolloutKey
from cdm.model.record import Rollout, RolloutPhase
from tests.unit.support import APP, n
from tests.unit.test_foresight import NEXT, messages, running
from tests.unit.world import World

pytestmark = pytest.mark.quick


def _lines(world: World, artifact: Artifact, **fields: Any) -> list[str]:
    """What a plan shows of a blueprint with these fields, where nobody looks after the store."""
    document = Document(artifact, {"instances": 3, **fields}, "a.yaml:1")
    service = artifact.service
    changes = changes_of([document], {service: look_of(service, (), (), None)}, None, prune=False)
    blueprint = Blueprint.parse(json.dumps(document.fields).encode())
    seen = foresee(messages(world), world.now, {artifact: blueprint})
    return [f"{each.kind} {each.what}" for each in shortened(effects_of(seen, changes, {NEXT: " (did you mean it?)"}))]


@pytest.mark.parametrize(
    ("rollout", "words"),
    [
        ({"max_surge": 2}, "2 at a time"),
        ({"max_surge": "100%", "max_unavailable": 1}, "3 at a time"),
        ({"kind": "blue-green"}, "all new ones beside the old ones, then the switch"),
        (
            {"kind": "canary", "steps": [{"weight": 10}, {"pause": "approve"}, {"weight": 50}]},
            "in steps: 10 %, pause approve, 50 %",
        ),
    ],
)
def test_how_a_rollout_goes_is_told(rollout: dict[str, Any], words: str) -> None:
    lines = _lines(running(), NEXT, rollout={"from": APP.version, **rollout})
    assert lines[0] == f"~ roll 3 instances {APP.version} -> {NEXT.version}, {words}"
    assert "! is not in the store (did you mean it?); only agents that bring it themselves can run it" in lines
    lines = _lines(running(), APP, env={"LEVEL": "debug"}, min_healthy=1, rollout=rollout)
    assert lines[0] == f"~ roll 3 instances to what it says now, {words}"


def test_what_serves_nothing_is_replaced_at_once() -> None:
    world = running()
    world.apply(APP, Blueprint(0))
    world.run_down()
    assert f"~ {NEXT.version} takes over from {APP.version} at once" in _lines(
        world, NEXT, rollout={"from": APP.version}
    )


def test_that_what_was_replaced_long_ago_is_forgotten_is_not_told() -> None:
    world = running()
    world.apply(NEXT, Blueprint.parse(json.dumps({"instances": 3, "rollout": {"from": APP.version}}).encode()))
    for _ in range(60):
        world.tick(5.0)
        world.run_down()
    record = world.records[RolloutKey(APP.service)].value
    assert isinstance(record, Rollout)
    assert record.phase is RolloutPhase.COMPLETE
    seen = foresee(messages(world), world.now, {APP: None})
    assert seen.rollouts
    assert [each for each in effects_of(seen, [], {}) if each.kind is EffectKind.ROLLED] == []


def test_a_placement_tells_the_labels_that_the_spread_looked_at() -> None:
    lines = _lines(running(), NEXT, spread=[{"by": "zone"}, {"by": "rack"}])
    assert {
        f"+ LOAD n{number}/{NEXT}  instance missing, spread zone={zone} rack=(none)"
        for number, zone in ((1, "a"), (3, "b"))
    } <= {*lines}


def test_of_many_commands_alike_some_are_shown() -> None:
    world = running()
    for number in (1, 2, 3):
        world.join(n(number), replace(world.nodes[n(number)][0], capacity=40))
    lines = _lines(world, NEXT, instances=50)
    assert len([line for line in lines if line.startswith("+ LOAD n")]) == 20
    assert "+ LOAD and 30 more" in lines
