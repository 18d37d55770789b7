"""``cdm logs``: what an artifact's slices write, requested from all nodes over NATS (see `cdm.output.wire`)."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import anyio
import anyio.abc
import anyio.to_thread
from cyclopts import Parameter
from msgspec.structs import replace

from cdm.cli.known import known_artifacts, nearest
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs, remark
from cdm.cli.options import FLAG, ConnectionOptions, duration, whole
from cdm.cli.parameters import HERE, ServiceOrArtifact
from cdm.cli.screen import coloured
from cdm.cli.service_logs import ServiceReader
from cdm.cli.signals import until_stopped
from cdm.cli.streams import discard_output, write_out
from cdm.dispatch.messages import ValuePut
from cdm.errors import OutputMissing, UsageError
from cdm.model.artifact import Artifact, NodeId, Service, node_id
from cdm.model.keys import NodeKey
from cdm.model.node import RUN_MARKS
from cdm.output.client import Reader
from cdm.output.lines import AsJson, AsText, Show
from cdm.output.source import Registered, Shown, keeps_output
from cdm.output.wire import MAX_LINES, LogRequest
from cdm.store.connection import Access, Connection, connect
from cdm.store.snapshot import snapshot

FOLLOWED_FROM = 10
"""Lines of each slice that ``--follow`` begins with."""


def logs(
    name: ServiceOrArtifact,
    /,
    connection: ConnectionOptions = HERE,
    *,
    node: str | None = None,
    ordinal: Annotated[int | None, whole()] = None,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative="", show_default=False)] = False,
    since: Annotated[float | None, duration()] = None,
    lines: Annotated[int | None, whole()] = None,
    previous: Annotated[bool, FLAG] = False,
    timestamps: Annotated[bool, Parameter(name=["--timestamps", "-t"], negative="", show_default=False)] = False,
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Show what the slices of an artifact, or of all versions of a service, write and wrote, in the order of time.

    Parameters
    ----------
    node
        Only output of this node.
    ordinal
        Of several slices on a node, only this one: 0, 1, …
    follow
        Go on with new lines, and wait where there are none yet, until Ctrl-C or SIGTERM.
    since
        Nothing older than this: 90s, 10m, 1h30m, 2d.
    lines
        Only the last so many lines of each slice. [default: all; with --follow and without --since, 10]
    previous
        Of each slice only what the program wrote in the run that ended last.
    timestamps
        Begin each line with the time when it was written, UTC.
    json
        Print each line as a JSON object.
    """
    configure_logs(LogFormat.CONSOLE, LogLevel.INFO)  # both that the connection is lost and that it is back
    if lines is not None and lines > MAX_LINES:
        raise UsageError(f"--lines: at most {MAX_LINES}; leave it out for all lines")
    if follow and previous:
        raise UsageError("--previous shows a run that is over: there is nothing to --follow")
    if follow and lines is None and since is None:
        lines = FOLLOWED_FROM
    request = LogRequest(ordinal=ordinal, since=since, lines=lines, previous=previous, follow=follow)
    out = sys.stdout
    show: Show = AsJson() if json else AsText(terminal=out.isatty(), coloured=coloured(out), timed=timestamps)
    only = None if node is None else node_id(node)
    return anyio.run(_run, connection.access(), connection.prefix, request, name, only, show)


async def _run(
    access: Access, prefix: str, request: LogRequest, name: Artifact | Service, only: NodeId | None, show: Show
) -> int:
    """Ask until the end, or until told to stop."""

    async def write(lines: list[Shown]) -> None:
        # In a thread: a reader that takes its time must not keep the nodes from hearing of this command.
        text = show.lines(lines).encode(errors="replace")
        await anyio.to_thread.run_sync(write_out, text, abandon_on_cancel=True)

    complete = True

    async def work(_tasks: anyio.abc.TaskGroup) -> None:
        nonlocal complete
        async with connect(access, name="cdm logs", prefix=prefix) as connection:
            hosts = await _hosts(connection, only)
            if request.previous:
                hosts = _knowing(hosts)
            if isinstance(name, Service):
                complete = await ServiceReader(connection, request, only, write, remark).run(name, hosts)
            else:
                missing = partial(_no_such_artifact, connection, name)
                asked = replace(request, artifact=str(name))
                complete = await Reader(connection, asked, only, write, remark, missing).run(hosts)

    stopped = await until_stopped(work)
    try:
        write_out(show.end().encode())
    except BrokenPipeError:
        discard_output()
    if stopped:
        return 0 if request.follow else 128 + stopped
    return 0 if complete else 1


def _knowing(hosts: list[Registered]) -> list[Registered]:
    """Those that tell the runs of a slice apart; of the others the user is told."""
    knowing = [each for each in hosts if RUN_MARKS in each.value.features]
    if hosts and not knowing:
        raise OutputMissing("no node knows --previous: all run an earlier version of cdm")
    for each in hosts:
        if RUN_MARKS not in each.value.features:
            remark(f"warning: node {each.key.node!r}: its cdm {each.value.version} does not know --previous")
    return knowing


async def _no_such_artifact(connection: Connection, artifact: Artifact) -> str:
    """That there is no such artifact, in words; empty: it is known, or what is known cannot be read."""
    known = await known_artifacts(connection)
    if known is None or artifact in known:
        return ""
    return f"there is no artifact {artifact}{nearest(str(artifact), known)}"


async def _hosts(connection: Connection, only: NodeId | None) -> list[Registered]:
    """The nodes that may have output; empty where none is registered."""
    await connection.check_server()
    registered: dict[NodeId, Registered] = {}
    for message in await snapshot(connection, names=("nodes",)):
        if isinstance(message, ValuePut) and isinstance(message.key, NodeKey):
            registered[message.key.node] = message
    found = {node: message for node, message in registered.items() if only in (None, node)}
    if only is not None and not found:
        raise OutputMissing(f"there is no node {only!r}{nearest(only, registered) or ' (see `cdm status`)'}")
    if not found:
        return []  # the reader says so, or waits
    hosts = [found[name] for name in sorted(found) if keeps_output(found[name].value)]
    if not hosts:
        who = "no node runs its slices itself" if only is None else f"node {only!r} does not run its slices itself"
        raise OutputMissing(f"{who}: their output is kept by an agent outside cdm")
    return hosts
