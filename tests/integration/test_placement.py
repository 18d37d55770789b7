"""Rules on real nodes and a real server: zones that are lost and come back, a label that few have, full machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from tests.harness.agents import agents_of
from tests.harness.nodes import nodes_on
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

KEY = "org.example/one/1.0.0"
ZONES = {zone: [f"{zone}{number}" for number in (1, 2, 3)] for zone in "abc"}


async def by_zone(user: Raw, key: str = KEY) -> dict[str, int]:
    """ACTIVE instances by the first letter of their nodes."""
    slices = await user.slices()
    return dict(Counter(each[0] for each, state in slices.items() if key in each and state == "ACTIVE"))


async def test_a_zone_is_lost_and_comes_back(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server) as running:
        for zone, names in ZONES.items():
            await running.start(*names, labels={"zone": zone})
        await running.leader()
        async with agents_of(user, *(name for names in ZONES.values() for name in names)):
            wanted = {"instances": 6, "spread": [{"by": "zone"}], "min_healthy": 0}
            await user.put("blueprints", KEY, wanted)
            await eventually(lambda: _is(user, {"a": 2, "b": 2, "c": 2}), what="two in each zone")
            healthy = {key for key in await user.slices() if KEY in key and key[0] != "c"}
            for name in ZONES["c"]:
                await running.all[name].crash()
            await eventually(lambda: _is(user, {"a": 3, "b": 3}), what="those of the lost zone run elsewhere")
            assert healthy <= (await user.slices()).keys(), "what is healthy stays"
            await running.start(*ZONES["c"], labels={"zone": "c"})
            there = await user.slices()
            await user.put("blueprints", KEY, {**wanted, "rebalanced": "it is back"})
            await eventually(lambda: _is(user, {"a": 2, "b": 2, "c": 2}), what="all have their shares again")
            await eventually(lambda: _told(user, "rebalanced", "it is back"))
            stayed = there.keys() & (await user.slices()).keys()
            assert len([key for key in stayed if KEY in key]) == 4, "two were moved, and no more"


async def _is(user: Raw, wanted: dict[str, int]) -> bool:
    return await by_zone(user) == wanted


async def _told(user: Raw, field: str, value: object) -> bool:
    return (await user.status(KEY)).get(field) == value


async def test_a_label_that_few_nodes_have(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server) as running:
        await running.start("n1", "n2")
        await running.start("gpu-1", labels={"gpu": "l4"})
        await running.leader()
        async with agents_of(user, "n1", "n2", "gpu-1", "gpu-2"):
            await user.put("blueprints", KEY, {"instances": 2, "require": ["gpu"], "max_per_node": 1, "min_healthy": 0})
            await eventually(lambda: _told(user, "condition", "Unschedulable"))
            assert (await user.status(KEY))["reason"].startswith(
                "1 of 2 instances cannot be placed: 0 of 3 nodes take it: 2 without gpu, 1 with as many as may be"
            )
            await running.start("gpu-2", labels={"gpu": "l4"})
            await eventually(lambda: _told(user, "condition", "Ready"))
            assert {key.partition(".")[0] for key in await user.slices() if KEY in key} == {"gpu-1", "gpu-2"}


@asynccontextmanager
async def machine(user: Raw, name: str, **registration: Any) -> AsyncIterator[None]:
    """A node of somebody else's, that says what it has."""

    async def beat() -> None:
        while True:
            await user.put("nodes", name, {"role": "agent", "incarnation": name, "ttl": 5.0, **registration})
            await anyio.sleep(0.5)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(beat)
        yield
        tasks.cancel_scope.cancel()


async def test_machines_that_are_full(server: NatsServer) -> None:
    """Blueprints that come together take no more than there is, and what waits comes as soon as there is room."""
    async with raw(server) as user, nodes_on(server) as running:
        await running.start("boss", role="manager")
        await running.leader()
        async with (
            machine(user, "m1", cpu=2.0, memory=2**30),
            machine(user, "m2", cpu=2.0, memory=2**32),
            agents_of(user, "m1", "m2"),
        ):
            keys = [f"g/s{number}/1" for number in range(6)]
            for key in keys:
                await user.put("blueprints", key, {"instances": 1, "needs": {"cpu": 0.5, "memory": "512Mi"}})
            big = {"instances": 1, "needs": {"cpu": 1.5}, "min_healthy": 0}
            await eventually(lambda: _active(user, keys), what="all six run")
            await user.put("blueprints", KEY, big)
            await eventually(lambda: _told(user, "condition", "Unschedulable"))
            assert "0 of 3 nodes take it" not in (await user.status(KEY))["reason"], "a manager takes no slices"
            assert "full (cpu" in (await user.status(KEY))["reason"]
            reserved = Counter[str]()
            for name, record in (await user.contents("slices")).items():
                if name[0] != "_":
                    reserved[name.partition(".")[0]] += record.value.get("needs", {}).get("memory", 0)
            assert reserved == {"m1": 2**30, "m2": 2**31}
            for key in keys:
                await user.delete("blueprints", key)
            await eventually(lambda: _told(user, "condition", "Ready"), what="it runs once there is room")


async def _active(user: Raw, keys: list[str]) -> bool:
    slices = await user.slices()
    return all(any(key in each and state == "ACTIVE" for each, state in slices.items()) for key in keys)
