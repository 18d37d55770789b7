"""``cdm endpoints``: where a service can be sent requests, as a list or as one that is followed."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Annotated, NoReturn

import anyio
import anyio.abc
import anyio.to_thread
from msgspec import Struct

from cdm import clock
from cdm.cli.known import known_services, nearest
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs, remark
from cdm.cli.options import FLAG, ConnectionOptions
from cdm.cli.parameters import HERE, ServiceName
from cdm.cli.rows import LEAST_WIDTH, Column, folded, listing, sheet
from cdm.cli.screen import as_json
from cdm.cli.signals import until_stopped
from cdm.cli.streams import write_out
from cdm.dispatch.messages import Message
from cdm.errors import ServiceMissing, Uncertain
from cdm.manager.endpoints import Endpoint, ServiceView
from cdm.model.artifact import Service
from cdm.model.keys import encode_service
from cdm.store.bucket import buckets
from cdm.store.connection import Access, Connection, connect
from cdm.store.snapshot import check_there
from cdm.store.watch import Watch
from cdm.wakeup import Wakeup

LISTING_PATIENCE = 30.0
"""Seconds that the first listing of the buckets may take."""

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
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Show where a service can be sent requests: address, port, weight, node and version of each instance.

    Parameters
    ----------
    watch
        Print the list at once and whenever it changes, until Ctrl-C or SIGTERM; while NATS is away the last one stands.
    json
        Print each list as a JSON object on a line of its own.
    """
    configure_logs(LogFormat.CONSOLE, LogLevel.ERROR)
    form: Form = partial(_as_json, service) if json else partial(_as_table, service, dated=watch)
    return anyio.run(_run, connection.access(), connection.prefix, service, form, watch)


async def _run(access: Access, prefix: str, service: Service, form: Form, watch: bool) -> int:
    """Show the list, and with ``watch`` follow it until told to stop."""

    async def work(tasks: anyio.abc.TaskGroup) -> None:
        if watch:
            tasks.start_soon(_until_nobody_reads)
        async with connect(access, name="cdm endpoints", prefix=prefix) as connection:
            await connection.check_server()
            await _show(Follower(connection, service), connection, service, form, watch)

    stopped = await until_stopped(work)
    return 128 + stopped if stopped and not watch else 0


async def _show(follower: Follower, connection: Connection, service: Service, form: Form, watch: bool) -> None:
    async with anyio.create_task_group() as tasks:
        await follower.start(tasks)
        known = follower.view.is_known
        if watch:
            tasks.start_soon(connection.lost)
            if not known:
                tasks.start_soon(_tell_if_missing, connection, service)
            await follower.follow(form)
        elif not known and (problem := await _no_such_service(connection, service)):
            raise ServiceMissing(problem)
        await follower.show(form)
        tasks.cancel_scope.cancel()


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


class Follower:
    """Follows what concerns one service, with one consumer for each of the two buckets.

    Args:
        connection: to NATS.
        service: which service.
    """

    def __init__(self, connection: Connection, service: Service) -> None:
        self.view = ServiceView(service)
        there = buckets(connection)
        # Neither the lease nor the fence, which are written all the time; neither intents nor what is remembered.
        self._watches = {
            name: Watch(there[name], self._on_message, keys=keys, on_live=partial(self._on_live, name))
            for name, keys in {"slices": keys_of(service), "nodes": "*"}.items()
        }
        self._behind = set(self._watches)
        self._listed = anyio.Event()
        self._news = Wakeup()
        self._shown: list[Endpoint] | None = None
        self._silent = 0
        """Instances without an address that the user was told of."""

    async def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """Follow, in tasks of this group, and wait until everything is listed.

        Raises:
            BucketMissing: the cluster was never initialised.
            Uncertain: the buckets could not be listed in time.
            AccessDenied: a permission is missing.
        """
        with anyio.move_on_after(LISTING_PATIENCE) as scope:
            for watch in self._watches.values():
                await check_there(watch.bucket)
                tasks.start_soon(watch.run)
            await self._listed.wait()
        if scope.cancelled_caught:
            raise Uncertain(f"the buckets could not be listed within {LISTING_PATIENCE:g} s")

    async def follow(self, form: Form) -> NoReturn:
        """Show the list now, and whenever it is another one, until cancelled."""
        while True:
            if not self._behind:
                await self.show(form)
            due = self.view.wake_at()
            with anyio.move_on_after(None if due is None else max(due - clock.now(), 0)):
                await self._news.wait()

    async def show(self, form: Form) -> None:
        """Show the list, unless it was shown last."""
        self.view.tick(clock.now())
        found = self.view.endpoints()
        if self._silent < (silent := self.view.without_address):
            left_out = f"{silent} instances are" if silent > 1 else "an instance is"
            remark(f"{left_out} left out: no node says at which address; those of an earlier cdm do not")
        self._silent = silent
        if found != self._shown:
            self._shown = found
            # In a thread: a reader that takes its time must not keep the server from hearing of this command.
            await anyio.to_thread.run_sync(write_out, form(found).encode(), abandon_on_cancel=True)

    def _on_message(self, message: Message) -> None:
        if self.view.take(message):
            self._news.set()

    def _on_live(self, name: str, live: bool) -> None:
        before = bool(self._behind)
        if live:
            self._behind.discard(name)
        else:
            self._behind.add(name)
        behind = bool(self._behind)
        if behind and not before:
            self.view.disconnected()
            remark("NATS is away; the last list stays in force")
        elif before and not behind:
            self.view.connected(clock.now())
            if self._listed.is_set():
                remark("NATS is back")
            self._listed.set()
        self._news.set()


def keys_of(service: Service) -> str:
    """A pattern of the keys in ``slices`` that covers the service's slices and its rollout's record, and little else.

    A dot in a name ends a token of the subject; what stands before the last one is the same in all its keys.
    """
    return ".".join(("*", *encode_service(service).split(".")[:-1], ">"))


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
