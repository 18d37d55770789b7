"""Stop means stopped: nothing of a slice lives on, whatever it did, and whoever died."""

from __future__ import annotations

import errno
import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from cdm import clock
from cdm.errors import SliceFailed
from cdm.model.manifest import Line, Manifest, Readiness, Restart, RestartPolicy
from cdm.runtimes import census
from cdm.runtimes.cgroup import Cgroups, remove
from cdm.runtimes.keeper import Keeper, Run
from cdm.runtimes.process import ORPHAN_BOUND
from cdm.runtimes.scribe import Scribe
from cdm.runtimes.words import Heard, Lapse, Spawn, encode
from tests.integration.programs import (
    NODE,
    Stage,
    children,
    descriptors,
    exists,
    key_of,
    resident,
    staged,
    stranger,
    until,
)

pytestmark = pytest.mark.anyio

STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
SHORT = Manifest(stop_grace=0.5, readiness=Readiness(check=Line()))
READY = "\nprint('READY=1')\ntime.sleep(600)"


@pytest.fixture(params=[True, False], ids=["cgroups", "plain"])
async def stage(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    if request.param:
        probe = Cgroups.make("probe")
        if probe is None:
            pytest.skip("no cgroup v2 that can be written to")
        remove(probe.base)
    async with staged(tmp_path, cgroups=request.param) as stage:
        yield stage


async def test_it_is_asked_first(stage: Stage) -> None:
    manifest = Manifest(stop_signal="SIGINT", stop_grace=20, readiness=Readiness(check=Line()))
    key = await stage.up(
        "def bye(*_):\n time.sleep(0.3); print('bye'); os._exit(0)\nsignal.signal(signal.SIGINT, bye)" + READY, manifest
    )
    began = time.monotonic()
    await stage.runtime.deactivate(key)
    assert 0.3 <= time.monotonic() - began < 5
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
    assert 0.5 <= time.monotonic() - began < 5
    assert stage.living == []


async def test_one_that_was_halted_is_stopped(stage: Stage) -> None:
    key = await stage.up(READY, SHORT)
    os.kill(stage.pids[0], signal.SIGSTOP)
    await stage.runtime.deactivate(key)
    assert stage.living == []


@pytest.mark.parametrize("leave", [False, True], ids=["in-the-group", "daemon"])
@pytest.mark.parametrize("program", ["stays", "ended"])
async def test_children_that_ignore_the_signal(stage: Stage, leave: bool, program: str) -> None:
    end = READY if program == "stays" else "\nprint('READY=1')\nsys.exit(0)"
    child = STUBBORN + "import subprocess\nsubprocess.Popen([sys.executable, '-c', SLEEP])\n" + "exec(SLEEP)"
    manifest = Manifest(stop_grace=0.5, readiness=Readiness(check=Line()), restart=Restart(policy=RestartPolicy.NEVER))
    key = await stage.load(f"fork({child!r}, leave={leave})\nwait = time.sleep(1)" + end, manifest)
    if program == "stays":
        await stage.runtime.activate(key)
        assert len(await stage.noted(3)) == 3
        await stage.runtime.deactivate(key)
    else:
        with anyio.fail_after(20):
            try:
                await stage.runtime.activate(key)
            except SliceFailed:  # seen to be over at once
                pass
            else:
                await until(lambda: stage.crashes)
    assert len(stage.pids) == 3
    assert stage.living == []


async def test_a_daemon_while_other_slices_run(stage: Stage) -> None:
    key = await stage.up("fork(SLEEP, leave=True)\ntime.sleep(0.5)" + READY, SHORT)
    await stage.noted(2)
    await stage.up("fork(SLEEP, leave=True)\ntime.sleep(0.5)" + READY, SHORT, key_of("other"))
    await stage.noted(4)
    await stage.runtime.deactivate(key)
    assert stage.living == stage.pids[2:]


async def test_a_daemon_without_its_environment(stage: Stage) -> None:
    key = await stage.up("fork(SLEEP, leave=True, scrub=True)\ntime.sleep(0.5)" + READY, SHORT)
    other = await stage.up(READY, SHORT, key_of("other"))
    await stage.noted(3)
    await stage.runtime.deactivate(key)
    await stage.runtime.deactivate(other)
    await until(lambda: not stage.living, within=2)  # without cgroups: with the last slice


async def test_a_scrubbed_child_in_the_session(stage: Stage) -> None:
    key = await stage.up("fork(SLEEP, scrub=True)\ntime.sleep(0.5)" + READY, SHORT)
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
    await until(alive.exists)
    await stage.runtime.deactivate(key)
    before = alive.stat().st_mtime_ns
    await anyio.sleep(0.5)
    assert alive.stat().st_mtime_ns == before


async def test_no_zombies_while_it_runs(stage: Stage) -> None:
    await stage.up("for _ in range(20): fork('pass', leave=True)" + READY, SHORT)
    keeper = stage.runtime.keeper
    assert keeper is not None
    await until(lambda: len(children(keeper)) == 1)


async def test_others_are_left_alone(stage: Stage) -> None:
    with stranger() as someone:
        key = await stage.up(READY, SHORT)
        other = await stage.up(READY, SHORT, key_of("other"))
        await stage.runtime.unload(key)
        assert stage.living == [stage.pids[1]]
        await stage.runtime.unload(other)
        assert someone.poll() is None


async def test_stopping_is_not_lost_when_it_is_cancelled(stage: Stage) -> None:
    key = await stage.up(STUBBORN + READY, SHORT)
    with anyio.move_on_after(0.05):
        await stage.runtime.deactivate(key)
    assert stage.living
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
    await until(lambda: not stage.living)
    await stage.runtime.activate(key)


async def test_close_stops_all_of_them_at_once(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        for number in range(5):
            await stage.up(STUBBORN + READY, SHORT, key_of(ordinal=number))
        began = time.monotonic()
        await stage.runtime.close()
        assert time.monotonic() - began < 2
        assert stage.living == []
        assert not any(stage.runtime.slices.values())


class TestKeeper:
    async def test_slices_are_started_again_when_it_dies(self, stage: Stage) -> None:
        manifest = Manifest(restart=Restart(attempts=1, backoff=5), readiness=Readiness(check=Line()))
        child = "fork(SLEEP, leave=True)"
        key = await stage.up(child + READY, manifest)
        await stage.noted(2)
        for _ in range(2):  # more often than the slice itself might fail
            before, pids = stage.runtime.keeper, stage.pids
            assert before is not None
            os.kill(before, signal.SIGKILL)
            await stage.noted(len(pids) + 2)
            assert not [pid for pid in pids if exists(pid)]
            assert stage.runtime.keeper not in (before, None)
        assert stage.runtime.slices == {key: True}
        assert stage.crashes == []

    async def test_while_a_slice_starts(self, stage: Stage) -> None:
        key = await stage.load("time.sleep(600)", Manifest(readiness=Readiness(check=Line())))
        async with anyio.create_task_group() as tasks:

            async def kill() -> None:
                await stage.noted(1)
                assert stage.runtime.keeper is not None
                os.kill(stage.runtime.keeper, signal.SIGKILL)

            tasks.start_soon(kill)
            with pytest.raises(SliceFailed, match="keeps this node's slices died") as caught:
                await stage.runtime.activate(key)
            assert not caught.value.fatal
        assert stage.living == []

    async def test_one_that_hangs_is_replaced(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cdm.runtimes.keeping.HUNG", 0.5)
        key = await stage.up(READY, SHORT)
        assert stage.runtime.keeper is not None
        os.kill(stage.runtime.keeper, signal.SIGSTOP)
        await stage.runtime.deactivate(key)
        assert stage.living == []
        await stage.runtime.activate(key)

    async def test_something_else_among_its_records(self, stage: Stage) -> None:
        await stage.up(READY, SHORT)
        await kill_keeper(stage, (stage.folder / "runtime" / "running" / "lost+found").mkdir)
        await stage.noted(2)
        assert len(stage.living) == 1

    async def test_what_is_in_the_way_of_a_new_one_is_tried_again(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also what nobody thought of: the task that starts it anew has nobody to complain to."""
        monkeypatch.setattr("cdm.runtimes.keeping.FIRST_PAUSE", 0.1)
        await stage.up(READY, SHORT)
        errors: list[Exception] = [RuntimeError("a fault"), OSError(errno.EMFILE, "Too many open files")]

        def blind() -> dict[int, census.Process]:
            if errors:
                raise errors.pop()
            return census.census()

        monkeypatch.setattr("cdm.runtimes.keeping.census", blind)
        await kill_keeper(stage)
        await stage.noted(2)
        assert errors == []
        assert len(stage.living) == 1

    async def test_without_one_stopping_ends_in_an_error(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """It must not hang: who stops the node waits for it."""

        def blind() -> dict[int, census.Process]:
            raise OSError(errno.EMFILE, "Too many open files")

        key = await stage.up(READY, SHORT)
        with monkeypatch.context() as patch, anyio.fail_after(10):
            patch.setattr("cdm.runtimes.keeping.HUNG", 0.2)
            patch.setattr("cdm.runtimes.keeping.SWEEP_PATIENCE", 0.2)
            patch.setattr("cdm.runtimes.keeping.census", blind)
            await kill_keeper(stage)
            with pytest.raises(SliceFailed, match="its keeper is gone"):
                await stage.runtime.deactivate(key)
            await stage.runtime.close()
            await stage.runtime.close()

    async def test_the_next_one_is_not_asked_for_what_could_not_be_ended_before(self, stage: Stage) -> None:
        """It knows nothing of it, and would be killed for not answering."""
        key = await stage.up(READY, SHORT)
        for run in stage.runtime.keeping._runs.values():
            run.left = (1,)
        await kill_keeper(stage)
        await stage.runtime.keeping.ready()
        keeper = stage.runtime.keeper
        with anyio.fail_after(5):
            await stage.runtime.deactivate(key)
        assert stage.runtime.keeper == keeper
        assert stage.living == []

    async def test_one_that_dies_soon_again_is_replaced_ever_later(self, stage: Stage) -> None:
        began = time.monotonic()
        for _ in range(4):
            await kill_keeper(stage)
            await stage.runtime.keeping.ready()
        assert time.monotonic() - began >= 0.5 + 1 + 2

    async def test_after_a_while_its_death_is_forgotten(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cdm.runtimes.keeping.FIRST_PAUSE", 10.0)
        monkeypatch.setattr("cdm.runtimes.keeping.STABLE", 0.0)
        began = time.monotonic()
        for _ in range(3):
            await kill_keeper(stage)
            await stage.runtime.keeping.ready()
        assert time.monotonic() - began < 10

    async def test_it_ignores_the_signals_of_a_service_manager(self, stage: Stage) -> None:
        await stage.up(READY, SHORT)
        keeper = stage.runtime.keeper
        assert keeper is not None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(keeper, number)
        await anyio.sleep(0.3)
        assert stage.runtime.keeper == keeper
        assert len(stage.living) == 1


def test_a_node_that_hears_nothing_keeps_nothing_from_being_stopped(tmp_path: Path) -> None:
    """A halted node: what the keeper says fills their socket, and what must not run on is stopped all the same."""
    node, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is: room for a few packets
    pids = tmp_path / "pids"
    with node:
        with there:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "cdm.runtimes.keeper", str(there.fileno()), str(tmp_path), "token", "no"],
                pass_fds=[there.fileno()],
            )
        node.send(encode(Heard(clock.now())))
        for number in range(20):
            program = ("sh", "-c", f"echo $$ >> {pids}; exec sleep 600")
            lapse = Lapse(1.0, signal.SIGTERM, 0.0)
            node.send(encode(Spawn(str(number), "/bin/sh", program, dict(os.environ), "/", str(tmp_path), lapse=lapse)))
        started = wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 20)
        living = [int(line) for line in pids.read_text().split()]
        stopped = wait_for(lambda: not any(map(exists, living)))
    assert keeper.wait(20) == 0
    assert started
    assert stopped


def wait_for(holds: Callable[[], object], within: float = 5.0) -> bool:
    """Whether something holds within so many seconds."""
    limit = time.monotonic() + within
    while not holds():
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


async def kill_keeper(stage: Stage, before: Callable[[], object] = lambda: None) -> None:
    """Kill it, after something else; returns when that was noticed."""
    keeper = stage.runtime.keeper
    assert keeper is not None
    before()
    os.kill(keeper, signal.SIGKILL)
    await until(lambda: not exists(keeper))
    await until(lambda: stage.runtime.keeper != keeper or not stage.runtime.keeping._ready.is_set())


async def test_one_program_more_than_there_are_file_descriptors_for(stage: Stage) -> None:
    """It is refused; what runs goes on, and can be stopped."""
    keeper = stage.runtime.keeper
    assert keeper is not None
    await stage.up(READY, SHORT)
    _, most = resource.prlimit(keeper, resource.RLIMIT_NOFILE)
    resource.prlimit(keeper, resource.RLIMIT_NOFILE, (descriptors(keeper) + 14, most))
    reason = ""
    while not reason:
        key = await stage.load(READY, SHORT, key_of(ordinal=len(stage.runtime.slices)))
        try:
            await stage.runtime.activate(key)
        except SliceFailed as error:
            reason = str(error)
    assert "no file descriptors left for one more program" in reason
    assert 3 < len(stage.living) < 10
    for key in stage.runtime.slices:
        await stage.runtime.deactivate(key)
    assert stage.living == []
    assert stage.runtime.keeper == keeper


@pytest.fixture
def ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    """A keeper in this process, with a run whose program ended."""
    monkeypatch.setattr("cdm.runtimes.keeper.raise_open_files", lambda: (64, 64))
    node, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with node, there:
        keeper = Keeper(there, tmp_path, "token", None)
        spawn = Spawn("r", "", (), {}, "/", str(tmp_path))
        run = Run(spawn, Scribe(tmp_path, spawn.logs), None)
        run.stopping = run.reaped = True
        keeper._runs["r"] = run
        keeper._changed = True
        yield keeper


def stop_again(keeper: Keeper) -> None:
    """The run is not gone yet, and looked for again soon; nothing else wakes the keeper."""
    assert list(keeper._runs) == ["r"]
    wait = keeper._wait()
    assert wait is not None
    assert 0 < wait < 1
    time.sleep(wait)
    keeper._stop()


def test_a_keeper_that_cannot_look_takes_nobody_for_gone(ending: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cdm.runtimes.keeper.reserve", few_descriptors)
        ending._stop()
    stop_again(ending)
    assert ending._runs == {}
    assert ending._wait() is None


def test_a_look_that_may_have_missed_somebody_is_no_proof(ending: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child of the keeper that ended while it looked: what it forked may be in no list."""
    ended = census.Process(99, os.getpid(), 99, 99, 1, zombie=True)
    monkeypatch.setattr("cdm.runtimes.keeper.census", lambda: {99: ended})
    ending._stop()
    stop_again(ending)
    monkeypatch.setattr("cdm.runtimes.keeper.DOUBT", 0.0)  # others may have children that end all the time
    stop_again(ending)
    assert ending._runs == {}
    assert ending._wait() is None


@contextmanager
def few_descriptors() -> Iterator[None]:
    """None more can be opened."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_without_descriptors_nobody_is_said_to_be_gone() -> None:
    me = os.getpid()
    for look in (census.census, lambda: census.look(me), lambda: census.mark(me, b"PATH")):
        with few_descriptors(), pytest.raises(OSError, match="Too many open files"):
            look()


NODE_PROGRAM = """
import signal, sys, threading
from pathlib import Path
import anyio
from cdm.model.manifest import Manifest, Readiness, Line
from tests.integration.programs import Stage, key_of

async def main(folder, grouped, program):
    stage = Stage(Path(folder), cgroups=grouped)
    await stage.runtime.start()
    manifest = Manifest(stop_grace=0.5, readiness=Readiness(check=Line()))
    await stage.up(program, manifest)
    await stage.up(program, manifest, key_of("other"))
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        print("up", stage.runtime.keeper, flush=True)
        async for _ in signals:
            break
    await stage.runtime.close()
anyio.run(main, sys.argv[1], sys.argv[2] == "yes", sys.argv[3])
"""

FAMILY = STUBBORN + "fork(SLEEP)\nfork(SLEEP, leave=True)\nwait = time.sleep(0.5)" + READY


@pytest.mark.parametrize("grouped", ["yes", "no"])
class TestNode:
    def node(self, folder: Path, grouped: str, program: str = FAMILY) -> tuple[subprocess.Popen[str], int]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))}
        node = subprocess.Popen(
            [sys.executable, "-c", NODE_PROGRAM, str(folder), grouped, program],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert node.stdout is not None
        with node.stdout:
            line = node.stdout.readline().split()
        assert line[0] == "up"
        return node, int(line[1])

    async def test_nothing_survives_its_sigterm(self, tmp_path: Path, grouped: str) -> None:
        node, keeper = self.node(tmp_path, grouped)
        pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
        assert len(pids) == 6
        node.terminate()
        assert await anyio.to_thread.run_sync(node.wait, 20) == 0
        assert not [pid for pid in (*pids, keeper) if exists(pid)]

    async def test_nothing_survives_its_sigkill(self, tmp_path: Path, grouped: str) -> None:
        node, keeper = self.node(tmp_path, grouped)
        pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
        assert len(pids) == 6
        began = time.monotonic()
        node.kill()
        node.wait()
        await until(lambda: not [pid for pid in (*pids, keeper) if exists(pid)], within=ORPHAN_BOUND)
        print("nothing left after", time.monotonic() - began)

    async def test_what_survives_both_is_ended_before_anything_starts(self, tmp_path: Path, grouped: str) -> None:
        node, keeper = self.node(tmp_path, grouped)
        pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
        os.kill(keeper, signal.SIGSTOP)  # it can do nothing any more
        node.kill()
        node.wait()
        os.kill(keeper, signal.SIGKILL)
        await until(lambda: not exists(keeper))
        await until(lambda: not exists(pids[0]) and not exists(pids[3]), within=2)  # the programs themselves
        assert [pid for pid in pids if exists(pid)] == [*pids[1:3], *pids[4:]]  # their children: none told them
        async with staged(tmp_path, cgroups=grouped == "yes"):
            assert not [pid for pid in pids if exists(pid)]


class TestPredecessor:
    async def test_a_reused_pid_is_left_alone(self, tmp_path: Path) -> None:
        """Records of a dead slice whose pid, and session, are another's by now; and of another start of the machine."""
        folder = tmp_path / "runtime" / "running"
        folder.mkdir(parents=True)
        with stranger() as someone:
            now = census.look(someone.pid)
            assert now is not None
            census.Record(census.boot(), someone.pid, now.start - 1).write(folder / "a")
            census.Record("another-boot", someone.pid, now.start).write(folder / "b")
            (folder / "c").write_text("nonsense")
            async with staged(tmp_path):
                assert someone.poll() is None
                assert list(folder.iterdir()) == []

    async def test_a_recorded_process_is_ended_with_its_session(self, tmp_path: Path) -> None:
        folder = tmp_path / "runtime" / "running"
        folder.mkdir(parents=True)
        with stranger("sh", "-c", "sleep 600 & echo $!; wait") as ours:
            assert ours.stdout is not None
            child = int(ours.stdout.readline())
            now = census.look(ours.pid)
            assert now is not None
            census.Record(census.boot(), ours.pid, now.start).write(folder / "a")
            async with staged(tmp_path):
                assert not exists(ours.pid)
                assert not exists(child)

    async def test_no_signal_for_one_that_has_the_pid_by_now(self) -> None:
        with stranger() as someone:
            now = census.look(someone.pid)
            assert now is not None
            assert not census.send(now._replace(start=now.start - 1), signal.SIGKILL)
            assert someone.poll() is None
            assert census.send(now, signal.SIGKILL)
            someone.wait()
            assert not census.send(now, signal.SIGKILL)


async def test_200_slices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rounds = []
    async with staged(tmp_path) as stage:
        for number in range(200):
            await stage.load("print('READY=1', flush=True)\ntime.sleep(600)", SHORT, key_of(ordinal=number))
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
            open_ones = [descriptors(pid) for pid in (os.getpid(), keeper)]
            rounds.append((open_ones, resident(os.getpid()), resident(keeper), up - began, down - up))
    with capsys.disabled():
        for fds, node, kept, up, down in rounds:
            print(
                f"\n200 slices: up {up:.2f} s, down {down:.2f} s, fds {fds}, node {node} kB, keeper {kept} kB",
                end="",
            )
    assert rounds[0][0] == rounds[1][0] == rounds[2][0], "descriptors leak"
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
