"""Releases on a real cluster, seen from outside: no request fails, and the auditor has nothing to say.

Somebody asks 50 times a second, one try each, whom ``cdm endpoints --watch`` names (`tests.harness.prober`); everything
that is stored is recorded and judged by the contract alone (`tests.containers.rollout_auditor`).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import anyio
import anyio.to_thread
import pytest

from cdm.model.manifest import Restart, RestartPolicy
from tests.harness.releases import MIN_HEALTHY, Site, site
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.waiting import Stopwatch, eventually, patience

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

CANARY: list[dict[str, Any]] = [{"weight": 34}, {"pause": "approve"}, {"weight": 67}, {"pause": "approve"}]
NO_TRY = Restart(policy=RestartPolicy.NEVER)


async def levels(place: Site) -> set[str]:
    """What all instances say of their variable."""
    found = await place.user.contents("slices")
    ports = [record.value["port"] for record in found.values() if record.value.get("state") == "ACTIVE"]

    def ask(port: int) -> str:
        with urlopen(f"http://127.0.0.1:{port}/", timeout=patience()) as answer:
            return str(json.load(answer)["level"])

    return {await anyio.to_thread.run_sync(ask, port) for port in ports}


async def versions(place: Site) -> dict[str, int]:
    """How many instances of each version are ACTIVE."""
    counts: dict[str, int] = {}
    for key, state in (await place.user.slices()).items():
        version = key.split("/")[2]
        counts[version] = counts.get(version, 0) + (state == "ACTIVE")
    return counts


async def condition(place: Site, version: str, wanted: str, within: float = 20) -> dict[str, Any]:
    """Wait until the status of a version is so."""

    async def told() -> dict[str, Any]:
        status = await place.status(version)
        return status if status.get("condition") == wanted else {}

    return await eventually(told, within, f"{version} is {wanted}", pause=0.1)


async def test_a_changed_variable_reaches_every_instance(server: NatsServer, tmp_path: Path) -> None:
    async with site(server, tmp_path) as place:
        await place.release("1", env={"LEVEL": "low"})
        async with place.probing() as prober:
            await place.put("1", env={"LEVEL": "high"})
            await place.reaches("complete")
            await place.serves("1")
            assert await levels(place) == {"high"}
            found = await prober.stop(100)
        found.flawless(100)
        judge = await place.judged()
        assert [leg.phase for leg in judge.legs][-1] == "complete"
        status = await place.status("1")
        assert (status["up_to_date"], status["healthy"], status["outdated"]) == (3, 3, 0)
        templates = {r.value["template"] for k, r in (await place.user.contents("slices")).items() if k[0] != "_"}
        assert len(templates) == 1
        # The same once more is no rollout.
        before = judge.commands()
        await place.put("1", env={"LEVEL": "high"}, drain_delay=3)
        await anyio.sleep(2)
        assert (await place.judged()).commands() == before


async def test_a_new_version_takes_over_one_by_one(server: NatsServer, tmp_path: Path) -> None:
    async with site(server, tmp_path) as place:
        await place.release("1")
        async with place.probing() as prober:
            await place.push("2")
            await place.put("2", rollout={"from": "1"})
            await place.reaches("complete")
            await place.serves("2")
            await condition(place, "1", "Superseded")
            found = await prober.stop(100)
        found.flawless(100)
        assert found.answers["2"] > 0
        assert (await place.judged()).most() == 4


async def test_a_canary_waits_to_be_approved_at_each_pause(server: NatsServer, tmp_path: Path) -> None:
    async with site(server, tmp_path) as place:
        await place.release("1")
        async with place.probing() as prober:
            await place.push("2")
            settings = {"from": "1", "kind": "canary", "steps": CANARY}
            await place.put("2", rollout=settings)
            for approved, new in enumerate((1, 2)):
                leg = await place.reaches("paused", step=2 * approved + 1)
                await eventually(lambda new=new: shared(place, new), what=f"{new} are new")  # type: ignore[misc]
                status = await eventually(lambda step=leg.step: paused(place, step), what="status says so")  # type: ignore[misc]
                share = CANARY[leg.step - 1]["weight"]
                assert leg.entry.fields["weights"] == {"from": 100 - share, "to": share}, "for routers"
                assert status["rollout"]["share"] == round(100 * new / 3, 1), "the real one"
                assert (status["up_to_date"], status["healthy"], status["outdated"]) == (new, new, 0)
                assert status["rollout"]["why"]
                await place.stays("paused", 2)
                assert place.legs[-1].step == leg.step
                await place.put("2", rollout={**settings, "approved": approved + 1})
            await place.reaches("complete")
            await place.serves("2")
            found = await prober.stop(100)
        found.flawless(100)
        await place.judged(canary=(34, None, 67, None))


async def paused(place: Site, step: int) -> dict[str, Any]:
    """The status, once it says that the rollout pauses in this step: it follows the record."""
    status = await place.status("2")
    rollout = status.get("rollout") or {}
    return status if (rollout.get("phase"), rollout.get("step")) == ("paused", step + 1) else {}


async def shared(place: Site, new: int) -> bool:
    return await versions(place) == {"1": 3 - new, "2": new}


async def test_blue_green_switches_once_all_new_ones_are_healthy(server: NatsServer, tmp_path: Path) -> None:
    async with site(server, tmp_path) as place:
        await place.release("1")
        async with place.probing() as prober:
            await place.push("2")
            await place.put("2", rollout={"from": "1", "kind": "blue-green", "keep_old": "12s"})
            switched = await place.reaches("switched")
            assert await versions(place) == {"1": 3, "2": 3}
            complete = await place.reaches("complete")
            await place.serves("2")
            found = await prober.stop(100)
        found.flawless(100)
        await place.judged(max_surge=3)
        assert complete.entry.time - switched.entry.time >= 6, "of twelve, the first of which may be stored late"
        assert found.first["2"] >= switched.entry.time - 0.5


STAGES = ["rolling", "first pause", "second pause", "complete"]


@pytest.mark.parametrize("stage", STAGES)
async def test_an_abort_in_each_step_and_after_promotion(server: NatsServer, tmp_path: Path, stage: str) -> None:
    async with site(server, tmp_path) as place:
        await place.release("1")
        async with place.probing() as prober:
            await place.push("2")
            settings: dict[str, Any] = {"from": "1", "kind": "canary", "steps": CANARY}
            await place.put("2", rollout=settings)
            if stage == "rolling":
                await place.reaches("rolling", step=0)
            else:
                await place.reaches("paused", step=1)
            if stage in ("second pause", "complete"):
                settings["approved"] = 1
                await place.put("2", rollout=settings)
                await place.reaches("paused", step=3)
            if stage == "complete":
                settings["approved"] = 2
                await place.put("2", rollout=settings)
                await place.reaches("complete")
                await place.serves("2")
            await place.put("2", rollout={**settings, "abort": True})
            await place.reaches("reverted")
            await place.serves("1")
            await condition(place, "2", "Reverted")
            found = await prober.stop(20)
        found.flawless(20)
        await place.judged(canary=(34, None, 67, None))


BAD = {
    "it does not start": {"FAIL": "start"},
    "it crashes when it serves": {"FAIL": "crash:0.4"},
    "it never answers well": {"FAIL": "500"},
}


@pytest.mark.parametrize("kind", ["rolling", "blue-green"])
@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_version_is_taken_back_by_itself(server: NatsServer, tmp_path: Path, bad: str, kind: str) -> None:
    async with site(server, tmp_path) as place:
        await place.release("1")
        async with place.probing() as prober:
            await place.push("2", BAD[bad], restart=NO_TRY if bad == "it does not start" else None, patience=3)
            put, watch = time.time(), Stopwatch()
            await place.put("2", rollout={"from": "1", "kind": kind})
            reverted = await place.reaches("reverted")
            await place.serves("1")
            told = await condition(place, "2", "Reverted")
            found = await prober.stop(20)
        place.flawless(found)
        judge = await place.judged(max_surge=3 if kind == "blue-green" else 1)
        failed = judge.first_failure("2", put)
        assert failed is not None
        took = reverted.entry.time - failed
        print(f"{bad}, {kind}: reverted {took:.1f} s after the first failure; {found.requests} requests")
        assert took < watch.bound(MIN_HEALTHY + 5)
        assert told["reason"]
        # It is not tried again by itself.
        await place.stays("reverted", 3)
        assert await versions(place) == {"1": 3}


async def test_a_bad_variable_is_taken_back_and_another_one_is_tried(server: NatsServer, tmp_path: Path) -> None:
    async with site(server, tmp_path) as place:
        await place.release("1", env={"LEVEL": "low"})
        async with place.probing() as prober:
            await place.put("1", env={"LEVEL": "bad", "FAIL": "crash:0.4"})
            reverted = await place.reaches("reverted")
            await condition(place, "1", "Reverted")
            await eventually(lambda: shared_levels(place, {"low"}), what="all are as before")
            await place.put("1", env={"LEVEL": "good"})
            await place.reaches("complete", after=reverted.entry.time)
            await place.serves("1")
            assert await levels(place) == {"good"}
            found = await prober.stop(20)
        place.flawless(found)
        await place.judged()


async def shared_levels(place: Site, wanted: set[str]) -> bool:
    counts = await versions(place)
    return sum(counts.values()) == 3 and await levels(place) == wanted
