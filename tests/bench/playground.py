"""Where benchmarks are played: real servers, node processes, and clusters made up by writing to the buckets."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import islice
from typing import Any

from nats.aio.client import Client

from cdm.manager.policy import Policy
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.keys import SLICES, SliceKey, encode, encode_artifact
from cdm.model.node import EXTERNAL
from cdm.model.slice import SliceState, SliceValue
from cdm.node.node import Node, NodeSettings
from cdm.store.batch import MAX_BATCH, Write
from cdm.store.bucket import Bucket, buckets
from cdm.store.configuration import created
from cdm.store.connection import Access, Connection, connect
from cdm.store.wire import dump
from tests.harness.processes import Process, started_node
from tests.harness.servers import NatsServer, raw_client, running_cluster, running_server
from tests.harness.waiting import eventually

POLL = 0.01
"""Seconds between two looks at how far something is."""


class Playground:
    """A server, or several as one cluster, with the buckets made. Made by `playground`."""

    def __init__(self, servers: Sequence[NatsServer], connection: Connection, client: Client, replicas: int) -> None:
        self.servers = servers
        self.connection = connection
        """The product's own client."""
        self.client = client
        """The bare client."""
        self.replicas = replicas
        self.buckets = buckets(connection)

    @property
    def urls(self) -> str:
        """Where clients connect."""
        return ",".join(server.url for server in self.servers)

    @property
    def slices(self) -> Bucket:
        """The bucket of slices."""
        return self.buckets["slices"]

    async def raw_puts(self, bucket: str, puts: Sequence[tuple[str, bytes]]) -> float:
        """Put everything with the bare client's ``publish_async``; returns how long it took until all was acked."""
        jetstream = self.client.jetstream()
        subject = f"$KV.{bucket}."
        before = time.perf_counter()
        acks = [await jetstream.publish_async(subject + key, value) for key, value in puts]
        for ack in acks:
            await ack
        return time.perf_counter() - before

    async def raw_bucket(self, name: str) -> None:
        """A bucket that is configured as ``slices`` is, for the bare client to write to."""
        config = created(SLICES, f"KV_{name}", f"$KV.{name}.>", self.replicas)
        await self.connection.api(f"STREAM.CREATE.KV_{name}", config)

    async def register(self, nodes: Sequence[NodeId], registration: bytes = b'{"ttl":600}') -> None:
        """Enter nodes that do nothing else."""
        await self.raw_puts("nodes", [(node, registration) for node in nodes])

    async def fill(self, bucket: Bucket, writes: Iterator[Write]) -> None:
        """Write to a bucket, in batches."""
        while batch := list(islice(writes, MAX_BATCH)):
            await bucket.batch(batch)

    async def messages(self, bucket: str) -> int:
        """How many messages a bucket's stream holds."""
        info = await self.connection.api(f"STREAM.INFO.KV_{bucket}")
        return int(info["state"]["messages"])

    async def holds(self, bucket: str, count: int, within: float = 120.0) -> float:
        """Wait until a bucket's stream holds so many messages; returns when, on ``time.perf_counter``."""

        async def held() -> bool:
            return await self.messages(bucket) >= count

        await eventually(held, within, pause=POLL)
        return time.perf_counter()

    async def caught_up(self, stream: str, consumers: int, within: float = 60.0) -> None:
        """Wait until so many consumers of a stream exist and have been given everything."""

        async def done() -> bool:
            found = (await self.connection.api(f"CONSUMER.LIST.{stream}")).get("consumers") or []
            return len(found) >= consumers and all(each["num_pending"] == 0 for each in found)

        await eventually(done, within)

    def node(self, name: str = "bench", **settings: Any) -> Node:
        """The product's parts, wired but not running."""
        return Node(
            NodeSettings(
                NodeId(name),
                Access((self.servers[0].url,)),
                runtime=EXTERNAL,
                **{"policy": Policy(settle=0.0), **settings},
            ),
            self.connection,
        )


@asynccontextmanager
async def playground(*, servers: int = 1, monitoring: bool = False) -> AsyncIterator[Playground]:
    """A fresh server, or cluster, for the time of the ``with`` block."""
    replicas = 1 if servers == 1 else 3
    arguments = ["-m", "-1"] if monitoring else []
    if servers == 1:
        async with running_server(arguments=arguments) as server, _on([server], replicas) as found:
            yield found
    else:
        async with running_cluster(servers, more=arguments) as cluster, _on(cluster, replicas) as found:
            yield found


@asynccontextmanager
async def _on(servers: Sequence[NatsServer], replicas: int) -> AsyncIterator[Playground]:
    urls = tuple(server.url for server in servers)
    async with connect(Access(urls), name="bench") as connection, raw_client(*urls) as client:
        found = Playground(servers, connection, client, replicas)
        for bucket in found.buckets.values():
            await bucket.ensure(create=True, replicas=replicas)
        yield found


@contextmanager
def node_process(on: Playground, name: str, *options: str) -> Iterator[Process]:
    """A real ``cdm node``, logging as it does by default; killed at the end of the ``with`` block."""
    arguments = ("--id", name, "--server", on.urls, *options)
    process = started_node(name, on.servers[0].folder / f"{name}.log", *arguments)
    try:
        yield process
    finally:
        process.kill()


# Clusters made up


def nodes_named(count: int) -> list[NodeId]:
    """So many node ids."""
    return [NodeId(f"n{number}") for number in range(count)]


def artifact(number: int) -> Artifact:
    """Artifact number so and so."""
    return Artifact("org.example", f"app{number}", "1.0.0")


def slice_keys(count: int, nodes: Sequence[NodeId], instances: int) -> Iterator[SliceKey]:
    """``count`` slices of artifacts with so many instances each, spread evenly over the nodes."""
    width = len(nodes)
    for number in range(count):
        which, instance = divmod(number, instances)
        position = which * instances + instance
        yield SliceKey(nodes[position % width], artifact(which), instance // width)


ACTIVE = SliceValue(SliceState.ACTIVE, 1, failures=0, blueprint=1)


def active_slices(count: int, nodes: Sequence[NodeId], instances: int) -> Iterator[Write]:
    """The same as writes of slices that serve."""
    payload = dump(ACTIVE)
    return (Write(encode(key), payload) for key in slice_keys(count, nodes, instances))


def blueprints(count: int, instances: int) -> Iterator[Write]:
    """So many blueprints of so many instances."""
    payload = dump(Blueprint(instances))
    return (Write(encode_artifact(artifact(number)), payload) for number in range(count))
