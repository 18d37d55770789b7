"""``cdm serve``: what cdm tells over HTTP."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Annotated

import anyio
import anyio.abc
from cyclopts import Parameter

from cdm.cli.http_server import http_server
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
from cdm.cli.options import WHOEVER, ConnectionOptions, HttpOptions
from cdm.cli.parameters import HERE
from cdm.cli.signals import until_stopped
from cdm.node.buckets import patiently
from cdm.store.connection import Access, connect

if TYPE_CHECKING:
    from cdm.http.server import HttpServer

DEFAULT = "127.0.0.1:8280"
"""Where HTTP is served if nothing else is said."""
MOST_FILES = 16_384
"""Files that are asked of the system; half of them are for connections."""


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
    server = http_server(http, who.files())
    configure_logs(log_format, log_level)
    anyio.run(_run, server, access, connection.prefix)
    return 0


def _allow_many() -> None:
    """Have as many connections as this process may have: nothing else here needs files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _run(server: HttpServer, access: Access, prefix: str) -> None:
    async def work(tasks: anyio.abc.TaskGroup) -> None:
        tasks.start_soon(server.run)
        async with connect(access, name="cdm serve", prefix=prefix, timeout=None) as connection:
            await patiently(connection.check_server, "the server")
            tasks.start_soon(connection.lost)
            await server.follow(connection)

    await until_stopped(work)
