"""What the tests of a node's cache need: a store, and somebody who pushes to it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cdm.artifacts.cache import Cache
from cdm.artifacts.packing import pack
from cdm.artifacts.repository import Artifacts
from cdm.artifacts.stored import Pushed
from cdm.errors import SliceFailed
from cdm.model.artifact import Artifact
from cdm.model.manifest import Manifest
from tests.harness.servers import Addressed
from tests.harness.store import connected

PLAIN = Manifest()
ONE = Artifact("g", "one", "1")
TWO = Artifact("g", "two", "1")
THREE = Artifact("g", "three", "1")


class Supply:
    """A store, somebody who pushes, and a folder for caches."""

    def __init__(self, artifacts: Artifacts, folder: Path) -> None:
        self.artifacts = artifacts
        self.folder = folder

    def cache(self, max_bytes: int = 10**9) -> Cache:
        return Cache(self.folder / "cache", self.artifacts, max_bytes)

    @property
    def contents(self) -> list[str]:
        """What is in the cache's folder, without seals."""
        return sorted(path.name for path in (self.folder / "cache").iterdir() if path.suffix != ".seal")

    @property
    def seals(self) -> list[str]:
        """The contents that have a seal."""
        return sorted(path.stem for path in (self.folder / "cache").glob("*.seal"))

    async def push(
        self, artifact: Artifact, path: Path, manifest: Manifest = PLAIN, *, force: bool = False, inside: bool = True
    ) -> Pushed:
        packed = pack(path, self.folder)
        return await self.artifacts.push(artifact, packed.path, packed.content(manifest, inside=inside), force=force)

    def file(self, size: int = 1000, name: str = "program") -> Path:
        path = self.folder / name
        path.write_bytes(os.urandom(size))
        return path

    def tree(self, name: str = "tree") -> Path:
        path = self.folder / name
        (path / "bin").mkdir(parents=True)
        (path / "bin" / "a.sh").write_text("#!/bin/sh\necho a\n")
        (path / "bin" / "b.sh").write_text("#!/bin/sh\necho b\n")
        (path / "link").symlink_to("bin/a.sh")
        return path


@asynccontextmanager
async def supply(server: Addressed, folder: Path) -> AsyncIterator[Supply]:
    async with connected(server) as connection:
        artifacts = Artifacts(connection)
        await artifacts.ensure(create=True)
        yield Supply(artifacts, folder)


async def refused(cache: Cache, artifact: Artifact = ONE, *, fatal: bool) -> str:
    with pytest.raises(SliceFailed) as caught:
        await cache.get(artifact)
    assert caught.value.fatal is fatal
    assert "\n" not in str(caught.value)
    return str(caught.value)
