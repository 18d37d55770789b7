"""What several of these tests stand on; those that need another ground make their own."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cdm.runtimes.keeper.cgroup import Cgroups, remove
from tests.harness.programs import Stage, staged


@pytest.fixture(params=[True, False], ids=["cgroups", "plain"])
async def stage(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """A started process runtime: with cgroups for certain, and without any."""
    if request.param:
        probe = Cgroups.make("probe")
        if probe is None:
            pytest.skip("no cgroup v2 that can be written to")
        remove(probe.base)
    async with staged(tmp_path, cgroups=request.param) as stage:
        yield stage


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=False, capture_output=True)
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
