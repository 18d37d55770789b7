"""Programs for the process runtime, and a runtime that runs them."""

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SliceKey
from cdm.model.manifest import Line, Manifest, Readiness
from cdm.runtimes import Surroundings, Work
from cdm.runtimes.process.runtime import ProcessRuntime
from tests.harness.proc import exists, keepers
from tests.harness.waiting import eventually

NODE = NodeId("n1")

PRELUDE = """
import os, signal, socket, subprocess, sys, time
from pathlib import Path
def note(pid=None):
    with open(os.environ["PIDS"], "a") as file:
        file.write(f"{pid or os.getpid()}\\n")
def noted(count):
    while len(Path(os.environ["PIDS"]).read_text().splitlines()) < count:
        time.sleep(0.01)
def until_up():
    while not Path(os.environ["PIDS"] + ".up").exists():
        time.sleep(0.01)
def fork(run, *, leave=False, scrub=False):
    pid = os.fork()
    if pid:
        if leave:
            os.waitpid(pid, 0)
        return pid
    try:
        if leave:
            os.setsid()
            if os.fork():
                os._exit(0)
        if scrub:
            os.execve(sys.executable, [sys.executable, "-c", run], {"PIDS": os.environ["PIDS"]})
        exec(run, globals())
    finally:
        os._exit(0)
SLEEP = "import os, time\\nwith open(os.environ['PIDS'], 'a') as f: f.write(f'{os.getpid()}\\\\n')\\ntime.sleep(600)"
note()
"""

STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
"""Begins a program that ignores its stop signal."""
SHORT = Manifest(stop_grace=0.5, readiness=Readiness(check=Line()))
READY = "\nprint('READY=1')\ntime.sleep(600)"
"""Ends a program that stays."""


def key_of(name: str = "slice", ordinal: int = 0) -> SliceKey:
    """A slice of this node."""
    return SliceKey(NODE, Artifact("org.example", name, "1.0.0"), ordinal)


class Crash(NamedTuple):
    """What the agent was told."""

    key: SliceKey
    reason: str
    fatal: bool


class Stage:
    """A runtime, and programs for it."""

    def __init__(self, folder: Path, *, cgroups: bool = True) -> None:
        self.folder = folder
        self.cgroups = cgroups
        self.crashes: list[Crash] = []
        self.restarts: list[tuple[object, ...]] = []
        """What the agent was told of restarts: which slice, why and how long it may take; which slice and its port."""
        self.pids_file = folder / "pids"
        self.pids_file.touch()
        self.told_up = folder / "pids.up"
        """What a program that calls ``until_up`` waits for: one that ends sooner was never up."""
        self.runtime = self.another(cgroups=cgroups)

    def another(self, *, cgroups: bool = True) -> ProcessRuntime:
        """One more runtime on the same folder, as after a new start of the node."""
        return ProcessRuntime(
            Surroundings(
                NODE,
                self.folder / "runtime",
                crashed=lambda *told: self.crashes.append(Crash(*told)),
                restarting=lambda *told: self.restarts.append(told),
                restarted=lambda *told: self.restarts.append(told),
            ),
            cgroups=cgroups,
        )

    def work(self, program: str, manifest: Manifest | None = None, key: SliceKey | None = None) -> Work:
        """Make an artifact of one Python script."""
        key = key or key_of()
        folder = self.folder / f"artifact-{key.artifact.name}-{key.ordinal}"
        folder.mkdir(exist_ok=True)
        (folder / "main.py").write_text(PRELUDE + textwrap.dedent(program))
        return Work(key, folder, _with_pids(manifest or Manifest(), self.pids_file))

    async def load(self, program: str, manifest: Manifest | None = None, key: SliceKey | None = None) -> SliceKey:
        """Load a Python script."""
        work = self.work(program, manifest, key)
        await self.runtime.load(work)
        return work.key

    async def up(self, program: str, manifest: Manifest | None = None, key: SliceKey | None = None) -> SliceKey:
        """Load a Python script, and start it."""
        key = await self.load(program, manifest, key)
        await self.runtime.activate(key)
        self.told_up.touch()
        return key

    @property
    def pids(self) -> list[int]:
        """All pids that programs noted."""
        return [int(line) for line in self.pids_file.read_text().split()]

    @property
    def living(self) -> list[int]:
        """Those that live, zombies among them."""
        return [pid for pid in self.pids if exists(pid)]

    async def noted(self, count: int) -> list[int]:
        """Wait until so many pids are noted."""
        await eventually(lambda: len(self.pids) >= count)
        return self.pids

    async def up_again(self, times: int) -> None:
        """Wait until the agent was told so often that a slice which was started again is ready."""
        await eventually(lambda: sum(len(told) == 2 for told in self.restarts) >= times)

    async def text(self, key: SliceKey, stream: str = "out") -> list[str]:
        """What a slice wrote."""
        return [line.text async for line in self.runtime.output(key) if line.stream == stream]


def _with_pids(manifest: Manifest, path: Path) -> Manifest:
    return msgspec.structs.replace(manifest, env={**manifest.env, "PIDS": str(path)})


@asynccontextmanager
async def staged(folder: Path, *, cgroups: bool = True) -> AsyncIterator[Stage]:
    """A started runtime; whatever happens, nothing is left of it."""
    stage = Stage(folder, cgroups=cgroups)
    await stage.runtime.start()
    try:
        yield stage
    finally:
        await stage.runtime.close()
        left = stage.living
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, f"lived on after close: {left}"
        assert not keepers(), "a keeper is left"
