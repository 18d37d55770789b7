"""What the server says of a stream, and who may be believed."""

from __future__ import annotations

from typing import Any

import pytest

from cdm.store.wire import is_leaders

HEARD = {"name": "b", "current": True, "active": 900_000_000}
SILENT = {"name": "c", "current": False, "active": 7_000_000_000}
NEVER = {"name": "c", "current": False, "active": 0}
OFFLINE = {"name": "c", "current": False, "offline": True, "active": 100}


@pytest.mark.parametrize(
    ("cluster", "so"),
    [
        ({}, True),
        ({"leader": "a"}, True),
        ({"leader": "a", "replicas": [HEARD, HEARD]}, True),
        ({"leader": "a", "replicas": [HEARD, SILENT]}, True),
        ({"leader": "a", "replicas": [HEARD, OFFLINE]}, True),
        ({"leader": "a", "replicas": [SILENT, OFFLINE]}, False),
        ({"leader": "a", "replicas": [HEARD, SILENT, SILENT, SILENT]}, False),
        ({"leader": "a", "replicas": [NEVER, HEARD]}, True),
        ({"leader": "a", "replicas": [NEVER, SILENT]}, False),
    ],
)
def test_a_leader_that_hears_of_no_majority_is_not_believed(cluster: dict[str, Any], so: bool) -> None:
    assert is_leaders({"cluster": cluster}) is so


@pytest.mark.parametrize(
    "cluster",
    [
        {"replicas": [NEVER, HEARD, {"name": "a", "active": 0}]},
        {"leader": "", "replicas": [HEARD, {**HEARD, "name": "c"}, {"name": "a", "active": 0}]},
        {"leader": "b", "replicas": [HEARD, {**HEARD, "name": "c"}]},
    ],
    ids=["knows no peer", "knows its peers", "knows who leads"],
)
def test_who_does_not_lead_is_not_believed(cluster: dict[str, Any]) -> None:
    """A server that knows of no leader answers for itself, and names itself among the replicas."""
    assert not is_leaders({"cluster": cluster})


def test_a_server_alone_is_believed() -> None:
    assert is_leaders({})
