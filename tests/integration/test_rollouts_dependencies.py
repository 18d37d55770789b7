"""Services that need others (``after``), on a real cluster."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from tests.harness.releases import MIN_HEALTHY, Site, site
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.waiting import eventually
from tests.integration.test_rollouts import condition, versions

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]


async def test_a_service_waits_for_another_and_does_not_miss_it_later(server: NatsServer, tmp_path: Path) -> None:
    async with site(server, tmp_path) as web:
        api = web.beside("api")
        api.wanted = 1
        for place in (web, api):
            await place.push("1")
        await web.put("1", after=["g:api"])
        await eventually(lambda: waits(web), 30, "all are LOADED, and status says for whom they wait")
        await anyio.sleep(1)
        assert await waits(web)
        await api.put("1")
        await web.serves("1")
        found = web.recorder.entries("slices")
        served = next(e.time for e in found if e.key.endswith("g/api/1") and e.fields.get("state") == "ACTIVE")
        told = next(e.time for e in found if "g/web/1" in e.key and e.fields.get("state") == "ACTIVATE")
        assert told >= served + MIN_HEALTHY - 0.25
        # A service that is lost later stops nothing.
        before = web.rollouts().commands()
        await api.user.delete("blueprints", "g/api/1")
        await eventually(lambda: nothing_of(web, "g/api"), 30, "the other one is gone")
        await anyio.sleep(2)
        await web.serves("1")
        assert web.rollouts().commands() == before


async def waits(place: Site) -> bool:
    states = [state for key, state in (await place.user.slices()).items() if ".g/web/" in key]
    return states == ["LOADED"] * 3 and "g:api" in str((await place.status("1")).get("reason"))


async def nothing_of(place: Site, service: str) -> bool:
    return not any(f".{service}/" in key for key in await place.user.slices())


async def test_services_that_wait_for_each_other_are_told_of_in_each_status(server: NatsServer, tmp_path: Path) -> None:
    async with site(server, tmp_path) as web:
        api = web.beside("api")
        for place, other in ((web, "g:api"), (api, "g:web")):
            await place.push("1")
            await place.put("1", after=[other])
        for place in (web, api):
            reason = (await condition(place, "1", "Degraded"))["reason"]
            assert "g:web" in reason
            assert "g:api" in reason
        assert await versions(web) == {"1": 0}
