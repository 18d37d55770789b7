"""Nodes that are cut off from NATS in the middle of a canary, while what they run goes on running.

Each reaches the server by a way of its own, which is cut: nobody is told, and what was sent meanwhile arrives when the
way is mended, with connections of which the node knows nothing any more.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness.proxy import Proxy, proxied
from tests.harness.releases import Site, site
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.waiting import Stopwatch, eventually
from tests.integration.test_rollouts import condition, versions
from tests.integration.test_rollouts_lost import TTL, back, canary_stands, gone, says

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

WEIGHTS = (34, None)
CANARY = {"from": "1", "kind": "canary", "steps": [{"weight": 34}, {"pause": "approve"}]}
AGENTS = ("a1", "a2", "a3")


LEASE_TTL = 12.0
"""Seconds: who leads may be cut off, which nobody can tell from a leader that is slow."""


@asynccontextmanager
async def reached_by_ways(
    server: NatsServer, folder: Path, names: Sequence[str], capacity: str = ""
) -> AsyncIterator[tuple[Site, dict[str, Proxy]]]:
    """A cluster on which version 1 serves, in which these nodes have ways of their own.

    Args:
        server: for it.
        folder: for it.
        names: the nodes.
        capacity: theirs, where there are no other agents.
    """
    async with AsyncExitStack() as stack:
        ways = {name: await stack.enter_async_context(proxied(server)) for name in names}
        urls = {name: way.url for name, way in ways.items()}
        agents = () if capacity else AGENTS
        place = await stack.enter_async_context(
            site(server, folder, agents=agents, node_ttl=TTL, lease_ttl=LEASE_TTL, ways=urls)
        )
        if capacity:
            for name in names:
                place.start(name, "--capacity", capacity)
        await place.release("1")
        await place.push("2")
        yield place, ways


async def led_anew(place: Site, term: int) -> dict[str, Any]:
    """The lease of a later term; empty: there is none."""
    lease = await place.user.lease()
    return lease if lease.get("term", 0) > term else {}


async def new_one(place: Site) -> str:
    """The node on which the one new instance is."""
    found = {key.partition(".")[0] for key in await place.user.slices() if key.endswith("/2")}
    return found.pop() if len(found) == 1 else ""


async def nothing_doubles(place: Site, version: str) -> None:
    """Each key that there is has one process, and nothing else runs: also on the node that came back."""
    await place.serves(version)
    await eventually(place.ground.exact, 20, "one process runs for each instance, and no other")


@pytest.mark.parametrize("moment", ["while it comes up", "while the canary waits"])
async def test_the_node_of_the_new_instance_is_cut_off_and_the_release_goes_on(
    server: NatsServer, tmp_path: Path, moment: str
) -> None:
    async with reached_by_ways(server, tmp_path, AGENTS) as (place, ways):
        async with place.probing() as prober:
            await place.put("2", rollout=CANARY)
            if moment == "while the canary waits":
                await place.reaches("paused")
            victim = await eventually(lambda: new_one(place), what="one is new")
            ways[victim].cut()
            await eventually(lambda: gone(place, victim), 20, "it is given up")
            await place.reaches("paused")
            await eventually(lambda: canary_stands(place), 30, "the canary stands again")
            # What was started there runs all the while, and nobody counts it.
            assert len(place.ground.living) > 3
            ways[victim].mend()
            await eventually(lambda: back(place, victim), 20, "it is back")
            await eventually(place.ground.exact, 20, "what is not its own any more has ended")
            assert await versions(place) == {"1": 2, "2": 1}
            await place.put("2", rollout={**CANARY, "approved": 1})
            await place.reaches("complete")
            await nothing_doubles(place, "2")
            place.flawless(await prober.stop(100), 100)
        judge = await place.judged(canary=WEIGHTS)
        assert judge.most() <= 3 + 1, "keys of a node that is given up are deleted as others are written"


async def test_without_room_elsewhere_it_goes_back_by_its_deadline(server: NatsServer, tmp_path: Path) -> None:
    """The node comes back after all is over: it runs what is wanted then, and no more."""
    async with reached_by_ways(server, tmp_path, ("a1", "a2"), capacity="2") as (place, ways):
        # Longer than a node may be silent: what comes up there is never taken for healthy.
        slowly = {"min_healthy": 2 * TTL, "rollout": {**CANARY, "deadline": "10s"}}
        async with place.probing() as prober:
            put, watch = time.time(), Stopwatch()
            await place.put("2", **slowly)
            victim = await eventually(lambda: new_one(place), what="one is new")
            ways[victim].cut()
            await eventually(lambda: gone(place, victim), 20, "it is given up")
            await eventually(lambda: says(place, "1 has no place"), what="status says what has no place")
            reverted = await place.reaches("reverted")
            told = await condition(place, "2", "Reverted")
            assert await versions(place) == {"1": 2}, "all that there is room for"
            ways[victim].mend()
            await nothing_doubles(place, "1")
            place.flawless(await prober.stop(100), 100)
        # Where there is no room, one goes without a new one beside it.
        await place.judged(canary=WEIGHTS, max_unavailable=1)
        restarts = [record.value.get("restarts") for record in (await place.user.contents("slices")).values()]
        assert not any(restarts), "what is loaded anew has not been restarted"
        assert 10 <= reverted.entry.time - put < watch.bound(10 + 5)
        assert told["reason"].startswith("no instance became healthy for 10 s: 1 has no place")


async def test_the_leader_is_cut_off_and_what_it_sent_arrives_late(server: NatsServer, tmp_path: Path) -> None:
    async with reached_by_ways(server, tmp_path, ("m1", "m2")) as (place, ways):
        async with place.probing() as prober:
            await place.put("2", rollout=CANARY)
            await place.reaches("rolling")
            before = await eventually(place.user.lease)
            ways[before["node"]].cut()
            await place.reaches("paused")
            after = await eventually(lambda: led_anew(place, before["term"]), what="another one leads")
            assert after["node"] != before["node"]
            await place.put("2", rollout={**CANARY, "approved": 1})
            await place.reaches("rolling", step=2)
            ways[before["node"]].mend()
            await place.reaches("complete")
            await nothing_doubles(place, "2")
            await eventually(lambda: back(place, before["node"]), 20, "it is back")
            place.flawless(await prober.stop(100), 100)
        judge = await place.judged(canary=WEIGHTS)
        assert judge.most() <= 3 + 1
        assert (await place.user.lease())["term"] == after["term"], "who comes back takes nothing"
