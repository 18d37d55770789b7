"""Three servers, three replicas: one of them dies, and the end state is exact."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from cdm.errors import StoreError
from cdm.model.artifact import NodeId
from cdm.model.node import EXTERNAL, Role
from cdm.node.node import NodeSettings
from cdm.node.node import node as make_node
from cdm.store.connection import Access, connect
from tests.harness.agents import agents
from tests.harness.processes import processes
from tests.harness.servers import FORGIVEN, NatsServer, running_cluster
from tests.harness.waiting import bounded, eventually
from tests.harness.wire import Raw, patiently, raw, runs_exactly

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]


async def stream_leader(user: Raw, servers: list[NatsServer]) -> NatsServer:
    info = await user.api("STREAM.INFO.KV_slices")
    return servers[int(info["cluster"]["leader"].removeprefix("s")) - 1]


async def test_the_stream_leaders_server_dies(tmp_path: Path) -> None:
    async with running_cluster() as servers, raw(servers) as user:
        access = Access(servers=tuple(server.url for server in servers))
        async with make_node(NodeSettings(NodeId("first"), access, replicas=3, runtime=EXTERNAL)):
            pass  # it makes the buckets
        names = ("n1", "n2", "n3")
        # These say nothing of replicas: what is there is left as it is.
        async with processes(servers, user, tmp_path, *names, node_ttl=4) as running, agents(servers, *names):
            for bucket in ("blueprints", "slices", "nodes", "status"):
                info = await user.api(f"STREAM.INFO.KV_{bucket}")
                assert info["config"]["num_replicas"] == 3, f"{bucket} has lost its replicas"
            wanted: dict[str, int] = {}

            async def edit() -> None:
                for number in range(60):
                    name = f"g/n/{number % 12}"
                    wanted[name] = (number * 7) % 5
                    await user.stubborn("blueprints", name, wanted[name])
                    await anyio.sleep(0.02)

            victim = await stream_leader(user, servers)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(edit)
                await anyio.sleep(0.3)
                victim.kill()

            async def exact() -> bool:
                return await patiently(lambda: runs_exactly(user, wanted))

            await eventually(exact, 40, "the end state is exact with two servers left")
            await victim.start()
            await user.stubborn("blueprints", "g/n/0", 4)
            wanted["g/n/0"] = 4
            await eventually(exact, 20, "and with three again")
            running.unharmed()
            assert not [p.name for p in running.all.values() if "node is dead" in p.log], "nobody is evicted"

            async def led() -> bool:
                return "term" in await user.lease()  # a lease that ended on a slow machine is taken again

            await eventually(led, 20)


@pytest.mark.parametrize("role", [Role.ALL, Role.AGENT])
async def test_a_node_waits_for_a_cluster_that_is_only_coming_up(role: Role) -> None:
    async with running_cluster() as servers:
        access = Access(servers=(servers[0].url,))
        async with connect(access, name="test") as connection:

            async def alone() -> bool:
                """The one that is left may lead for a while yet, and answer."""
                try:
                    await connection.check_server()
                except StoreError:
                    return True
                return False

            for server in servers[1:]:
                server.kill()
            await eventually(alone, 40, "it knows that it is alone")
        settings = NodeSettings(NodeId("n1"), access, role, runtime=EXTERNAL)
        ready = anyio.Event()

        async def start() -> None:
            async with make_node(settings):
                ready.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            await anyio.sleep(6.5)  # longer than any request waits
            assert not ready.is_set()
            for server in servers[1:]:
                await server.start()
            with bounded(40):
                await ready.wait()
