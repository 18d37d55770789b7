"""Nodes come up one after another, at the very first start and after a power cut: the first one does not get all."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from cdm.store.bucket import buckets
from tests.harness.processes import node_processes, processes
from tests.harness.proxy import Proxy, proxied
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.store import connected
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, on_nodes, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

NAME = "org.example/one/1.0.0"
ALL = ("a", "b", "c")
SETTLE = ("--settle", "30s")


async def _spread(user: Raw) -> dict[str, int]:
    return dict(on_nodes(await user.slices()))


async def _told(user: Raw) -> str:
    return str((await user.status(NAME)).get("reason") or "")


async def _waits(user: Raw) -> bool:
    return "waiting for nodes to register" in await _told(user)


async def _leads(user: Raw, node: str) -> bool:
    return bool((await user.lease()).get("node") == node)


async def _placed(user: Raw, count: int) -> bool:
    return sum((await _spread(user)).values()) == count


@asynccontextmanager
async def _others_wait(server: NatsServer, folder: Path) -> AsyncIterator[Proxy]:
    """Two more nodes run already, and find the server once the way is open: how long a process takes to start is left
    out of what the leader waits for."""
    async with proxied(server) as way:
        way.shut = True
        with node_processes(way, folder) as nodes:
            others = [nodes.start(name, *SETTLE) for name in ("b", "c")]
            await eventually(lambda: all("cannot connect to NATS" in node.log for node in others), 20, "they run")
            yield way


async def _all_have_their_share(user: Raw) -> None:
    await eventually(lambda: _placed(user, 6), 30)
    assert await _spread(user) == {"a": 2, "b": 2, "c": 2}


async def test_at_the_very_first_start_the_leader_waits_a_moment_for_more_nodes(
    server: NatsServer, tmp_path: Path
) -> None:
    async with raw(server) as user, _others_wait(server, tmp_path) as way:
        with node_processes(server, tmp_path) as nodes:
            nodes.start("a", *SETTLE)
            await eventually(user.lease, 20)
            await user.put("blueprints", NAME, 6)
            await eventually(lambda: _waits(user))
            assert not await _spread(user)
            way.shut = False
            await _all_have_their_share(user)


async def test_after_all_nodes_have_left_the_leader_waits_a_moment_for_more_nodes(
    server: NatsServer, tmp_path: Path
) -> None:
    async with raw(server) as user, processes(server, user, tmp_path, *ALL) as nodes:
        await user.put("blueprints", NAME, 6)
        await eventually(lambda: _placed(user, 6), 20)
        for node in ALL:  # the last one leads when it is told: it has three seconds for its last word
            if node == ALL[-1]:
                await eventually(lambda: _leads(user, ALL[-1]))
            nodes.all[node].send(signal.SIGTERM)
            await nodes.all[node].ends()
        assert not await _spread(user)
        async with _others_wait(server, tmp_path) as way:
            nodes.start("a", *SETTLE)
            await eventually(user.lease, 20)
            await anyio.sleep(1)
            assert not await _spread(user)
            way.shut = False
            await _all_have_their_share(user)


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
            await eventually(lambda: _waits(user), 10)
            await anyio.sleep(1)
            assert await _spread(user) == {"a": 1, "b": 1, "c": 1}
            assert "waiting for nodes to register" in await _told(user)
            for node in ("b", "c"):
                nodes.start(node)
            await _all_have_their_share(user)
