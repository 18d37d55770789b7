"""Nodes come up one after another, at the very first start and after a power cut: the first one does not get all."""

from __future__ import annotations

import signal
from pathlib import Path

import anyio
import pytest

from cdm.store.bucket import buckets
from tests.harness.processes import Processes, node_processes, processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.store import connected
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, on_nodes, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

NAME = "org.example/one/1.0.0"
ALL = ("a", "b", "c")


async def _spread(user: Raw) -> dict[str, int]:
    return dict(on_nodes(await user.slices()))


async def _told(user: Raw) -> str:
    return str((await user.status(NAME)).get("reason"))


async def _placed(user: Raw, count: int) -> bool:
    return sum((await _spread(user)).values()) == count


async def _others_come(user: Raw, nodes: Processes, *options: str) -> None:
    """Two more nodes begin, and each of the three has its share."""
    nodes.start("b", *options)
    nodes.start("c", *options)
    await eventually(lambda: _placed(user, 6), 20)
    assert await _spread(user) == {"a": 2, "b": 2, "c": 2}


async def test_at_the_very_first_start_the_leader_waits_a_moment_for_more_nodes(
    server: NatsServer, tmp_path: Path
) -> None:
    async with raw(server) as user:
        with node_processes(server, tmp_path) as nodes:
            await _first_start(user, nodes)


async def _first_start(user: Raw, nodes: Processes) -> None:
    nodes.start("a", "--settle", "5s")
    await eventually(user.lease, 20)
    await user.put("blueprints", NAME, 6)
    await eventually(lambda: _told(user), 5)
    assert not await _spread(user)
    await _others_come(user, nodes, "--settle", "5s")


async def test_after_all_nodes_have_left_the_leader_waits_a_moment_for_more_nodes(
    server: NatsServer, tmp_path: Path
) -> None:
    async with raw(server) as user, processes(server, user, tmp_path, *ALL) as nodes:
        await user.put("blueprints", NAME, 6)
        await eventually(lambda: _placed(user, 6), 20)
        for node in ALL:
            nodes.all[node].send(signal.SIGTERM)
        for node in ALL:
            await nodes.all[node].ends()
        assert not await _spread(user)
        nodes.start("a", "--settle", "5s")
        await eventually(user.lease, 20)
        await anyio.sleep(1)
        assert not await _spread(user)
        await _others_come(user, nodes, "--settle", "5s")


async def test_after_a_power_cut_the_leader_waits_for_the_nodes_that_are_remembered(
    server: NatsServer, tmp_path: Path
) -> None:
    async with raw(server) as user, connected(server) as connection:
        for bucket in buckets(connection).values():
            await bucket.ensure(create=True)
        for node in ALL:  # all that is left of them; their registrations have expired, and the markers of that
            await user.put("nodes", f"{node}.seen", {"registration": {"runtime": "external", "ttl": 60}})
            await user.put("slices", f"{node}.{NAME}", {"state": "ACTIVE", "term": 0})
        await user.put("blueprints", NAME, 6)
        async with processes(server, user, tmp_path, "a", node_ttl=60) as nodes:
            await eventually(lambda: _told(user), 10)
            await anyio.sleep(1)
            assert await _spread(user) == {"a": 1, "b": 1, "c": 1}
            assert "waiting for nodes to register" in await _told(user)
            await _others_come(user, nodes)
