"""Releases that cannot go on: a node is cut off in the middle, nothing can be placed, nothing starts."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.harness.releases import Site, site
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.waiting import Stopwatch, eventually
from tests.integration.test_rollouts import condition, versions

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

CANARY = {"from": "1", "kind": "canary", "steps": [{"weight": 34}, {"pause": "approve"}]}
TTL = 3


async def test_a_node_that_is_cut_off_in_a_canary_makes_no_more_instances(server: NatsServer, tmp_path: Path) -> None:
    async with site(server, tmp_path, agents=("a1", "a2", "a3"), node_ttl=TTL) as place:
        await place.release("1")
        await place.push("2")
        await place.put("2", rollout=CANARY)
        await place.reaches("paused")
        await eventually(lambda: canary_stands(place), what="one is new")
        (new,) = [key for key in await place.user.slices() if key.endswith("/2")]
        victim = place.nodes.all[new.partition(".")[0]]
        victim.send(signal.SIGSTOP)
        try:
            await eventually(lambda: gone(place, victim.name), 20, "it is given up")
            await eventually(lambda: canary_stands(place), 30, "the canary stands again")
        finally:
            victim.send(signal.SIGCONT)
        await eventually(lambda: back(place, victim.name), 20, "it is back")
        await anyio.sleep(2)
        await place.put("2", rollout={**CANARY, "approved": 1})
        await place.reaches("complete", after=time.time() - 2)
        await place.serves("2")
        judge = await place.judged(canary=(34, None))
        assert judge.most() <= 4 + 1, "keys of a node that is gone count until they are deleted"


async def canary_stands(place: Site) -> bool:
    return await versions(place) == {"1": 2, "2": 1}


async def gone(place: Site, node: str) -> bool:
    return not any(key.startswith(f"{node}.") for key in await place.user.slices())


async def back(place: Site, node: str) -> bool:
    return node in await place.user.registrations()


@pytest.mark.parametrize("kind", ["rolling", "canary"])
async def test_what_cannot_be_placed_fails_by_its_deadline(server: NatsServer, tmp_path: Path, kind: str) -> None:
    """No surge fits, and none of the old ones may go first."""
    async with site(server, tmp_path, agents=()) as place:
        for name, capacity in (("a1", "2"), ("a2", "1")):
            place.start(name, "--capacity", capacity)
        await place.release("1")
        async with place.probing() as prober:
            await place.push("2")
            put, watch = time.time(), Stopwatch()
            await place.put("2", rollout=settings(kind, max_unavailable=0))
            await eventually(lambda: holds(place), what="status says why it holds")
            reverted = await place.reaches("reverted")
            await condition(place, "2", "Reverted")
            found = await prober.stop(100)
        found.flawless(100)
        await place.judged(canary=(34, None) if kind == "canary" else ())
        assert 5 <= reverted.entry.time - put < watch.bound(5 + 5)
        assert await versions(place) == {"1": 3}


def settings(kind: str, **fields: Any) -> dict[str, Any]:
    steps = {"steps": CANARY["steps"]} if kind == "canary" else {}
    return {"from": "1", "kind": kind, "deadline": "5s", **steps, **fields}


async def holds(place: Site) -> bool:
    return bool((await place.status("2")).get("rollout", {}).get("why"))


async def says(place: Site, what: str) -> bool:
    """Whether the status of version 2 says this of what its rollout waits for."""
    return what in str((await place.status("2")).get("rollout", {}).get("why"))


async def test_without_room_one_goes_first_and_status_says_so(server: NatsServer, tmp_path: Path) -> None:
    """`max_unavailable` is auto."""
    async with site(server, tmp_path, agents=()) as place:
        for name, capacity in (("a1", "2"), ("a2", "1")):
            place.start(name, "--capacity", capacity)
        await place.release("1")
        async with place.probing() as prober:
            await place.push("2")
            await place.put("2", rollout={"from": "1"})
            await eventually(lambda: says(place, "no room for a new one beside the old ones"), what="status says so")
            await place.reaches("complete")
            await place.serves("2")
            found = await prober.stop(100)
        found.flawless(100)
        assert (await place.judged(max_unavailable=1)).most() == 3


@pytest.mark.parametrize("kind", ["rolling", "canary", "blue-green"])
async def test_what_does_not_start_fails_by_its_deadline(server: NatsServer, tmp_path: Path, kind: str) -> None:
    async with site(server, tmp_path) as place:
        await place.release("1")
        async with place.probing() as prober:
            await place.push("2", {"FAIL": "hang"}, patience=60)
            put, watch = time.time(), Stopwatch()
            await place.put("2", rollout=settings(kind))
            reverted = await place.reaches("reverted")
            await place.serves("1")
            told = await condition(place, "2", "Reverted")
            found = await prober.stop(100)
        found.flawless(100)
        await place.judged(canary=(34, None) if kind == "canary" else (), max_surge=3 if kind == "blue-green" else 1)
        assert 5 <= reverted.entry.time - put < watch.bound(5 + 5)
        assert told["reason"]


async def test_what_does_not_start_stays_where_it_is_not_to_go_back_by_itself(
    server: NatsServer, tmp_path: Path
) -> None:
    async with site(server, tmp_path) as place:
        await place.release("1")
        await place.push("2", {"FAIL": "hang"}, patience=60)
        await place.put("2", rollout=settings("rolling", auto_revert=False))
        await place.reaches("failed")
        await place.stays("failed", 3)
        await place.put("2", rollout=settings("rolling", auto_revert=False, abort=True))
        await place.reaches("reverted")
        await place.serves("1")
        await place.judged()
