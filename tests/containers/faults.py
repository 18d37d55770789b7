"""Four faults that take several hosts: each strikes where it hurts most, and is healed afterwards."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple

from tests.harness.containers import Cluster
from tests.harness.waiting import eventually


class Struck(NamedTuple):
    """A fault that is there."""

    time: float
    """Since when, in seconds since 1970."""
    what: str
    node: str
    """The node that led when it struck."""
    term: int
    beside: frozenset[str] = frozenset()
    """The nodes that are cut off together with a server."""


Fault = Callable[[Cluster], AbstractAsyncContextManager[Struck]]


@asynccontextmanager
async def server_killed(cluster: Cluster) -> AsyncIterator[Struck]:
    """The server that leads the stream of slices dies as in a power cut."""
    server = await cluster.stream_leader()
    struck = await _struck(cluster, server.name)
    await server.do("kill")
    try:
        yield struck
    finally:
        await server.do("start")


@asynccontextmanager
async def server_paused(cluster: Cluster) -> AsyncIterator[Struck]:
    """The server that leads the stream of slices stands still; its connections stay open."""
    server = await cluster.stream_leader()
    struck = await _struck(cluster, server.name)
    await server.do("pause")
    try:
        yield struck
    finally:
        await server.do("unpause")


@asynccontextmanager
async def leader_cut_off(cluster: Cluster) -> AsyncIterator[Struck]:
    """The node that leads reaches nobody; nobody is told."""
    node = await cluster.leader()
    struck = await _struck(cluster, node.name)
    await node.cut_off()
    try:
        yield struck
    finally:
        await node.rejoin()


@asynccontextmanager
async def server_cut_off(cluster: Cluster) -> AsyncIterator[Struck]:
    """The server of the node that leads is cut off from its peers: the leader is on the side of the minority."""
    server = await cluster.server_of(await cluster.leader())
    await cluster.avoid(server)
    clients = await server.clients()
    beside = frozenset(name for name in cluster.nodes if f"cdm node {name}" in clients)
    struck = (await _struck(cluster, server.name))._replace(beside=beside)
    await server.cut_off()
    try:
        yield struck
    finally:
        await server.rejoin()


FAULTS: dict[str, Fault] = {
    "server killed": server_killed,
    "server paused": server_paused,
    "leader cut off": leader_cut_off,
    "server cut off, with the leader": server_cut_off,
}


async def _struck(cluster: Cluster, what: str) -> Struck:
    lease = await cluster.user.lease()
    # The servers run on this machine, by the same clock.
    return Struck(time.time(), what, lease["node"], lease["term"])


async def fail_over(cluster: Cluster, struck: Struck, artifact: str, instances: int = 3, within: float = 60) -> float:
    """Publish a blueprint, however often it takes, and return when its first LOAD was stored, in seconds."""
    await cluster.user.stubborn("blueprints", artifact, instances)
    found: list[float] = []

    def loaded() -> bool:
        at = cluster.recorder.history.first_load(artifact, struck.time)
        found.extend([] if at is None else [at])
        return at is not None

    await eventually(loaded, within, f"{artifact} is loaded")
    return found[0] - struck.time


def take_over(cluster: Cluster, struck: Struck) -> float | None:
    """When another term began, in seconds since the fault; None where the leader stayed."""
    at = cluster.recorder.history.first_take_over(struck.time)
    return None if at is None else at - struck.time


async def replacement(cluster: Cluster, struck: Struck, within: float = 60) -> float:
    """When the first LOAD in place of what ran on a node that was given up was stored, in seconds since the fault.

    It comes in one batch with the deletes of what ran there.
    """
    found: list[float] = []

    def replaced() -> bool:
        gone = [e.time for e in cluster.recorder.history.evicted() if e.key.startswith(f"{struck.node}.")]
        found.extend(at for at in gone if at >= struck.time)
        return bool(found)

    await eventually(replaced, within, f"what ran on {struck.node} is replaced")
    return min(found) - struck.time
