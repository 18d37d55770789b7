"""The keeper dies, hangs, or is short of something; its node dies; and what a predecessor left is ended."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from cdm import clock
from cdm.errors import SliceFailed, UsageError
from cdm.model.manifest import Line, Manifest, Readiness, Restart
from cdm.output.files import OutputWriter
from cdm.runtimes.keeper import processes as census
from cdm.runtimes.keeper.door import knock
from cdm.runtimes.keeper.keeper import Keeper
from cdm.runtimes.keeper.protocol import (
    EndAll,
    Heard,
    Hello,
    Lapse,
    Outlive,
    Spawn,
    Started,
    Survivor,
    decode_event,
    encode,
)
from cdm.runtimes.keeper.runs import Run, Runs, Stopping
from cdm.runtimes.process.link import Met, meet
from cdm.runtimes.process.runtime import ORPHAN_BOUND
from cdm.runtimes.process.supervisor import Supervisor
from tests.harness.proc import descriptors, exists, stranger
from tests.harness.programs import READY, SHORT, STUBBORN, Stage, key_of, staged
from tests.harness.waiting import bounded, eventually, in_time, patience

pytestmark = pytest.mark.anyio


class TestKeeper:
    @pytest.mark.quick
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

    async def test_its_death_is_told_in_the_output_of_its_slices(self, stage: Stage) -> None:
        """How the run ended, once, and that another one began: also where nothing was ever written."""
        quiet = Manifest(restart=Restart(attempts=1, backoff=5))
        keys = [await stage.up(READY, SHORT), await stage.up("time.sleep(600)", quiet, key_of("quiet"))]
        for times in (1, 2):
            await kill_keeper(stage)
            await stage.up_again(2 * times)
            for key in keys:
                assert await stage.text(key, "cdm") == ["ended: its keeper died", "begins again"] * times
        assert await stage.text(keys[0]) == ["READY=1"] * 3

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
        monkeypatch.setattr("cdm.runtimes.process.supervisor.HUNG", 0.5)
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
        monkeypatch.setattr("cdm.runtimes.process.supervisor.FIRST_PAUSE", 0.1)
        await stage.up(READY, SHORT)
        errors: list[Exception] = [RuntimeError("a fault"), OSError(errno.EMFILE, "Too many open files")]

        def blind() -> dict[int, census.Process]:
            if errors:
                raise errors.pop()
            return census.census()

        monkeypatch.setattr("cdm.runtimes.keeper.leftovers.census", blind)
        await kill_keeper(stage)
        await stage.noted(2)
        assert errors == []
        assert len(stage.living) == 1

    async def test_without_one_stopping_ends_in_an_error(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """It must not hang: who stops the node waits for it."""

        def blind() -> dict[int, census.Process]:
            raise OSError(errno.EMFILE, "Too many open files")

        key = await stage.up(READY, SHORT)
        with monkeypatch.context() as patch, bounded():
            patch.setattr("cdm.runtimes.process.supervisor.HUNG", 0.2)
            patch.setattr("cdm.runtimes.process.supervisor.PATIENCE", 0.2)
            patch.setattr("cdm.runtimes.keeper.leftovers.census", blind)
            await kill_keeper(stage)
            with pytest.raises(SliceFailed, match="its keeper is gone"):
                await stage.runtime.deactivate(key)
            await stage.runtime.close()
            await stage.runtime.close()
        again = stage.another(cgroups=stage.cgroups)
        await again.start()  # which removes what is left: a control group with nothing in it
        await again.close()

    async def test_the_next_one_is_not_asked_for_what_could_not_be_ended_before(self, stage: Stage) -> None:
        """It knows nothing of it, and would be killed for not answering."""
        key = await stage.up(READY, SHORT)
        keeping = stage.runtime.supervisor
        assert isinstance(keeping, Supervisor)
        for run in keeping._runs.values():
            run.left = (1,)
        await kill_keeper(stage)
        await stage.runtime.supervisor.ready()
        keeper = stage.runtime.keeper
        with bounded():
            await stage.runtime.deactivate(key)
        assert stage.runtime.keeper == keeper
        assert stage.living == []

    async def test_one_that_dies_soon_again_is_replaced_ever_later(self, stage: Stage) -> None:
        began = time.monotonic()
        for _ in range(4):
            await kill_keeper(stage)
            await stage.runtime.supervisor.ready()
        assert time.monotonic() - began >= 0.5 + 1 + 2

    async def test_one_that_dies_again_and_again_leaves_its_slices_to_others(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cdm.runtimes.process.supervisor.FIRST_PAUSE", 0.1)
        monkeypatch.setattr("cdm.runtimes.process.supervisor.SICK", 0.2)
        key = await stage.up(
            READY, Manifest(restart=Restart(attempts=1, backoff=0.1), readiness=Readiness(check=Line()))
        )
        for number in range(1, 4):
            await kill_keeper(stage)
            await stage.up_again(number)  # what was not ready yet when it died has failed
        assert stage.crashes == []
        await kill_keeper(stage)
        await eventually(lambda: stage.crashes)
        assert [(crash.key, crash.fatal) for crash in stage.crashes] == [(key, False)]
        assert stage.crashes[0].reason.startswith("the process that keeps this node's slices died")
        assert stage.living == []

    async def test_after_a_while_its_death_is_forgotten(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cdm.runtimes.process.supervisor.FIRST_PAUSE", 300.0)
        monkeypatch.setattr("cdm.runtimes.process.supervisor.STABLE", 0.0)
        began = time.monotonic()
        for _ in range(3):
            await kill_keeper(stage)
            await stage.runtime.supervisor.ready()
        assert time.monotonic() - began < 300

    async def test_it_ignores_the_signals_of_a_service_manager(self, stage: Stage) -> None:
        await stage.up(READY, SHORT)
        keeper = stage.runtime.keeper
        assert keeper is not None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(keeper, number)
        await anyio.sleep(0.3)
        assert stage.runtime.keeper == keeper
        assert len(stage.living) == 1

    async def test_one_that_stood_still_hears_first_what_it_missed(self, stage: Stage) -> None:
        """Heartbeats were accepted all the time: what must not run without them runs on."""
        keeper, keeping, stop_after = stage.runtime.keeper, stage.runtime.supervisor, 8.0
        assert keeper is not None
        assert isinstance(keeping, Supervisor)

        async def beat() -> None:
            while True:
                stage.runtime.heard(clock.now())
                await anyio.sleep(0.2)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beat)
            work = stage.work(READY, SHORT)
            await stage.runtime.load(replace(work, stop_after=stop_after))
            await stage.runtime.activate(work.key)
            before = stage.pids
            with halted(keeper):
                await anyio.sleep(stop_after + 1)
            other = await stage.up(READY, SHORT, key_of("other"))  # so the keeper has judged by now
            assert not [run.name for run in keeping._runs.values() if run.lapsed]
            assert stage.living[:1] == before
            assert stage.runtime.slices == {work.key: True, other: True}
            assert (stage.runtime.keeper, stage.crashes) == (keeper, [])
            tasks.cancel_scope.cancel()
        await in_time(lambda: len(stage.living) == 1, stop_after + SHORT.stop_grace, "without any it is stopped")


@contextmanager
def halted(pid: int) -> Iterator[None]:
    """The process stands still meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        assert wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def alone(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket, int]]:
    """A keeper of its own, the node's end of their socket, and the program that it keeps; ended in the end."""
    runtime, pids = folder / "runtime", folder / "pids"
    runtime.mkdir()
    node, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with node:
        with there:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "cdm.runtimes.keeper", str(there.fileno()), str(runtime), "token", "no"],
                pass_fds=[there.fileno()],
            )
        try:
            node.send(encode(Outlive(600.0)))
            node.send(encode(Heard(clock.now())))
            program = ("sh", "-c", f"echo $$ > {pids}; exec sleep 600")
            node.send(encode(Spawn("run", "/bin/sh", program, dict(os.environ), "/", str(runtime / "logs"))))
            node.settimeout(patience())
            while not isinstance(decode_event(node.recv(1000)), Started):
                pass
            assert wait_for(lambda: pids.exists() and pids.read_text())
            yield keeper, node, int(pids.read_text())
        finally:
            keeper.kill()
            keeper.wait()


