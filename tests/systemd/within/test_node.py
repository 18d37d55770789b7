"""The unit file of a node, as it is shipped: what becomes of slices while their node's process comes and goes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from tests.harness.paths import ROOT
from tests.harness.servers import NatsServer, running_server
from tests.harness.waiting import eventually
from tests.harness.wire import raw

pytestmark = pytest.mark.anyio
UNIT = "cdm-node.service"
UNITS = Path("/run/systemd/system")
CDM = Path(sys.executable).with_name("cdm")
PATIENCE = 120.0
NEVER, SOON = 600, 6
"""Seconds of the unit's watchdog. A process that begins on a very busy machine may look frozen: so it is only short
where one is."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    async with running_server() as fresh:
        yield fresh


async def systemctl(*arguments: str) -> str:
    ran = await anyio.run_process(["systemctl", *arguments], check=False, stderr=subprocess.STDOUT)
    assert ran.returncode == 0, (arguments, ran.stdout)
    return ran.stdout.decode().strip()


async def main_pid() -> int:
    return int(await systemctl("show", UNIT, "--property=MainPID", "--value"))


class Ground:
    """A node as a unit, and one slice of it that notes its pid whenever it starts."""

    def __init__(self, folder: Path, server: NatsServer, runtime: str) -> None:
        self.folder = folder
        self.environment = {
            "NATS_URL": server.url,
            "CDM_ID": "n1",
            "CDM_FOLDER": str(folder / "n1"),
            "CDM_RUNTIME": runtime,
            "CDM_NODE_TTL": "60",
            **({"CDM_RUN_AS": "same"} if runtime == "process" else {}),
        }
        self.log = folder / "log"

    async def install(self, watchdog: int) -> None:
        """Install the unit, with what every machine has to say of itself."""
        self._write(watchdog)
        await systemctl("daemon-reload")

    def _write(self, watchdog: int) -> None:
        UNITS.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "deploy/systemd" / UNIT, UNITS)
        variables = "\n".join(f"Environment={name}={value}" for name, value in self.environment.items())
        (UNITS / f"{UNIT}.d").mkdir(exist_ok=True)
        (UNITS / f"{UNIT}.d" / "here.conf").write_text(
            f"[Service]\n{variables}\nExecStart=\nExecStart={CDM} node\nStateDirectory=\nWatchdogSec={watchdog}\n"
            f"StandardError=append:{self.log}\n"
        )
        content = self.folder / "content"
        content.mkdir(exist_ok=True)
        (content / "run").write_text("#!/bin/sh\necho up $$\necho READY=1\nexec sleep 600\n")
        (content / "run").chmod(0o755)
        (self.folder / "manifest.toml").write_text('entry = "run"\nreadiness.check = { kind = "line" }\n')

    async def cdm(self, *arguments: str) -> str:
        environment = {**os.environ, **self.environment}
        ran = await anyio.run_process(
            [str(CDM), *arguments], env=environment, check=False, stderr=subprocess.STDOUT, cwd=self.folder
        )
        assert ran.returncode == 0, (arguments, ran.stdout, self.said)
        return ran.stdout.decode()

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    async def up(self, times: int) -> None:
        """Wait until so many processes of the node were up, and all but the first went on with the slice."""
        await eventually(
            lambda: self.said.count("node is up") >= times and self.said.count("goes on since") >= times - 1, PATIENCE
        )

    def started(self) -> list[str]:
        """The pids of slices that wrote them, one for each start."""
        logs = self.folder.glob("n1/runtime/logs/*/*.log")
        lines = (line for path in logs for line in path.read_text().splitlines())
        return [line.split()[-1] for line in lines if " out up " in line]


def _remove_unit() -> None:
    shutil.rmtree(UNITS / f"{UNIT}.d")
    (UNITS / UNIT).unlink()


def alive(pid: str | int) -> bool:
    try:
        return b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


async def test_a_node_that_could_not_start_for_a_while_starts_in_the_end(server: NatsServer, tmp_path: Path) -> None:
    """By default systemd gives up after five attempts in ten seconds; here after two, as a slow machine makes few."""
    ground = Ground(tmp_path, server, "process")
    (tmp_path / "n1").touch()  # where its folder is to be
    await ground.install(NEVER)
    (UNITS / f"{UNIT}.d" / "few.conf").write_text("[Unit]\nStartLimitBurst=2\n")
    await systemctl("daemon-reload")
    await systemctl("start", "--no-block", UNIT)
    try:
        await eventually(partial(_restarted, 4), PATIENCE)
        assert "node is up" not in ground.said
        (tmp_path / "n1").unlink()
        await eventually(lambda: "node is up" in ground.said, PATIENCE)
    finally:
        await systemctl("stop", UNIT)
        _remove_unit()
        await systemctl("daemon-reload")


async def _restarted(times: int) -> bool:
    assert await systemctl("show", UNIT, "--property=ActiveState", "--value") != "failed", "systemd gave it up"
    return int(await systemctl("show", UNIT, "--property=NRestarts", "--value")) >= times


@pytest.mark.parametrize("runtime", ["process", "systemd"])
async def test_slices_outlive_every_process_of_their_node(server: NatsServer, tmp_path: Path, runtime: str) -> None:
    """Reloaded, restarted, frozen, killed and stopped; `cdm node leave` ends them."""
    ground = Ground(tmp_path, server, runtime)
    await ground.install(NEVER)
    await systemctl("start", UNIT)
    try:
        await ground.cdm("artifact", "push", "org.example:one:1.0.0", "content", "--manifest", "manifest.toml")
        async with raw(server) as user:
            await user.put("blueprints", "org.example/one/1.0.0", 1)

            async def active() -> bool:
                return "ACTIVE" in (await user.slices()).values()

            await eventually(active, PATIENCE)
        (slice_,) = await eventually(ground.started, PATIENCE)
        first = await main_pid()

        await systemctl("reload", UNIT)
        await ground.up(2)
        assert await main_pid() == first, "another version in place"
        assert alive(slice_)

        await ground.install(SOON)
        await systemctl("restart", UNIT)
        await ground.up(3)
        second = await main_pid()
        assert second != first
        assert alive(slice_)

        await ground.install(NEVER)  # for those after this one
        os.kill(second, signal.SIGSTOP)
        await ground.up(4)
        third = await main_pid()
        assert third != second, "the watchdog has found it"
        assert alive(slice_)

        os.kill(third, signal.SIGKILL)
        await ground.up(5)
        assert alive(slice_)
        await systemctl("stop", UNIT)
        assert alive(slice_)
        assert ground.started() == [slice_], "it was never started again"
        assert "1 of its slices did" in await ground.cdm("node", "leave")
        assert not alive(slice_)
    finally:
        await systemctl("kill", "--signal=SIGKILL", UNIT) if await main_pid() else None
        await anyio.run_process([str(CDM), "node", "leave"], env={**os.environ, **ground.environment}, check=False)
        await systemctl("stop", UNIT)
        _remove_unit()
        await systemctl("daemon-reload")
