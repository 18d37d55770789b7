"""Rules on real nodes, processes each, and a real server: a region that is lost and comes back, and full machines."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cdm.store.bucket import buckets
from tests.containers.recorder import Recorder, recording
from tests.containers.rollout_auditor import Bounds, Rollouts
from tests.harness.agents import agents_of
from tests.harness.processes import Processes, command_line, node_processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.store import connected
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, on_nodes, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

KEY = "org.example/one/1.0.0"
REGIONS = {region: [f"{region[0]}{number}" for number in (1, 2, 3)] for region in ("east", "north", "west")}
NODES = [name for names in REGIONS.values() for name in names]
WANTED = 8
MIN_HEALTHY = 0.5


def region_of(node: str) -> str:
    return next(region for region, names in REGIONS.items() if node in names)


async def shares(user: Raw) -> dict[str, int]:
    """Instances by region; empty while any of them is not ACTIVE."""
    slices = await user.slices()
    if set(slices.values()) != {"ACTIVE"}:
        return {}
    return dict(Counter(region_of(node) for node in on_nodes(slices).elements()))


async def up(user: Raw, running: Processes, *names: str) -> None:
    """Wait until these nodes, all that there are, are registered, and one leads who knows them."""

    async def all_up() -> bool:
        running.unharmed()
        return set(names) == set(await user.registrations()) and bool(await user.lease())

    await eventually(all_up, 30, "all nodes are registered, and one leads", pause=0.1)
    await running.heard(user)


async def told(user: Raw, condition: str, key: str = KEY) -> str:
    """Wait until the status has the condition; returns the reason."""

    async def says() -> Any:
        status = await user.status(key)
        return status if status.get("condition") == condition else None

    return str((await eventually(says, 20, f"{key} is {condition}", pause=0.1))["reason"])


async def have(user: Raw, wanted: Mapping[str, int], what: str) -> None:
    await eventually(lambda: _has(user, wanted), 30, what, pause=0.1)


async def _has(user: Raw, wanted: Mapping[str, int]) -> bool:
    return await shares(user) == wanted


def loads(recorder: Recorder) -> list[str]:
    """The keys on which instances were placed so far, one after the other."""
    return [each.key for each in recorder.entries("slices") if each.fields.get("state") == "LOAD"]


def taken(recorder: Recorder) -> list[str]:
    """The keys of which an instance was commanded to go so far."""
    return [each.key for each in recorder.entries("slices") if each.fields.get("state") in ("UNLOAD", "DEACTIVATE")]


async def test_a_region_is_lost_with_its_leader_and_comes_back(server: NatsServer, tmp_path: Path) -> None:
    """What is healthy stays throughout; the shares come back on command alone, and never do fewer serve than may."""
    async with raw(server) as user, connected(server) as connection:
        for bucket in buckets(connection).values():
            await bucket.ensure(create=True)
        async with recording(user, [server.url]) as recorder, agents_of(user, *NODES):
            with node_processes(server, tmp_path, node_ttl=6) as running:
                for name in NODES:
                    running.start(name, "--label", f"region={region_of(name)}")
                await up(user, running, *NODES)
                lost = region_of(str((await user.lease())["node"]))
                large, small = (region for region in REGIONS if region != lost)
                spread = [{"by": "region", "weights": {large: 2, "*": 1}}]
                wanted = {"instances": WANTED, "spread": spread, "min_healthy": MIN_HEALTHY, "drain_delay": 0}
                await user.put("blueprints", KEY, wanted)
                await have(user, {large: 4, small: 2, lost: 2}, "each has its share")
                await told(user, "Ready")
                kept = {key for key in await user.slices() if region_of(key.partition(".")[0]) != lost}

                for name in REGIONS[lost]:
                    running.all[name].send(signal.SIGKILL)
                await have(user, {large: 5, small: 3}, "those of the lost region run elsewhere")
                await told(user, "Ready")
                assert kept <= (await user.slices()).keys()
                assert taken(recorder) == [], "what is healthy stays"

                for name in REGIONS[lost]:
                    running.start(name, "--label", f"region={lost}")
                await up(user, running, *NODES)
                placed = len(loads(recorder))
                plan = await command_line("rebalance", "--plan", env={"NATS_URL": server.url}, within=30)
                assert plan.stdout.startswith(b"org.example:one:1.0.0: 2 moves"), plan
                assert (len(loads(recorder)), taken(recorder)) == (placed, []), "nothing moves by itself"

                done = await command_line("rebalance", "--wait", env={"NATS_URL": server.url}, within=60)
                assert done.returncode == 0, done
                assert await shares(user) == {large: 4, small: 2, lost: 2}
                moved = loads(recorder)[placed:]
                assert [region_of(key.partition(".")[0]) for key in moved] == [lost] * 2, "two moves, and no more"
            history = await recorder.complete(user)
            bounds = Bounds(KEY.rpartition("/")[0], WANTED, min_healthy=MIN_HEALTHY)
            judged = Rollouts(recorder.entries("slices"), recorder.entries("nodes"), bounds)
            found = [*history.holes(), *history.terms(), *history.fences(), *judged.violations()]
            assert not found, "\n".join(["the auditor found:", *found])
            assert judged.most() <= WANTED + 3, "of those that were lost with their nodes both count, and one moves"


async def explained(server: NatsServer, *arguments: str) -> dict[str, Any]:
    """What ``cdm explain`` says."""
    done = await command_line("explain", *arguments, "--json", env={"NATS_URL": server.url}, within=30)
    assert done.returncode == 0, done
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


async def test_nodes_that_are_full_and_a_label_that_few_have(server: NatsServer, tmp_path: Path) -> None:
    """What waits says which rule keeps it out, in its status and to who asks, and comes as soon as there is room."""
    machines = {
        "small": ("--cpu", "1", "--memory", "256M", "--reserve", "cpu=0.25"),
        "tight": ("--cpu", "2", "--memory", "256M", "--reserve", "memory=56M"),
        "gpu-1": ("--cpu", "1", "--memory", "64M", "--label", "gpu=l4"),
        "gpu-2": ("--cpu", "1", "--memory", "1G", "--label", "gpu=l4"),
    }
    gpu = "org.example/gpu/1"
    short = {"min_healthy": 0, "drain_delay": 0}
    async with raw(server) as user, connected(server) as connection:
        for bucket in buckets(connection).values():
            await bucket.ensure(create=True)
        async with agents_of(user, *machines):
            with node_processes(server, tmp_path) as running:
                for name in ("small", "tight", "gpu-1"):
                    running.start(name, *machines[name])
                await up(user, running, "small", "tight", "gpu-1")
                wanted = {"instances": 4, "needs": {"cpu": 0.5, "memory": "128M"}, **short}
                await user.put("blueprints", KEY, wanted)
                await user.put("blueprints", gpu, {"instances": 2, "require": ["gpu"], "max_per_node": 1, **short})
                missing = "1 of 2 instances cannot be placed: 0 of 3 nodes take it: 2 without gpu, 1 with as many"
                assert (await told(user, "Unschedulable", gpu)).startswith(missing)
                reason = await told(user, "Unschedulable")
                assert reason.startswith("2 of 4 instances cannot be placed: 0 of 3 nodes take it: "), reason
                found = await explained(server, "org.example:one:1.0.0")
                assert set(found["nearest"]) == {
                    "only cpu keeps small out: 0.5 needed, 0.25 free",
                    "only memory keeps tight out: 128M needed, 72M free",
                    "only memory keeps gpu-1 out: 128M needed, 64M there",
                }
                assert all(miss in reason for miss in found["nearest"])
                assert on_nodes(await user.slices()) == {"small": 1, "tight": 1, "gpu-1": 1}

                running.start("gpu-2", *machines["gpu-2"])
                assert await told(user, "Ready", gpu) == ""
                await told(user, "Ready")
                slices = on_nodes(await user.slices())
                assert slices == {"small": 1, "tight": 1, "gpu-1": 1, "gpu-2": 3}, "what waited is where there is room"
                running.unharmed()
