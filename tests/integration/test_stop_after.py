"""What must not run twice does not, whatever becomes of its node: real nodes, and a lock that tells of a second one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from cdm.errors import SliceFailed
from cdm.model.blueprint import LAST_MARGIN, LONGEST_LAST_GRACE
from cdm.model.manifest import Line, Manifest, Readiness, Restart, RestartPolicy
from cdm.runtimes.process.supervisor import Supervisor
from tests.harness.processes import Processes, node_processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.serving import PLAIN, SLEEP, Yard, agent_alone, made, yard
from tests.harness.waiting import TTL, eventually, in_time
from tests.integration.test_agent_restart import start
from tests.integration.test_outliving import beats

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

NO_RESTART = Manifest(restart=Restart(policy=RestartPolicy.NEVER))
NODE_TTL = STOP_AFTER = 5.0
GRACE = 1.0
PROGRAM = """
import fcntl, signal, sys, time
lock = open({lock!r}, "a+")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    open({twice!r}, "a").write("twice")

def stop(*_):
    time.sleep({seconds})
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
while True:
    time.sleep(600)
"""


class Alone:
    """One instance on nodes n1 and n2, that may run once."""

    def __init__(self, ground: Yard, running: Processes, folder: Path, artifact: str) -> None:
        self.ground = ground
        self.running = running
        self.folder = folder
        self.artifact = artifact

    async def host(self) -> str:
        """The node that it runs on; empty: none, or it does not run yet."""
        found = [key for key, state in (await self.ground.user.slices()).items() if state == "ACTIVE"]
        return found[0].partition(".")[0] if len(found) == 1 and len(self.ground.living) == 1 else ""

    async def moves_from(self, node: str, within: float) -> None:
        """Wait until it runs elsewhere."""

        async def moved() -> bool:
            return await self.host() not in ("", node)

        await eventually(moved, within, f"it runs elsewhere than on {node}")
        self.once()

    def once(self) -> None:
        """There were never two of them."""
        assert not (self.folder / "twice").exists()


@asynccontextmanager
async def alone(server: NatsServer, folder: Path, *, stops_in: float = 0.3) -> AsyncIterator[Alone]:
    async with yard(server, folder) as ground:
        await made(server, ground.user)
        with node_processes(server, folder, node_ttl=NODE_TTL) as running:
            for name in ("n1", "n2"):
                start(running, folder, name, role="all")
            program = PROGRAM.format(lock=str(folder / "lock"), twice=str(folder / "twice"), seconds=stops_in)
            artifact = await ground.push("alone", program, Manifest(stop_grace=GRACE))
            await eventually(lambda: _registered(ground, 2), 20, "two nodes")
            await ground.user.put("blueprints", artifact, {"instances": 1, "stop_after": STOP_AFTER})
            found = Alone(ground, running, folder, artifact)
            await eventually(found.host, 20, "it runs")
            yield found
            found.once()


async def _registered(ground: Yard, count: int) -> bool:
    return len(await ground.user.registrations()) == count


async def test_a_frozen_nodes_slice_is_stopped_and_replaced_no_earlier(server: NatsServer, tmp_path: Path) -> None:
    async with alone(server, tmp_path) as found:
        host = await found.host()
        await beats(found.ground, host)
        frozen = time.monotonic()
        found.running.all[host].send(signal.SIGSTOP)
        await found.ground.nothing_left(STOP_AFTER + GRACE + 5)
        limit = STOP_AFTER + LONGEST_LAST_GRACE + LAST_MARGIN
        await found.moves_from(host, limit + 10)
        # The last heartbeat may have been taken a third of the TTL before.
        assert time.monotonic() - frozen > limit - NODE_TTL / 3 - 0.1
        found.running.all[host].send(signal.SIGCONT)
        await eventually(lambda: _registered(found.ground, 2), 20, "it is back")
        await found.moves_from(host, 10)


async def test_without_nats_it_stops_and_what_may_run_twice_runs_on(server: NatsServer, tmp_path: Path) -> None:
    async with alone(server, tmp_path) as found:
        other = await found.ground.push("other", "import time\ntime.sleep(600)", Manifest())
        await found.ground.user.put("blueprints", other, 1)
        await eventually(lambda: len(found.ground.living) == 2, 20, "both run")
        (before,) = [pids for name, pids in found.ground.living.items() if "other" in name]
        server.pause()
        try:
            await in_time(lambda: len(found.ground.living) == 1, STOP_AFTER + GRACE, "one is stopped")
            await anyio.sleep(1)  # and not started again
            assert [*found.ground.living.values()] == [before]
        finally:
            server.resume()
        await eventually(lambda: len(found.ground.living) == 2, 40, "it runs again")
        assert before in found.ground.living.values()
        failed = [each.value for each in await found.ground.user.recorded() if each.value.get("state") == "FAILED"]
        # There is none where the node was given up first.
        assert all(value.get("lapsed") for value in failed), f"it did not end by itself: {failed}"


async def test_a_node_that_leaves_stops_it_before_it_says_so(server: NatsServer, tmp_path: Path) -> None:
    async with alone(server, tmp_path, stops_in=0.8) as found:
        host = await found.host()
        found.running.all[host].send(signal.SIGTERM)
        await found.moves_from(host, 10)
        await found.running.all[host].ends()


async def test_a_leader_that_stops_leads_on_while_its_slices_take_their_time(
    server: NatsServer, tmp_path: Path
) -> None:
    async with yard(server, tmp_path) as ground:
        await made(server, ground.user)
        with node_processes(server, tmp_path) as running:
            start(running, tmp_path, "n1", role="all")
            await eventually(lambda: _registered(ground, 1), 20, "the leader")
            deaf = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\n{SLEEP}"
            manifest = Manifest(readiness=Readiness(check=Line("deaf")), stop_grace=LONGEST_LAST_GRACE)
            slow, other = await ground.push("slow", deaf, manifest), await ground.push("other", SLEEP, PLAIN)
            await ground.user.put("blueprints", slow, {"instances": 1, "stop_after": 2 * TTL})
            await ground.settles(1)
            start(running, tmp_path, "n2", role="all")
            await eventually(lambda: _registered(ground, 2), 20, "a follower")
            running.all["n1"].send(signal.SIGTERM)
            await anyio.sleep(0.5)
            await ground.user.put("blueprints", other, 2)

            async def served() -> bool:
                return (await ground.user.slices()).get(f"n2.{other}") == "ACTIVE"

            await eventually(served, 20, "others are served")
            recorded = await ground.user.recorded()
            told = next(each.sequence for each in recorded if each.key == f"n2.{other}")
            then = {each.key: each.value.get("state") for each in recorded if each.sequence <= told}
            assert then[f"n1.{slow}"] == "ACTIVE", "it is still being stopped"


@pytest.mark.quick
async def test_a_drained_node_stops_it_before_it_is_started_elsewhere(server: NatsServer, tmp_path: Path) -> None:
    async with alone(server, tmp_path, stops_in=0.8) as found:
        host = await found.host()
        await found.ground.user.put("nodes", f"{host}.intent", {"schedule": "drain"})
        await found.moves_from(host, 10)


@pytest.mark.parametrize("why", ["it ended", "the node stops"])
async def test_what_cannot_be_stopped_is_not_said_to_be(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Others take what is FAILED, and what is on a node that left, for stopped."""
    async with agent_alone(server, tmp_path) as (ground, hand, nodes):
        artifact = await ground.push("alone", "import time\ntime.sleep(600)", NO_RESTART)
        key = hand.key(artifact)
        await hand.up(key, overrides={"stop_after": 60})
        stop = Supervisor.stop
        tried = 0

        async def fail(*_: object) -> None:
            nonlocal tried
            tried += 1
            raise SliceFailed("cannot be stopped: SIGKILL does not end pid 1")

        monkeypatch.setattr(Supervisor, "stop", fail)
        async with anyio.create_task_group() as tasks:
            if why == "it ended":
                (pids,) = ground.living.values()
                os.kill(pids[0], signal.SIGKILL)
            else:
                tasks.start_soon(nodes.all["n1"].stop)
            await eventually(lambda: tried > 3, 20)
            assert (await ground.user.contents("slices"))[key].value["state"] == "ACTIVE"
            assert "n1" in await ground.user.registrations()
            monkeypatch.setattr(Supervisor, "stop", stop)
        if why == "it ended":
            assert "killed by SIGKILL" in (await hand.reaches(key, "FAILED"))["reason"]
        else:
            assert "n1" not in await ground.user.registrations()
