"""Containers to play with: NATS servers and `cdm node`, that are killed, paused and cut off, and always removed.

Servers talk to each other on a network of their own, and to clients on another: so a server can be cut off from its
peers while its clients still reach it.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any
from urllib.request import urlopen

import anyio
from anyio.to_thread import run_sync
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from cdm.model.keys import LAYOUTS
from cdm.store.bucket import Bucket
from cdm.store.connection import Access, connect
from cdm.store.watch import Watch
from tests.containers.recorder import Recorder, recording
from tests.harness.agents import Agents
from tests.harness.engine import Images
from tests.harness.paths import ROOT
from tests.harness.servers import free_port, raw_client
from tests.harness.store import Mirror
from tests.harness.waiting import eventually, patience
from tests.harness.wire import Raw, patiently

NAMES = ("node-1", "node-2", "node-3")


@contextmanager
def network(**options: Any) -> Iterator[Network]:
    """A network, removed afterwards."""
    made = Network(docker_network_kw=options)
    try:
        with made:
            yield made
    finally:
        made._docker.client.close()


class Box:
    """One container."""

    def __init__(self, name: str, container: DockerContainer, network: Network, alias: str) -> None:
        self.name = name
        self.container = container
        self._network = network
        self._alias = alias

    @property
    def _engine(self) -> Any:
        return self.container.get_wrapped_container()

    async def do(self, action: str, *arguments: str) -> None:
        """``start``, ``kill``, ``stop``, ``pause`` or ``unpause`` it; done when this returns."""
        await run_sync(getattr(self._engine, action), *arguments)

    async def cut_off(self) -> None:
        """Take it from its network: nobody is told, packets are lost from now on."""
        await run_sync(self._network._unwrap_network.disconnect, self._engine.id)

    async def rejoin(self) -> None:
        """Put it back, under the same name and perhaps another address."""
        await run_sync(self._network.connect, self._engine.id, [self._alias])

    async def address(self) -> str:
        """Its address on the network that it was started on."""
        (found,) = (await self.facts())["NetworkSettings"]["Networks"].values()
        return str(found["IPAddress"])

    async def log(self) -> str:
        """What it wrote."""
        return (await run_sync(self._engine.logs)).decode(errors="replace")  # type: ignore[no-any-return]

    async def facts(self) -> dict[str, Any]:
        """What the engine knows of it now."""
        await run_sync(self._engine.reload)
        return self._engine.attrs  # type: ignore[no-any-return]


class Server(Box):
    """A NATS server. Its own network is the one of the servers; clients always reach it."""

    def __init__(self, name: str, container: DockerContainer, network: Network, alias: str, ports: list[int]) -> None:
        super().__init__(name, container, network, alias)
        self._ports = ports

    @property
    def url(self) -> str:
        """Where the test connects."""
        return f"nats://{self.container.get_container_host_ip()}:{self._ports[0]}"

    async def clients(self) -> list[str]:
        """Names of the clients that are connected to it."""
        host = self.container.get_container_host_ip()

        def ask() -> Any:
            with urlopen(f"http://{host}:{self._ports[1]}/connz?limit=1024", timeout=patience()) as answer:
                return json.load(answer)

        found = await run_sync(ask)
        return [each.get("name", "") for each in found["connections"]]


class Member(Box):
    """A `cdm node`."""

    async def turns(self, health: str, within: float = 40) -> None:
        """Wait until the engine finds it so: ``healthy`` or ``unhealthy``."""

        async def look() -> bool:
            return str((await self.facts())["State"]["Health"]["Status"]) == health

        await eventually(look, within, f"{self.name} is {health}")

    async def events(self, event: str) -> list[dict[str, Any]]:
        """The lines of its log that tell of such an event."""
        lines = [json.loads(line) for line in (await self.log()).splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]


def moment(line: dict[str, Any]) -> float:
    """When a line was logged, in seconds since 1970."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()


class Cluster:
    """A cluster in containers. Made by `running`."""

    def __init__(
        self,
        servers: Sequence[Server],
        user: Raw,
        recorder: Recorder,
        mirrors: Mapping[str, Mirror],
        clients: AsyncExitStack,
    ) -> None:
        self.servers = {server.name: server for server in servers}
        self.nodes: dict[str, Member] = {}
        self.user = user
        self.recorder = recorder
        self.mirrors = mirrors
        self._clients = clients

    async def stream_leader(self, bucket: str = "slices") -> Server:
        """The server that leads a bucket's stream."""
        info = await self.user.api(f"STREAM.INFO.KV_{bucket}")
        return self.servers[info["cluster"]["leader"]]

    async def leader(self) -> Member:
        """The node that holds the lease, as soon as there is one."""
        found = ""

        async def look() -> bool:
            nonlocal found
            found = (await self.user.lease()).get("node", "")
            return bool(found)

        await eventually(lambda: patiently(look), 40, "a node leads")
        return self.nodes[found]

    async def server_of(self, node: Member) -> Server:
        """The server that a node is connected to."""
        for server in self.servers.values():
            if f"cdm node {node.name}" in await server.clients():
                return server
        raise AssertionError(f"{node.name} is connected to no server")

    async def avoid(self, server: Server) -> None:
        """Let user and agents speak to the other servers from now on."""
        others = [each.url for each in self.servers.values() if each is not server]
        self.user.client = await self._clients.enter_async_context(raw_client(*others))

    async def exact(self, within: float = 40) -> None:
        """Wait until everything is as the blueprints want it, and all that was stored is recorded."""

        async def look() -> bool:
            return not (await self.recorder.complete(self.user)).end()

        try:
            await eventually(lambda: patiently(look), within)
        except AssertionError:
            raise AssertionError(f"not exact in time: {self.recorder.history.end()}") from None

    async def mirrors_are_equal(self, within: float = 20) -> None:
        """Wait until the mirrors in this process equal the buckets."""

        async def look() -> bool:
            for name, mirror in self.mirrors.items():
                contents = await self.user.contents(name)
                if mirror.revisions != {key: record.sequence for key, record in contents.items()}:
                    return False
            return True

        await eventually(lambda: patiently(look), within, "mirrors equal the buckets")


