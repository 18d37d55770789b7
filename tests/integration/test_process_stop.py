"""Stop means stopped: nothing of a slice lives on, whatever it did, and whoever died."""

from __future__ import annotations

import gc
import os
import signal
import time
from operator import le
from pathlib import Path

import anyio
import msgspec
import pytest

from cdm.errors import SliceFailed
from cdm.model.manifest import Line, Manifest, Readiness, Restart, RestartPolicy
from tests.harness.proc import children, descriptors, resident, stranger
from tests.harness.programs import NODE, READY, SHORT, STUBBORN, Stage, key_of, staged
from tests.harness.waiting import Stopwatch, bounded, eventually

pytestmark = pytest.mark.anyio


async def test_it_is_asked_first(stage: Stage) -> None:
    manifest = Manifest(stop_signal="SIGINT", stop_grace=20, readiness=Readiness(check=Line()))
    key = await stage.up(
        "def bye(*_):\n time.sleep(0.3); print('bye'); os._exit(0)\nsignal.signal(signal.SIGINT, bye)" + READY, manifest
    )
    began = time.monotonic()
    await stage.runtime.deactivate(key)
    assert 0.3 <= time.monotonic() - began < 15
    assert await stage.text(key) == ["READY=1", "bye"]
    assert stage.living == []
    assert stage.crashes == []


async def test_its_children_are_asked_and_have_their_grace_too(stage: Stage) -> None:
    child = """
note()
def bye(*_):
    time.sleep(0.5); print('child is done'); os._exit(0)
signal.signal(signal.SIGTERM, bye)
print('READY=1')
while True: time.sleep(1)
"""
    key = await stage.up(f"fork({child!r})\ntime.sleep(600)", Manifest(readiness=Readiness(check=Line())))
    await stage.runtime.deactivate(key)
    assert await stage.text(key) == ["READY=1", "child is done"]
    assert stage.living == []


async def test_one_that_ignores_the_signal_is_killed_after_its_grace(stage: Stage) -> None:
    key = await stage.up(STUBBORN + READY, SHORT)
    began = time.monotonic()
    await stage.runtime.deactivate(key)
    assert 0.5 <= time.monotonic() - began < 15
    assert stage.living == []


async def test_one_that_was_halted_is_stopped(stage: Stage) -> None:
    key = await stage.up(READY, SHORT)
    os.kill(stage.pids[0], signal.SIGSTOP)
    await stage.runtime.deactivate(key)
    assert stage.living == []


@pytest.mark.parametrize("leave", [False, True], ids=["in-the-group", "daemon"])
@pytest.mark.parametrize("program", ["stays", "ended"])
@pytest.mark.quick
async def test_children_that_ignore_the_signal(stage: Stage, leave: bool, program: str) -> None:
    end = READY if program == "stays" else "\nprint('READY=1')\nsys.exit(0)"
    child = STUBBORN + "import subprocess\nsubprocess.Popen([sys.executable, '-c', SLEEP])\n" + "exec(SLEEP)"
    manifest = Manifest(stop_grace=0.5, readiness=Readiness(check=Line()), restart=Restart(policy=RestartPolicy.NEVER))
    key = await stage.load(f"fork({child!r}, leave={leave})\nnoted(3)" + end, manifest)
    if program == "stays":
        await stage.runtime.activate(key)
        assert len(await stage.noted(3)) == 3
        await stage.runtime.deactivate(key)
    else:
        with bounded(20):
            try:
                await stage.runtime.activate(key)
            except SliceFailed:  # seen to be over at once
                pass
            else:
                await eventually(lambda: stage.crashes)
    assert len(stage.pids) == 3
    assert stage.living == []


async def test_a_daemon_while_other_slices_run(stage: Stage) -> None:
    key = await stage.up("fork(SLEEP, leave=True)" + READY, SHORT)
    await stage.noted(2)
    await stage.up("fork(SLEEP, leave=True)" + READY, SHORT, key_of("other"))
    await stage.noted(4)
    await stage.runtime.deactivate(key)
    assert stage.living == stage.pids[2:]


async def test_a_daemon_without_its_environment(stage: Stage) -> None:
    key = await stage.up("fork(SLEEP, leave=True, scrub=True)" + READY, SHORT)
    other = await stage.up(READY, SHORT, key_of("other"))
    await stage.noted(3)
    await stage.runtime.deactivate(key)
    await stage.runtime.deactivate(other)
    await eventually(lambda: not stage.living, within=2)  # without cgroups: with the last slice


async def test_a_scrubbed_child_in_the_session(stage: Stage) -> None:
    key = await stage.up("fork(SLEEP, scrub=True)" + READY, SHORT)
    await stage.noted(2)
    await stage.up(READY, SHORT, key_of("other"))
    await stage.runtime.deactivate(key)
    assert stage.living == stage.pids[2:]


async def test_one_that_forks_as_fast_as_it_can(stage: Stage) -> None:
    key = await stage.up(
        STUBBORN + "print('READY=1')\n"
        "for _ in range(400):\n if os.fork() == 0:\n  note(); os.setsid(); time.sleep(600)\n time.sleep(0.001)",
        SHORT,
    )
    await stage.runtime.deactivate(key)
    assert stage.living == []
    pids = len(stage.pids)
    await anyio.sleep(0.2)
    assert len(stage.pids) == pids


