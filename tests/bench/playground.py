"""Where benchmarks are played: real servers, node processes, and clusters made up by writing to the buckets."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import islice
from typing import Any

import anyio
from nats.aio.client import Client

from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.keys import SliceKey, encode, encode_artifact
from cdm.model.node import EXTERNAL
from cdm.model.slice import SliceState, SliceValue
from cdm.node.node import Node, NodeSettings
from cdm.store.bucket import MAX_BATCH, Bucket, Write, buckets, dump
from cdm.store.connection import Access, Connection, connect
from tests.bench.measure import peak_memory
from tests.harness.processes import environment
from tests.harness.servers import NatsServer, raw_client, running_cluster, running_server

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
        config = {**self.slices._config(self.replicas), "name": f"KV_{name}", "subjects": [f"$KV.{name}.>"]}
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

        await until(held, within, POLL)
        return time.perf_counter()

    async def caught_up(self, stream: str, consumers: int, within: float = 60.0) -> None:
        """Wait until so many consumers of a stream exist and have been given everything."""

        async def done() -> bool:
            found = (await self.connection.api(f"CONSUMER.LIST.{stream}")).get("consumers") or []
            return len(found) >= consumers and all(each["num_pending"] == 0 for each in found)

        await until(done, within)

    def node(self, name: str = "bench", **settings: Any) -> Node:
        """The product's parts, wired but not running."""
        return Node(
            NodeSettings(NodeId(name), Access((self.servers[0].url,)), runtime=EXTERNAL, **settings), self.connection
        )


async def until(predicate: Callable[[], Awaitable[bool]], within: float, pause: float = 0.02) -> None:
    """Wait until something is so."""
    with anyio.fail_after(within):
        while not await predicate():  # noqa: ASYNC110  # nothing tells when it is so
            await anyio.sleep(pause)


@asynccontextmanager
async def playground(*, servers: int = 1, monitoring: bool = False) -> AsyncIterator[Playground]:
    """A fresh server, or cluster, for the time of the ``with`` block."""
    replicas = 1 if servers == 1 else 3
    arguments = ["-m", "-1"] if monitoring else []
    if servers == 1:
        async with running_server(arguments=arguments) as server, _on([server], replicas) as found:
            yield found
    else:
        async with running_cluster(servers) as cluster, _on(cluster, replicas) as found:
            yield found


@asynccontextmanager
async def _on(servers: Sequence[NatsServer], replicas: int) -> AsyncIterator[Playground]:
    urls = tuple(server.url for server in servers)
    async with connect(Access(urls), name="bench") as connection, raw_client(*urls) as client:
        found = Playground(servers, connection, client, replicas)
        for bucket in found.buckets.values():
            await bucket.ensure(create=True, replicas=replicas)
        yield found


class NodeProcess:
    """A real ``cdm node``, logging as it does by default. Made by `node_process`."""

    def __init__(self, on: Playground, name: str, *options: str) -> None:
        self.name = name
        self._log = on.servers[0].folder / f"{name}.log"
        command = [sys.executable, "-m", "cdm", "node", "--id", name, "--server", on.urls, *options]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment()
            )

    def check(self) -> None:
        """See to it that it runs."""
        if self._process.poll() is not None:
            raise AssertionError(f"{self.name} ended with {self._process.returncode}: {self._log.read_text()[-2000:]}")

    @property
    def peak(self) -> float:
        """The most bytes that it ever had resident."""
        self.check()
        return peak_memory(self._process.pid)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait(self) -> None:
        """Wait for its end."""
        self._process.wait(10)

    def end(self) -> None:
        """Kill it, if it runs."""
        if self._process.poll() is None:
            self._process.kill()
        self.wait()


@contextmanager
def node_process(on: Playground, name: str, *options: str) -> Iterator[NodeProcess]:
    """A real ``cdm node``, killed at the end of the ``with`` block."""
    process = NodeProcess(on, name, *options)
    try:
        yield process
    finally:
        process.end()


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
