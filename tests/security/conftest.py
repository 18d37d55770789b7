"""The sites, which all tests of one worker share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.security.site import Site, site


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The client library is asyncio's; the sites live as long as all tests."""
    return "asyncio"


@pytest.fixture(scope="session")
async def alone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A site with one server."""
    async with site(tmp_path_factory.mktemp("alone"), 1) as made:
        yield made


@pytest.fixture(scope="session")
async def three(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A site with three servers."""
    async with site(tmp_path_factory.mktemp("three"), 3) as made:
        yield made


@pytest.fixture(params=["alone", "three"])
def attacked(request: pytest.FixtureRequest) -> Site:
    """Each site."""
    found: Site = request.getfixturevalue(request.param)
    return found
