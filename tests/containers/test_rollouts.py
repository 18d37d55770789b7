"""Releases over three nodes in containers, with three servers and three replicas: what leads dies in the middle.

Managers are containers of their own, so that nothing that serves dies with them: no request may fail.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from cdm.artifacts.repository import Artifacts
from cdm.store.connection import Access, connect
from tests.containers.faults import server_killed
from tests.harness.containers import Cluster, running
from tests.harness.engine import Images
from tests.harness.processes import Processes
from tests.harness.releases import Site
from tests.harness.servers import FORGIVEN
from tests.harness.serving import Yard
from tests.harness.waiting import eventually
from tests.harness.wire import patiently

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(900, func_only=True),  # not the time for which others use the engine
    pytest.mark.usefixtures("sockets_forgiven"),
    FORGIVEN,
]

CANARY = {"kind": "canary", "steps": [{"weight": 34}, {"pause": 2}]}
OUTSIDE = {"LISTEN": "0.0.0.0"}  # of a container
"""So that it is reached where its node is."""


class Servers(NamedTuple):
    """All servers as one address."""

    url: str


@asynccontextmanager
async def releasing(engine: Images, folder: Path) -> AsyncIterator[tuple[Cluster, Site]]:
    """A cluster of two managers and three agents."""
    # No registration ends while the servers elect.
    async with running(engine, managers=("m-1", "m-2"), CDM_NODE_TTL="30") as cluster:
        urls = [server.url for server in cluster.servers.values()]
        async with connect(Access(servers=tuple(urls)), name="test") as connection:
            ground = Yard(folder, Artifacts(connection), cluster.user)
            servers = Servers(",".join(urls))
            yield cluster, Site(servers, ground, cluster.recorder, Processes("", folder, ()), folder)


async def test_no_request_fails_while_who_leads_dies(engine: Images, tmp_path: Path) -> None:
    async with releasing(engine, tmp_path) as (cluster, place):
        await place.push("1", OUTSIDE)
        await place.put("1")
        await place.serves("1", 60)
        async with place.probing() as prober:
            await place.push("2", OUTSIDE)
            await place.put("2", rollout={"from": "1"})
            begun = await place.reaches("rolling")
            leader = await cluster.leader()
            await leader.do("kill")
            ended = await place.reaches("complete", 60)
            await place.serves("2", 60)
            assert ended.entry.fields["term"] > begun.entry.fields["term"], "it was killed in the middle"
            assert (await cluster.leader()).name != leader.name
            await leader.do("start")

            await place.push("3", OUTSIDE)
            await place.put("3", rollout={"from": "2", **CANARY})
            await place.reaches("paused", 60)
            async with server_killed(cluster):
                await place.reaches("complete", 60, step=3)
                await eventually(lambda: patiently(lambda: serve(place, "3")), 60, "3 serves")
            await place.serves("3", 60)
            found = await prober.stop()
        found.flawless(200)
        assert {"1", "2", "3"} <= set(found.answers)
        await place.judged()
        assert cluster.recorder.contradictions == []
        assert len({key.partition(".")[0] for key in await cluster.user.slices()}) == 3


async def serve(place: Site, version: str) -> bool:
    return [key.rpartition("/")[2] for key in await place.user.slices()] == [version] * place.wanted
