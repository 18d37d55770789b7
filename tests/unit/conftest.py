from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from cdm.dispatch import router

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these tests are quick ones."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.quick)


@pytest.fixture(scope="package", autouse=True)
def _wired_once() -> Iterator[None]:
    """What the annotation of a receiver says is worked out once for thousands of worlds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(router, "_signature", functools.cache(router._signature))
        yield


@pytest.fixture(scope="package", autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of examples would print millions of lines."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)
