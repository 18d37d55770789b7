"""What tests with containers share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.engine import Images, alone, images


@pytest.fixture
def engine() -> Iterator[Images]:
    """A container engine of the test's own for its time, and the names of the images that it runs."""
    with alone():
        yield images()
