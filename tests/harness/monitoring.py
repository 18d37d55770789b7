"""What watches clusters: HTTP beside nodes of this process, a real Prometheus, and promtool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode

import anyio
import anyio.to_thread
import pytest

from cdm.http.address import HttpAddress, listening
from cdm.http.server import HttpServer
from cdm.node.node import Node
from cdm.store.connection import Connection
from tests.harness.paths import ROOT
from tests.harness.servers import free_port
from tests.harness.waiting import eventually, patience
from tests.harness.web import asked

RULES = ROOT / "deploy/prometheus/cdm.rules.yml"
DASHBOARD = ROOT / "deploy/grafana/cdm.json"


def program(name: str) -> str:
    """Where a program of Prometheus is; the test is skipped where it is not installed."""
    if (found := shutil.which(name)) is None:
        pytest.skip(f"{name} is not installed (Debian: prometheus)")
    return found


def promtool(*arguments: str, given: bytes = b"") -> str:
    """Run promtool to its end; fails where it finds anything."""
    done = subprocess.run([program("promtool"), *arguments], input=given, capture_output=True, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def dashboard_queries() -> list[str]:
    """What the panels of the dashboard ask for, and its annotations without their bounds; the interval is a test's."""
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked_for = [target["expr"] for panel in document["panels"] for target in panel.get("targets", ())]
    asked_for += [each["expr"].removesuffix(" > 0") for each in document["annotations"]["list"]]
    return [expression.replace("$__rate_interval", "30s") for expression in asked_for]


def alert_metrics() -> set[str]:
    """The names of all metrics that the alert rules are about."""
    return set(
        re.findall(r"\bcdm_[a-z_]+", "\n".join(re.findall(r"expr: (.*(?:\n {10}.*)?)", RULES.read_text("utf-8"))))
    )


@asynccontextmanager
async def http_of(of: Node | Connection) -> AsyncIterator[str]:
    """HTTP beside a node, where it says that it is, or as `cdm serve` has it on a connection; tells where."""
    known = of.settings.http if isinstance(of, Node) else None
    sockets = listening(HttpAddress("127.0.0.1", known.port if known else 0))
    server = HttpServer(sockets)
    at = "{}:{}".format(*sockets[0].getsockname()[:2])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.run)
        if isinstance(of, Node):
            tasks.start_soon(server.follow_node, of)
        else:
            tasks.start_soon(server.follow, of)
        try:
            yield at
        finally:
            tasks.cancel_scope.cancel()


class Prometheus:
    """One that runs. Made by `prometheus`."""

    def __init__(self, at: str) -> None:
        self._at = at

    async def data(self, path: str, **query: str) -> Any:
        """What its API answers."""
        answer = (await asked(self._at, f"/api/v1/{path}?{urlencode(query)}")).json
        assert answer["status"] == "success", answer
        return answer["data"]

    async def found(self, expression: str) -> list[Any]:
        """The series that a query comes to now."""
        return list((await self.data("query", query=expression))["result"])

    async def without_data(self, expressions: Sequence[str]) -> list[str]:
        """The queries that come to nothing now."""
        return [each for each in expressions if not await self.found(each)]


@asynccontextmanager
async def prometheus(folder: Path, config: str) -> AsyncIterator[Prometheus]:
    """A Prometheus on the loopback with this configuration, and a store of its own, that looks five times a second."""
    at = f"127.0.0.1:{free_port()}"
    often = '{"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "500ms"}'
    (folder / "prometheus.yml").write_text(f"global: {often}\n{config}", encoding="utf-8")
    command = [program("prometheus"), f"--web.listen-address={at}", f"--config.file={folder / 'prometheus.yml'}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = _spawn([*command, f"--storage.tsdb.path={folder / 'data'}"], log)
    try:

        async def ready() -> bool:
            try:
                return (await asked(at, "/-/ready")).status == 200
            except OSError:
                assert process.poll() is None, (folder / "prometheus.log").read_text("utf-8")[-3000:]
                return False

        await eventually(ready, 30, "Prometheus is ready")
        yield Prometheus(at)
    finally:
        process.kill()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(process.wait, patience())


def _spawn(command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    # Not anyio's: it must be possible to end it from wherever.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
