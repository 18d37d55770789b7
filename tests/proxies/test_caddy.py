"""A real Caddy that is told of instances: by files it follows them without another configuration, and drops nothing."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import anyio
import anyio.to_thread
import pytest

from cdm.cli.caddy import CaddyProxy
from cdm.cli.feeding import NotTaken
from cdm.cli.turns import TurnFiles
from cdm.manager.endpoints import Endpoint
from cdm.model.artifact import NodeId
from tests.harness.visitors import Visitor, visiting
from tests.harness.waiting import eventually, patience
from tests.harness.web import asked
from tests.proxies.shown import Shown

pytestmark = [pytest.mark.anyio, pytest.mark.quick]


class Instance(BaseHTTPRequestHandler):
    """Says its port as its version."""

    def do_GET(self) -> None:  # the name that it has to have
        body = f'{{"artifact": "g:web:{self.connection.getsockname()[1]}"}}'.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # likewise
        """Nobody reads it."""


@asynccontextmanager
async def instances(count: int) -> AsyncIterator[list[Endpoint]]:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Instance) for _ in range(count)]
    for each in servers:
        Thread(target=each.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield [Endpoint("127.0.0.1", each.server_address[1], 1.0, NodeId("n"), "1") for each in servers]
    finally:
        for each in servers:
            await anyio.to_thread.run_sync(each.shutdown)
            each.server_close()


def started(command: str, folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log").open("wb") as log:
        line = ["/bin/sh", "-c", f"exec {command}"]
        return subprocess.Popen(line, cwd=folder, stdin=subprocess.DEVNULL, stderr=log, env={"HOME": str(folder)})


@asynccontextmanager
async def caddy(folder: Path) -> AsyncIterator[tuple[str, int]]:
    """Caddy as the documents configure it: its handler's place in the admin API, and where it listens."""
    shown = Shown(folder, Shown.named, "127.0.0.1:8280")
    run, tell = shown.caddy()
    handler = tell.split("--caddy ")[1].split()[0]
    process = started(run, folder)
    try:
        yield handler, shown.ports["caddy"]
    finally:
        process.terminate()
        await anyio.to_thread.run_sync(process.wait, patience())


def listeners(port: int) -> int:
    """How many sockets listen on this port."""
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path("/proc/net", name).read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


async def test_it_follows_files_without_another_configuration(tmp_path: Path) -> None:
    async with instances(3) as found, caddy(tmp_path) as (handler, port):
        proxy = CaddyProxy(handler, TurnFiles(tmp_path / "turns"))

        async def told() -> bool:
            try:
                return await proxy.tell(found[:2])
            except NotTaken:
                return False

        await eventually(told, 30, "Caddy is there")
        # That was another configuration, whose predecessor's server may still be there.
        await eventually(lambda: listeners(port) == 1, what="one server listens")
        visitor = Visitor(port)
        admin, path = handler.removeprefix("http://").split("/", 1)
        before = (await asked(admin, f"/{path}")).body
        async with visiting(visitor, pause=0.0):
            for number in range(12):
                now = found[number % 2 :][:2]
                assert await proxy.tell(now) == (number > 0)
                visitor.answers.clear()
                wanted = {str(each.port) for each in now}

                def all_answer(wanted: set[str] = wanted) -> bool:
                    return set(visitor.answers) >= wanted

                await eventually(all_answer, what="both answer")
        assert not visitor.failures
        assert (await asked(admin, f"/{path}")).body == before
        assert not await proxy.tell(now)
        assert await proxy.tell([])
        await eventually(lambda: listeners(port) == 1, what="one server listens")
        assert " 503 " in await visitor.once()
