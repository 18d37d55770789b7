"""What takes its time is not stuck: a slow start, a slice that waits for its turn on a node with many, and an outage.

The leader replaces what misses its deadline. `pytest -m slow` runs the same with the defaults: it takes minutes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from cdm.agent import shared
from cdm.manager import standing
from cdm.manager.policy import Policy
from cdm.model.artifact import Artifact
from cdm.model.manifest import Line, Readiness, Up
from tests.harness.agents import agents
from tests.harness.judging import assert_legal, histories, names
from tests.harness.nodes import Nodes, nodes_on
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.serving import PLAIN, SLEEP, Yard, yard
from tests.harness.waiting import eventually
from tests.harness.wire import EXPECT, Raw, patiently, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

REPLACED = "UNLOAD"


async def _all_active(ground: Yard, count: int) -> bool:
    found = await ground.user.slices()
    return list(found.values()).count("ACTIVE") == count


async def _none_was_replaced(ground: Yard, count: int) -> None:
    records = await ground.user.recorded()
    assert_legal(records)
    lives = {key: names(states) for key, states in histories(records).items()}
    assert not {key: life for key, life in lives.items() if REPLACED in life.split()}
    assert len(lives) == count


async def _start_slowly(server: NatsServer, folder: Path, seconds: float, policy: Policy) -> None:
    """One slice that is not ready before so many seconds are over."""
    async with yard(server, folder) as ground, nodes_on(server, reconcile_interval=1, policy=policy) as nodes:
        await ground.user.record()
        await nodes.start("n1", runtime="process", folder=folder / "n1")
        program = f"import time\ntime.sleep({seconds})\nprint('READY=1', flush=True)\n{SLEEP}"
        slow = replace(PLAIN, readiness=Readiness(check=Line(), timeout=2 * seconds))
        one = await ground.push("one", program, slow)
        began = time.monotonic()
        await ground.user.put("blueprints", one, 1)
        await eventually(lambda: _all_active(ground, 1), seconds + 30)
        print(f"ACTIVE after {time.monotonic() - began:.1f} s")
        await _none_was_replaced(ground, 1)
        nodes.unharmed()


async def _wait_for_turns(server: NatsServer, folder: Path, count: int, seconds: float, policy: Policy) -> None:
    """So many slices on one node, each of which takes so many seconds to be ready."""
    script = folder / "main.sh"
    script.write_text("#!/bin/sh\nexec sleep 6000\n")
    async with yard(server, folder) as ground, nodes_on(server, reconcile_interval=1, policy=policy) as nodes:
        await ground.user.record()
        await nodes.start("n1", runtime="process", folder=folder / "n1")
        await ground.push_file(
            Artifact("g", "many", "1"), script, replace(PLAIN, readiness=Readiness(check=Up(seconds)))
        )
        began = time.monotonic()
        await ground.user.put("blueprints", "g/many/1", count)
        rounds = count / shared.ACTIVATIONS + 1
        await eventually(lambda: _all_active(ground, count), rounds * seconds * 3 + 60)
        print(f"{count} slices ACTIVE after {time.monotonic() - began:.1f} s")
        await _none_was_replaced(ground, count)
        nodes.unharmed()


HASTY = Policy(command_timeout=10.0, transition_timeout=8.0)


async def test_a_start_may_take_as_long_as_its_manifest_says(server: NatsServer, tmp_path: Path) -> None:
    await _start_slowly(server, tmp_path, 12.0, HASTY)


async def test_waiting_for_a_turn_is_not_being_stuck(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "ACTIVATIONS", 2)
    await _wait_for_turns(server, tmp_path, 24, 1.0, HASTY)


SHORT_TTL = 4.0
TTLS: dict[str, Any] = {"lease_ttl": SHORT_TTL, "node_ttl": SHORT_TTL}
"""In seconds: all that is registered expires in an outage."""


async def _outage(server: NatsServer, nodes: Nodes, seconds: float) -> None:
    """The server is away for so long; then the node is back, and leads."""
    term = (await nodes.leader()).active
    server.kill()
    await anyio.sleep(seconds)
    await server.start()
    await nodes.leader(above=term)


async def _state(user: Raw, artifact: str, state: str) -> str | None:
    """The key of the artifact's one slice that has this state."""
    found = [key for key, each in (await user.slices()).items() if key.endswith(artifact) and each == state]
    return found[0] if found else None


async def _is_registered(user: Raw) -> bool:
    return "n1" in await user.registrations()


async def test_a_deadline_that_passes_in_an_outage_is_not_held_against_a_slice(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "CATCH_UP", 600.0)  # however slow the machine is
    async with raw(server) as user, nodes_on(server, reconcile_interval=1, **TTLS) as nodes:
        await user.record()
        await nodes.start("n1")
        await user.put("blueprints", "g/one/1", 1)
        key = await eventually(lambda: _state(user, "g/one/1", "LOAD"))
        assert key is not None
        for state in ("LOADING", "LOADED"):
            record = (await user.contents("slices"))[key]
            await user.put("slices", key, {**record.value, "state": state}, {EXPECT: str(record.sequence)})
        await eventually(lambda: _state(user, "g/one/1", "ACTIVATE"))
        record = (await user.contents("slices"))[key]
        activating = {**record.value, "state": "ACTIVATING", "deadline": 5.0}
        revision = await user.put("slices", key, activating, {EXPECT: str(record.sequence)})
        await _outage(server, nodes, 5.0 + SHORT_TTL)
        await eventually(lambda: patiently(lambda: _is_registered(user)))
        await anyio.sleep(1)
        assert await user.slices() == {key: "ACTIVATING"}
        await user.put("slices", key, {**record.value, "state": "ACTIVE"}, {EXPECT: str(revision)})
        await anyio.sleep(3)
        assert await user.slices() == {key: "ACTIVE"}
        assert not [each for each in await user.recorded() if each.value.get("state") == REPLACED]
        nodes.unharmed()


async def test_the_deadline_of_a_rollout_does_not_run_in_an_outage(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server, reconcile_interval=1, **TTLS) as nodes:
        await user.record()
        await nodes.start("n1")
        await user.put("blueprints", "g/one/1", 1)
        async with agents(server, "n1"):
            await eventually(lambda: _state(user, "g/one/1", "ACTIVE"))
        rollout = {"from": "1", "deadline": "20s"}
        await user.put("blueprints", "g/one/2", {"instances": 1, "rollout": rollout})
        await eventually(lambda: _state(user, "g/one/2", "LOAD"))
        await _outage(server, nodes, 21.0)
        await eventually(lambda: patiently(lambda: _is_registered(user)))
        async with agents(server, "n1"):
            await eventually(lambda: _state(user, "g/one/2", "ACTIVE"), 20, "the new one is up")
        phases = {each.value.get("phase") for each in await user.recorded() if each.key.startswith("_rollout.")}
        assert "rolling" in phases
        assert "reverting" not in phases
        nodes.unharmed()


@pytest.mark.slow
async def test_a_start_of_130_seconds_with_the_defaults(server: NatsServer, tmp_path: Path) -> None:
    await _start_slowly(server, tmp_path, 130.0, Policy())


@pytest.mark.slow
async def test_300_slices_of_5_seconds_with_the_defaults(server: NatsServer, tmp_path: Path) -> None:
    await _wait_for_turns(server, tmp_path, 300, 5.0, Policy())


@pytest.mark.slow
async def test_300_slices_of_40_seconds_with_the_defaults(server: NatsServer, tmp_path: Path) -> None:
    """The last one waits for longer than a transition may take by default."""
    await _wait_for_turns(server, tmp_path, 300, 40.0, Policy())
