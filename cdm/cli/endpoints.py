"""``cdm endpoints``: where a service can be sent requests, as a list or as one that is followed."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import anyio
import anyio.abc
import anyio.to_thread
from msgspec import Struct

from cdm.cli.context import expanded
from cdm.cli.known import known_services, nearest
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs, remark
from cdm.cli.options import FLAG, ConnectionOptions
from cdm.cli.parameters import HERE, ServiceName
from cdm.cli.router import Follower
from cdm.cli.rows import LEAST_WIDTH, Column, folded, listing, sheet
from cdm.cli.screen import as_json
from cdm.cli.signals import until_stopped
from cdm.cli.streams import write_out
from cdm.errors import ServiceMissing, UsageError
from cdm.manager.endpoints import Endpoint
from cdm.model.artifact import Service
from cdm.store.connection import Access, Connection, connect

if TYPE_CHECKING:
    from cdm.cli.feeding import Proxy


Form = Callable[[Sequence[Endpoint]], str]
"""Puts a list of endpoints into words, or JSON."""


class EndpointList(Struct, frozen=True):
    """What ``--json`` prints on each line."""

    service: str
    endpoints: Sequence[Endpoint]


def endpoints(
    service: ServiceName,
    /,
    connection: ConnectionOptions = HERE,
    *,
    watch: Annotated[bool, FLAG] = False,
    template: Path | None = None,
    out: Path | None = None,
    exec: str | None = None,  # noqa: A002
    caddy: str | None = None,
    files: Path | None = None,
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Show where a service can be sent requests: address, port, weight, node and version of each instance.

    Parameters
    ----------
    watch
        Print the list at once and whenever it changes, until Ctrl-C or SIGTERM; while NATS is away the last one stands.
    template
        Write a file from this one, for a proxy that reads its configuration from files, now and at each change.
    out
        With --template: the file that is written.
    exec
        With --template: what a shell runs once the file is written, so that the proxy reads it.
    caddy
        Tell Caddy, now and at each change: http://127.0.0.1:2019/id/ID, where a handler reverse_proxy has that @id.
    files
        With --caddy: a folder for addresses, which Caddy reads at each request; a change is no other configuration.
    json
        Print each list as a JSON object on a line of its own.
    """
    configure_logs(LogFormat.CONSOLE, LogLevel.ERROR)
    proxy = _proxy(service, template, out, exec, caddy, files)
    if proxy is not None and (watch or json):
        raise UsageError(
            "--watch and --json are about a list that is printed: leave them out with --template or --caddy"
        )
    form: Form = partial(_as_json, service) if json else partial(_as_table, service, dated=watch)
    return anyio.run(_run, connection.access(), connection.prefix, service, proxy or form, watch)


def _proxy(
    service: Service,
    template: Path | None,
    out: Path | None,
    command: str | None,
    caddy: str | None,
    files: Path | None,
) -> Proxy | None:
    """What is to be told of the endpoints; None: nobody, they are printed. Raises `UsageError`."""
    if caddy is not None:
        if template or out or command:
            raise UsageError("--caddy, and --template with --out and --exec: choose one of them")
        from cdm.cli.caddy import CaddyProxy  # noqa: PLC0415  # not needed for a list
        from cdm.cli.turns import TurnFiles  # noqa: PLC0415  # likewise

        return CaddyProxy(caddy, None if files is None else TurnFiles(expanded(files).absolute()))
    if files is not None:
        raise UsageError("--files is about what Caddy is told: it needs --caddy URL")
    if template is None:
        if out or command:
            raise UsageError("--out and --exec are about the file that is made from --template FILE")
        return None
    if out is None:
        raise UsageError("--template needs --out FILE: the file that is written")
    source, target = expanded(template), expanded(out)
    if target.resolve() == source.resolve():
        raise UsageError("--out is the template itself")
    from cdm.cli.feeding import FileProxy  # noqa: PLC0415  # not needed for a list
    from cdm.cli.filling import FileTemplate  # noqa: PLC0415  # likewise

    return FileProxy(service, FileTemplate(source), target, command or "")


