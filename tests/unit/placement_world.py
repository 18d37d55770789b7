"""A world whose leader places by rules, for tests: nodes, blueprints as people write them, and what runs where."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.keys import encode_artifact
from cdm.model.node import Registration
from cdm.model.status import Status
from tests.unit.support import APP, S
from tests.unit.world import World

GIB = 2**30


def typed(instances: int | str, **fields: Any) -> Blueprint:
    """A blueprint as people write it; its instances are healthy at once."""
    fields = {"min_healthy": 0, "drain_delay": 0, **fields}
    return Blueprint.parse(msgspec.json.encode({"instances": instances, **fields}))


def world(**nodes: Registration) -> World:
    """A leader with these nodes; without any, with three that have 4 cores and 8 GiB."""
    it = World()
    for name, registration in (nodes or {f"n{i}": Registration(cpu=4.0, memory=8 * GIB) for i in (1, 2, 3)}).items():
        it.join(NodeId(name), registration)
    it.lead()
    return it


def in_zones(*zones: str) -> dict[str, Registration]:
    """Nodes n1, n2 … in these zones."""
    return {f"n{i}": Registration(labels={"zone": zone}) for i, zone in enumerate(zones, 1)}


def live(it: World, artifact: Artifact = APP) -> dict[str, int]:
    """Live instances by node."""
    return dict(Counter(key.node for key, state in it.states(artifact).items() if state.live))


def status(it: World, artifact: Artifact = APP) -> Status:
    return it.statuses[encode_artifact(artifact)]


def run_on(it: World, turns: int) -> int:
    """Let agents and manager go on for so many times ten seconds; returns the fewest ACTIVE instances meanwhile."""
    fewest = 100
    for _ in range(turns):
        for _ in range(20):
            it.settle()
            fewest = min(fewest, sum(state is S.ACTIVE for state in it.states(APP).values()))
            if not it.answer():
                break
        it.tick(10.0)
    return fewest
