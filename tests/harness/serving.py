"""What the tests of the agent need: artifacts that are programs, and a leader's hand."""

from __future__ import annotations

import secrets
import socket
import textwrap
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from cdm.artifacts.packing import pack
from cdm.artifacts.repository import Artifacts
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SLICES, SliceKey, encode
from cdm.model.manifest import Manifest, Readiness, Restart, RestartPolicy, Tcp
from cdm.model.node import Role
from cdm.store.bucket import buckets
from tests.harness.nodes import Nodes, nodes_on
from tests.harness.proc import all_pids, keepers
from tests.harness.servers import NatsServer
from tests.harness.store import connected
from tests.harness.waiting import SLACK, eventually, in_time
from tests.harness.wire import EXPECT, Raw, Record, raw

PORTS = """
    import os, socket
    server = socket.create_server(("127.0.0.1", int(os.environ["CDM_PORT"])))
    while True:
        client, _ = server.accept()
        client.sendall(f"{os.environ['CDM_SLICE']} {os.environ.get('LEVEL', '')}".encode())
        client.close()
"""
"""Answers everybody on its port."""
SLEEP = "import time\ntime.sleep(600)"
ANSWERING = Manifest(
    port="auto",
    readiness=Readiness(check=Tcp(), interval=0.05, timeout=20),
    stop_grace=2,
)
PLAIN = Manifest(stop_grace=2)
ONCE = Restart(policy=RestartPolicy.NEVER)


class Yard:
    """Where programs run that carry one mark: what is pushed here is found again in /proc. Made by `yard`."""

    def __init__(self, folder: Path, artifacts: Artifacts, user: Raw) -> None:
        self.folder = folder
        self.artifacts = artifacts
        self.user = user
        self.mark = f"YARD={secrets.token_hex(8)}"
        self.inside = True
        """Whether manifests are pushed as parts of contents, which nodes of earlier versions cannot read."""

    async def push(
        self, name: str, program: str = PORTS, manifest: Manifest = ANSWERING, *, force: bool = False
    ) -> str:
        """Push a Python script; returns the artifact's path in keys."""
        artifact = Artifact("g", name, "1")
        source = self.folder / f"{name}.py"
        source.write_text(textwrap.dedent(program))
        await self.push_file(artifact, source, manifest, force=force)
        return f"{artifact.group}/{artifact.name}/{artifact.version}"

    async def push_file(self, artifact: Artifact, source: Path, manifest: Manifest, *, force: bool = False) -> None:
        """Push a file."""
        variable, _, value = self.mark.partition("=")
        marked = msgspec.structs.replace(manifest, env={**manifest.env, variable: value})
        packed = pack(source, self.folder)
        await self.artifacts.push(artifact, packed.path, packed.content(marked, inside=self.inside), force=force)

    @property
    def living(self) -> dict[str, list[int]]:
        """Pids of what lives, zombies apart, by slice as in ``CDM_SLICE``."""
        found = defaultdict(list)
        for name in all_pids():
            try:
                environment = Path("/proc", name, "environ").read_bytes().decode().split("\0")
            except OSError:
                continue
            if self.mark in environment:
                shown = [each for each in environment if each.startswith("CDM_SLICE=")]
                found[shown[0].removeprefix("CDM_SLICE=")].append(int(name))
        return dict(found)

    async def exact(self) -> bool:
        """Whether one process lives for each ACTIVE key, none otherwise, and no key is on its way."""
        states = await self.user.slices()
        wanted = {shown(name): 1 for name, state in states.items() if state == "ACTIVE"}
        settled = set(states.values()) <= {"ACTIVE", "LOADED", "FAILED"}
        return settled and wanted == {name: len(pids) for name, pids in self.living.items()}

    async def settles(self, wanted: int, within: float = 20) -> dict[str, Record]:
        """Wait until so many slices are ACTIVE, and nothing else is there; returns their keys."""

        async def settled() -> bool:
            states = await self.user.slices()
            return Counter(states.values()) == Counter({"ACTIVE": wanted}) - Counter() and await self.exact()

        await eventually(settled, within, f"{wanted} slices are ACTIVE, and live")
        found = await self.user.contents("slices")
        return {key: record for key, record in found.items() if not key.startswith("_")}

    async def nothing_left(self, promised: float = 10, slack: float = SLACK) -> None:
        """Wait until nothing lives."""
        await in_time(lambda: not self.living, promised, "nothing lives", slack)


@asynccontextmanager
async def yard(server: NatsServer, folder: Path) -> AsyncIterator[Yard]:
    """A yard on a server."""
    async with connected(server) as connection, raw(server) as user:
        artifacts = Artifacts(connection)
        await artifacts.ensure(create=True)
        yield Yard(folder, artifacts, user)


def shown(name: str) -> str:
    """A slice key, as the slice itself is told."""
    return str(SLICES.decode(name)).removeprefix("slices/")


def ask(port: int, within: float = 10.0) -> str:
    """What a slice says on its port; empty where nobody answers within so many seconds."""
    try:
        with socket.create_connection(("127.0.0.1", port), within) as connection:
            return connection.recv(1000).decode()
    except OSError:
        return ""


class Hand:
    """A leader's hand: it writes commands for one node, and waits for what is reported."""

    def __init__(self, user: Raw, node: str = "n1", term: int = 7) -> None:
        self.user = user
        self.node = node
        self.term = term

    def key(self, artifact: str, ordinal: int = 0) -> str:
        """The name of a slice key."""
        return encode(SliceKey(NodeId(self.node), Artifact(*artifact.split("/")), ordinal))

    async def put(self, key: str, state: str, expect: int | None = None, **fields: Any) -> int:
        """Write a command."""
        headers = None if expect is None else {EXPECT: str(expect)}
        return await self.user.put("slices", key, {"state": state, "term": self.term, **fields}, headers)

    async def reaches(self, key: str, state: str | None, within: float = 10) -> dict[str, Any]:
        """Wait until the key holds this state (None: is gone); returns its value."""
        last: dict[str, Any] = {}

        async def there() -> bool:
            nonlocal last
            record = (await self.user.contents("slices")).get(key)
            last = record.value if record else {}
            return last.get("state") == state

        try:
            await eventually(there, within, f"{key} is {state}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {last}") from None
        return last

    async def up(self, key: str, **fields: Any) -> dict[str, Any]:
        """Load a slice, and activate it."""
        await self.put(key, "LOAD", **fields)
        await self.reaches(key, "LOADED")
        await self.put(key, "ACTIVATE", **fields)
        return await self.reaches(key, "ACTIVE")

    async def unload(self, key: str) -> None:
        """Unload a slice."""
        await self.put(key, "UNLOAD")
        await self.reaches(key, None)


@asynccontextmanager
async def agent_alone(server: NatsServer, folder: Path, **settings: Any) -> AsyncIterator[tuple[Yard, Hand, Nodes]]:
    """A node that only serves, n1, on buckets that are recorded; the test leads it."""
    async with yard(server, folder) as ground:
        await made(server, ground.user)
        async with nodes_on(server) as nodes:
            await nodes.start("n1", role=Role.AGENT, runtime="process", folder=folder / "n1", **settings)
            yield ground, Hand(ground.user), nodes
            nodes.unharmed()
        await ground.nothing_left(0.1, slack=0)
        assert not keepers()


async def made(server: NatsServer, user: Raw) -> None:
    """Make all buckets; what goes through ``slices`` is recorded."""
    await user.record()
    async with connected(server) as connection:
        for bucket in buckets(connection).values():
            await bucket.ensure(create=True)