def nats_server(images: Images, clients: Network, alias: str, ports: Sequence[int]) -> DockerContainer:
    """A NATS server with the configuration of the repository; ``ports`` are this machine's for clients and monitor."""
    return (
        DockerContainer(images.nats)
        .with_command(["--config", "/etc/nats/cluster.conf"])
        .with_env("NATS_NAME", alias)
        .with_volume_mapping(ROOT / "nats", "/etc/nats")
        .with_network(clients)
        .with_network_aliases(f"client-{alias}")
        .with_bind_ports(4222, ports[0])
        .with_bind_ports(8222, ports[1])
    )


def cdm(images: Images, clients: Network, name: str, *arguments: str, **variables: str) -> DockerContainer:
    """A container of cdm's image whose host name is the node's id; it finds the servers unless told otherwise."""
    container = DockerContainer(images.cdm).with_network(clients).with_network_aliases(name)
    container.with_envs(NATS_URL=",".join(f"nats://client-nats-{number}:4222" for number in (1, 2, 3)))
    container.with_envs(CDM_REPLICAS="3", CDM_LOG_FORMAT="json", CDM_LOG_LEVEL="debug")
    container.with_envs(CDM_RUNTIME="external")  # slices are left to agents of the test, which fail as it wants
    container.with_envs(**variables)
    if arguments:
        container.with_command([*arguments])
    return container.with_kwargs(hostname=name)


@asynccontextmanager
async def running(
    images: Images, names: Sequence[str] = NAMES, *, managers: Sequence[str] = (), **variables: str
) -> AsyncIterator[Cluster]:
    """Three servers with R3 buckets, recorded from the start, nodes, their agents, and mirrors in this process.

    Args:
        images: what is run.
        names: the nodes. Agents of the test see to their slices.
        managers: nodes that only manage. With any, the other ones only run slices, and see to them themselves.
        variables: of all nodes.
    """
    with ExitStack() as stack:
        # Without a way out of it: published ports go by the other network.
        routes = stack.enter_context(network(internal=True))
        clients = stack.enter_context(network())
        servers = []
        for number in (1, 2, 3):
            name = f"nats-{number}"
            ports = [free_port(), free_port()]
            container = nats_server(images, clients, name, ports)
            await run_sync(stack.enter_context, container)
            servers.append(Server(name, container, routes, name, ports))
            await servers[-1].rejoin()
        urls = [server.url for server in servers]
        async with AsyncExitStack() as more:
            user = Raw(await more.enter_async_context(raw_client(*urls)))
            await eventually(lambda: patiently(lambda: _has_meta_leader(user)), 30, "the servers have a meta leader")
            init = await run_sync(stack.enter_context, cdm(images, clients, "init", "init"))
            assert await run_sync(init.wait) == 0, init.get_logs()
            recorder = await more.enter_async_context(recording(user, urls))
            made = Cluster(servers, user, recorder, await more.enter_async_context(mirrors(urls)), more)
            for name in (*managers, *names):
                role = {"CDM_ROLE": "manager" if name in managers else "agent", "CDM_RUNTIME": "process"}
                container = cdm(images, clients, name, **(role if managers else {}), **variables)
                await run_sync(stack.enter_context, container)
                made.nodes[name] = Member(name, container, clients, name)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(Agents(user, set() if managers else {*names}).run)
                everybody = (*managers, *names)
                await eventually(lambda: patiently(lambda: _registered(user, everybody)), 40, "all are registered")
                await made.leader()
                try:
                    yield made
                finally:
                    # What a test asserts is not raised here: pytest shows this where the test failed.
                    if os.environ.get("CDM_TEST_LOGS"):
                        for box in (*made.servers.values(), *made.nodes.values()):
                            print(f"--- {box.name}", box.container.get_logs()[1].decode(errors="replace"), sep="\n")
                tasks.cancel_scope.cancel()


async def _has_meta_leader(user: Raw) -> bool:
    return len(await user.api("INFO", timeout=5)) > 0


async def _registered(user: Raw, names: Sequence[str]) -> bool:
    return {*names} <= {*await user.registrations()}


@asynccontextmanager
async def mirrors(urls: Sequence[str]) -> AsyncIterator[dict[str, Mirror]]:
    """Mirrors of the buckets as every node has them, in this process."""
    found: dict[str, Mirror] = {}
    async with connect(Access(servers=tuple(urls)), name="mirrors") as connection, anyio.create_task_group() as tasks:
        for layout in LAYOUTS:
            found[layout.name] = Mirror()
            watch = Watch(Bucket(connection, layout), found[layout.name], on_reset=found[layout.name].reset)
            tasks.start_soon(watch.run)
        yield found
        tasks.cancel_scope.cancel()
