"""What nodes that stop in good order leave behind, the last ones of a cluster above all."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

from cdm.model.node import Role
from tests.harness.nodes import nodes_on
from tests.harness.processes import processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.serving import PLAIN, SLEEP, made, yard
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
    async with (
        raw(server) as user,
        processes(server, user, tmp_path, "n1", "n2", "n3") as running,
    ):
        await user.put("blueprints", KEY, 3)
        await eventually(lambda: loaded(user, 3))
        for process in running.all.values():
            process.send(signal.SIGTERM)
        for process in running.all.values():
            assert await process.ends() == 0
        assert await told(user) == NOTHING
        assert set(await user.contents("slices")) == {"_term"}


@pytest.mark.parametrize("alone", [True, False], ids=["the last leader", "an agent that others lead"])
async def test_nothing_is_placed_on_a_node_that_leaves(server: NatsServer, tmp_path: Path, alone: bool) -> None:
    """The keys of its slices go one by one, and before its registration: their instances are missing at once."""
    async with yard(server, tmp_path) as ground:
        user = ground.user
        await made(server, user)
        async with nodes_on(server) as running:
            role = Role.ALL if alone else Role.AGENT
            if not alone:
                await running.start("m", role=Role.MANAGER)
            await running.start("n1", role=role, runtime="process", folder=tmp_path / "n1")
            await running.leader()
            await user.put("blueprints", await ground.push("one", SLEEP, PLAIN), 6)
            await ground.settles(6)
            if not alone:
                await running.start("n2", role=role, runtime="process", folder=tmp_path / "n2")
            before = (await user.recorded())[-1].sequence
            await running.all["n1"].stop()
            if not alone:
                await ground.settles(6)
            since = [record for record in await user.recorded() if record.sequence > before]
            # A leader that hears of the node's end before it took in the last of these removes some once more.
            assert len({record.key for record in since if record.gone and record.key.startswith("n1.")}) == 6
            assert [record.key for record in since if record.key.startswith("n1.") and not record.gone] == []
            running.unharmed()


async def test_what_runs_on_a_node_that_takes_no_more_is_left_alone(server: NatsServer) -> None:
    """A capacity of 0 is no reason to move anything: whoever leaves stops its slices itself, in its own time."""
    async with raw(server) as user, nodes_on(server, reconcile_interval=0.3) as running:
        await running.start("n1", "n2")
        await running.leader()
        await user.put("blueprints", KEY, 4)
        await eventually(lambda: loaded(user, 4))
        before = {key: record.sequence for key, record in (await user.contents("slices")).items() if key[0] != "_"}
        await running.all["n2"].node.presence.take_no_more()
        assert (await user.registrations())["n2"].value["capacity"] == 0
        await anyio.sleep(1)
        after = {key: record.sequence for key, record in (await user.contents("slices")).items() if key[0] != "_"}
        assert after == before
        await user.put("blueprints", KEY, 6)
        await eventually(lambda: loaded(user, 6))
        added = set(await user.slices()) - set(before)
        assert {key.partition(".")[0] for key in added} == {"n1"}
        running.unharmed()
