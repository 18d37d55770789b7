"""What people do in the middle of a release: each has one outcome, and no request fails meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.harness.probing import Probing
from tests.harness.releases import SERVICE, Site, site
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.waiting import eventually
from tests.integration.test_rollouts import condition, levels, shared, shared_levels, versions

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

CANARY: dict[str, Any] = {"from": "1", "kind": "canary", "steps": [{"weight": 34}, {"pause": "approve"}]}


@asynccontextmanager
async def in_a_canary(server: NatsServer, folder: Path) -> AsyncIterator[tuple[Site, Probing]]:
    """Two of version 1 and one of version 2 serve, and the rollout waits to be approved."""
    async with site(server, folder) as place:
        await place.release("1")
        async with place.probing() as prober:
            await place.push("2")
            await place.put("2", rollout=CANARY)
            await place.reaches("paused")
            await eventually(lambda: shared(place, 1), what="one is new")
            yield place, prober
            place.flawless(await prober.stop(20))


async def test_the_replaced_version_is_put_again(server: NatsServer, tmp_path: Path) -> None:
    async with in_a_canary(server, tmp_path) as (place, _):
        await place.put("1")
        await place.reaches("reverted")
        await place.serves("1")
        await place.judged(canary=(34, None))


async def test_the_new_blueprint_is_deleted(server: NatsServer, tmp_path: Path) -> None:
    async with in_a_canary(server, tmp_path) as (place, _):
        await place.user.delete("blueprints", f"{SERVICE}/2")
        await eventually(lambda: only(place, {"1": 3}), 30, "all are as before")
        await condition(place, "1", "Ready")
        await place.judged(canary=(34, None))


async def only(place: Site, wanted: dict[str, int]) -> bool:
    return await versions(place) == wanted


async def test_the_old_blueprint_is_deleted_and_is_gone_back_to_all_the_same(
    server: NatsServer, tmp_path: Path
) -> None:
    """What it said is in the record."""
    async with in_a_canary(server, tmp_path) as (place, _):
        await place.user.delete("blueprints", f"{SERVICE}/1")
        await place.stays("paused", 2)
        assert await versions(place) == {"1": 2, "2": 1}
        await place.put("2", rollout={**CANARY, "abort": True})
        await place.reaches("reverted")
        await eventually(lambda: only(place, {"1": 3}), 30, "all are as before")
        await condition(place, "2", "Reverted")
        await place.judged(canary=(34, None))


async def test_both_blueprints_are_deleted_in_the_middle(server: NatsServer, tmp_path: Path) -> None:
    async with site(server, tmp_path) as place:
        await place.release("1")
        await place.push("2")
        await place.put("2", rollout=CANARY)
        await place.reaches("paused")
        for version in ("1", "2"):
            await place.user.delete("blueprints", f"{SERVICE}/{version}")
        await eventually(lambda: only(place, {}), 30, "nothing is left")
        await eventually(lambda: unrecorded(place), what="nor is the record")
        assert not place.ground.living


async def unrecorded(place: Site) -> bool:
    return f"_rollout.{SERVICE}" not in await place.user.contents("slices")


async def test_the_new_blueprint_is_put_again_as_it_is(server: NatsServer, tmp_path: Path) -> None:
    async with in_a_canary(server, tmp_path) as (place, _):
        before = (await place.judged(canary=(34, None))).commands()
        await place.put("2", rollout=CANARY)
        await place.stays("paused", 2)
        assert (await place.judged(canary=(34, None))).commands() <= before + 1, "the record at most"
        await place.put("2", rollout={**CANARY, "approved": 1})
        await place.reaches("complete")
        await place.serves("2")
        await place.judged(canary=(34, None))


async def test_scaling_in_the_middle(server: NatsServer, tmp_path: Path) -> None:
    async with in_a_canary(server, tmp_path) as (place, _):
        await place.judged(canary=(34, None))
        place.wanted = 5
        await place.put("2", rollout=CANARY)
        await eventually(lambda: total(place, 5), 30, "there are five")
        assert place.legs[-1].phase in ("paused", "rolling")
        await place.put("2", rollout={**CANARY, "approved": 1})
        await place.reaches("complete")
        await place.serves("2")
        # Of the time before, three are as many as were wanted.
        await place.judged(max_unavailable=2)


async def total(place: Site, count: int) -> bool:
    return sum((await versions(place)).values()) == count


async def test_a_third_version_replaces_the_second(server: NatsServer, tmp_path: Path) -> None:
    async with in_a_canary(server, tmp_path) as (place, _):
        await place.push("3")
        await place.put("3", rollout={"from": "2"})
        await place.reaches("complete")
        await place.serves("3")
        last = place.legs[-1]
        assert last.old is not None
        assert last.new is not None
        assert (last.old.version, last.new.version) == ("1", "3")
        await condition(place, "1", "Superseded")
        await condition(place, "2", "Superseded")
        await place.judged()


async def test_a_bad_third_version_goes_back_to_the_first(server: NatsServer, tmp_path: Path) -> None:
    async with in_a_canary(server, tmp_path) as (place, _):
        await place.push("3", {"FAIL": "crash:0.4"})
        await place.put("3", rollout={"from": "2"})
        await place.reaches("reverted")
        await place.serves("1")
        await condition(place, "3", "Reverted")
        await place.judged()


async def test_a_paused_rollout_stands_and_goes_on(server: NatsServer, tmp_path: Path) -> None:
    async with site(server, tmp_path) as place:
        await place.release("1")
        async with place.probing() as prober:
            await place.push("2")
            await place.put("2", rollout={"from": "1"})
            await place.reaches("rolling")
            await place.put("2", rollout={"from": "1", "paused": True})
            await eventually(lambda: holds(place), what="it says that it stands")
            await anyio.sleep(1)
            await eventually(lambda: rests(place), 20, "what had begun is done")
            before = (await place.judged()).commands()
            await anyio.sleep(4)
            assert (await place.judged()).commands() == before
            await place.put("2", rollout={"from": "1", "paused": False})
            await place.reaches("complete")
            await place.serves("2")
            found = await prober.stop(100)
        found.flawless(100)
        await place.judged()


async def rests(place: Site) -> bool:
    return set((await place.user.slices()).values()) == {"ACTIVE"}


async def holds(place: Site) -> bool:
    return "paus" in str((await place.status("2")).get("rollout", {}).get("why"))


async def test_both_blueprints_after_the_rollout(server: NatsServer, tmp_path: Path) -> None:
    """The old one put again is in force beside the new one; the new one deleted brings nothing back."""
    async with site(server, tmp_path) as place:
        await place.release("1")
        await place.push("2")
        await place.put("2", rollout={"from": "1"})
        await place.reaches("complete")
        await place.serves("2")
        await place.judged()
        await place.put("1", instances=1)
        await eventually(lambda: only(place, {"1": 1, "2": 3}), 30, "both are in force")
        await condition(place, "1", "Ready")
        await place.user.delete("blueprints", f"{SERVICE}/1")
        await eventually(lambda: only(place, {"2": 3}), 30, "the old one is gone")
        await place.user.delete("blueprints", f"{SERVICE}/2")
        await eventually(lambda: only(place, {}), 30, "all are gone")
        await anyio.sleep(3)
        assert await versions(place) == {}


async def test_other_content_and_a_restart_replace_every_instance(server: NatsServer, tmp_path: Path) -> None:
    async with site(server, tmp_path) as place:
        await place.push("1", {"LEVEL": "one"})
        await place.put("1")
        await place.serves("1")
        async with place.probing() as prober:
            await place.push("1", {"LEVEL": "two"}, force=True, remark="other bytes")
            first = await place.reaches("complete")
            await eventually(lambda: shared_levels(place, {"two"}), what="all run the new content")
            await place.serves("1")
            await place.put("1", restarted="today")
            await place.reaches("complete", after=first.entry.time + 0.1)
            await place.serves("1")
            assert await levels(place) == {"two"}
            found = await prober.stop(100)
        found.flawless(100)
        await place.judged()
