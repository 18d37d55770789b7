"""Slice keys of nodes that never registered (an old backup, a typing error) harm no instance, on a real server."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.harness.agents import agents
from tests.harness.processes import processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

NAME = "org.example/one/1.0.0"
REAL = ("a", "b", "c")
GHOSTS = 40


async def test_nodes_that_an_older_backup_remembers_hold_nothing_up(server: NatsServer, tmp_path: Path) -> None:
    async with (
        raw(server) as user,
        processes(server, user, tmp_path, *REAL, node_ttl=4) as nodes,
        agents(server, *REAL),
    ):
        await user.put("blueprints", NAME, {"instances": 6, "min_healthy": 0})

        async def whole(*on: str, count: int) -> bool:
            states = await _slices(user)
            status = await user.status(NAME)
            all_there = sorted(states.values()) == ["ACTIVE"] * count and {key.partition(".")[0] for key in states} <= {
                *on
            }
            return all_there and (status.get("condition"), status.get("active")) == ("Ready", count)

        await eventually(lambda: whole(*REAL, count=6), 20)
        for number in range(GHOSTS):
            await user.put("nodes", f"ghost-{number}.seen", {"registration": {"ttl": 86_400}})
            await user.put("slices", f"ghost-{number}.{NAME}", {"state": "ACTIVE"})
        await user.put("blueprints", NAME, {"instances": 12, "min_healthy": 0})
        await eventually(lambda: whole(*REAL, count=12), 10, "all twelve run on nodes that there are")
        for number in range(GHOSTS):
            await user.put("nodes", f"spectre-{number}.seen", {"registration": {"ttl": 86_400}})
        lease = await user.lease()
        victim = next(node for node in REAL if node != lease["node"])
        nodes.all[victim].kill()
        left = [node for node in REAL if node != victim]
        await eventually(lambda: whole(*left, count=12), 15, "a node that is killed is replaced")


async def _slices(user: Raw, *nodes: str) -> dict[str, str]:
    return {key: state for key, state in (await user.slices()).items() if not nodes or key.partition(".")[0] in nodes}


async def test_slices_of_nodes_that_never_registered_are_deleted_and_stop_no_instance(
    server: NatsServer, tmp_path: Path
) -> None:
    async with (
        raw(server) as user,
        processes(server, user, tmp_path, *REAL, node_ttl=8),
        agents(server, *REAL),
    ):
        await user.put("blueprints", NAME, {"instances": 12, "min_healthy": 0})

        async def whole() -> bool:
            return sorted((await _slices(user)).values()) == ["ACTIVE"] * 12

        await eventually(whole, 20)
        before = await user.contents("slices")
        began = time.monotonic()
        for number in range(GHOSTS):
            await user.put("slices", f"ghost-{number}.{NAME}", {"state": "ACTIVE"})
        await eventually(whole, 3, "the service is whole, and nothing else is there")
        print(f"whole after {time.monotonic() - began:.2f} s")
        after = await user.contents("slices")
        assert all(after[key].sequence == before[key].sequence for key in before if key[0] != "_"), "no instance moved"
        remembered = {key: record.value.get("gone") for key, record in (await user.contents("nodes")).items()}
        assert {key: gone for key, gone in remembered.items() if key.endswith(".seen")} == {
            f"{node}.seen": None for node in REAL
        }
