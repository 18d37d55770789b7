"""Two services of one group on a real cluster: they advance together, and go back together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg

from tests.harness.releases import Site, site
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.waiting import eventually
from tests.integration.test_rollouts import condition
from tests.integration.test_rollouts_lost import says

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

WEIGHTS = (34, None)
TOGETHER: dict[str, Any] = {"kind": "canary", "steps": [{"weight": 34}, {"pause": "approve"}], "group": "shop"}


async def test_two_services_go_to_each_step_and_back_together(server: NatsServer, tmp_path: Path) -> None:
    """The second version of both is promoted, the third is taken back, since one of the two is bad."""
    async with site(server, tmp_path) as web:
        api = web.beside("api")
        for place in (web, api):
            await place.push("1")
            await place.put("1")
        for place in (web, api):
            await place.serves("1")
        async with web.probing() as of_web, api.probing() as of_api:
            await advance(web, api)
            await go_back(web, api)
            web.flawless(await of_web.stop(100), 100)
            api.flawless(await of_api.stop(100), 100)
        for place in (web, api):
            await place.judged(canary=WEIGHTS)


async def advance(web: Site, api: Site) -> None:
    checked = {**TOGETHER, "from": "1", "checks": [{"nats": "api.health", "interval": "1s", "count": 1}]}
    for place in (web, api):
        await place.push("2")
    await api.put("2", rollout=checked)
    await web.put("2", rollout={**TOGETHER, "from": "1"})
    # One of them could go on, and waits for the other, whose check nobody answers.
    await eventually(lambda: says(web, "g:api"), 30, "it says that it waits for the other one")
    await eventually(lambda: says(api, "nobody answers"), 30, "it says what it waits for itself")
    await web.stays("rolling", 2)
    assert [place.legs[-1].step for place in (web, api)] == [0, 0]

    async def respond(message: Msg) -> None:
        await message.respond(b"ok")

    await api.user.client.subscribe("api.health", cb=respond)
    for place in (web, api):
        await place.reaches("paused")
    await web.put("2", rollout={**TOGETHER, "from": "1", "approved": 1})
    await eventually(lambda: says(web, "g:api"), 30, "it says that it waits for the other one's approval")
    await web.stays("paused", 1)
    await api.put("2", rollout={**checked, "approved": 1})
    for place in (web, api):
        await place.reaches("complete")
        await place.serves("2")
    assert written_together(web, api) == [("paused", 1), ("rolling", 2), ("complete", 3)]


async def go_back(web: Site, api: Site) -> None:
    await web.push("3")
    await api.push("3", {"FAIL": "crash:0.4"})
    for place in (web, api):
        await place.put("3", rollout={**TOGETHER, "from": "2"})
    for place in (web, api):
        await place.reaches("reverted")
    for place in (web, api):
        await place.serves("2")
    own = await condition(api, "3", "Reverted")
    assert "failed or restarted" in own["reason"]
    assert (await condition(web, "3", "Reverted"))["reason"] == f"g:api of its group goes back: {own['reason']}"
    # Where the instance that failed is gone already, nothing is left of it to be taken back.
    assert any(batches_of(web, phase) & batches_of(api, phase, "reverted") for phase in ("reverting", "reverted"))


def batches_of(place: Site, *phases: str) -> set[str]:
    """The batches in which its record came to these phases."""
    return {leg.entry.headers.get("Nats-Batch-Id", "") for leg in place.legs if leg.phase in phases} - {""}


def written_together(one: Site, other: Site) -> list[tuple[str, int]]:
    """The phases and steps to which both records went in one batch, in order; how they began is left out."""
    legs: dict[tuple[str, int, str], set[str]] = {}
    for place in (one, other):
        for leg in place.legs:
            if batch := leg.entry.headers.get("Nats-Batch-Id"):
                legs.setdefault((leg.phase, leg.step, batch), set()).add(place.service)
    together = [(phase, step) for (phase, step, _), services in legs.items() if len(services) == 2]
    return [each for each in together if each != ("rolling", 0)]
