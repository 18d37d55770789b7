"""A node that was told so has its slices replaced elsewhere before it stops, and waits for that no longer than told."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.harness.agents import agents
from tests.harness.processes import Processes, command_line
from tests.harness.servers import NatsServer
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, on_nodes, raw

pytestmark = pytest.mark.anyio

ONE = {"instances": 1, "min_healthy": 1, "drain_delay": 0}


@asynccontextmanager
async def starting(server: NatsServer, folder: Path) -> AsyncIterator[Processes]:
    """Processes that are yet to be started, on buckets that are there."""
    made = await command_line("init", env={"NATS_URL": server.url})
    assert made.returncode == 0, made.stderr
    running = Processes(server.url, folder, ("--lease-ttl", "20", "--node-ttl", "20", "--reconcile-interval", "1"))
    try:
        yield running
    finally:
        running.kill()


async def registered(user: Raw, *names: str) -> bool:
    return {*names} <= (await user.registrations()).keys()


async def active(user: Raw, wanted: dict[str, int]) -> bool:
    found = await user.slices()
    return on_nodes(found) == wanted and set(found.values()) <= {"ACTIVE"}


async def test_what_runs_is_replaced_before_the_node_stops_also_where_it_leads(
    server: NatsServer, tmp_path: Path
) -> None:
    async with raw(server) as user:
        await user.record()
        async with starting(server, tmp_path) as running, agents(server, "n1", "n2"):
            first = running.start("n1", "--drain-on-stop")
            await user.stubborn("blueprints", "acme/web/1", ONE)
            await eventually(lambda: active(user, {"n1": 1}), 30)
            running.start("n2", "--drain-on-stop")

            async def both() -> bool:
                return len(await user.registrations()) == 2

            await eventually(both, 30)
            first.send(signal.SIGTERM)
            assert await first.ends(30) == 0
            assert "slices are to be replaced elsewhere first" in first.log
            assert "were not replaced elsewhere in time" not in first.log
            await eventually(lambda: active(user, {"n2": 1}), 30)
            running.unharmed("n1")
        records = await user.recorded()
    up = next(each for each in records if each.key.startswith("n2.") and each.value.get("state") == "ACTIVE")
    told = next(each for each in records if each.key.startswith("n1.") and each.value.get("state") == "UNLOAD")
    assert up.sequence < told.sequence


async def test_a_node_waits_no_longer_than_it_was_told_and_not_at_all_after_a_second_signal(
    server: NatsServer, tmp_path: Path
) -> None:
    async with raw(server) as user, starting(server, tmp_path) as running, agents(server, "n1"):
        for deadline in ("6s", "10m"):
            only = running.start("n1", "--drain-on-stop", "--drain-deadline", deadline)
            await eventually(lambda: "node is up" in only.log, 30)  # noqa: B023
            await user.stubborn("blueprints", "acme/web/1", ONE)
            await eventually(lambda: active(user, {"n1": 1}), 30)
            before = time.monotonic()
            only.send(signal.SIGTERM)

            async def leaving() -> bool:
                registration = (await user.registrations()).get("n1")
                return registration is not None and registration.value.get("leaving") is True

            if deadline == "10m":
                await eventually(leaving, what="it says that it leaves")
                shown = await command_line("nodes", env={"NATS_URL": server.url})
                assert b"leaving" in shown.stdout, shown.stderr
                assert b"n1  it is about to stop; 1 slice left" in shown.stdout
                only.send(signal.SIGTERM)
            assert await only.ends(30) == 0
            assert deadline == "10m" or time.monotonic() - before > 6
            assert ("were not replaced elsewhere in time" in only.log) == (deadline == "6s")
            for key in await user.slices():  # or the next process might be told to stop before it knows of them
                await user.delete("slices", key)


async def test_a_manager_has_nothing_to_drain(server: NatsServer) -> None:
    done = await command_line("node", "--role", "manager", "--drain-on-stop", env={"NATS_URL": server.url})
    assert done.returncode == 2
    assert b"--drain-on-stop (CDM_DRAIN_ON_STOP) contradicts --role manager" in done.stderr


async def test_an_agent_waits_for_the_slices_that_it_runs_itself(server: NatsServer, tmp_path: Path) -> None:
    program = tmp_path / "web.sh"
    program.write_text("#!/bin/sh\nexec sleep 600\n", encoding="utf-8")
    program.chmod(0o755)
    async with raw(server) as user, starting(server, tmp_path) as running:
        pushed = await command_line("artifact", "push", "acme:web:1", str(program), env={"NATS_URL": server.url})
        assert pushed.returncode == 0, pushed.stderr
        running.start("m", "--role", "manager")
        for name in ("a1", "a2"):
            options = ("--role", "agent", "--runtime", "process", "--folder", str(tmp_path / name), "--drain-on-stop")
            running.start(name, *options)
        await eventually(lambda: registered(user, "m", "a1", "a2"), 60)
        await eventually(user.lease)
        await running.heard(user)  # or one of them takes both
        await user.stubborn("blueprints", "acme/web/1", {**ONE, "instances": 2})
        await eventually(lambda: active(user, {"a1": 1, "a2": 1}), 60)
        first = running.all["a1"]
        first.send(signal.SIGTERM)
        assert await first.ends(40) == 0
        assert "were not replaced elsewhere in time" not in first.log
        assert await active(user, {"a2": 2}), "nothing was missing for a moment"
