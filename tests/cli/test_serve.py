"""``cdm serve`` and ``cdm node --http`` as their users meet them, and what becomes of errors in handlers."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import anyio.to_thread
import pytest

from cdm.cli import Exit
from cdm.cli.serve import DEFAULT, http_server
from cdm.errors import UsageError
from cdm.http import address
from tests.cli.test_cli import run
from tests.harness import forked
from tests.harness.processes import environment
from tests.harness.servers import NatsServer, free_port
from tests.harness.waiting import eventually, patience
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
        process.send_signal(signal.SIGTERM)
        assert await anyio.to_thread.run_sync(process.wait, patience()) == 0
        assert "Traceback" not in errors.read_text()
    finally:
        process.kill()
        process.wait(patience())
