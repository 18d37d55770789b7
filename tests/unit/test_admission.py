"""Who is answered over HTTP: whoever shows the token, or a certificate."""

from __future__ import annotations

import base64
import http.client
import ssl
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from cdm.errors import UsageError
from cdm.http.address import HttpAddress, listening
from cdm.http.admission import Admission, token_of
from cdm.http.server import HttpServer
from tests.harness.secure import Certificates
from tests.harness.waiting import patience
from tests.harness.web import asked

pytestmark = [pytest.mark.quick, pytest.mark.anyio]

TOKEN = "0123456789abcdef"
EVIL = {"Host": "evil.example"}


@pytest.mark.parametrize("text", ["", "short", f"{TOKEN} two", f"{TOKEN}\nmore", "é" * 20])
def test_a_token_that_can_be_guessed_or_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(UsageError, match=f"--http-token {tmp_path}"):
        token_of(tmp_path / "token")


async def test_only_who_shows_the_token_is_answered(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    sockets = listening(HttpAddress("127.0.0.1", 0))
    at = f"127.0.0.1:{sockets[0].getsockname()[1]}"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(HttpServer(sockets, Admission(token_of(tmp_path / "token"))).run)

        def basic(text: str) -> str:
            return f"Basic {base64.b64encode(text.encode()).decode()}"

        shown = {
            f"Bearer {TOKEN}": 200,
            f"bearer  {TOKEN}": 200,
            basic(f"anybody:{TOKEN}"): 200,
            "": 401,
            f"Bearer {TOKEN}x": 401,
            TOKEN: 401,
            basic(TOKEN): 401,
            "Basic \xe9": 401,
            "Bearer": 401,
        }
        for header, status in shown.items():
            answer = await asked(at, "/", headers={**EVIL, "Authorization": header})
            assert answer.status == status, header
            assert ("www-authenticate" in answer.headers) is (status == 401)
        for path in ("/page/stream", "/page/explain", "/nothing", "//livez"):
            assert (await asked(at, path)).status == 401, path
        assert (await asked(at, "/livez")).status != 401
        tasks.cancel_scope.cancel()


async def test_a_certificate_is_shown_and_where_asked_for_must_be_shown(tmp_path: Path) -> None:
    own, other = Certificates(tmp_path / "own"), Certificates(tmp_path / "other")
    sockets = listening(HttpAddress("127.0.0.1", 0))
    port = sockets[0].getsockname()[1]
    server = HttpServer(sockets, Admission(None, own.cert, own.key, own.ca))
    assert server.urls == f"https://127.0.0.1:{port}"

    def status(shows: Certificates | None) -> int:
        context = ssl.create_default_context(cafile=str(own.ca))
        if shows is not None:
            context.load_cert_chain(shows.client_cert, shows.client_key)
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=patience(), context=context)
        try:
            connection.request("GET", "/", headers=EVIL)
            return connection.getresponse().status
        finally:
            connection.close()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.run)
        assert await anyio.to_thread.run_sync(status, own) == 200
        for stranger in (None, other):
            with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
                await anyio.to_thread.run_sync(status, stranger)
        tasks.cancel_scope.cancel()


def test_files_that_cannot_be_used_are_told_with_their_option(tmp_path: Path) -> None:
    own, empty = Certificates(tmp_path), tmp_path / "empty"
    empty.touch()
    with pytest.raises(UsageError, match="--http-key and --http-ca need --http-cert"):
        Admission(None, None, own.key)
    with pytest.raises(UsageError, match=f"--http-cert {empty}"):
        Admission(None, empty)
    with pytest.raises(UsageError, match=f"--http-cert {own.cert}, --http-key {tmp_path / 'none'}: No such file"):
        Admission(None, own.cert, tmp_path / "none")
    with pytest.raises(UsageError, match=f"--http-ca {empty}: no certificates"):
        Admission(None, own.cert, own.key, empty)
