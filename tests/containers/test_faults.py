"""Three servers, three replicas, three nodes, each in a container: what was promised is judged on all that was stored.

The auditor (`tests.containers.auditor`) records from before the first node, and knows nothing of cdm.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection

import pytest

from tests.containers.faults import (
    Struck,
    fail_over,
    leader_cut_off,
    server_cut_off,
    server_killed,
    server_paused,
)
from tests.harness.containers import Cluster, moment, running
from tests.harness.engine import Images
from tests.harness.servers import FORGIVEN
from tests.harness.waiting import Stopwatch, eventually, in_time
from tests.harness.wire import patiently

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(900, func_only=True),  # not the time for which others use the engine
    pytest.mark.usefixtures("sockets_forgiven"),
    FORGIVEN,
]

LEASE_TTL = NODE_TTL = 10.0
"""The defaults, as are all times here."""
BEFORE = {"g/one/1": 1, "g/three/1": 3, "g/five/1": 5}


@pytest.fixture
async def cluster(engine: Images) -> AsyncIterator[Cluster]:
    """A cluster that serves some blueprints."""
    async with running(engine) as made:
        for artifact, instances in BEFORE.items():
            await made.user.stubborn("blueprints", artifact, instances)
        await made.exact()
        yield made


async def judge(cluster: Cluster, evicted: Collection[str] = ()) -> None:
    """All promises, on the whole history; slices were taken away from these nodes only."""
    await cluster.exact()
    await cluster.mirrors_are_equal()
    history = await cluster.recorder.complete(cluster.user)
    if history.violations():
        print(history.story())
    assert history.violations() == []
    assert cluster.recorder.contradictions == []
    assert {entry.key.partition(".")[0] for entry in history.evicted()} <= {*evicted}
    for node in cluster.nodes.values():
        assert (await node.facts())["State"]["Running"], f"{node.name} has ended:\n{await node.log()}"


async def test_the_stream_leaders_server_dies(cluster: Cluster) -> None:
    async with server_killed(cluster) as struck:
        await fail_over(cluster, struck, "g/new/1")
        await cluster.user.stubborn("blueprints", "g/five/1", 2)
        await cluster.exact()
    await cluster.user.stubborn("blueprints", "g/three/1", 4)
    await judge(cluster)


async def test_a_server_stands_still_and_goes_on(cluster: Cluster) -> None:
    async with server_paused(cluster) as struck:
        await fail_over(cluster, struck, "g/new/1")
        await cluster.exact()
    await cluster.user.stubborn("blueprints", "g/three/1", 4)
    await judge(cluster)


async def test_the_leader_is_cut_off_and_comes_back(cluster: Cluster) -> None:
    async with leader_cut_off(cluster) as struck:
        watch = Stopwatch()
        took = await fail_over(cluster, struck, "g/new/1")
        bound = watch.bound(LEASE_TTL, slack=0)
        assert took < watch.bound(LEASE_TTL)
        await cluster.exact()
        await stepped_down_in_time(cluster, struck, bound)
        await eventually(lambda: patiently(lambda: gave_up(cluster, struck.node)), 30, "it is given up")
    await eventually(lambda: patiently(lambda: registered(cluster, struck.node)), 30, "it is back")
    await eventually(lambda: patiently(lambda: met(cluster, struck)), 30, "who leads knows that")
    await cluster.user.stubborn("blueprints", "g/six/1", 6)  # some of them for the one that came back
    await judge(cluster, {struck.node})
    slices = await cluster.user.slices()
    assert any(key.startswith(f"{struck.node}.g/six/1") for key in slices)
    await knows_everything(cluster, struck.node)


async def test_a_server_is_cut_off_with_the_leader_on_its_side(cluster: Cluster) -> None:
    async with server_cut_off(cluster) as struck:
        await fail_over(cluster, struck, "g/new/1")
        # Long enough for registrations that nobody can renew to expire.
        await eventually(lambda: time.time() > struck.time + 2 * NODE_TTL, 30)
        await cluster.exact()
    await cluster.user.stubborn("blueprints", "g/three/1", 4)
    # The nodes on that side go to other servers; where that took longer than their TTL, they were given up. No others.
    await judge(cluster, struck.beside)


async def stepped_down_in_time(cluster: Cluster, struck: Struck, bound: float) -> None:
    """A leader that reaches nobody pauses its writes before its lease can end, by its own clock."""
    node = cluster.nodes[struck.node]

    async def over() -> list[float]:
        return [moment(line) for line in await node.events("leadership is over")]

    at = (await in_time(over, LEASE_TTL, "it steps down"))[-1]
    last = cluster.recorder.history.last_renewal(struck.term)
    assert struck.time < at < last + bound


async def gave_up(cluster: Cluster, node: str) -> bool:
    """Nothing is on the node any more."""
    return not any(key.startswith(f"{node}.") for key in await cluster.user.slices())


async def registered(cluster: Cluster, node: str) -> bool:
    return node in await cluster.user.registrations()


async def met(cluster: Cluster, struck: Struck) -> bool:
    """Whether who leads knows that the node is back: a blueprint that is written later may go past that."""
    joined = await (await cluster.leader()).events("node joined")
    return any(line["node"] == struck.node and moment(line) > struck.time for line in joined)


async def knows_everything(cluster: Cluster, name: str) -> None:
    """Its mirrors are equal to the buckets: when it is the last one and leads, it does just what is to be done."""
    others = [node for node in cluster.nodes.values() if node.name != name]
    for node in others:
        await node.do("stop")
        assert (await node.facts())["State"]["ExitCode"] == 0

    async def leads() -> bool:  # any replica may tell it, also one that is behind
        return (await cluster.leader()).name == name

    await eventually(lambda: patiently(leads), 30, f"{name} leads")
    await cluster.exact()
    assert (await cluster.recorder.complete(cluster.user)).violations() == []

    async def has_all() -> bool:
        return {key.partition(".")[0] for key in await cluster.user.slices()} == {name}

    await eventually(lambda: patiently(has_all), 30, f"all is on {name}")
