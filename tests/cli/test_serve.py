"""``cdm serve`` and ``cdm node --http`` as their users meet them, and what becomes of errors in handlers."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cdm.cli import Exit
from cdm.cli.http_server import http_server
from cdm.cli.serve import DEFAULT
from cdm.dispatch.messages import ValuePut
from cdm.errors import UsageError
from cdm.http import address, app, connections
from cdm.http import server as http_server_module
from cdm.http.desk import Desk, Section
from cdm.http.sending import Whole
from cdm.http.server import NOT_ALLOWED, HttpServer
from cdm.model.artifact import NodeId
from cdm.model.keys import LEASE
from cdm.model.node import Lease
from tests.cli.test_cli import run
from tests.harness import forked
from tests.harness.processes import Processes, command_line, environment
from tests.harness.secure import fortress
from tests.harness.servers import NatsServer, free_port
from tests.harness.waiting import bounded, eventually, patience
from tests.harness.web import asked

pytestmark = pytest.mark.anyio


@pytest.mark.quick
@pytest.mark.parametrize("typed", ["foo:x", "", "a:b:1", "1.2.3.4:70000", "http://x:1", "[::1", "a b:1"])
def test_what_is_no_address_is_refused(typed: str) -> None:
    with pytest.raises(UsageError, match="write HOST:PORT"):
        address.http_address(typed)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("typed", "meant"),
    [("h:1", ("h", 1)), (":0", ("", 0)), ("h", ("h", 8280)), ("[::1]:5", ("::1", 5)), (" [::1] ", ("::1", 8280))],
)
def test_addresses_are_read_as_people_type_them(typed: str, meant: tuple[str, int]) -> None:
    assert address.http_address(typed) == meant


@pytest.mark.quick
def test_where_it_cannot_listen_is_said_in_a_line_with_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address.DEFAULT == DEFAULT
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = run("serve", "--http", f"127.0.0.1:{port}")
    assert refused.returncode == Exit.CONFLICT
    assert refused.stderr.count("\n") == 1
    assert f"--http 127.0.0.1:{port} (CDM_HTTP): Address already in use" in refused.stderr
    for typed in ("192.0.2.4:80", "nowhere.invalid:80", "x:y"):
        refused = run("serve", env={"CDM_HTTP": typed})
        assert refused.returncode == Exit.USAGE
        assert refused.stderr.count("\n") == 1
        assert "CDM_HTTP" in refused.stderr
    monkeypatch.delitem(sys.modules, "cdm.http.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UsageError, match=r"needs uvicorn, which is not installed: pip install 'cdm\[http\]'"):
        http_server("127.0.0.1:0")


async def test_it_is_served_also_while_nats_is_not_there_and_ends_with_sigterm(tmp_path: Path) -> None:
    at, errors = f"127.0.0.1:{free_port()}", tmp_path / "errors"
    with errors.open("wb") as told:
        process = forked.started(
            "serve", "--http", at, "--server", f"nats://127.0.0.1:{free_port()}", env=environment(), stderr=told
        )
    try:
        await eventually(lambda: "cannot connect to NATS" in errors.read_text(), 30)
        assert (await asked(at, "/nothing")).status == 404
        process.send_signal(signal.SIGTERM)
        assert await anyio.to_thread.run_sync(process.wait, patience()) == 0
    finally:
        process.kill()
        process.wait(patience())


async def test_a_node_serves_it_too(server: NatsServer, tmp_path: Path) -> None:
    at, errors = f"127.0.0.1:{free_port()}", tmp_path / "errors"
    command = ["node", "--id", "n1", "--folder", str(tmp_path / "n1"), "--run-as", "same", "--server", server.url]
    with errors.open("wb") as told:
        process = forked.started(*command, "--http", at, env=environment(), stderr=told)
    try:
        await eventually(lambda: "node is up" in errors.read_text(), 30)
        assert (await asked(at, "/nothing")).status == 404

        async def found() -> bool:
            told = await asked(at, "/v1/sd/prometheus/nodes")
            return told.status == 200 and [(each["targets"], node_of(each)) for each in told.json] == [([at], "n1")]

        await eventually(found, what="monitoring is told of it")
        process.send_signal(signal.SIGTERM)
        assert await anyio.to_thread.run_sync(process.wait, patience()) == 0
        assert "Traceback" not in errors.read_text()
    finally:
        process.kill()
        process.wait(patience())


def node_of(target: dict[str, Any]) -> Any:
    return target["labels"]["__meta_cdm_node"]


async def silent(port: int, sent: bytes) -> bytes:
    """What comes to somebody who sends this and then nothing, until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        with bounded(), suppress(ConnectionError):
            return await reader.read()
        return b""
    finally:
        writer.close()