def test_one_that_stood_still_lets_in_who_came_before_it_judges(tmp_path: Path) -> None:
    """The node's next process came in time: what the keeper has is not left alone."""
    with alone(tmp_path) as (keeper, node, living):
        with halted(keeper.pid):
            heard = clock.now()
            node.send(encode(Outlive(1.0)))
            node.send(encode(Heard(heard)))
            came = knock(str(tmp_path / "runtime"))
            assert came is not None
            node.close()
            assert wait_for(lambda: clock.now() > heard + 1)
        with came:
            came.settimeout(patience())
            hello, run = (decode_event(came.recv(1000)) for _ in range(2))
            assert isinstance(hello, Hello)
            assert isinstance(run, Survivor)
            assert (hello.heard, run.whole, run.ended) == (heard, True, None)
            assert exists(living)


class TestMeeting:
    """The next process looks for the keeper of the one before: what only hinders that is no reason to end all."""

    async def test_one_that_does_not_answer_for_a_while(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is waited for as long as what it has may run without a node."""
        monkeypatch.setattr("cdm.runtimes.process.link.PATIENCE", 0.1)
        found: list[Supervisor] = []
        with alone(tmp_path) as (keeper, node, living), bounded():
            with capture_logs() as told:
                async with anyio.create_task_group() as tasks:

                    async def come() -> None:
                        start = Supervisor.start(tmp_path / "runtime", "token", set, 600.0, grouped=False)
                        found.append(await start)

                    with halted(keeper.pid):
                        node.close()
                        tasks.start_soon(come)
                        await eventually(lambda: found or told)
                        assert not found
                        assert exists(living)
            assert [(line["event"], line["pid"]) for line in told] == [
                ("the keeper of an earlier process does not answer yet", keeper.pid),
                ("the keeper of an earlier process is taken over", keeper.pid),
            ]
            await found[0].close()
            assert not exists(living)

    async def test_without_descriptors_for_a_moment(self, tmp_path: Path) -> None:
        found: list[Met | None] = []
        with alone(tmp_path) as (_, node, living), bounded():
            node.close()
            with capture_logs() as told:
                async with anyio.create_task_group() as tasks:

                    async def come() -> None:
                        found.append(await meet(tmp_path / "runtime"))

                    with few_descriptors():
                        tasks.start_soon(come)
                        await eventually(lambda: found or told)
                        assert not found
            assert [line["event"] for line in told] == [
                "it cannot be told yet whether a keeper of an earlier process runs",
                "it can be told again whether a keeper of an earlier process runs",
            ]
            assert exists(living)
            leave(found[0])

    async def test_without_descriptors_for_longer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The node does not start, and what runs goes on."""
        monkeypatch.setattr("cdm.runtimes.process.link.PATIENCE", 0.1)
        with alone(tmp_path) as (keeper, node, living), bounded():
            node.close()
            with few_descriptors(), pytest.raises(SliceFailed, match="it cannot be told whether a keeper"):
                await Supervisor.start(tmp_path / "runtime", "token", set, 600.0, grouped=False)
            assert exists(living)
            assert keeper.poll() is None

    async def test_one_that_never_answers_is_given_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cdm.runtimes.process.link.PATIENCE", 0.1)
        with alone(tmp_path) as (keeper, node, _), bounded(), halted(keeper.pid):
            node.close()
            assert await meet(tmp_path / "runtime", 0.5) is None


def leave(met: Met | None) -> None:
    """It was met, with its run; have no more to do with it."""
    assert met is not None
    met.end.close()
    met.process.leave()
    assert [(run.run, run.whole) for run in met.running] == [("run", True)]


@pytest.mark.parametrize(
    "reason", ["the folder is deleted", "it is told to end", "it was not heard of", "nobody comes"]
)
def test_one_that_is_left_alone_ends_when_nobody_can_or_will_come(tmp_path: Path, reason: str) -> None:
    folder = tmp_path / "runtime"
    folder.mkdir()
    node, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with node:
        with there:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "cdm.runtimes.keeper", str(there.fileno()), str(folder), "token", "no"],
                pass_fds=[there.fileno()],
            )
        node.send(encode(Outlive(2.0 if reason == "nobody comes" else 600.0)))
        heard = clock.now()
        if reason != "it was not heard of":
            node.send(encode(Heard(heard)))
        pids = tmp_path / "pids"
        program = ("sh", "-c", f"echo $$ > {pids}; exec sleep 600")
        node.send(encode(Spawn("run", "/bin/sh", program, dict(os.environ), "/", str(folder / "logs"))))
        assert wait_for(lambda: pids.exists() and pids.read_text())
        living = int(pids.read_text())
        if reason == "it is told to end":
            node.send(encode(EndAll()))
    if reason == "the folder is deleted":
        time.sleep(0.2)
        assert exists(living), "it outlives its node"
        shutil.rmtree(folder)
    assert keeper.wait(patience()) == 0
    assert not exists(living)
    assert reason != "nobody comes" or clock.now() - heard >= 2
    assert not (folder / "keeper").exists()


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
            lapse = Lapse(8.0, signal.SIGTERM, 0.0)  # a busy machine takes a while to start all of them
            node.send(encode(Spawn(str(number), "/bin/sh", program, dict(os.environ), "/", str(tmp_path), lapse=lapse)))

        def all_started() -> bool:
            """What has not begun when the node has been silent for too long never does; so it is heard until then."""
            node.send(encode(Heard(clock.now())))
            return pids.exists() and len(pids.read_text().split()) == 20

        started = wait_for(all_started)
        living = [int(line) for line in pids.read_text().split()]
        stopped = wait_for(lambda: not any(map(exists, living)))
    assert keeper.wait(patience()) == 0
    assert started
    assert stopped


