"""`compose.yaml` as it stands: accepted, brought up, used, and taken down."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping

import docker
import pytest
from anyio.to_thread import run_sync

from tests.docs.documents import commands, example, inline
from tests.harness.engine import Images, without
from tests.harness.paths import ROOT
from tests.harness.processes import command_line
from tests.harness.servers import FORGIVEN, free_port, raw_client
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, on_nodes, patiently

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(900, func_only=True),
    pytest.mark.usefixtures("sockets_forgiven"),
    FORGIVEN,
]
SERVICES = ["nats-1", "nats-2", "nats-3", "node-1", "node-2", "node-3"]
NODES = ("node-1", "node-2", "node-3")
MONITORING = {"prometheus", "grafana"}


class Compose:
    """The file, under a project name of the test's own."""

    def __init__(self, command: list[str], variables: Mapping[str, str]) -> None:
        self.project = f"cdm-test-{secrets.token_hex(4)}"
        self._command = [*command, "--file", str(ROOT / "compose.yaml"), "--project-name", self.project]
        self._environment = {**os.environ, **variables}

    def run(self, *arguments: str) -> str:
        """Run it to its end; fails where it fails."""
        ended = subprocess.run(
            [*self._command, *arguments], env=self._environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, f"{arguments}: {ended.stderr}"
        return ended.stdout

    def inspect(self, service: str) -> object:
        """What the engine knows of a service's container."""
        container = self.run("ps", "--quiet", service).strip()
        return json.loads(subprocess.check_output(["docker", "inspect", container]))[0]

    def health(self, service: str) -> str:
        """What the engine thinks of it."""
        found = self.inspect(service)
        assert isinstance(found, dict)
        return str(found["State"]["Health"]["Status"])


def _command() -> list[str]:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is None:
            continue
        if subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0:
            return command
    return without("there is no docker compose")


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def compose(engine: Images, port: int) -> Iterator[Compose]:
    made = Compose(_command(), {"NATS_IMAGE": engine.nats, "CDM_IMAGE": engine.cdm, "NATS_PORT": str(port)})
    try:
        yield made
    finally:
        made.run("down", "--volumes")


def test_it_is_accepted_without_any_variable(engine: Images) -> None:
    made = Compose(_command(), {})
    for name in ("NATS_IMAGE", "CDM_IMAGE", "PYTHON_IMAGE", "NATS_PORT"):
        made._environment.pop(name, None)
    # An older docker-compose also names those of profiles that are not chosen.
    assert sorted({*made.run("config", "--services").split()} - MONITORING) == SERVICES
    config = made.run("config")
    base = (ROOT / "Dockerfile").read_text(encoding="utf-8").partition("ARG PYTHON_IMAGE=")[2].partition("\n")[0]
    assert base in config, "both files have the same default"
    assert "nats:2" in config


def test_monitoring_is_a_profile(engine: Images) -> None:
    profile = inline("docker compose --profile monitoring up --detach").split()[2:4]
    config = Compose(_command(), {}).run(*profile, "config")
    assert "image: prom/prometheus:" in config
    assert "image: grafana/grafana:" in config


def shown() -> list[list[str]]:
    """What the documents have users type, but with an image that is there, and without a TTY."""
    lines = [line.removeprefix("docker compose ") for line in commands("Containers")]
    return [line.replace("--build", "--no-build").replace("exec ", "exec -T ").split() for line in lines]


async def test_up_used_and_down(compose: Compose, port: int) -> None:
    up, status, down = shown()
    await run_sync(compose.run, *up)
    async with raw_client(f"nats://127.0.0.1:{port}") as client:
        user = Raw(client)
        for node in NODES:
            await eventually(lambda: run_sync(_healthy, compose, node), 60)  # noqa: B023  # it is awaited here
        for bucket in ("blueprints", "slices", "nodes", "status"):
            assert (await user.api(f"STREAM.INFO.KV_{bucket}"))["config"]["num_replicas"] == 3

        async def spread(expected: dict[str, int]) -> bool:
            slices = await user.slices()
            return on_nodes(slices) == expected and {*slices.values()} == {"ACTIVE"}

        told = await run_sync(compose.run, *status)
        assert all(f"{node} " in told for node in NODES), told
        push = ("artifact", "push", "org.example:slice:1.0.0", str(example("hello.py")))
        manifest = str(example("hello.toml"))
        pushed = await command_line(*push, "--manifest", manifest, "--server", f"nats://127.0.0.1:{port}")
        assert pushed.returncode == 0, pushed.stderr
        await user.put("blueprints", "org.example/slice/1.0.0", 3)
        await eventually(lambda: patiently(lambda: spread({"node-1": 1, "node-2": 1, "node-3": 1})), 20)
        await user.put("blueprints", "org.example/slice/1.0.0", 4)
        await run_sync(compose.run, "stop", "node-2")

        async def moved() -> bool:
            slices = await user.slices()
            return on_nodes(slices) == {"node-1": 2, "node-3": 2} and {*slices.values()} == {"ACTIVE"}

        await eventually(lambda: patiently(moved), 20)
        assert {*await user.registrations()} == {"node-1", "node-3"}
    await run_sync(compose.run, *down)
    assert left_of(compose.project) == []


def _healthy(compose: Compose, node: str) -> bool:
    return compose.health(node) == "healthy"


def left_of(project: str) -> list[str]:
    """Containers, networks and volumes of a project that are still there."""
    engine = docker.from_env()
    try:
        label = {"label": f"com.docker.compose.project={project}"}
        kinds = (engine.containers.list(all=True, filters=label), engine.networks.list(filters=label))
        return [each.name for kind in (*kinds, engine.volumes.list(filters=label)) for each in kind]
    finally:
        engine.close()
