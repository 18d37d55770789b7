"""What people see first of a cluster in trouble."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cdm.cli.concerns import concerns, in_line
from cdm.cli.emptying import GoneNode
from cdm.cli.node_tables import MOST_NODES
from cdm.cli.overview import LISTED_BLUEPRINTS, details
from cdm.cli.report import BlueprintReport, ClusterReport, NodeReport
from cdm.cli.rows import PLAIN, Sheet
from cdm.model.artifact import NodeId
from cdm.model.node import Schedule

pytestmark = pytest.mark.quick

COUNT = LISTED_BLUEPRINTS + 5


def cluster(*conditions: str) -> ClusterReport:
    blueprints = [
        BlueprintReport(f"g:a{number:02}:1", condition, "", 1, 1, 0, 0, 1, 1)
        for number, condition in enumerate(conditions)
    ]
    gone = GoneNode(NodeId("n9"), "lost", "2023-11-14T22:13:20+00:00", {}, 0, {}, "all", "1")
    return ClusterReport(leader=NodeId("m"), term=1, blueprints=blueprints, nodes=[], slices=[], gone=[gone], notes=[])


def shown(found: ClusterReport, *, everything: bool = False) -> list[str]:
    return details(found, Sheet(PLAIN, 100), everything=everything)


def test_a_lost_node_comes_before_blueprints_and_those_that_are_ready_are_counted_where_there_are_many() -> None:
    lines = shown(cluster(*["Ready"] * COUNT, "Degraded"))
    places = {what: next(at for at, line in enumerate(lines) if what in line) for what in ("n9", "Degraded", "Ready")}
    assert sorted(places, key=places.__getitem__) == ["n9", "Degraded", "Ready"]
    assert lines[-1] == "6 more that are Ready; --all lists all"
    assert sum("g:a" in line for line in lines) == LISTED_BLUEPRINTS


def test_of_a_node_that_is_missing_nobody_knows_since_when_it_is_not_said_since_when() -> None:
    missing = GoneNode(NodeId("n9"), "missing", "", {}, 2, {}, "all", "1")
    found = concerns(replace(cluster(), gone=[missing]), [])
    assert "n9  missing; 2 of its slices are still there" in shown(found)
    assert [in_line(each) for each in found.troubles] == ["n9: missing: 2 of its slices are still there"]


@pytest.mark.parametrize(("ttl", "heard", "told"), [(40, 9, 0), (40, 25, 1), (10, 7, 1), (None, 4, 0), (None, 6, 1)])
def test_a_node_has_something_to_tell_once_its_heartbeat_is_late(ttl: float | None, heard: float, told: int) -> None:
    def node(number: int, heard: float) -> NodeReport:
        name = NodeId(f"n{number:02}")
        return NodeReport(name, "all", Schedule.NORMAL, "process", None, {}, "1", "", 0, heard, ttl=ttl)

    nodes = [node(0, heard), *(node(number, 0.0) for number in range(1, MOST_NODES + 1))]
    lines = shown(replace(cluster(), nodes=nodes))
    assert sum("process" in line for line in lines) == told


def test_a_role_that_changes_is_told_as_what_it_is_now_and_that_it_changes() -> None:
    """`nats micro` tells with which role a node was started."""
    plain = NodeReport(NodeId("n1"), "agent", Schedule.NORMAL, "process", None, {}, "1", "", 0, 0.0)
    lines = shown(
        replace(cluster(), nodes=[plain, replace(plain, node=NodeId("n2"), role="all", auto=True)]), everything=True
    )
    told = [" ".join(line.split()[:3]) for line in lines if line.startswith(("n1", "n2"))]
    assert told == ["n1 agent 0", "n2 all (auto)"]


def test_all_are_listed_that_have_something_to_tell_or_that_are_asked_for() -> None:
    troubled = shown(cluster(*["Degraded"] * COUNT, "Ready"))
    assert sum("Degraded" in line for line in troubled) == COUNT
    assert troubled[-1] == "1 more that are Ready; --all lists all"
    whole = shown(cluster(*["Ready"] * COUNT), everything=True)
    assert sum("g:a" in line for line in whole) == COUNT
