"""What all tests share."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.harness.servers import NatsServer, running_server


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
