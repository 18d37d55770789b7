"""``Ready`` means served, on a real server: what crashes again and again is never Ready in between."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

from cdm.model.manifest import Manifest, Restart
from tests.harness.nodes import nodes_on
from tests.harness.processes import processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.serving import PLAIN, yard
from tests.harness.waiting import SLACK, bounded, eventually
from tests.harness.wire import EXPECT, Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

NAME = "org.example/one/1.0.0"
KEY = f"a.{NAME}"


async def _write(user: Raw, state: str, **more: Any) -> None:
    """An agent writes the slice's next state."""
    record = (await user.contents("slices"))[KEY]
    await user.put("slices", KEY, {**record.value, "state": state, **more}, {EXPECT: str(record.sequence)})


async def _told(user: Raw) -> tuple[str, str]:
    record = (await user.contents("status")).get(NAME)
    return (record.value["condition"], record.value["reason"]) if record else ("", "")


async def _state(user: Raw) -> str:
    record = (await user.contents("slices")).get(KEY)
    return record.value["state"] if record else ""


async def _activate(user: Raw) -> None:
    for command, *states in (("LOAD", "LOADING", "LOADED"), ("ACTIVATE", "ACTIVATING", "ACTIVE")):

        async def commanded(expected: str = command) -> bool:
            return await _state(user) == expected

        await eventually(commanded, 10, command)
        for state in states:
            await _write(user, state)


async def test_a_program_that_crashes_again_and_again_is_never_ready_in_between(
    server: NatsServer, tmp_path: Path
) -> None:
    async with raw(server) as user, processes(server, user, tmp_path, "a"):
        await user.put("blueprints", NAME, {"instances": 1, "min_healthy": 600})  # however slow the machine is
        await _activate(user)
        sampled: Counter[str] = Counter()
        for restarts in range(1, 6):
            await _write(user, "ACTIVATING", restarts=restarts, reason="exit status 1", deadline=60, stable=10)
            sampled[(await _told(user))[0]] += 1
            await anyio.sleep(0.2)
            served = time.monotonic()
            await _write(user, "ACTIVE", reason=None, restarts=restarts, stable=10)
            for _ in range(3):
                await anyio.sleep(0.1)
                sampled[(await _told(user))[0]] += 1
        assert set(sampled) <= {"Progressing", "Degraded"}

        async def loops() -> bool:
            return await _told(user) == ("Degraded", "crash loop: 1 of 1 instances: exit status 1")

        await eventually(loops)

        await user.put("blueprints", NAME, {"instances": 1, "min_healthy": 2.5})

        async def ready() -> bool:
            return (await _told(user))[0] == "Ready"

        await eventually(ready, 10)
        assert time.monotonic() - served > 10 - SLACK


async def test_a_program_that_cannot_stay_up_is_never_ready(server: NatsServer, tmp_path: Path) -> None:
    """The whole way: process runtime, agent, leader."""
    async with yard(server, tmp_path) as ground, nodes_on(server, reconcile_interval=0.5) as nodes:
        await nodes.start("a", runtime="process", folder=tmp_path / "a")
        name = await ground.push("one", "import sys, time\ntime.sleep(0.3)\nsys.exit(1)", PLAIN)
        await ground.user.put("blueprints", name, {"instances": 1, "min_healthy": 4})
        sampled: Counter[str] = Counter()

        async def sample() -> tuple[str, str]:
            status = await ground.user.status(name)
            condition = str(status.get("condition"))
            sampled[condition] += 1
            return condition, str(status.get("reason"))

        async def crashes() -> bool:
            condition, reason = await sample()
            return condition == "Degraded" and reason.startswith("crash loop: 1 of 1 instances: ")

        await eventually(crashes, 20, "it is a crash loop", pause=0.25)
        for _ in range(28):
            await anyio.sleep(0.25)
            await sample()
        print(dict(sampled))
        assert "Ready" not in sampled
        await ground.user.put("blueprints", name, 0)
        await ground.settles(0)
        nodes.unharmed()


async def test_a_program_that_cannot_stay_up_is_never_ready_on_other_nodes_either(
    server: NatsServer, tmp_path: Path
) -> None:
    async with yard(server, tmp_path) as ground, nodes_on(server, reconcile_interval=0.5) as nodes:
        for node in ("a", "b"):
            await nodes.start(node, runtime="process", folder=tmp_path / node)
        manifest = Manifest(stop_grace=2, restart=Restart(attempts=1, backoff=0.1))
        name = await ground.push("one", "import sys, time\ntime.sleep(1)\nsys.exit(1)", manifest)
        await ground.user.put("blueprints", name, {"instances": 1, "min_healthy": 0.3})

        async def states() -> Counter[str]:
            found = await ground.user.contents("slices")
            return Counter(
                record.value["state"] for key, record in found.items() if key.endswith(f".{name}") and key[0] != "_"
            )

        async def failed() -> bool:
            return "FAILED" in await states()

        await eventually(failed, 20, "it ended twice")
        sampled: Counter[tuple[str, bool]] = Counter()
        with bounded(60):
            while sampled["Degraded", True] + sampled["Ready", True] < 8:
                await anyio.sleep(0.1)
                serves = (await states())["ACTIVE"] == 1
                sampled[(await ground.user.status(name))["condition"], serves] += 1
        print(dict(sampled))
        assert {condition for condition, _ in sampled} <= {"Degraded", "Progressing"}
        await ground.user.put("blueprints", name, 0)
        await ground.settles(0)
        nodes.unharmed()
