"""Checks of a canary on a real cluster: a leader makes them, and what answers is real.

What answers the queries speaks the API of Prometheus as it is documented; no Prometheus runs here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from tests.harness import sites
from tests.harness.releases import Site, site
from tests.harness.servers import FORGIVEN, NatsServer, raw_client
from tests.harness.waiting import eventually
from tests.integration.test_rollouts import condition, shared, versions

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

LATE = "no answer within 0.5 s"
STEPS = [{"weight": 34}, {"pause": "approve"}]
WEIGHTS = (34, None)


class Oracle(NamedTuple):
    """Somebody whom a check asks about a version."""

    check: dict[str, Any]
    unsaid: Mapping[str, str]
    """Verdicts of which nothing follows, and what status says of each. In the beginning it is the first of them."""
    bad: str
    """What is said of a bad verdict."""
    says: Callable[[str], Awaitable[None]]
    """What it says from now on: one of those, "good" or "bad"."""


def hang(request: sites.Request) -> None:
    """Answer nobody."""
    request.site.over.wait(60)


@asynccontextmanager
async def page(_: NatsServer) -> AsyncIterator[Oracle]:
    """A page of each version."""
    with sites.site() as web:

        async def says(verdict: str) -> None:
            for version in ("2", "3"):
                if verdict == "nothing":
                    web.pages[f"/health/{version}"] = hang
                else:
                    web.says(f"/health/{version}", status=200 if verdict == "good" else 503)

        yield Oracle({"http": f"{web.url}/health/{{version}}"}, {"nothing": LATE}, "status 503", says)


@asynccontextmanager
async def metrics(_: NatsServer) -> AsyncIterator[Oracle]:
    """The share of errors of each version; without traffic it is nothing divided by nothing."""
    share = 'sum(rate(errors{version="{version}"}[1m])) / sum(rate(requests{version="{version}"}[1m]))'
    told = {"good": "0.002", "bad": "0.25", "idle": "NaN"}
    with sites.site() as web:

        async def says(verdict: str) -> None:
            if verdict == "nothing":
                web.pages["/api/v1/query"] = hang
            else:
                known = {share.replace("{version}", version): [told[verdict]] for version in ("2", "3")}
                web.measures(lambda query: known[query])

        check = {"prometheus": {"url": web.url, "query": share}, "ok": "< 0.01"}
        yield Oracle(check, {"nothing": LATE, "idle": "no data"}, "0.25 is not < 0.01", says)


@asynccontextmanager
async def responder(server: NatsServer) -> AsyncIterator[Oracle]:
    """A service on NATS, which listens once it has something to say."""
    answers = {"good": b"ok", "bad": b'{"ok": false, "reason": "3 orders are stuck"}'}
    answer = b""
    listening: list[Subscription] = []

    async def respond(message: Msg) -> None:
        await message.respond(answer)

    async with raw_client(server.url) as client:

        async def says(verdict: str) -> None:
            nonlocal answer
            answer = answers.get(verdict, b"")
            while listening:
                await listening.pop().unsubscribe()
            if answer:
                listening.append(await client.subscribe("web.health.*", cb=respond))
            await client.flush()

        yield Oracle({"nats": "web.health.{version}"}, {"nothing": "nobody answers"}, "3 orders are stuck", says)


ORACLES: dict[str, Callable[[NatsServer], AbstractAsyncContextManager[Oracle]]] = {
    "http": page,
    "prometheus": metrics,
    "nats": responder,
}


@pytest.mark.parametrize("kind", ORACLES)
async def test_a_canary_is_held_promoted_or_taken_back_as_its_checks_say(
    server: NatsServer, tmp_path: Path, kind: str
) -> None:
    """A check of the new instances themselves passes all the while.

    Version 2 is held for as long as nothing can be said, and promoted; version 3 is taken back as it pauses."""
    async with ORACLES[kind](server) as oracle, site(server, tmp_path) as place:
        check = {**oracle.check, "interval": "1s", "timeout": "500ms", "count": 2, "failures": 0}
        own = {"http": "http://{instance}/", "interval": "1s", "count": 1}
        canary: dict[str, Any] = {"kind": "canary", "steps": STEPS, "checks": [own, check]}
        await place.release("1")
        async with place.probing() as prober:
            await place.push("2")
            for number, (verdict, reason) in enumerate(oracle.unsaid.items()):
                await oracle.says(verdict)
                if number == 0:
                    await place.put("2", rollout={**canary, "from": "1"})
                await eventually(lambda reason=reason: held(place, reason), 30, f"held: {reason}")  # type: ignore[misc]
                await place.stays("rolling", 2)
                assert await versions(place) == {"1": 2, "2": 1}
            await oracle.says("good")
            await place.reaches("paused")
            await place.put("2", rollout={**canary, "from": "1", "approved": 1})
            complete = await place.reaches("complete")
            await place.serves("2")

            await place.push("3")
            await place.put("3", rollout={**canary, "from": "2"})
            await place.reaches("paused", after=complete.entry.time + 0.001)
            await oracle.says("bad")
            await place.reaches("reverted")
            await place.serves("2")
            assert oracle.bad in (await condition(place, "3", "Reverted"))["reason"]
            place.flawless(await prober.stop(100), 100)
        await place.judged(canary=WEIGHTS)


async def held(place: Site, reason: str) -> bool:
    """Whether the canary stands, and status says that it is for this reason."""
    stands = await shared(place, 1)
    status = await place.status("2")
    rollout = status.get("rollout") or {}
    rolling = (status.get("condition"), rollout.get("phase")) == ("Progressing", "rolling")
    return stands and rolling and reason in rollout.get("why", "")
