"""The image: one NATS server and nodes in containers, each with an address of its own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest
from testcontainers.core.network import Network

from tests.harness.agents import Agents
from tests.harness.containers import Member, Server, cdm, nats_server, network
from tests.harness.engine import Images
from tests.harness.servers import FORGIVEN, free_port, raw_client
from tests.harness.waiting import Stopwatch, eventually
from tests.harness.wire import Raw, patiently

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(900, func_only=True),
    pytest.mark.usefixtures("sockets_forgiven"),
    FORGIVEN,
]
ALONE = {"NATS_URL": "nats://client-nats-1:4222", "CDM_REPLICAS": "1"}


@pytest.fixture
def clients(engine: Images) -> Iterator[Network]:
    with network() as made:
        yield made


@pytest.fixture
async def server(engine: Images, clients: Network) -> AsyncIterator[Server]:
    """One server that is a cluster of its own; it is cut off from its clients."""
    ports = [free_port(), free_port()]
    container = nats_server(engine, clients, "nats-1", ports)
    container.with_command(["--jetstream", "--name", "nats-1", "--http_port", "8222"])
    with container:
        yield Server("nats-1", container, clients, "client-nats-1", ports)


@pytest.fixture
async def user(server: Server) -> AsyncIterator[Raw]:
    async with raw_client(server.url) as client:
        yield Raw(client)


async def test_nodes_in_containers_serve_a_blueprint_and_stop_in_good_order(
    engine: Images, clients: Network, user: Raw
) -> None:
    one, two = cdm(engine, clients, "one", **ALONE), cdm(engine, clients, "two", **ALONE)
    with one, two:
        members = [Member("one", one, clients, "one"), Member("two", two, clients, "two")]
        assert len({await member.address() for member in members}) == 2
        assert one.exec(["id", "-u"]).output.strip() != b"0"

        async def registered() -> bool:
            return {"one", "two"} == {*await user.registrations()}

        await eventually(lambda: patiently(registered), 20, "both are registered under their host names")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Agents(user, {"one", "two"}).run)
            await user.put("blueprints", "g/n/1", {"instances": 2, "max_per_node": 1})

            async def are(expected: dict[str, str]) -> bool:
                return await user.slices() == expected

            await eventually(lambda: are({"one.g/n/1": "ACTIVE", "two.g/n/1": "ACTIVE"}), 10)
            for member in members:
                await member.turns("healthy")
            told = one.exec(["cdm", "status", "--json"])
            assert told.exit_code == 0
            assert {node["node"] for node in json.loads(told.output)["nodes"]} == {"one", "two"}
            # SIGTERM reaches cdm itself: it signs off, and what it ran runs elsewhere at once.
            await user.put("blueprints", "g/n/1", 2)
            watch = Stopwatch()
            await members[0].do("stop")
            assert watch.took < watch.bound(5), "it had to be killed"
            assert (await members[0].facts())["State"]["ExitCode"] == 0
            assert [*await user.registrations()] == ["two"]
            await eventually(lambda: are({"two.g/n/1": "ACTIVE", "two.g/n/1/1": "ACTIVE"}), 5)
            tasks.cancel_scope.cancel()


async def test_health_tells_the_truth(engine: Images, clients: Network, server: Server) -> None:
    """A node is healthy while its own process answers over NATS, and at no other time."""
    container = cdm(engine, clients, "one", **ALONE)
    # The image's own check, only more often.
    container.with_kwargs(hostname="one", healthcheck={"interval": 10**9, "timeout": 10 * 10**9, "retries": 1})
    with container:
        member = Member("one", container, clients, "one")
        assert (await member.facts())["Config"]["Healthcheck"]["Test"] == ["CMD", "cdm", "health"]
        await member.turns("healthy")
        await member.cut_off()
        await member.turns("unhealthy")
        await member.rejoin()
        await member.turns("healthy")
        await member.do("kill", "SIGSTOP")  # it is there, registered and connected, and does nothing
        await member.turns("unhealthy")
        await member.do("kill", "SIGCONT")
        await member.turns("healthy")
        await server.do("pause")
        await member.turns("unhealthy")
        await server.do("unpause")
        await member.turns("healthy")
