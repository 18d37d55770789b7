"""What tests with containers share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.engine import Images, alone, images

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's time begins when it has the engine to itself, however long another suite on this machine has it."""
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(func_only=True))


@pytest.fixture
def engine() -> Iterator[Images]:
    """A container engine of the test's own for its time, and the names of the images that it runs."""
    with alone():
        yield images()