async def _run(access: Access, prefix: str, service: Service, to: Form | Proxy, watch: bool) -> int:
    """Show the list, and with ``watch`` follow it until told to stop; or tell a proxy until then."""
    proxy = None if callable(to) else to

    async def work(tasks: anyio.abc.TaskGroup) -> None:
        if watch:
            tasks.start_soon(_until_nobody_reads)
        async with connect(access, name="cdm endpoints", prefix=prefix) as connection:
            await connection.check_server()
            await _show(Follower(connection, service, pools=proxy is not None), connection, service, to, watch)

    stopped = await until_stopped(work)
    return 128 + stopped if stopped and not watch and proxy is None else 0


async def _show(follower: Follower, connection: Connection, service: Service, to: Form | Proxy, watch: bool) -> None:
    async with anyio.create_task_group() as tasks:
        await follower.start(tasks)
        known = follower.view.is_known
        if watch or not callable(to):
            tasks.start_soon(connection.lost)
            if not known:
                tasks.start_soon(_tell_if_missing, connection, service)
            await (_follow(follower, to) if callable(to) else _feed(follower, service, to))
        elif not known and (problem := await _no_such_service(connection, service)):
            raise ServiceMissing(problem)
        await _write(to(follower.endpoints()))
        tasks.cancel_scope.cancel()


async def _follow(follower: Follower, form: Form) -> NoReturn:
    """Show the list now, and whenever it is another one, until cancelled."""
    shown: list[Endpoint] | None = None
    while True:
        if not follower.is_behind and (found := follower.endpoints()) != shown:
            shown = found
            await _write(form(found))
        await follower.news()


async def _feed(follower: Follower, service: Service, proxy: Proxy) -> NoReturn:
    from cdm.cli.feeding import feed  # noqa: PLC0415  # not needed for a list

    await feed(follower, service, proxy)


async def _write(text: str) -> None:
    # In a thread: a reader that takes its time must not keep the server from hearing of this command.
    await anyio.to_thread.run_sync(write_out, text.encode(), abandon_on_cancel=True)


async def _tell_if_missing(connection: Connection, service: Service) -> None:
    if problem := await _no_such_service(connection, service):
        remark(f"{problem}; waiting for it")


async def _no_such_service(connection: Connection, service: Service) -> str:
    """That there is no such service, in words; empty: it is known, or what is known cannot be read."""
    known = await known_services(connection)
    if known is None or service in known:
        return ""
    return f"there is no service {service}{nearest(str(service), known)}"


async def _until_nobody_reads() -> None:
    """Wait until whoever reads a pipe that this writes to is gone, which nothing that is written may tell for days.

    Raises:
        BrokenPipeError: nobody reads it any more.
    """
    out = sys.stdout.fileno()
    if not stat.S_ISFIFO(os.fstat(out).st_mode):
        return
    await anyio.wait_readable(out)  # the end that is written to becomes so when the other one is closed
    raise BrokenPipeError


# What is shown


def _as_json(service: Service, found: Sequence[Endpoint]) -> str:
    return as_json(EndpointList(str(service), found)) + "\n"


def _as_table(service: Service, found: Sequence[Endpoint], *, dated: bool) -> str:
    on = sheet()
    time = f"{datetime.now().astimezone():%H:%M:%S}  " if dated else ""
    lines = [on.paint(f"{time}{service}")] if dated else []
    if not found:
        lines = [on.paint(f"{time}no instance of {service} can be sent requests")]
    columns = [
        Column("address", [each.address for each in found], least=LEAST_WIDTH),
        Column("port", [str(each.port) for each in found], right=True),
        Column("weight", [f"{each.weight:g}" for each in found], right=True),
        Column("node", [each.node for each in found], least=LEAST_WIDTH),
        Column("version", [each.version for each in found], least=LEAST_WIDTH),
    ]
    return "".join(f"{part}\n" for line in (*lines, *listing(columns, on)) for part in folded(line))
