"""A node whose runtime cannot run on its machine ends, having made nothing: neither buckets nor a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness.processes import command_line
from tests.harness.servers import NatsServer
from tests.harness.wire import raw

pytestmark = pytest.mark.anyio

NO_SYSTEMD = pytest.mark.skipif(
    os.geteuid() == 0 and Path("/run/systemd/system").exists(), reason="the runtime systemd can run on this machine"
)


@pytest.mark.parametrize(
    ("runtime", "code", "told"),
    [
        pytest.param("systemd", 2, "cdm: --runtime systemd (CDM_RUNTIME) needs ", marks=NO_SYSTEMD),
        ("container", 1, "cdm: the container engine at "),
    ],
)
async def test_it_is_told_in_one_line_before_anything_is_made(
    server: NatsServer, tmp_path: Path, runtime: str, code: int, told: str
) -> None:
    folder = tmp_path / "node"
    options = ("--server", server.url, "--runtime", runtime, "--folder", str(folder))
    ended = await command_line("node", *options, env={"DOCKER_HOST": f"unix://{tmp_path}/nobody"})
    assert ended.returncode == code
    *_, last = ended.stderr.decode().splitlines()
    assert last.startswith(told)
    assert not folder.exists()
    async with raw(server) as user:
        assert (await user.api("STREAM.NAMES"))["total"] == 0
