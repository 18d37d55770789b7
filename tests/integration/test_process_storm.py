"""A slice that forks without end, in a control group that bounds it: its node and their keeper outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdm.errors import SliceFailed
from cdm.model.artifact import NodeId
from cdm.model.limits import Limits
from cdm.model.manifest import Manifest
from cdm.runtimes import Surroundings
from cdm.runtimes.keeper.cgroup import room
from cdm.runtimes.process.runtime import ProcessRuntime
from tests.harness.programs import Stage, staged

pytestmark = pytest.mark.anyio

LIMITS = {"pids": {"pids.max": 100}, "memory": {"memory.limit_in_bytes": 200 << 20, "memory.max": 200 << 20}}
ROOT = Path("/sys/fs/cgroup")


@pytest.fixture
def bounds() -> Iterator[list[Path]]:
    """Control groups that bound processes and memory; who writes his pid to their cgroup.procs is in them."""
    name, groups = f"cdm-test-{uuid.uuid4().hex[:8]}", []
    try:
        for controller, limits in LIMITS.items():
            parent = ROOT / controller if (ROOT / controller).is_dir() else ROOT
            group = parent / name
            group.mkdir(exist_ok=True)
            groups.append(group)
            files = [(group / file, limit) for file, limit in limits.items() if (group / file).exists()]
            if not files:
                pytest.skip(f"no control group can limit {controller}")
            for file, limit in files:
                file.write_text(str(limit))
        yield sorted(set(groups))
    except OSError as error:
        pytest.skip(f"control groups cannot be written to: {error}")
    finally:
        for group in set(groups):
            for pid in (group / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            for _ in range(1000):
                try:
                    group.rmdir()
                    break
                except OSError:
                    pass


NODE = """
import os, sys
from pathlib import Path
import anyio
from cdm.errors import SliceFailed
from cdm.model.manifest import Line, Manifest, Readiness, Restart
from tests.harness.programs import READY, SHORT, Stage, key_of

STORM = '''
print('READY=1', flush=True)
while True:
    try:
        if os.fork() == 0:
            os.setsid()
            keep = bytearray(os.urandom({size}))
            time.sleep(600)
    except OSError:
        time.sleep(0.1)
'''

async def main(folder, size):
    stage = Stage(Path(folder), cgroups=False)
    await stage.runtime.start()
    await stage.up(READY, SHORT, key_of("good"))
    keeper, (good,) = stage.runtime.keeper, stage.living
    manifest = Manifest(stop_grace=0.5, readiness=Readiness(check=Line()), restart=Restart(attempts=0))
    storm = await stage.up(STORM.replace("{size}", size), manifest, key_of("storm"))
    for _ in range(15):
        await anyio.sleep(4)
        try:
            await stage.up(READY, SHORT, key_of("other"))
        except SliceFailed as error:
            print("other:", error)
            break
        if size != "1":
            print("other: up")
            break
        await stage.runtime.unload(key_of("other"))  # the storm has only begun
    await stage.runtime.unload(storm)
    print("keeper", stage.runtime.keeper == keeper, "good", good in stage.living, flush=True)
    await stage.runtime.close()
    print("living", stage.living)
for group in sys.argv[3:]:
    Path(group, "cgroup.procs").write_text(str(os.getpid()))
anyio.run(main, sys.argv[1], sys.argv[2])
"""


def node(folder: Path, size: int, bounds: list[Path]) -> list[str]:
    """Run a node with a storm whose processes take so many bytes each; returns what it says."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))}
    command = [sys.executable, "-c", NODE, str(folder), str(size), *map(str, bounds)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 0
    return [line for line in done.stdout.splitlines() if line.startswith(("other", "keeper", "living"))]


def test_one_that_uses_up_all_memory(tmp_path: Path, bounds: list[Path]) -> None:
    """The kernel ends the largest process: without more said, that is the node."""
    assert node(tmp_path, 4_000_000, bounds)[1:] == ["keeper True good True", "living []"]


def test_one_that_uses_up_all_processes(tmp_path: Path, bounds: list[Path]) -> None:
    said = node(tmp_path, 1, bounds)
    assert said[0].startswith("other: this node has no processes left for one more program")
    assert said[1:] == ["keeper True good True", "living []"]


def test_some_processes_are_left_for_the_node(tmp_path: Path) -> None:
    outer, inner = tmp_path, tmp_path / "inner"
    inner.mkdir()
    assert room(str(inner), [30_000, 40_000]) == 30_000 - 64
    (inner / "pids.max").write_text("max\n")
    (outer / "pids.max").write_text("1000\n")
    assert room(str(inner), [30_000]) == 1000 - 64
    (inner / "pids.max").write_text("20\n")
    assert room(str(inner), [30_000]) == 10


LIMITED = Manifest(limits=Limits(processes=50))


@pytest.mark.skipif(os.geteuid() != 0, reason="RLIMIT_NPROC holds for others than root")
async def test_a_limit_that_cannot_be_enforced_fails_the_load(tmp_path: Path) -> None:
    async with staged(tmp_path, cgroups=False) as stage:
        with pytest.raises(SliceFailed, match=r"limits\.processes cannot be enforced on this node") as caught:
            await stage.load("time.sleep(600)", LIMITED)
        assert caught.value.fatal
        assert stage.runtime.slices == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="RLIMIT_NPROC holds for others than root")
async def test_or_is_a_warning(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    told = Surroundings(NodeId("n1"), tmp_path / "runtime", lambda *_: None, enforce_limits=False)
    stage.runtime = ProcessRuntime(told, cgroups=False)
    await stage.runtime.start()
    try:
        key = await stage.up("time.sleep(600)", LIMITED)
        assert stage.runtime.slices == {key: True}
        assert "cannot be enforced" in (stage.runtime.warning(key) or "")
        await stage.load("time.sleep(600)", Manifest(), key)
        assert stage.runtime.warning(key) is None
    finally:
        await stage.runtime.close()


PROBE = """
import os
from cdm.runtimes.keeper.spawn import limits_processes
as_root = limits_processes()
os.setgid(65534)
os.setuid(65534)
print(as_root, limits_processes())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as both")
def test_whether_the_system_limits_processes_is_tried() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


async def test_programs_are_ended_before_the_keeper_when_memory_is_short(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await stage.up("time.sleep(600)")
        (pid,) = await stage.noted(1)
        score = int(Path(f"/proc/{pid}/oom_score_adj").read_text())  # noqa: ASYNC240
        assert score == int(Path(f"/proc/{stage.runtime.keeper}/oom_score_adj").read_text()) + 200  # noqa: ASYNC240
