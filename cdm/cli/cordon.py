"""``cdm cordon`` and ``cdm uncordon``: nodes take nothing new, or are used again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from cyclopts import Parameter
from msgspec import Struct

from cdm.cli.connected import run_connected
from cdm.cli.intending import known_nodes, put_intents, understood
from cdm.cli.log_setup import LogLevel, remark
from cdm.cli.options import FLAG, ConnectionOptions
from cdm.cli.parameters import HERE, Json, NodeNames, Reason
from cdm.cli.rows import PLAIN, show
from cdm.cli.screen import print_json
from cdm.errors import UsageError
from cdm.model.artifact import NodeId
from cdm.model.node import Intent, Schedule
from cdm.store.connection import Connection
from cdm.store.snapshot import snapshot


class IntentWritten(Struct, frozen=True):
    """What was done about one node."""

    node: NodeId
    schedule: Schedule
    changed: bool
    """Whether something else was wanted of it before."""


def cordon(
    nodes: NodeNames,
    /,
    connection: ConnectionOptions = HERE,
    *,
    reason: Reason = "",
    json: Json = False,
) -> int:
    """Have nodes keep what they have, and take nothing new."""
    return _run(nodes, connection, Intent(Schedule.CORDON, reason=reason), json=json)


def uncordon(
    nodes: NodeNames = (),
    /,
    connection: ConnectionOptions = HERE,
    *,
    everything: Annotated[bool, FLAG, Parameter(name="--all")] = False,
    json: Json = False,
) -> int:
    """Have nodes take slices again that were cordoned or drained.

    Parameters
    ----------
    everything
        All nodes that are cordoned or drained.
    """
    if everything == bool(nodes):
        raise UsageError("name the nodes, or write --all for all that are cordoned or drained")
    return _run(nodes, connection, None, json=json)


def _run(nodes: Sequence[NodeId], connection: ConnectionOptions, intent: Intent | None, *, json: bool) -> int:
    done = run_connected(connection, "cdm cordon", partial(_written, nodes=nodes, intent=intent), level=LogLevel.ERROR)
    if json:
        print_json({"nodes": done})
        return 0
    lines = []
    for each in done:
        what = "takes slices again" if each.schedule is Schedule.NORMAL else "cordoned: it keeps what it has"
        lines.append(PLAIN(f"{each.node}: {what}{'' if each.changed else ' (unchanged)'}"))
    show(lines or ["no node is cordoned or drained"])
    return 0


async def _written(connection: Connection, nodes: Sequence[NodeId], intent: Intent | None) -> list[IntentWritten]:
    known = known_nodes(await snapshot(connection, names=("nodes",)))
    known.check(nodes)
    if intent is not None:
        intent, note = understood(known, intent)
        if note:
            remark(note)
    names = list(dict.fromkeys(nodes)) or sorted(known.intents)
    schedule = intent.schedule if intent is not None else Schedule.NORMAL
    # Whatever is known: where the operator reads a copy of the bucket, what was written a moment ago may not show.
    await put_intents(connection, dict.fromkeys(names, intent))
    return [IntentWritten(node, schedule, known.intent(node) != intent) for node in names]
