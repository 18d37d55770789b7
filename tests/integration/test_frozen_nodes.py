"""All nodes are stopped together, as by a paused hypervisor, for less than their TTLs: nobody is evicted."""

from __future__ import annotations

import signal
from pathlib import Path

import anyio
import pytest

from tests.harness.agents import agents
from tests.harness.processes import processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

KEY = "org.example/one/1.0.0"
TTL = 5.0
ROUNDS = 6


async def test_nodes_that_were_stopped_together_for_less_than_their_ttl_keep_their_slices(
    server: NatsServer, tmp_path: Path
) -> None:
    names = ("n1", "n2", "n3")
    async with (
        raw(server) as user,
        processes(server, user, tmp_path, *names, lease_ttl=TTL, node_ttl=TTL) as running,
        agents(server, *names),
    ):
        await user.put("blueprints", KEY, 6)
        await eventually(lambda: _active(user, 6), what="the blueprint is served")
        before = await user.contents("slices")
        for _ in range(ROUNDS):
            for process in running.all.values():
                process.send(signal.SIGSTOP)
            await anyio.sleep(TTL - 0.3)
            for process in running.all.values():
                process.send(signal.SIGCONT)
            await eventually(lambda: _registered(user, *names), what="all are registered again")
            await anyio.sleep(0.7)
        running.unharmed()
        evictions = sum(process.log.count("node is dead") for process in running.all.values())
        assert evictions == 0, f"{evictions} evictions in {ROUNDS} rounds"
        after = await user.contents("slices")
        assert {key: record.sequence for key, record in after.items() if key in before and KEY in key} == {
            key: record.sequence for key, record in before.items() if KEY in key
        }, "no slice was touched"


async def _active(user: Raw, instances: int) -> bool:
    return list((await user.slices()).values()) == ["ACTIVE"] * instances


async def _registered(user: Raw, *names: str) -> bool:
    return set(names) <= set(await user.contents("nodes"))
