"""``rest`` and ``agents``: what a cluster costs that has nothing to do."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from cdm.model.artifact import NodeId
from cdm.model.node import EXTERNAL, Role
from cdm.node.node import NodeSettings
from cdm.node.node import node as running_node
from cdm.store.connection import Access
from tests.bench.leading import INSTANCES
from tests.bench.measure import Figure, Goal, figure
from tests.bench.playground import Playground, active_slices, blueprints, nodes_named, playground
from tests.harness.servers import NatsServer
from tests.harness.waiting import eventually

HOUR = 3600.0
LOOK_UPS = Goal(500, "value<=")
"""The leader looks at each of the four buckets once in a reconcile interval, for all nodes, to notice a purge: 480."""


async def rest(quick: bool) -> list[Figure]:
    """Real nodes, each with a connection of its own, and slices that need nothing: what is on the wire."""
    nodes, slices, window = (10, 1_000, 3.0) if quick else (100, 10_000, 60.0)
    traffic = await at_rest(nodes, slices, window)
    note = f"{nodes} nodes, {slices:,} slices, counted for {window:g} s; in and out of the server"
    kinds = ", ".join(f"{kind} {count * HOUR:,.0f}" for kind, count in traffic.kinds.most_common())
    look_ups = traffic.kinds["look-ups"] * HOUR
    return [
        figure("rest messages", "messages/h", [traffic.messages * HOUR], note=note),
        figure("rest bytes", "bytes/h", [traffic.bytes * HOUR], note=note),
        figure("rest look-ups", "messages/h", [look_ups], (), LOOK_UPS, note=f"by kind, once each: {kinds}"),
    ]


class Traffic:
    """What is on the wire, a second.

    Args:
        messages: into and out of the server.
        bytes: of their payloads.
        kinds: messages by what they are for, each counted once however many get it.
    """

    def __init__(self, messages: float, bytes: float, kinds: Counter[str]) -> None:  # noqa: A002
        self.messages = messages
        self.bytes = bytes
        self.kinds = kinds


async def at_rest(nodes: int, slices: int, window: float) -> Traffic:
    """Count for so many seconds."""
    names = nodes_named(nodes)
    async with playground(monitoring=True) as on:
        await on.fill(on.slices, active_slices(slices, names, INSTANCES))
        await on.fill(on.buckets["blueprints"], blueprints(slices // INSTANCES, INSTANCES))
        async with _running(on, names):
            await eventually(lambda: _ready(on, nodes, slices // INSTANCES), 240, pause=0.5)
            await anyio.sleep(window / 6)
            before, began = await counters(on), time.monotonic()
            await anyio.sleep(window)
            after, took = await counters(on), time.monotonic() - began
            kinds = await kinds_of(on, min(window, 20.0))
    messages, volume = ((late - early) / took for early, late in zip(before, after, strict=True))
    return Traffic(messages, volume, kinds)


@asynccontextmanager
async def _running(on: Playground, names: list[NodeId]) -> AsyncIterator[None]:
    stop = anyio.Event()

    async def run(name: NodeId) -> None:
        async with running_node(NodeSettings(name, Access((on.urls,)), Role.AUTO, runtime=EXTERNAL)) as node:
            await node.run(stop)

    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(run, name)
        yield
        tasks.cancel_scope.cancel()


async def _ready(on: Playground, nodes: int, blueprints_: int) -> bool:
    """Whether all nodes are there, with warm mirrors, and the leader has told how every blueprint fares."""
    if await on.messages("nodes") < nodes or await on.messages("status") < blueprints_:
        return False
    managers = min(nodes, 5)
    for bucket, mirrors in (("slices", nodes + managers), ("status", managers)):
        found = (await on.connection.api(f"CONSUMER.LIST.KV_{bucket}")).get("consumers") or []
        if len(found) < min(mirrors, 100) or any(each["num_pending"] for each in found):
            return False
    return True


async def counters(on: Playground) -> tuple[float, float]:
    """Messages into and out of all servers so far, those between servers included, and their bytes."""
    messages = volume = 0.0
    for server in on.servers:
        found = await anyio.to_thread.run_sync(_varz, server)
        messages += found["in_msgs"] + found["out_msgs"]
        volume += found["in_bytes"] + found["out_bytes"]
    return messages, volume


def _varz(server: NatsServer) -> dict[str, Any]:
    *_, monitor = re.findall(r"Starting http monitor on (\S+)", server.log)  # the last one, of the process that runs
    with urllib.request.urlopen(f"http://{monitor}/varz", timeout=5) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


async def kinds_of(on: Playground, window: float) -> Counter[str]:
    """Messages a second, by what they are for, as one more subscriber of everything sees them."""
    found: Counter[str] = Counter()

    def see(subject: bytes, reply: bytes, payload: bytes, block: bytes) -> None:
        found[_kind(subject, reply, payload, block)] += 1

    subscription = await on.connection.subscribe_directly(">", see)
    await anyio.sleep(window)
    await on.connection.unsubscribe(subscription)
    return Counter({kind: count / window for kind, count in found.items()})


def _kind(subject: bytes, reply: bytes, payload: bytes, block: bytes) -> str:
    if reply.startswith(b"$JS.ACK."):
        return "deliveries to mirrors"
    for start, kind in (
        (b"$KV.nodes.", "heartbeats"),
        (b"$KV.slices._leader", "renewals"),
        (b"$KV.", "other writes"),
        (b"cdm.leader.", "probes"),
        (b"$JS.API.STREAM.INFO.KV_nodes", "looks for a slot" if payload else "look-ups"),
        (b"$JS.API.", "look-ups"),
        (b"$JS.FC.", "flow control"),
    ):
        if subject.startswith(start):
            return kind
    return "idle heartbeats of consumers" if block.startswith(b"NATS/1.0 100") else "answers"


async def agents(quick: bool) -> list[Figure]:
    """Agents that each watch their own node's keys with the bare client, while one other node's slices change."""
    count, changes = (200, 200) if quick else (1_000, 1_000)
    received = [0] * count
    names = nodes_named(count)
    async with playground() as on:
        bucket = await on.client.jetstream().key_value("slices")
        async with anyio.create_task_group() as tasks:

            async def agent(number: int, watcher: Any) -> None:
                async for entry in watcher:
                    received[number] += entry is not None

            for number, name in enumerate(names):
                tasks.start_soon(agent, number, await bucket.watch(f"{name}.>"))
            writes = list(active_slices(changes, names[:1], INSTANCES))
            await on.raw_puts("slices", [(write.name, write.payload) for write in writes])

            async def arrived() -> bool:
                return received[0] == changes

            await eventually(arrived, 30)
            await anyio.sleep(0.5)
            tasks.cancel_scope.cancel()
    others = [float(each) for each in received[1:]]
    note = f"{count:,} agents; the one whose node changed received all {received[0]:,}"
    return [figure("agents", "messages", others, (), Goal(0, "value<="), Goal(0, "max<="), note=note)]
