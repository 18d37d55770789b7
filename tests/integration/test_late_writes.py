"""A leader's writes that hang in the network for seconds, and arrive when it has decided without them."""

from __future__ import annotations

import anyio
import pytest

from cdm.model.node import Role
from cdm.model.slice import SliceState
from tests.harness.agents import agents
from tests.harness.nodes import nodes_on
from tests.harness.proxy import proxied
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.waiting import bounded, eventually
from tests.harness.wire import Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

KEY = "org.example/one/1.0.0"


async def slices_of(user: Raw, *states: str) -> list[str]:
    return [key for key, state in (await user.slices()).items() if state in states]


async def test_a_batch_that_hung_in_the_network_never_makes_two_live_of_one_wanted(server: NatsServer) -> None:
    """Its connection broke, its leader still leads, and its term is the right one: only the new fence keeps it out."""
    async with (
        proxied(server) as proxy,
        raw(server) as user,
        nodes_on(proxy, role=Role.MANAGER) as managers,
        nodes_on(server, role=Role.AGENT) as nodes,
        agents(server, "a1", "a2"),
    ):
        await user.record()
        await managers.start("m", lease_ttl=20.0, node_ttl=20.0)
        leader = await managers.leader()
        term = leader.active
        await nodes.start("a1", "a2", node_ttl=20.0)
        proxy.hold(b'"state":"ACTIVATE"')
        await user.put("blueprints", KEY, 1)
        with bounded():
            await proxy.holding.wait()
        (first,) = await slices_of(user, "LOADED")
        await user.put("blueprints", KEY, 0)
        await anyio.sleep(1)
        await proxy.break_connections()
        await eventually(lambda: _none(user), 20, "the leader is back, and has unloaded the slice")
        await user.put("nodes", f"{first.partition('.')[0]}.intent", {"schedule": "cordon"})
        await managers.heard()
        await user.put("blueprints", KEY, 1)
        (second,) = await eventually(lambda: slices_of(user, "ACTIVE"), 20, "another node runs the slice")
        assert second != first
        with bounded():
            await proxy.release()
        await anyio.sleep(1)
        assert await user.slices() == {second: "ACTIVE"}
        live: set[str] = set()
        for record in await user.recorded():
            if record.key in (first, second):
                is_live = not record.gone and SliceState(record.value["state"]).live
                live = live | {record.key} if is_live else live - {record.key}
            assert len(live) < 2, f"two live of one wanted, with {record}"
        assert leader.active == term, "nobody else has led meanwhile"
        managers.unharmed()


async def _none(user: Raw) -> bool:
    return not await user.slices()
