"""What the server says of a stream, and who may be believed."""

from __future__ import annotations

from typing import Any

import pytest

from cdm.store.wire import has_majority

HEARD = {"name": "b", "current": True, "active": 900_000_000}
SILENT = {"name": "c", "current": False, "active": 7_000_000_000}
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
        ({"leader": "a", "replicas": [{"name": "b"}, SILENT]}, True),
    ],
)
def test_a_leader_that_hears_of_no_majority_is_not_believed(cluster: dict[str, Any], so: bool) -> None:
    assert has_majority(cluster) is so