@pytest.mark.parametrize("stage", [True], indirect=True, ids=["cgroups"])
async def test_one_that_forks_and_exits_is_not_said_to_be_gone_while_it_runs(stage: Stage) -> None:
    """Without cgroups it outruns every signal, and on a busy machine every look for as long as there is doubt."""
    alive = stage.folder / "alive"
    chain = f"""
limit = time.monotonic() + 3
while time.monotonic() < limit:
    os.setsid()
    Path({str(alive)!r}).touch()
    if os.fork():
        os._exit(0)
"""
    key = await stage.up(f"fork({chain!r})" + READY, msgspec.structs.replace(SHORT, stop_grace=0.1))
    await eventually(alive.exists)
    await stage.runtime.deactivate(key)
    before = alive.stat().st_mtime_ns
    await anyio.sleep(0.5)
    assert alive.stat().st_mtime_ns == before


async def test_no_zombies_while_it_runs(stage: Stage) -> None:
    await stage.up("for _ in range(20): fork('pass', leave=True)" + READY, SHORT)
    keeper = stage.runtime.keeper
    assert keeper is not None
    await eventually(lambda: len(children(keeper)) == 1)


async def test_others_are_left_alone(stage: Stage) -> None:
    with stranger() as someone:
        key = await stage.up(READY, SHORT)
        other = await stage.up(READY, SHORT, key_of("other"))
        await stage.runtime.unload(key)
        assert stage.living == [stage.pids[1]]
        await stage.runtime.unload(other)
        assert someone.poll() is None


async def test_stopping_is_not_lost_when_it_is_cancelled(stage: Stage) -> None:
    key = await stage.up(STUBBORN + READY, msgspec.structs.replace(SHORT, stop_grace=2))
    began = time.monotonic()
    with anyio.move_on_after(0.05):
        await stage.runtime.deactivate(key)
    assert stage.living or time.monotonic() - began > 2
    await stage.runtime.deactivate(key)
    assert stage.living == []
    await stage.runtime.activate(key)


async def test_started_again_right_after_a_cancelled_stop(stage: Stage) -> None:
    key = await stage.up(STUBBORN + READY, SHORT)
    with anyio.move_on_after(0.05):
        await stage.runtime.deactivate(key)
    await stage.runtime.activate(key)
    assert len(stage.living) == 1


@pytest.mark.parametrize("patience", [0, 0.001, 0.01])
async def test_a_stop_that_is_cancelled_at_once_doubles_nothing(stage: Stage, patience: float) -> None:
    key = await stage.up(READY, SHORT)
    for _ in range(3):
        with anyio.CancelScope() as scope:
            scope.deadline = anyio.current_time() + patience
            await stage.runtime.deactivate(key)
        await stage.runtime.activate(key)
        assert len(stage.living) == 1


async def test_a_stop_that_is_cancelled_at_once_goes_on(stage: Stage) -> None:
    """Nobody asks again: what counts as stopped must not run on."""
    key = await stage.up(READY, SHORT)
    with anyio.move_on_after(0):
        await stage.runtime.deactivate(key)
    assert stage.runtime.slices == {key: False}
    await eventually(lambda: not stage.living)
    await stage.runtime.activate(key)


async def test_close_stops_all_of_them_at_once(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        for number in range(5):
            await stage.up(STUBBORN + READY, msgspec.structs.replace(SHORT, stop_grace=2), key_of(ordinal=number))
        watch = Stopwatch()
        await stage.runtime.close()
        assert watch.took < watch.bound(2), "one after the other"
        assert stage.living == []
        assert not any(stage.runtime.slices.values())


def opened(keeper: int) -> list[int]:
    """How many descriptors this process and the keeper have open."""
    return [descriptors(pid) for pid in (os.getpid(), keeper)]


def _no_more(now: list[int], before: list[int]) -> bool:
    return all(map(le, now, before))


async def test_200_slices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rounds: list[tuple[list[int], int, int, float, float]] = []
    patient = Manifest(stop_grace=0.5, readiness=Readiness(check=Line(), timeout=600))
    async with staged(tmp_path) as stage:
        for number in range(200):
            await stage.load("print('READY=1', flush=True)\ntime.sleep(600)", patient, key_of(ordinal=number))
        keeper = stage.runtime.keeper
        assert keeper is not None
        for _ in range(3):
            stage.pids_file.write_text("")
            began = time.monotonic()
            async with anyio.create_task_group() as tasks:
                for number in range(200):
                    tasks.start_soon(stage.runtime.activate, key_of(ordinal=number))
            up = time.monotonic()
            assert len(stage.living) == 200
            async with anyio.create_task_group() as tasks:
                for number in range(200):
                    tasks.start_soon(stage.runtime.deactivate, key_of(ordinal=number))
            down = time.monotonic()
            assert stage.living == []
            assert children(keeper) == []
            gc.collect()
            if len(rounds) == 2:  # what tests before this one have left may be collected late, as a last pipe be closed
                before = rounds[1][0]
                await eventually(lambda: _no_more(opened(keeper), before), what="no descriptor is left open")  # noqa: B023
            rounds.append((opened(keeper), resident(os.getpid()), resident(keeper), up - began, down - up))
    with capsys.disabled():
        for fds, node, kept, up, down in rounds:
            print(
                f"\n200 slices: up {up:.2f} s, down {down:.2f} s, fds {fds}, node {node} kB, keeper {kept} kB",
                end="",
            )
    assert rounds[2][1] - rounds[1][1] < 2_000, "the node's memory grows"
    assert rounds[2][2] - rounds[1][2] < 2_000, "the keeper's memory grows"


async def test_before_start_and_after_close(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    key = await stage.load("time.sleep(600)")
    with pytest.raises(SliceFailed, match="not started"):
        await stage.runtime.activate(key)
    await stage.runtime.close()
    await stage.runtime.start()
    await stage.runtime.activate(key)
    await stage.runtime.close()
    await stage.runtime.close()
    assert stage.living == []
    assert key.node == NODE
