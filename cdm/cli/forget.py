"""``cdm node forget``: nodes that are gone for good are listed no more, and nothing waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from msgspec import Struct

from cdm import clock
from cdm.cli.connected import run_connected
from cdm.cli.intending import known_nodes, remove_nodes
from cdm.cli.log_setup import LogLevel
from cdm.cli.options import ConnectionOptions
from cdm.cli.parameters import HERE, Json, NodeNames
from cdm.cli.rows import PLAIN, show
from cdm.cli.screen import print_json
from cdm.errors import Conflict
from cdm.manager.onlooker import Onlooker
from cdm.manager.standing import gone_at
from cdm.model.artifact import NodeId
from cdm.store.connection import Connection
from cdm.store.snapshot import snapshot


class Forgotten(Struct, frozen=True):
    """A node that was forgotten."""

    node: NodeId
    how: str
    """How it had gone, ``lost`` or ``left``; empty: nothing was remembered of it but what was wanted of it."""
    had: dict[str, int]
    """How many slices of which artifacts it had."""


def forget(nodes: NodeNames, /, connection: ConnectionOptions = HERE, *, json: Json = False) -> int:
    """Have nodes forgotten that are gone for good."""
    done = run_connected(connection, "cdm node forget", partial(_forget, nodes=nodes), level=LogLevel.ERROR)
    if json:
        print_json({"nodes": done})
        return 0
    for each in done:
        how = f" ({each.how})" if each.how else ""
        show([PLAIN(f"{each.node}{how}: forgotten")])
    return 0


async def _forget(connection: Connection, nodes: Sequence[NodeId]) -> list[Forgotten]:
    messages = await snapshot(connection, names=("nodes", "slices"))
    known = known_nodes(messages)
    known.check(nodes)
    look = Onlooker(messages, clock.now())
    names = list(dict.fromkeys(nodes))
    for node in names:
        if problem := _problem(look, node):
            raise Conflict(f"node {node} {problem}; nothing was forgotten")
    await remove_nodes(connection, names, known)
    seen = known.seen
    return [
        Forgotten(node, (seen[node].gone or "") if node in seen else "", seen[node].had if node in seen else {})
        for node in names
    ]


def _problem(look: Onlooker, node: NodeId) -> str:
    """Why a node cannot be forgotten; empty: it can."""
    seen = look.topology.seen.get(node)
    if look.registered(node):
        return "is registered: stop it first"
    if seen is not None and seen.gone is None and look.leader is not None:
        return "has not been given up yet: it was heard a moment ago, and may come back"
    keys = look.cluster.on_node.get(node, ())
    puts = [look.cluster.group(key.artifact).slices[key] for key in keys]
    fleet = look.placement.fleet(settling=False)
    last = max((gone_at(put, fleet) for put in puts), default=-1.0)
    if last > look.now:
        rest = f"{last - look.now:.0f} s"
        return f"had slices that must not run twice (stop_after), and may run there for {rest} more"
    return f"has {len(puts)} slices left, which the leader is about to remove" if puts and look.leader else ""
