"""The API of a container engine: HTTP over a socket of this machine, as Docker and Podman have it.

It is asked with the HTTP library that cdm has already: of the API a dozen calls are needed, each JSON or a stream of
bytes, all of which can be cancelled. Of the libraries for it one blocks, which takes two threads for each container
that runs, and the other one does not tell a container's standard output from its standard error.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, urlencode

import httpcore2
import msgspec

from cdm.errors import SliceFailed, UsageError
from cdm.runtimes.container.sockets import SocketBackend

PATIENCE = 60.0
"""Seconds for the engine to answer what it can answer at once."""
SOCKETS = ("/run/docker.sock", "/run/podman/podman.sock")
"""Where the engine of the machine listens."""
OWN_SOCKETS = ("docker.sock", "podman/podman.sock")
"""Where the engine of a user listens, in `XDG_RUNTIME_DIR`."""
_ERRORS = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError)

_VANISHED = "no such container"
"""Podman's last words about one that is removed while it is asked for it, with HTTP's status of its own faults."""


class EngineFailed(SliceFailed):
    """The engine refused something, or does not answer; ``status``: of its answer, 0 where there was none."""

    def __init__(self, reason: str, status: int = 0) -> None:
        super().__init__(" ".join(reason.split()))
        self.status = status

    @property
    def is_missing(self) -> bool:
        """Whether there is no such thing."""
        return self.status == 404


def engine_address(environment: Mapping[str, str]) -> str:
    """Where the engine is: as `DOCKER_HOST` says, or where one listens on this machine.

    Raises:
        UsageError: there is none.
    """
    if chosen := environment.get("DOCKER_HOST"):
        return chosen
    own = environment.get("XDG_RUNTIME_DIR")
    for path in (*SOCKETS, *(f"{own}/{name}" for name in OWN_SOCKETS if own)):
        if _is_socket(Path(path)):
            return f"unix://{path}"
    raise UsageError("there is no container engine on this machine (DOCKER_HOST says where it is)")


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


class Engine:
    """A container engine.

    Args:
        address: ``unix://PATH``, or ``tcp://HOST:PORT`` of this machine, where ports are published.

    Raises:
        UsageError: the address cannot be used.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        kind, _, rest = address.partition("://")
        if kind not in ("unix", "tcp", "http") or not rest:
            raise UsageError(f"DOCKER_HOST {address!r}: is not unix://PATH or tcp://HOST:PORT")
        self._host = "http://engine" if kind == "unix" else f"http://{rest.rstrip('/')}"
        # Two connections stay open for each container, for as long as it runs.
        self._pool = httpcore2.AsyncConnectionPool(
            uds=rest if kind == "unix" else None, max_connections=None, network_backend=SocketBackend()
        )

    @classmethod
    def of_machine(cls) -> Engine:
        """The one that this machine has. Raises `UsageError`."""
        return cls(engine_address(os.environ))

    async def ask(
        self, method: str, path: str, body: object = None, *, patience: float | None = PATIENCE, **query: object
    ) -> Any:
        """Ask for something; returns what the JSON of the answer says, None where there is none.

        Raises:
            EngineFailed: the engine refuses it, or does not answer.
        """
        content = None if body is None else msgspec.json.encode(body)
        async with self.stream(method, path, content, query, patience=patience) as parts:
            data = b"".join([part async for part in parts])
        return msgspec.json.decode(data) if data.strip() else None

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        content: bytes | AsyncIterator[bytes] | None = None,
        query: Mapping[str, object] = MappingProxyType({}),
        *,
        patience: float | None = None,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Ask for something whose answer is read bit by bit.

        Args:
            method: of HTTP.
            path: what is asked for.
            content: what is sent along: JSON, or an archive.
            query: parameters.
            patience: seconds between two bits of the answer; None: for ever.

        Raises:
            EngineFailed: the engine refuses it, or does not answer.
        """
        kind = "application/json" if isinstance(content, bytes) else "application/x-tar"
        url = f"{self._host}{quote(path, safe='/:@')}?{urlencode(query)}"
        limits = {"connect": PATIENCE, "pool": PATIENCE, "write": None, "read": patience}
        try:
            async with self._pool.stream(
                method,
                url,
                headers=None if content is None else {"Content-Type": kind},
                content=content,
                extensions={"timeout": limits},
            ) as answer:
                if answer.status >= 400:
                    raise _refusal(await answer.aread(), answer.status)
                yield answer.aiter_stream()
        except _ERRORS as error:
            raise EngineFailed(f"the container engine at {self.address} does not answer: {error}") from None

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


def _refusal(body: bytes, status: int) -> EngineFailed:
    try:
        told = msgspec.json.decode(body)["message"]
    except (msgspec.DecodeError, KeyError, TypeError):
        told = body.decode(errors="replace")
    if status == 500 and str(told).endswith(_VANISHED):
        status = 404
    return EngineFailed(f"the container engine: {str(told)[:1000]}", status)
