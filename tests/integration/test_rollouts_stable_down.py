"""Releases from a version that serves nothing itself, as its program ends whenever it is started."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness.releases import MIN_HEALTHY, Site, site
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.waiting import Stopwatch, eventually
from tests.integration.test_rollouts import condition, versions

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

CANARY: dict[str, Any] = {
    "from": "1",
    "kind": "canary",
    "steps": [{"weight": 34}, {"pause": "approve"}, {"weight": 67}, {"pause": "1h"}],
}
WEIGHTS = (34, None, 67, None)


@asynccontextmanager
async def whose_program_ends(server: NatsServer, folder: Path) -> AsyncIterator[Site]:
    """A cluster on which version 1 has served as a whole, and serves nothing any more."""
    file = folder / "it is broken"
    async with site(server, folder) as place:
        await place.push("1", {"FAIL": f"if:{file}"})
        await place.put("1")
        await place.serves("1")
        file.touch()
        await eventually(lambda: serving(place, "1", 0), 20, "it serves nothing any more")
        yield place


async def serving(place: Site, version: str, count: int) -> bool:
    return (await versions(place)).get(version, 0) == count


async def test_a_good_version_goes_straight_on_but_each_step_waits_until_it_is_healthy(
    server: NatsServer, tmp_path: Path
) -> None:
    async with whose_program_ends(server, tmp_path) as place:
        await place.push("2")
        await place.put("2", rollout=CANARY)
        await place.reaches("complete")
        await place.serves("2")
        await place.judged(canary=WEIGHTS, max_unavailable=3)
        begun = {leg.step: leg.entry.time for leg in reversed(place.legs)}
        for share, after in ((0, 2), (2, 4)):
            later = [begun[step] for step in begun if step >= share + 1]
            assert min(later) - begun[share] >= MIN_HEALTHY - 0.25, f"step {after} comes after healthy ones only"


async def test_a_bad_version_is_not_promoted_all_the_same(server: NatsServer, tmp_path: Path) -> None:
    async with whose_program_ends(server, tmp_path) as place:
        await place.push("2", {"FAIL": "hang"}, patience=60)
        put, watch = time.time(), Stopwatch()
        await place.put("2", rollout={**CANARY, "deadline": "5s"})
        await place.reaches("reverted")
        assert {leg.step for leg in place.legs} == {0}
        times = {leg.phase: leg.entry.time for leg in reversed(place.legs)}
        # What begins is decided on after that, and may be stored late.
        assert 5 <= times["reverting"] - put < watch.bound(5)
        assert (await condition(place, "2", "Reverted"))["reason"] == "no instance became healthy for 5 s"


async def test_it_may_be_held_instead(server: NatsServer, tmp_path: Path) -> None:
    async with whose_program_ends(server, tmp_path) as place:
        await place.push("2")
        hold = {**CANARY, "if_stable_down": "hold"}
        await place.put("2", rollout=hold)
        await place.reaches("paused")
        await place.stays("paused", 3)
        assert await serving(place, "2", 1)
        await place.put("2", rollout={**hold, "approved": 1})
        await place.reaches("paused", step=3)
