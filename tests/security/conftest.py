"""The sites, which the tests of one file share."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.security.site import Site, site


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The client library is asyncio's; the sites live as long as their tests."""
    return "asyncio"


@pytest.fixture(scope="module")
async def alone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A site with one server."""
    async with _shared(tmp_path_factory.mktemp("alone"), 1) as made:
        yield made


@pytest.fixture(scope="module")
async def three(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A site with three servers."""
    async with _shared(tmp_path_factory.mktemp("three"), 3) as made:
        yield made


@asynccontextmanager
async def _shared(folder: Path, size: int) -> AsyncIterator[Site]:
    """What its clients left open is collected while those are still forgiven who used it (`FORGIVEN`)."""
    async with site(folder, size, node_ttl=30, lease_ttl=30) as made:
        yield made
    gc.collect()


@pytest.fixture(params=["alone", "three"])
def attacked(request: pytest.FixtureRequest) -> Site:
    """Each site."""
    found: Site = request.getfixturevalue(request.param)
    return found
