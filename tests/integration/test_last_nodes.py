"""What the last nodes of a cluster leave behind when they stop in good order."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.harness.nodes import nodes_on
from tests.harness.processes import processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

KEY = "org.example/one/1.0.0"


async def told(user: Raw) -> tuple[Any, ...]:
    status = await user.status(KEY)
    return tuple(status.get(name) for name in ("condition", "reason", "desired", "active", "pending"))


NOTHING = ("Degraded", "no nodes", 3, 0, 0)


async def loaded(user: Raw, instances: int) -> bool:
    return len(await user.slices()) == instances


@pytest.mark.parametrize("nodes", [1, 3])
async def test_the_last_nodes_tell_that_nothing_runs_any_more(server: NatsServer, nodes: int) -> None:
    """One after another, the leader first."""
    async with raw(server) as user, nodes_on(server) as running:
        await running.start(*(f"n{number}" for number in range(nodes)))
        await running.leader()
        await user.put("blueprints", KEY, 3)
        await user.put("blueprints", "g/none/1", 0)
        await eventually(lambda: loaded(user, 3))
        for _ in range(nodes):
            await (await running.leader()).stop()
        assert await told(user) == NOTHING
        assert (await user.status("g/none/1"))["condition"] == "Ready"
        assert set(await user.contents("slices")) == {"_term"}


@pytest.mark.parametrize("attempt", range(3))
async def test_nodes_that_stop_at_the_same_time_tell_it_too(server: NatsServer, attempt: int) -> None:
    async with raw(server) as user, nodes_on(server) as running:
        await running.start("n1", "n2", "n3")
        await running.leader()
        await user.put("blueprints", KEY, 3)
        await eventually(lambda: loaded(user, 3))
        async with anyio.create_task_group() as tasks:
            for node in running.all.values():
                tasks.start_soon(node.stop)
        assert await told(user) == NOTHING
        assert set(await user.contents("slices")) == {"_term"}
        await running.start("n4")
        await running.leader(above=1)
        await eventually(lambda: loaded(user, 3), what="the next node serves what is wanted")


async def test_processes_that_are_terminated_together_leave_no_slice_and_no_ready(
    server: NatsServer, tmp_path: Path
) -> None:
    async with raw(server) as user, processes(server, user, tmp_path, "n1", "n2", "n3") as running:
        await user.put("blueprints", KEY, 3)
        await eventually(lambda: loaded(user, 3))
        for process in running.all.values():
            process.send(signal.SIGTERM)
        for process in running.all.values():
            assert await process.ends() == 0
        assert await told(user) == NOTHING
        assert set(await user.contents("slices")) == {"_term"}
