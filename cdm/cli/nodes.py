"""``cdm nodes``: which nodes there are, what is left on those that drain, and which are gone."""

from __future__ import annotations

from msgspec.structs import replace

from cdm.cli.connected import run_connected
from cdm.cli.known import nearest
from cdm.cli.log_setup import LogLevel
from cdm.cli.looking import look_at_cluster
from cdm.cli.node_tables import node_parts
from cdm.cli.options import ConnectionOptions
from cdm.cli.parameters import HERE, Json, NodeNames
from cdm.cli.report import ClusterReport
from cdm.cli.rows import sheet, show
from cdm.cli.screen import print_json
from cdm.errors import NodeUnknown


def nodes(names: NodeNames = (), /, connection: ConnectionOptions = HERE, *, json: Json = False) -> int:
    """Show the nodes, what is left on those that are drained and why, and those that are gone."""
    found = run_connected(connection, "cdm nodes", look_at_cluster, level=LogLevel.ERROR)
    if names:
        found = _only(found, set(names))
    if json:
        print_json({"nodes": found.nodes, "draining": found.draining, "gone": found.gone})
        return 0
    lines = node_parts(found, sheet(), everything=True)
    show(lines[1:] if lines else ["no node is registered"])  # the first one is empty
    return 0


def _only(found: ClusterReport, names: set[str]) -> ClusterReport:
    known = {each.node for each in found.nodes} | {each.node for each in found.gone}
    for name in sorted(names - known):
        raise NodeUnknown(f"there is no node {name}{nearest(name, known)}")
    return replace(
        found,
        nodes=[each for each in found.nodes if each.node in names],
        draining=[each for each in found.draining if each.node in names],
        gone=[each for each in found.gone if each.node in names],
    )
