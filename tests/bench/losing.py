"""``server-loss``: the NATS server that leads the stream of ``slices`` dies, and something is to be placed."""

from __future__ import annotations

import time
from contextlib import ExitStack

import anyio
import nats.errors

from cdm.errors import StoreError
from cdm.model.keys import encode_artifact
from tests.bench.leading import ACQUAINTANCE
from tests.bench.measure import Figure, figure
from tests.bench.playground import Playground, artifact, node_process, nodes_named, playground
from tests.bench.swarm import Swarm, swarm
from tests.harness.servers import NatsServer
from tests.harness.waiting import bounded, eventually

TTL = 10.0
"""Seconds, as by default."""
AGAIN = 0.05
"""Seconds between two tries of whoever puts the blueprint, and between two looks."""


async def server_loss(quick: bool) -> list[Figure]:
    """Three servers: the one that leads the stream is killed; until a blueprint that is put then is ACTIVE."""
    taken: list[float] = []
    active: list[float] = []
    async with playground(servers=3) as on:
        with ExitStack() as stack:
            for name in ("a", "b", "c"):
                stack.enter_context(node_process(on, name, "--role", "manager"))
            urls = tuple(server.url for server in on.servers)
            async with swarm(urls, nodes_named(3), TTL) as nodes:
                for number in range(-1, 2 if quick else 10):
                    await _whole(on)
                    await anyio.sleep(ACQUAINTANCE)
                    leader = None if number < 0 else await _leader_of(on, "slices")
                    put, ran = await _one_more(on, nodes, number + 1, leader)
                    if leader is not None:  # the first is only to see that all is well
                        taken.append(put)
                        active.append(ran)
                        await leader.start()
    note = "three servers, three managers; from the SIGKILL of the server that leads the stream of slices"
    return [
        figure("server-loss put", "s", taken, note=f"{note} to the put of a blueprint taken, which is tried again"),
        figure("server-loss active", "s", active, note=f"{note} to its instance ACTIVE"),
    ]


async def _one_more(on: Playground, nodes: Swarm, number: int, doomed: NatsServer | None) -> tuple[float, float]:
    """Seconds until the put is taken, and until its instance is ACTIVE."""
    wanted = nodes.active + 1
    before = time.perf_counter()
    if doomed is not None:
        doomed.kill()
    subject = f"$KV.blueprints.{encode_artifact(artifact(number))}"
    with bounded(60):
        while True:
            try:
                await on.client.jetstream().publish(subject, b"1", timeout=1.0)
                break
            except (nats.errors.Error, OSError):
                await anyio.sleep(AGAIN)
    taken = time.perf_counter() - before
    await eventually(lambda: nodes.active >= wanted, 60, pause=0.005)
    return taken, time.perf_counter() - before


async def _leader_of(on: Playground, bucket: str) -> NatsServer:
    info = await on.connection.api(f"STREAM.INFO.KV_{bucket}")
    return on.servers[int(info["cluster"]["leader"].removeprefix("s")) - 1]


async def _whole(on: Playground) -> None:
    """Wait until every server has all that there is of every bucket."""

    async def current() -> bool:
        try:
            for bucket in on.buckets:
                cluster = (await on.connection.api(f"STREAM.INFO.KV_{bucket}"))["cluster"]
                replicas = cluster.get("replicas") or []
                if not cluster.get("leader") or len(replicas) < 2 or not all(each["current"] for each in replicas):
                    return False
        except StoreError:
            return False
        return True

    await eventually(current, 60, "all replicas are current", pause=AGAIN)
