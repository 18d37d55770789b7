"""Leaders are killed in the middle of releases, at each step of each kind: the same is demanded as without."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.harness.releases import Site, site
from tests.harness.servers import FORGIVEN, NatsServer

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

MANAGERS = ("m1", "m2", "m3")
STEPS = [{"weight": 34}, {"pause": 1}, {"weight": 67}, {"pause": 1}]
BAD = {"FAIL": "crash:0.4"}
WEIGHTS = (34, None, 67, None)
KINDS: dict[str, dict[str, Any]] = {
    "rolling": {},
    "canary": {"kind": "canary", "steps": STEPS},
    "blue-green": {"kind": "blue-green", "keep_old": "3s"},
}


def each_step(key: str, value: dict[str, Any]) -> object:
    """The moment that a record says something new."""
    return (value.get("phase"), value.get("step", 0)) if key.startswith("_rollout.") else None


class EachOrder:
    """The moment that the first order of each sort in each step is stored."""

    def __init__(self) -> None:
        self._step: object = None

    def __call__(self, key: str, value: dict[str, Any]) -> object:
        if key.startswith("_rollout."):
            self._step = each_step(key, value)
        elif self._step and value.get("state") in ("LOAD", "ACTIVATE", "UNLOAD"):
            return self._step, value["state"]
        return None


class AtRandom:
    """Any order or record, one in so many."""

    def __init__(self, seed: int, one_in: int) -> None:
        self._random = random.Random(seed)
        self._one_in = one_in

    def __call__(self, key: str, value: dict[str, Any]) -> object:
        struck = value.get("state") in ("LOAD", "ACTIVATE", "UNLOAD", None) and value
        return (key, self._random.random()) if struck and self._random.randrange(self._one_in) == 0 else None


def surge(kind: str) -> int:
    return 3 if kind == "blue-green" else 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
async def test_leaders_killed_at_each_order(server: NatsServer, tmp_path: Path, kind: str) -> None:
    async with site(server, tmp_path, MANAGERS) as place:
        await place.release("1")
        await promoted(place, kind, EachOrder())


@pytest.mark.parametrize("kind", KINDS)
async def test_leaders_killed_at_each_step(server: NatsServer, tmp_path: Path, kind: str) -> None:
    async with site(server, tmp_path, MANAGERS) as place:
        await place.release("1")
        await promoted(place, kind, each_step)


async def promoted(place: Site, kind: str, moment: Any) -> None:
    """Roll out version 2, while leaders are killed at these moments."""
    async with place.probing() as prober:
        await place.push("2")
        async with place.killing(moment) as struck:
            await place.put("2", rollout={"from": "1", **KINDS[kind]})
            await place.reaches("complete", 120)
            await place.serves("2")
        found = await prober.stop(100)
    print(f"{kind}: killed at {struck}; {len(found.failures)} of {found.requests} requests failed")
    found.flawless(100)
    await place.judged(canary=WEIGHTS if kind == "canary" else (), max_surge=surge(kind))
    assert len(struck) >= 2


@pytest.mark.parametrize("kind", KINDS)
async def test_leaders_killed_while_a_bad_version_is_taken_back(server: NatsServer, tmp_path: Path, kind: str) -> None:
    async with site(server, tmp_path, MANAGERS) as place:
        await place.release("1")
        async with place.probing() as prober:
            await place.push("2", BAD)
            async with place.killing(each_step) as struck:
                await place.put("2", rollout={"from": "1", **KINDS[kind]})
                await place.reaches("reverted", 120)
                await place.serves("1")
            found = await prober.stop(20)
        print(f"{kind}: killed at {struck}; {len(found.failures)} of {found.requests} requests failed")
        place.flawless(found)
        await place.judged(canary=WEIGHTS if kind == "canary" else (), max_surge=surge(kind))
        assert any("revert" in str(each) for each in struck)


async def test_leaders_killed_while_a_complete_release_is_aborted(server: NatsServer, tmp_path: Path) -> None:
    async with site(server, tmp_path, MANAGERS) as place:
        await place.release("1")
        await place.push("2")
        await place.put("2", rollout={"from": "1"})
        await place.reaches("complete")
        await place.serves("2")
        async with place.probing() as prober:
            async with place.killing(each_step) as struck:
                await place.put("2", rollout={"from": "1", "abort": True})
                await place.reaches("reverted", 120)
                await place.serves("1")
            found = await prober.stop(100)
        found.flawless(100)
        await place.judged()
        assert struck == [("reverting", 1), ("reverted", 1)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
async def test_leaders_killed_at_random_through_a_day_of_releases(
    server: NatsServer, tmp_path: Path, seed: int
) -> None:
    """Each kind once, and a bad version after each."""
    async with site(server, tmp_path, MANAGERS) as place:
        await place.release("1")
        good = "1"
        async with place.probing() as prober, place.killing(AtRandom(seed, 12)) as struck:
            for number, kind in enumerate(KINDS, 1):
                for version, env, phase in ((f"1.{number}", {}, "complete"), (f"1.{number}-bad", BAD, "reverted")):
                    before = max((leg.entry.time for leg in place.legs), default=0.0)
                    await place.push(version, env)
                    await place.put(version, rollout={"from": good, **KINDS[kind]})
                    await place.reaches(phase, 60, after=before + 0.001)
                    good = version if phase == "complete" else good
                    await place.serves(good, 60)
            found = await prober.stop(200)
        print(f"killed {len(struck)} times")
        place.flawless(found, 200)
        await place.judged(max_surge=3)