@pytest.mark.quick
async def test_clients_that_hold_connections_up_are_hung_up_on_and_handlers_that_fail_harm_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "PATIENCE", 0.2)
    monkeypatch.setattr(connections, "READING_PATIENCE", 0.2)
    monkeypatch.setattr(http_server_module, "_most_connections", lambda: 3)

    def fail(_request: Request) -> Response:
        raise RuntimeError("a bug")

    async def much(_request: Request) -> Response:
        return Whole(bytes(50_000_000), "text/plain", {})

    def faulty(_desk: Desk) -> Section:
        async def ends() -> None:
            raise RuntimeError("another bug")

        return Section([Route("/fail", fail), Route("/much", much)], (fail,), (ends,))  # type: ignore[arg-type]

    monkeypatch.setattr(app, "PARTS", (faulty,))
    sockets = address.listening(address.http_address("127.0.0.1:0"))
    port = sockets[0].getsockname()[1]
    async with anyio.create_task_group() as tasks:
        made = HttpServer(sockets)
        tasks.start_soon(made.run)
        for sent in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX: y\r\n"):
            assert await silent(port, sent) == b""
        assert (await asked(f"127.0.0.1:{port}", "/fail")).status == 500
        # Of an answer that nobody reads, no more than fits into buffers is handed over.
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
        await anyio.sleep(1)
        taken = 0
        with suppress(ConnectionError):
            while part := await reader.read(1_000_000):
                taken += len(part)
        assert taken < 20_000_000
        writer.close()

        monkeypatch.setattr(connections, "PATIENCE", 20.0)  # what follows is not about who is slow to ask
        many = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert await silent(port, b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        for _, each in many:
            each.close()
        await eventually(lambda: no_trouble(port), what="there is room again")
        made._take(ValuePut(LEASE, Lease(NodeId("n1"), 1, "x"), 1))
        assert made.desk.sight.lease is not None, "what one part makes of a message concerns no other"
        tasks.cancel_scope.cancel()


async def no_trouble(port: int) -> bool:
    try:
        return (await asked(f"127.0.0.1:{port}", "/nothing")).status == 404
    except OSError:
        return False


async def test_a_node_that_may_not_read_everything_says_so_and_tells_of_itself(tmp_path: Path) -> None:
    """With the credentials of a node that only runs slices, as the secure configuration has them."""
    at = f"127.0.0.1:{free_port()}"
    async with fortress(tmp_path) as found:
        made = await command_line("init", *found.options("admin"))
        assert made.returncode == 0, made.stderr
        nodes = Processes(found.url, tmp_path, ())
        try:
            nodes.start("manager-1", "--role", "manager", *found.who("manager-1"))
            node = nodes.start("node-1", "--role", "agent", *found.who("node-1"), "--http", at)

            async def ready() -> bool:
                with suppress(OSError):
                    return (await asked(at, "/readyz")).status == 200
                return False

            await eventually(ready, 30, "it is ready as a node, which knows its own slices")
            for path in ("/v1/services", "/v1/traefik", "/v1/sd/prometheus", "/v1/sd/prometheus/nodes"):
                answer = await asked(at, path)
                assert answer.status == 503
                assert answer.body.decode() == f"the cluster is not known: {NOT_ALLOWED}\n"

            async def measures() -> str:
                text = (await asked(at, "/metrics")).body.decode()
                return text if "\ncdm_nats_connected 1.0\n" in text else ""

            measured = await eventually(measures)
            assert "\ncdm_cluster_known 0.0\n" in measured
            assert 'cdm_mirror_live{bucket="slices"} 1.0' in measured
            assert "cdm_node_info" not in measured, "it tells nothing of others"
            said = [line for line in node.log.splitlines() if NOT_ALLOWED in line]
            assert len(said) == 1
            assert 'permission denied: publish "$JS.API.STREAM.INFO.KV_' in said[0], "the log says what is missing"
            assert node.code is None, "the node goes on"
        finally:
            nodes.kill()
