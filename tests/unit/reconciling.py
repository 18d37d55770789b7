"""Nodes and slices as they may stand, for tests of reconciliation, and what it comes to of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hypothesis import strategies as st

from cdm.allocation.evenly import Ranking
from cdm.dispatch.messages import ValuePut
from cdm.manager.cluster import Cluster, Desired
from cdm.manager.group import SlicePut
from cdm.manager.plan import Command, Plan
from cdm.manager.policy import Policy
from cdm.manager.reconciliation import reconcile
from cdm.manager.standing import Fleet, LiveNode
from cdm.manager.wanted import wanted_of
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey
from cdm.model.slice import SliceState, SliceValue
from tests.unit.support import APP, S, cluster_of, n, put, wanted

POLICY = Policy()
NOW = 10_000.0


def places(count: int = 3, **kinds: str) -> dict[NodeId, LiveNode]:
    """Open nodes n1, n2 …; by name some may be "cordon", "drain", "missing", "dead" or their capacity."""
    found: dict[NodeId, LiveNode] = {}
    for number in range(1, count + 1):
        kind = kinds.get(f"n{number}", "")
        if kind != "dead":
            capacity = int(kind) if kind.isdigit() else None
            is_open = kind == "" or kind.isdigit()
            found[n(number)] = LiveNode(n(number), is_open, kind == "drain", capacity, kind != "missing")
    return found


def plan(
    desired: Desired | None,
    *puts: SlicePut,
    nodes: Mapping[NodeId, LiveNode] | None = None,
    now: float = NOW,
    failed_unloading: Iterable[SliceKey] = (),
    cursor: NodeId | None = None,
    more: Mapping[NodeId, int] | None = None,
    lost: Mapping[NodeId, float] | None = None,
) -> Plan:
    cluster = with_failures(puts, failed_unloading)
    return reconcile(
        APP,
        wanted_of(desired),
        cluster.group(APP),
        fleet(cluster, places() if nodes is None else nodes, more, lost),
        now,
        POLICY,
        cursor,
    )


def fleet(
    cluster: Cluster,
    nodes: Mapping[NodeId, LiveNode],
    more: Mapping[NodeId, int] | None = None,
    lost: Mapping[NodeId, float] | None = None,
    ranking: Ranking | None = None,
) -> Fleet:
    extra = more or {}
    return Fleet(nodes, lambda node: len(cluster.on_node.get(node, ())) + extra.get(node, 0), lost or {}, ranking)


def with_failures(puts: Iterable[SlicePut], failed_unloading: Iterable[SliceKey]) -> Cluster:
    cluster = cluster_of(*puts)
    for key in failed_unloading:
        cluster.group(key.artifact).failed_unloading |= {key}
    return cluster


def shown(commands: Sequence[Command]) -> set[tuple[str, int, SliceState | None]]:
    return {(command.key.node, command.key.ordinal, command.state) for command in commands}


def active(*numbers: int, ordinal: int = 0) -> list[SlicePut]:
    return [put(n(number), S.ACTIVE, ordinal) for number in numbers]


@st.composite
def situations(
    draw: st.DrawFn,
) -> tuple[Desired | None, list[SlicePut], dict[NodeId, LiveNode], set[SliceKey], dict[NodeId, int], NodeId | None]:
    kinds = draw(st.lists(st.sampled_from(["", "", "", "1", "2", "4", "cordon", "drain", "missing"]), max_size=6))
    nodes = places(len(kinds), **{f"n{i}": kind for i, kind in enumerate(kinds, 1)})
    keys = draw(
        st.lists(
            st.builds(SliceKey, st.integers(1, 7).map(n), st.just(APP), st.integers(0, 3)), unique=True, max_size=12
        )
    )
    puts: list[SlicePut] = [
        ValuePut(
            key,
            SliceValue(
                draw(st.sampled_from(SliceState)),
                fatal=draw(st.booleans()),
                failures=draw(st.none() | st.integers(0, 4)),
                blueprint=draw(st.none() | st.integers(1, 5)),
            ),
            1,
            NOW - draw(st.sampled_from([0.0, 1.0, 3.0, 70.0, 130.0, 400.0])),
        )
        for key in keys
    ]
    failed = [each.key for each in puts if each.value.state is S.FAILED]
    unloading = draw(st.sets(st.sampled_from(failed))) if failed else set()
    desired = draw(st.none() | st.builds(wanted, st.integers(0, 10), st.integers(1, 5)))
    more = {node: draw(st.integers(0, 2)) for node in nodes}
    return desired, puts, nodes, unloading, more, draw(st.none() | st.sampled_from(sorted(nodes) or [n(1)]))
