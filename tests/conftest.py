"""What all tests share."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.harness import forked
from tests.harness.scheduling import OneByOne
from tests.harness.servers import NatsServer, running_server

HERE = Path(__file__).parent
FOLDERS = ("containers", "systemd", "proxies", "security", "docs", "integration", "cli", "bench", "unit")
"""In the order in which their tests are run."""
LONGEST = (
    "test_placement_model.py",
    "test_reconciliation_model.py",
    "test_rollouts_at_once.py",
    "test_rollouts_model.py",
    "test_source.py",
)
"""The files whose tests come first in their folder: each of these tests takes half a minute by itself."""
# Machines are slow at times: no example fails for the time that it takes.
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
# The same examples each time, so that what fails does so because of a change. CDM_TEST_RANDOM=1 searches elsewhere, and
# CDM_TEST_RANDOM=30 tries thirty times as many.
TIMES = int(os.environ.get("CDM_TEST_RANDOM") or 0)
settings.register_profile(
    "cdm",
    max_examples=100 * max(TIMES, 1),
    deadline=None,
    print_blob=True,
    suppress_health_check=SLOW,
    derandomize=not TIMES,
)
settings.register_profile("quick", settings.get_profile("cdm"), max_examples=10)


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples Hypothesis tries, unless the command line does (`tests.harness.examples`)."""
    # What is started in the background does not hear Ctrl-C, nor does what it starts: tests send it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not config.getoption("--hypothesis-profile"):
        settings.load_profile("quick" if config.getoption("-m") == "quick" else "cdm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits longest comes first, so that no worker has it left when the others are done."""
    items.sort(key=lambda item: (FOLDERS.index(item.path.relative_to(HERE).parts[0]), item.path.name not in LONGEST))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneByOne:
    """Have each worker take one test after the other."""
    return OneByOne(config, log)


def pytest_sessionfinish() -> None:
    """End what commands were forked from, before what was measured of coverage is put together."""
    forked.close()


@pytest.fixture
def anyio_backend() -> str:
    """The client library is asyncio's."""
    return "asyncio"


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    """A fresh server of the test's own: it may be killed."""
    async with running_server() as fresh:
        yield fresh


@pytest.fixture
def sockets_forgiven() -> Iterator[None]:
    """Sockets that the client left open are collected with the test that is forgiven for them (`FORGIVEN`)."""
    yield
    gc.collect()
