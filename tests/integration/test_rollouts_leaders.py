"""Leaders are killed in the middle of releases, at each step of each kind: the same is demanded as without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.harness.releases import Site, site
from tests.harness.servers import FORGIVEN, NatsServer

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

MANAGERS = ("m1", "m2", "m3")
STEPS = [{"weight": 34}, {"pause": 1}, {"weight": 67}, {"pause": 1}]
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
        found = await prober.stop()
    print(f"{kind}: killed at {struck}; {len(found.failures)} of {found.requests} requests failed")
    found.flawless(100)
    await place.judged(canary=WEIGHTS if kind == "canary" else (), max_surge=surge(kind))
    assert len(struck) >= 2


@pytest.mark.parametrize("kind", KINDS)
async def test_leaders_killed_while_a_bad_version_is_taken_back(server: NatsServer, tmp_path: Path, kind: str) -> None:
    async with site(server, tmp_path, MANAGERS) as place:
        await place.release("1")
        async with place.probing() as prober:
            await place.push("2", {"FAIL": "crash:0.4"})
            async with place.killing(each_step) as struck:
                await place.put("2", rollout={"from": "1", **KINDS[kind]})
                await place.reaches("reverted", 120)
                await place.serves("1")
            found = await prober.stop()
        print(f"{kind}: killed at {struck}; {len(found.failures)} of {found.requests} requests failed")
        place.flawless(found)
        await place.judged(canary=WEIGHTS if kind == "canary" else (), max_surge=surge(kind))
        assert any("reverting" in str(each) for each in struck)
