"""Real nats-servers for tests: started, killed, frozen and restarted at will; always cleaned up."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

import anyio
import nats
import pytest
from nats.aio.client import Client

from tests.harness.waiting import eventually, patience

FORGIVEN = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
"""For tests whose servers hang: nats-py leaves the sockets of failed attempts to the garbage collector."""


def binary() -> str:
    """Where nats-server is: on the PATH, or beside this interpreter."""
    beside = Path(sys.executable).with_name("nats-server")
    found = shutil.which("nats-server") or (str(beside) if beside.exists() else None)
    if found is None:
        pytest.skip("there is no nats-server")
    return found


def _ports_of_this_worker() -> Iterator[int]:
    """Those for it to give, in no order, round and round."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 8
    ports = range(10_000 + number * 1_250, 11_250 + number * 1_250)
    return itertools.cycle(random.sample(ports, len(ports)))


_PORTS = _ports_of_this_worker()


def free_port() -> int:
    """A port that nobody listens on at this moment, and that neither the system gives to anybody nor cdm to slices.

    Nor does another worker of the same run, or this one soon: who is down for a while finds it free again.
    """
    while True:
        port = next(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Addressed(Protocol):
    """What clients can connect to."""

    @property
    def url(self) -> str:
        """Where."""


class NatsServer:
    """One nats-server on a port of its own, with a store of its own. Made by `running_server`.

    Args:
        folder: where it keeps its files.
        jetstream: whether it has JetStream.
        arguments: more of the command line.
        port: a fixed port; None for any.
        env: more of its environment.
    """

    def __init__(
        self,
        folder: Path,
        *,
        jetstream: bool = True,
        arguments: Sequence[str] = (),
        port: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._env = {**os.environ, **(env or {})}
        self._arguments = [*arguments]
        if jetstream:
            self._arguments += ["-js", "-sd", str(folder / "store")]
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        assert self._port is not None
        return f"nats://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Its process, which runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it wrote."""
        return (self.folder / "log").read_text(errors="replace")

    async def start(self) -> None:
        """Start, on the same port as before where there was one, and wait until clients are answered."""
        assert self._process is None
        if self._port is None:
            self._port = free_port()
        command = [binary(), "-a", "127.0.0.1", "-p", str(self._port), *self._arguments]
        with (self.folder / "log").open("ab") as log:
            self._process = _spawn(command, log, self._env)
        deadline = time.monotonic() + patience()
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"nats-server did not start:\n{self.log[-3000:]}")
            await anyio.sleep(0.01)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(0.5)
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def _end(self, number: int) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            if process.poll() is None:
                process.send_signal(number)
                process.send_signal(signal.SIGCONT)
                try:
                    process.wait(patience())
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(patience())

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    async def restart(self) -> None:
        """Kill it, and start it again on the same port and store."""
        self.kill()
        await self.start()

    async def restart_with(self, arguments: Sequence[str]) -> None:
        """Stop it, and start it again with another command line, on the same port."""
        self.stop()
        self._arguments = [*arguments]
        await self.start()

    def pause(self) -> None:
        """Freeze it; when this returns, every thread of it stands still."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def _spawn(command: Sequence[str], log: IO[bytes], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # Not anyio's: it must be possible to end it from wherever.
    return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="cdm-test-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def running_server(
    *, jetstream: bool = True, arguments: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> AsyncIterator[NatsServer]:
    """A fresh server for the time of the ``with`` block."""
    with temporary_folder() as folder:
        server = NatsServer(folder, jetstream=jetstream, arguments=arguments, env=env)
        try:
            await server.start()
            yield server
        finally:
            server.kill()


@asynccontextmanager
async def running_cluster(
    size: int = 3, login: tuple[str, str] | None = None, more: Sequence[str] = ()
) -> AsyncIterator[list[NatsServer]]:
    """Several servers as one JetStream cluster, for the time of the ``with`` block; all clients have the same login.

    Args:
        size: how many.
        login: of all clients; None: they have none.
        more: of each one's command line.
    """
    options = dict(zip(("user", "password"), login or (), strict=False))
    with temporary_folder() as folder, ExitStack() as stack:
        routes = [free_port() for _ in range(size)]
        urls = ",".join(f"nats://127.0.0.1:{route}" for route in routes)
        servers = []
        for number, route in enumerate(routes, 1):
            own = folder / f"s{number}"
            own.mkdir()
            arguments = ["-n", f"s{number}", "--cluster_name", "test", "--cluster", f"nats://127.0.0.1:{route}"]
            arguments += ["--user", login[0], "--pass", login[1]] if login else []
            server = NatsServer(own, arguments=[*arguments, "--routes", urls, *more])
            stack.callback(server.kill)
            servers.append(server)
            await server.start()
        async with raw_client(*(server.url for server in servers), **options) as client:

            async def ready() -> bool:
                try:
                    answer = await client.request("$JS.API.INFO", b"", timeout=5)
                except (nats.errors.TimeoutError, nats.errors.NoRespondersError):
                    return False
                return b'"error"' not in answer.data

            await eventually(ready, 30, "the cluster has a meta leader")
        yield servers


async def _quiet(error: Exception) -> None:
    """Tests kill servers; the client's complaints are no news."""


@asynccontextmanager
async def raw_client(*urls: str, **options: Any) -> AsyncIterator[Client]:
    """A plain client of nats-py, as users and agents have it; it reconnects for ever."""
    client = await nats.connect(
        servers=list(urls),
        error_cb=_quiet,
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.1,
        ping_interval=1,
        # A server may stand still for some seconds, and who connects anew misses what is told meanwhile.
        max_outstanding_pings=5,
        **options,
    )
    flush = client.flush

    async def flush_all(timeout: int = 10) -> None:
        # The first PING goes past what waits to be sent, the second one does not.
        await flush(timeout)
        await flush(timeout)

    request = client.request

    async def request_patiently(
        subject: str, payload: bytes = b"", timeout: float = 10, old_style: bool = False, headers: Any = None
    ) -> Any:
        # Its own half a second is little for a machine that is busy.
        return await request(subject, payload, timeout, old_style, headers)

    client.flush = flush_all  # type: ignore[method-assign]
    client.request = request_patiently  # type: ignore[method-assign]
    try:
        yield client
    finally:
        await client.close()
        await _end_tasks(client)


async def _end_tasks(client: Client) -> None:
    """End what a client is still doing though it was closed.

    It may go on for ever to connect again: before Python 3.12 `asyncio.wait_for` swallows a cancellation that comes in
    the moment in which what it waits for is there.
    """
    while tasks := [task for task in asyncio.all_tasks() if _self_of(task) is client]:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=0.05)


def _self_of(task: asyncio.Task[Any]) -> object:
    """Whose method a task runs."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    return frame.f_locals.get("self") if frame else None