def wait_for(holds: Callable[[], object], within: float = patience()) -> bool:
    """Whether something holds within so many seconds."""
    limit = time.monotonic() + within
    while not holds():
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


async def kill_keeper(stage: Stage, before: Callable[[], object] = lambda: None) -> None:
    """Kill it, after something else; returns when that was noticed."""
    keeper, keeping = stage.runtime.keeper, stage.runtime.supervisor
    assert keeper is not None
    assert isinstance(keeping, Supervisor)
    before()
    os.kill(keeper, signal.SIGKILL)
    await eventually(lambda: not exists(keeper))
    await eventually(lambda: stage.runtime.keeper != keeper or not keeping._ready.is_set())


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
    assert re.search(r"no file descriptors left for one more program: \d+ need about \d+, and its limit", reason)
    assert 3 < len(stage.living) < 10
    for key in stage.runtime.slices:
        await stage.runtime.deactivate(key)
    assert stage.living == []
    assert stage.runtime.keeper == keeper


async def test_a_node_with_too_few_file_descriptors_says_how_many_it_needs(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    stage = Stage(tmp_path)
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
    try:
        with pytest.raises(UsageError, match=r"only 40 files may be open \(ulimit -n\); a node needs 64, and about 3"):
            await stage.runtime.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


NOBODY = 2**30
"""A pid that no process can have. (Where the session's leader is in another PID namespace, the session is 0.)"""


@pytest.fixture
def ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    """A keeper in this process, with a run whose program ended."""
    monkeypatch.setattr("cdm.runtimes.keeper.spawn.raise_open_files", lambda: (64, 64))
    monkeypatch.setattr("cdm.runtimes.keeper.runs.DOUBT", 0.0)  # tests beside this one have children that end, too
    node, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with node, there:
        keeper = Keeper(there, str(tmp_path), "token", None)
        spawn = Spawn("r", "", (), {}, "/", str(tmp_path))
        run = Run(spawn, NOBODY, 0, {}, OutputWriter(tmp_path, spawn.logs), None)
        run.exec_pipe, run.reaped = None, True
        keeper._runs.add(run)
        keeper._runs.begin_stop(run, Stopping(None, float("inf")))
        keeper._child_ended = True
        yield keeper


def stop_again(keeper: Keeper) -> None:
    """The run is not gone yet, and looked for again soon; nothing else wakes the keeper."""
    assert [run.name for run in keeper._runs] == ["r"]
    wait = keeper._timeout()
    assert wait is not None
    assert 0 <= wait < 1
    time.sleep(wait)
    keeper._stop()


def test_a_keeper_that_cannot_look_takes_nobody_for_gone(ending: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cdm.runtimes.keeper.keeper.reserve", few_descriptors)
        ending._stop()
    stop_again(ending)
    assert not ending._runs
    assert ending._timeout() is None


def test_a_look_that_may_have_missed_somebody_is_no_proof(ending: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child of the keeper that ended while it looked: what it forked may be in no list."""
    ended = census.Process(99, os.getpid(), 99, 99, 1, zombie=True)
    monkeypatch.setattr("cdm.runtimes.keeper.runs.census", lambda: {99: ended})
    monkeypatch.setattr("cdm.runtimes.keeper.runs.DOUBT", 3600.0)
    ending._stop()
    stop_again(ending)
    monkeypatch.setattr("cdm.runtimes.keeper.runs.DOUBT", 0.0)  # there may be such children all the time
    stop_again(ending)
    assert not ending._runs
    assert ending._timeout() is None


def test_a_keeper_that_wakes_looks_at_no_run_that_runs_on(ending: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wakes for each event of each run: were all looked at, a thousand runs would be a million looks."""
    ending._node.take(ending._first, os.getpid())
    ending._child_ended = False
    with monkeypatch.context() as patch:
        patch.setattr(Runs, "__iter__", lambda _: pytest.fail("all runs are looked at"))
        assert ending._timeout() is None
        ending._lapse()
        ending._stop()
    assert [run.name for run in ending._runs] == ["r"]


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
from tests.harness.programs import Stage, key_of

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

# Of two that are started one after the other each is ready when all that it has forked has noted its pid.
ALL_NOTED = "noted(6 if 'other' in os.environ['CDM_SLICE'] else 3)"
FAMILY = STUBBORN + f"fork(SLEEP)\nfork(SLEEP, leave=True)\n{ALL_NOTED}" + READY


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
        assert await anyio.to_thread.run_sync(node.wait, patience()) == 0
        assert not [pid for pid in (*pids, keeper) if exists(pid)]

    @pytest.mark.quick
    async def test_nothing_survives_its_sigkill(self, tmp_path: Path, grouped: str) -> None:
        node, keeper = self.node(tmp_path, grouped)
        pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
        assert len(pids) == 6
        began = time.monotonic()
        node.kill()
        node.wait()
        await in_time(lambda: not [pid for pid in (*pids, keeper) if exists(pid)], ORPHAN_BOUND)
        print("nothing left after", time.monotonic() - began)

    async def test_what_survives_both_is_ended_before_anything_starts(self, tmp_path: Path, grouped: str) -> None:
        node, keeper = self.node(tmp_path, grouped)
        pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
        os.kill(keeper, signal.SIGSTOP)  # it can do nothing any more
        node.kill()
        node.wait()
        os.kill(keeper, signal.SIGKILL)
        await eventually(lambda: not exists(keeper))
        await in_time(lambda: not exists(pids[0]) and not exists(pids[3]), 2)  # the programs themselves
        assert [pid for pid in pids if exists(pid)] == [*pids[1:3], *pids[4:]]  # their children: none told them
        async with staged(tmp_path, cgroups=grouped == "yes"):
            assert not [pid for pid in pids if exists(pid)]


class TestPredecessor:
    async def test_a_keeper_is_known_although_it_hides(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """For all users but root its environment is empty."""
        await stage.runtime.supervisor.ready()
        read, keeper = census._read, stage.runtime.keeper
        assert keeper is not None
        monkeypatch.setattr(census, "_read", lambda pid, name: b"" if name == "environ" else read(pid, name))
        token = (stage.folder / "runtime" / "token").read_text()
        assert census.mark(keeper, b"CDM_RUN") == f"{token}.keeper"

    async def test_a_reused_pid_is_left_alone(self, tmp_path: Path) -> None:
        """Records of a dead slice whose pid, and session, are another's by now; and of another start of the machine."""
        folder = tmp_path / "runtime" / "running"
        folder.mkdir(parents=True)
        with stranger() as someone:
            now = census.look(someone.pid)
            assert now is not None
            census.RunRecord(census.boot(), someone.pid, now.start - 1).write(folder / "a")
            census.RunRecord("another-boot", someone.pid, now.start).write(folder / "b")
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
            census.RunRecord(census.boot(), ours.pid, now.start).write(folder / "a")
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


@pytest.mark.quick
@pytest.mark.parametrize("recorded", [False, True])
async def test_the_first_start_in_a_folder_looks_for_what_is_left_where_anything_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    """To look over all processes of the machine, three times, is a tenth of the time in which a node starts."""
    looks = 0

    def counted() -> dict[int, census.Process]:
        nonlocal looks
        looks += 1
        return census.census()

    monkeypatch.setattr("cdm.runtimes.keeper.leftovers.census", counted)
    if recorded:  # and the token was lost
        (tmp_path / "runtime" / "running").mkdir(parents=True)
        (tmp_path / "runtime" / "running" / "run").write_text("no-boot 1 1")
    async with staged(tmp_path) as stage:
        assert bool(looks) is recorded
        again, before = stage.another(), looks
        await again.start()
        assert looks > before, "what the first one has is marked by now"
        await again.close()
