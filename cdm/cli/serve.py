"""``cdm serve``, and what ``cdm node --http`` has in common with it: what cdm tells over HTTP."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
import anyio.abc
from cyclopts import Parameter

from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
from cdm.cli.options import ConnectionOptions
from cdm.cli.parameters import HERE
from cdm.cli.signals import until_stopped
from cdm.errors import UsageError
from cdm.node.buckets import patiently
from cdm.store.connection import Access, connect

if TYPE_CHECKING:
    from cdm.http.server import HttpServer

DEFAULT = "127.0.0.1:8280"
"""Where HTTP is served if nothing else is said."""
MOST_FILES = 16_384
"""Files that are asked of the system; half of them are for connections."""
_BROUGHT = frozenset({"prometheus_client", "starlette", "uvicorn"})
"""What the extra brings."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """Who is answered over HTTP."""

    token: Annotated[Path | None, Parameter(name="--http-token", env_var="CDM_HTTP_TOKEN")] = None
    """File with a token that must be shown, as a bearer's or as a password. [default: none is needed]"""
    cert: Annotated[Path | None, Parameter(name="--http-cert", env_var="CDM_HTTP_CERT")] = None
    """File with the server's certificate: HTTPS is served. [default: HTTP is]"""
    key: Annotated[Path | None, Parameter(name="--http-key", env_var="CDM_HTTP_KEY")] = None
    """File with its key. [default: the certificate's]"""
    ca: Annotated[Path | None, Parameter(name="--http-ca", env_var="CDM_HTTP_CA")] = None
    """File with authorities' certificates: clients must show one that they have signed. [default: none is needed]"""


WHOEVER = HttpOptions()
"""Whoever asks is answered, if no option says otherwise."""


def serve(
    connection: ConnectionOptions = HERE,
    *,
    http: Annotated[str, Parameter(env_var="CDM_HTTP")] = DEFAULT,
    who: HttpOptions = WHOEVER,
    log_format: Annotated[LogFormat, Parameter(env_var="CDM_LOG_FORMAT")] = LogFormat.CONSOLE,
    log_level: Annotated[LogLevel, Parameter(env_var="CDM_LOG_LEVEL")] = LogLevel.INFO,
) -> int:
    """Tell over HTTP how the cluster is, until SIGTERM or SIGINT; a process of its own that only reads.

    Parameters
    ----------
    http
        Where to listen: HOST:PORT, or :PORT for all addresses of this machine.
    log_format
        Format of log lines.
    log_level
        The least severe level that is logged.
    """
    access = connection.access()
    _allow_many()
    server = http_server(http, who)
    configure_logs(log_format, log_level)
    anyio.run(_run, server, access, connection.prefix)
    return 0


def _allow_many() -> None:
    """Have as many connections as this process may have: nothing else here needs files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def http_server(address: str, who: HttpOptions = WHOEVER) -> HttpServer:
    """What serves HTTP at this address; it listens.

    Raises:
        UsageError: the extra is not installed, a file cannot be used, or this machine cannot listen there.
        AddressTaken: another process listens there.
    """
    from cdm.http.address import http_address, listening  # noqa: PLC0415  # optional

    where = http_address(address)
    try:
        from cdm.http.admission import Admission, token_of  # noqa: PLC0415  # optional
        from cdm.http.server import HttpServer  # noqa: PLC0415  # optional, and slow to import
    except ModuleNotFoundError as missing:
        if missing.name not in _BROUGHT:
            raise
        raise UsageError(
            f"HTTP (--http, CDM_HTTP) needs {missing.name}, which is not installed: pip install 'cdm[http]'"
        ) from None
    token = None if who.token is None else token_of(who.token)
    admission = Admission(token, who.cert, who.key, who.ca)
    return HttpServer(listening(where), admission)


async def _run(server: HttpServer, access: Access, prefix: str) -> None:
    async def work(tasks: anyio.abc.TaskGroup) -> None:
        tasks.start_soon(server.run)
        async with connect(access, name="cdm serve", prefix=prefix, timeout=None) as connection:
            await patiently(connection.check_server, "the server")
            tasks.start_soon(connection.lost)
            await server.follow(connection)

    await until_stopped(work)
