"""Slices as processes: started, checked, started again. Stopping has a file of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from cdm.errors import SliceFailed
from cdm.model.limits import Limits
from cdm.model.manifest import (
    Http,
    Line,
    Liveness,
    Manifest,
    Readiness,
    Restart,
    RestartPolicy,
    Tcp,
    Up,
)
from cdm.runtimes import Runtime, Work
from tests.harness.proc import children, exists, read
from tests.harness.programs import STUBBORN, Stage, key_of, staged
from tests.harness.servers import free_port
from tests.harness.waiting import Stopwatch, bounded, eventually

pytestmark = pytest.mark.anyio

LISTEN = """
server = socket.create_server(("127.0.0.1", int(os.environ["CDM_PORT"])))
"""
NEVER = Restart(policy=RestartPolicy.NEVER)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as stage:
        yield stage


async def test_a_slice_is_loaded_started_stopped_and_forgotten(stage: Stage) -> None:
    key = await stage.load("time.sleep(600)")
    assert stage.runtime.slices == {key: False}
    assert stage.pids == []
    assert await stage.runtime.activate(key) is None
    assert stage.runtime.slices == {key: True}
    (pid,) = await stage.noted(1)
    await stage.runtime.activate(key)  # again: nothing happens
    await stage.runtime.deactivate(key)
    assert not exists(pid)
    assert stage.runtime.slices == {key: False}
    await stage.runtime.activate(key)
    (_, second) = await stage.noted(2)
    await stage.runtime.unload(key)
    assert not exists(second)
    assert stage.runtime.slices == {}
    await stage.runtime.deactivate(key)  # unknown: nothing happens
    await stage.runtime.unload(key)
    assert stage.crashes == []


async def test_it_is_what_the_agent_wants(stage: Stage) -> None:
    runtime: Runtime = stage.runtime  # for the type checker
    assert runtime.slices == {}


async def test_loading_again_replaces_what_runs(stage: Stage) -> None:
    key = await stage.up("time.sleep(600)")
    (pid,) = await stage.noted(1)
    await stage.load("print('second')\ntime.sleep(600)")
    assert not exists(pid)
    assert stage.runtime.slices == {key: False}


async def test_what_is_not_loaded_cannot_be_started(stage: Stage) -> None:
    with pytest.raises(SliceFailed, match="not loaded"):
        await stage.runtime.activate(key_of())


class TestPrograms:
    async def test_arguments_environment_and_directory(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"NATS_PASSWORD": "secret", "CDM_PASSWORD": "secret", "LANG": "C", "HOME": "/h"}.items():
            monkeypatch.setenv(name, value)
        work = stage.work(
            """
            print(sys.argv[1:])
            print(os.getcwd())
            print(dict(sorted(os.environ.items())))
            time.sleep(600)
            """,
            Manifest(
                entry="main.py",
                args=("${WHO}", "$WHO", "at ${CDM_NODE}:${CDM_PORT}"),
                env={"WHO": "me", "HOME": "/mine"},
                directory="sub",
                port="auto",
            ),
            key_of(ordinal=2),
        )
        (work.folder / "sub").mkdir()
        await stage.runtime.load(work)
        port = await stage.runtime.activate(work.key)
        lines: list[str] = []
        while len(lines) < 3:
            lines = await stage.text(work.key)
        assert lines[0] == str(["me", "$WHO", f"at n1:{port}"])
        assert lines[1] == str(work.folder / "sub")
        environment = eval(lines[2])
        assert environment.pop("CDM_RUN")
        assert environment.pop("PIDS")
        environment.pop("TMPDIR", None)
        environment.pop("LC_CTYPE", None)  # Python's own
        assert environment == {
            "CDM_ARTIFACT": "org.example:slice:1.0.0",
            "CDM_NODE": "n1",
            "CDM_ORDINAL": "2",
            "CDM_PORT": str(port),
            "CDM_SLICE": "n1/org.example:slice:1.0.0#2",
            "HOME": "/mine",
            "LANG": "C",
            "PATH": os.environ["PATH"],
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "WHO": "me",
        }

    async def test_the_keeper_has_none_of_the_nodes_secrets(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NATS_PASSWORD", "secret")
        async with staged(tmp_path) as stage:
            assert b"secret" not in read(f"/proc/{stage.runtime.keeper}/environ")

    async def test_an_executable_and_one_from_the_path(self, stage: Stage, tmp_path: Path) -> None:
        folder = tmp_path / "a"
        folder.mkdir()
        (folder / "run").write_text("#!/bin/sh\necho mine $0; sleep 600\n")
        (folder / "run").chmod(0o755)
        for entry, args in (("run", ()), ("", ()), ("sleep", ("600",))):
            await stage.runtime.load(Work(key_of(), folder, Manifest(entry=entry, args=args)))
            await stage.runtime.activate(key_of())
            await stage.runtime.deactivate(key_of())

    @pytest.mark.parametrize(
        ("manifest", "reason"),
        [
            (Manifest(entry="nobody-has-this"), "neither in the artifact nor on PATH"),
            (Manifest(entry="bin/nothing"), "'bin/nothing' does not exist"),
            (Manifest(entry="data"), "'data' is not executable"),
            (Manifest(entry="mystery"), "a script that begins with #!"),
            (Manifest(entry="orphan"), "its interpreter is missing"),
            (Manifest(), "the artifact has 4 files"),
            (Manifest(entry="main.py", directory="nowhere"), "directory 'nowhere' does not exist"),
            (Manifest(entry="main.py", args=("${NOPE}",)), "names NOPE"),
        ],
    )
    async def test_what_cannot_be_run_is_fatal(self, stage: Stage, manifest: Manifest, reason: str) -> None:
        work = stage.work("time.sleep(600)", manifest)
        (work.folder / "data").write_text("data")
        (work.folder / "mystery").write_bytes(b"\x00\x01")
        (work.folder / "mystery").chmod(0o755)
        (work.folder / "orphan").write_text("#!/no/such/interpreter\n")
        (work.folder / "orphan").chmod(0o755)
        await stage.runtime.load(work)
        with pytest.raises(SliceFailed, match=re.escape(reason)) as caught:
            await stage.runtime.activate(work.key)
        assert caught.value.fatal
        assert stage.runtime.slices == {work.key: False}
        assert stage.pids == []

    async def test_free_ports_differ_and_a_taken_one_is_told(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cdm.runtimes.process.slice.PORT_PATIENCE", 0.2)
        auto = Manifest(port="auto", readiness=Readiness(check=Tcp()))
        ports = set()
        for number in range(5):
            key = await stage.load(LISTEN + "time.sleep(600)", auto, key_of(ordinal=number))
            ports.add(await stage.runtime.activate(key))
        assert len(ports) == 5
        taken = ports.pop()
        assert taken is not None
        key = await stage.load("time.sleep(600)", Manifest(port=taken), key_of("other"))
        with pytest.raises(SliceFailed, match=f"port {taken} is in use") as caught:
            await stage.runtime.activate(key)
        assert not caught.value.fatal

    @pytest.mark.parametrize("stubborn", [False, True])
    async def test_a_fixed_port_that_another_slice_had_is_taken_as_soon_as_it_is_free(
        self, stage: Stage, stubborn: bool
    ) -> None:
        """Also while that is being stopped, which takes all of its grace."""
        port = free_port()
        manifest = Manifest(port=port, readiness=Readiness(check=Tcp(), interval=0.05), stop_grace=2)
        program = LISTEN + "time.sleep(600)"
        old = await stage.up(STUBBORN + program if stubborn else program, manifest)
        new = await stage.load(program, manifest, key_of("new"))
        (first,) = stage.pids
        async with anyio.create_task_group() as tasks:
            if stubborn:
                tasks.start_soon(stage.runtime.unload, old)
                await anyio.sleep(0.1)
            tasks.start_soon(stage.runtime.activate, new)
            await anyio.sleep(0.3)
            assert len(stage.pids) == 1 or not exists(first)
            await stage.runtime.unload(old)
            freed = Stopwatch()
        assert freed.took < freed.bound(0.5)
        assert stage.runtime.slices == {new: True}

    async def test_a_port_of_a_stranger_is_not_taken_for_ours(self, stage: Stage) -> None:
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as stranger:
            port = int(stranger.extra(anyio.abc.SocketAttribute.local_port))
            manifest = Manifest(port=port, readiness=Readiness(check=Tcp()))
            key = await stage.load("time.sleep(600)", manifest)
            with pytest.raises(SliceFailed, match=f"port {port}"):
                await stage.runtime.activate(key)

    async def test_limits_are_the_programs(self, stage: Stage) -> None:
        key = await stage.up(
            """
            import resource
            for name in ("DATA", "CPU", "NOFILE", "FSIZE"):
                print(name, *resource.getrlimit(getattr(resource, f"RLIMIT_{name}")))
            try:
                bytearray(300_000_000)
            except MemoryError:
                print("no memory")
            time.sleep(600)
            """,
            Manifest(limits=Limits(memory=200_000_000, cpu_seconds=7, open_files=64, file_size=1000)),
        )
        lines: list[str] = []
        while len(lines) < 5:
            lines = await stage.text(key)
        assert lines == ["DATA 200000000 200000000", "CPU 7 8", "NOFILE 64 64", "FSIZE 1000 1000", "no memory"]

    async def test_without_limits_it_has_those_of_the_node(self, stage: Stage) -> None:
        import resource  # noqa: PLC0415

        key = await stage.up("import resource\nprint(*resource.getrlimit(resource.RLIMIT_NOFILE))\ntime.sleep(600)")
        lines: list[str] = []
        while not lines:
            lines = await stage.text(key)
        assert lines == [" ".join(map(str, resource.getrlimit(resource.RLIMIT_NOFILE)))]

    async def test_signals_and_descriptors_are_as_new(self, stage: Stage, tmp_path: Path) -> None:
        folder = tmp_path / "a"
        folder.mkdir()
        (folder / "run").write_text(
            "#!/bin/sh\ngrep -E '^Sig(Ign|Blk)' /proc/self/status\nls /proc/$$/fd\necho end\nsleep 600\n"
        )
        (folder / "run").chmod(0o755)
        key = key_of()
        await stage.runtime.load(Work(key, folder, Manifest()))
        await stage.runtime.activate(key)
        lines: list[str] = []
        while "end" not in lines:
            lines = await stage.text(key)
        assert [line.split()[-1] for line in lines[:2]] == ["0" * 16, "0" * 16]
        assert set(lines[2:-1]) <= {"0", "1", "2", "10", "255"}  # 10 or 255: the shell's script


class TestWhoListens:
    """On a port that was free when it was chosen, before the program bound it."""

    @pytest.mark.parametrize("check", [Tcp(), Http()])
    async def test_somebody_else(self, stage: Stage, check: Tcp | Http) -> None:
        program = "print(os.environ['CDM_PORT'], file=open(os.environ['PIDS'] + '.port', 'a'))\ntime.sleep(600)"
        key = await stage.load(program, Manifest(port="auto", readiness=Readiness(check=check, interval=0.05)))
        told = Path(f"{stage.pids_file}.port")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_answer_on, told)
            with pytest.raises(SliceFailed, match=r"port \d+: another process listens there \(pid \d+\)") as caught:
                await stage.runtime.activate(key)
            tasks.cancel_scope.cancel()
        assert not caught.value.fatal
        assert len(set(_ports_in(told))) == 3
        assert stage.living == []

    @pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 503 Away\r\n\r\n"], ids=["nothing", "503"])
    async def test_somebody_else_who_gives_no_right_answer(self, stage: Stage, answer: bytes) -> None:
        """The program goes without the port, and would be waited for in vain, as one that is slow to begin."""
        program = (
            "told = Path(os.environ['PIDS'] + '.port')\n"
            "if told.exists():\n"
            "    import http.server as web\n"
            "    where = ('127.0.0.1', int(os.environ['CDM_PORT']))\n"
            "    web.HTTPServer(where, web.SimpleHTTPRequestHandler).serve_forever()\n"
            "told.write_text(os.environ['CDM_PORT'] + '\\n')\n"
            "time.sleep(600)"
        )
        key = await stage.load(program, Manifest(port="auto", readiness=Readiness(check=Http(), timeout=60)))
        told = Path(f"{stage.pids_file}.port")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_answer_on, told, answer)
            assert await stage.runtime.activate(key) not in [None, *_ports_in(told)]
            tasks.cancel_scope.cancel()

    async def test_somebody_else_once(self, stage: Stage) -> None:
        program = (
            "told = Path(os.environ['PIDS'] + '.port')\n"
            "if told.exists():\n"
            "    import socket\n"
            "    server = socket.create_server(('127.0.0.1', int(os.environ['CDM_PORT'])))\n"
            "else:\n"
            "    told.write_text(os.environ['CDM_PORT'] + '\\n')\n"
            "time.sleep(600)"
        )
        key = await stage.load(program, Manifest(port="auto", readiness=Readiness(check=Tcp(), interval=0.05)))
        told = Path(f"{stage.pids_file}.port")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_answer_on, told)
            assert await stage.runtime.activate(key) not in [None, *_ports_in(told)]
            tasks.cancel_scope.cancel()

    @pytest.mark.parametrize("times", [1, 3])
    async def test_somebody_else_of_whom_the_program_ends(self, stage: Stage, times: int) -> None:
        """It is not to blame, and is started on another port; the third time it is given up as any other."""
        program = (
            "import socket\n"
            "told, port = Path(os.environ['PIDS'] + '.port'), int(os.environ['CDM_PORT'])\n"
            f"if not told.exists() or told.read_text().count('\\n') < {times}:\n"
            "    print(port, file=told.open('a'))\n"
            "    while not Path(f'{told}.{port}').exists(): time.sleep(0.01)\n"
            "server = socket.create_server(('127.0.0.1', port))\n"
            "print('listening')\n"
            "time.sleep(600)"
        )
        key = await stage.load(program, Manifest(port="auto", readiness=Readiness(check=Line("listening"))))
        told = Path(f"{stage.pids_file}.port")
        with ExitStack() as robbed:

            async def rob() -> None:
                for number in range(times):
                    port = (await eventually(partial(_ports_in, told, number)))[0]
                    robbed.enter_context(socket.create_server(("127.0.0.1", port)))
                    await anyio.Path(f"{told}.{port}").touch()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(rob)
                if times == 1:
                    assert await stage.runtime.activate(key) not in [None, *_ports_in(told)]
                else:
                    with pytest.raises(SliceFailed, match=r"exit status 1; last output: .*Address already in use"):
                        await stage.runtime.activate(key)
        assert len(set(_ports_in(told))) == times

    async def test_somebody_else_after_the_program_ended(self, stage: Stage) -> None:
        """Where it is started again, others know its port; but it cannot have that any more."""
        program = (
            "import socket\n"
            "server = socket.create_server(('127.0.0.1', int(os.environ['CDM_PORT'])))\n"
            "print('listening')\n"
            "time.sleep(600)"
        )
        readiness = Readiness(check=Line("listening"))
        key = await stage.load(program, Manifest(port="auto", readiness=readiness, stop_grace=0.2))
        port = await stage.runtime.activate(key)
        (pid,) = stage.living
        os.kill(pid, signal.SIGKILL)
        with ExitStack() as robbed:  # the first restart comes after half a second
            robbed.enter_context((await eventually(lambda: _server(port)))[0])
            await stage.up_again(1)
        assert [each for each in stage.restarts if each[1] in (None, port)] == []

    async def test_a_program_that_ends_with_its_port_free_is_not_started_again(self, stage: Stage) -> None:
        program = "print('x', file=open(os.environ['PIDS'] + '.runs', 'a'))\nraise SystemExit('no database')"
        key = await stage.load(program, Manifest(port="auto", readiness=Readiness(check=Tcp())))
        with pytest.raises(SliceFailed, match=r"exit status 1; last output: no database"):
            await stage.runtime.activate(key)
        assert await anyio.Path(f"{stage.pids_file}.runs").read_text() == "x\n"

    @pytest.mark.parametrize("cgroups", [True, False])
    @pytest.mark.parametrize("scrub", [True, False])
    async def test_a_daemon_that_the_program_left(self, tmp_path: Path, cgroups: bool, scrub: bool) -> None:
        daemon = "import socket, time\nserver = socket.create_server(('127.0.0.1', PORT))\ntime.sleep(600)"
        listen = f"{daemon!r}.replace('PORT', os.environ['CDM_PORT'])"
        program = f"fork({listen}, leave=True, scrub={scrub})\ntime.sleep(600)"
        manifest = Manifest(port="auto", readiness=Readiness(check=Tcp(), interval=0.05))
        async with staged(tmp_path, cgroups=cgroups) as stage:
            key = await stage.load(program, manifest)
            assert await stage.runtime.activate(key)


async def _answer_on(told: Path, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
    """Listen on each port whose number is in a file, as soon as it is there, and answer as a web server does.

    Args:
        told: the file.
        answer: what is answered; if nothing is, the connection stays.
    """
    known: list[int] = []
    async with anyio.create_task_group() as tasks:
        while True:
            new = await eventually(partial(_ports_in, told, len(known)))
            known.extend(new)
            for port in new:
                tasks.start_soon(_answer, port, answer)


def _ports_in(told: Path, after: int = 0) -> list[int]:
    """The ports that programs told, but for the first ones."""
    return [int(line) for line in told.read_text().split("\n")[after:-1]] if told.exists() else []


def _server(port: int | None) -> list[socket.socket]:
    with suppress(OSError):
        return [socket.create_server(("127.0.0.1", port or 0))]
    return []


async def _answer(port: int, told: bytes) -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port) as listener:

        async def answer(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                await stream.send(told) if told else await anyio.sleep_forever()

        await listener.serve(answer)


class TestReadiness:
    async def test_up_for_a_while(self, stage: Stage) -> None:
        key = await stage.load("time.sleep(600)", Manifest(readiness=Readiness(check=Up(0.3))))
        began = time.monotonic()
        await stage.runtime.activate(key)
        assert time.monotonic() - began >= 0.3

    async def test_tcp(self, stage: Stage) -> None:
        manifest = Manifest(port="auto", readiness=Readiness(check=Tcp(), interval=0.05))
        key = await stage.load("time.sleep(0.4)\n" + LISTEN + "print('listens')\ntime.sleep(600)", manifest)
        port = await stage.runtime.activate(key)
        assert port is not None
        async with await anyio.connect_tcp("127.0.0.1", port):
            pass

    @pytest.mark.quick
    async def test_http(self, stage: Stage) -> None:
        program = """
            from http.server import *
            calls = 0
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self):
                    global calls
                    calls += 1
                    self.send_response(204 if self.path == "/ready?a=1" and calls > 2 else 503)
                    self.end_headers()
            HTTPServer(("127.0.0.1", int(os.environ["CDM_PORT"])), Handler).serve_forever()
            """
        good = Manifest(port="auto", readiness=Readiness(check=Http("/ready?a=1"), interval=0.05))
        key = await stage.load(program, good)
        await stage.runtime.activate(key)
        bad = Manifest(port="auto", readiness=Readiness(check=Http("/other"), interval=0.05, timeout=15))
        other = await stage.load(program, bad, key_of("other"))
        with pytest.raises(SliceFailed, match=r"not ready within 15 s \(GET /other on port \d+: status 503\)"):
            await stage.runtime.activate(other)

    async def test_line(self, stage: Stage) -> None:
        manifest = Manifest(readiness=Readiness(check=Line()))
        key = await stage.load(
            "print('not READY=1 yet'); print('READY=1', file=sys.stderr); time.sleep(0.3); Path('go').touch()\n"
            "print('READY=1'); time.sleep(600)",
            manifest,
        )
        await stage.runtime.activate(key)
        assert (stage.folder / "artifact-slice-0" / "go").exists()

    async def test_not_ready_in_time(self, stage: Stage) -> None:
        manifest = Manifest(readiness=Readiness(check=Line("up"), timeout=10))
        key = await stage.load("print('waiting for the database'); time.sleep(600)", manifest)
        with pytest.raises(SliceFailed) as caught:
            await stage.runtime.activate(key)
        assert "not ready within 10 s (the line 'up' was not written)" in str(caught.value)
        assert "last output: waiting for the database" in str(caught.value)
        assert not caught.value.fatal
        assert stage.runtime.slices == {key: False}
        assert stage.living == []

    @pytest.mark.parametrize(
        ("end", "told"),
        [
            ("sys.exit(3)", "exit status 3"),
            ("sys.exit(0)", "exit status 0"),
            ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ],
    )
    @pytest.mark.parametrize("check", [Up(60), Line(), Tcp()])
    async def test_ended_before_it_was_ready(self, stage: Stage, end: str, told: str, check: Up | Line | Tcp) -> None:
        manifest = Manifest(port="auto", readiness=Readiness(check=check))
        key = await stage.load(f"for i in range(30): print('line', i)\n{end}", manifest)
        with pytest.raises(SliceFailed) as caught:
            await stage.runtime.activate(key)
        assert str(caught.value) == f"{told}; last output: line 25 | line 26 | line 27 | line 28 | line 29"
        assert stage.crashes == []

    async def test_a_cancelled_activation_leaves_nothing(self, stage: Stage) -> None:
        key = await stage.load("fork(SLEEP)\ntime.sleep(600)", Manifest(readiness=Readiness(check=Line())))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stage.runtime.activate, key)
            await stage.noted(2)
            tasks.cancel_scope.cancel()
        assert stage.living == []
        assert stage.runtime.slices == {key: False}

    async def test_activations_cancelled_at_any_time_leave_nothing(self, stage: Stage) -> None:
        key = await stage.load("fork(SLEEP)\ntime.sleep(600)", Manifest(readiness=Readiness(check=Line())))
        for delay in (0, 0.0001, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
            with anyio.move_on_after(delay):
                await stage.runtime.activate(key)
            assert stage.living == []


class TestLiveness:
    async def test_a_hung_program_is_stopped_and_started_again(self, stage: Stage) -> None:
        hung = Path(stage.folder / "hung")
        manifest = Manifest(
            port="auto",
            env={"HUNG": str(hung)},
            readiness=Readiness(check=Tcp(), interval=0.05),
            liveness=Liveness(Tcp(), interval=0.1, timeout=0.5, failures=3),
            restart=Restart(backoff=0.05),
        )
        program = LISTEN + (
            "signal.signal(signal.SIGTERM, lambda *_: (print('asked'), os._exit(0)))\n"
            "while not os.path.exists(os.environ['HUNG']): time.sleep(0.01)\n"
            "os.unlink(os.environ['HUNG']); server.close()\nwhile True: time.sleep(1)"
        )
        key = await stage.up(program, manifest)
        (first,) = stage.pids
        hung.touch()  # noqa: ASYNC240
        (_, second) = await stage.noted(2)
        assert not exists(first)
        assert exists(second)
        assert stage.crashes == []
        assert "asked" in await stage.text(key)

    async def test_what_the_node_lacks_itself_is_no_answer(self, stage: Stage) -> None:
        """Without descriptors it cannot ask: as if it had not, and nothing else becomes of it."""
        import resource  # noqa: PLC0415

        manifest = Manifest(
            port="auto",
            readiness=Readiness(check=Tcp(), interval=0.05),
            liveness=Liveness(Tcp(), interval=0.05, timeout=60, failures=3),
            restart=NEVER,
        )
        await stage.up(LISTEN + "time.sleep(600)", manifest)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        with capture_logs() as told:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
            try:
                await eventually(lambda: told or stage.crashes)
                await anyio.sleep(1)  # for many checks
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            await eventually(lambda: len([line for line in told if line["log_level"] != "debug"]) > 1)
        assert (stage.crashes, stage.restarts, stage.living) == ([], [], stage.pids)
        assert [(line["event"], line.get("reason")) for line in told if line["log_level"] != "debug"] == [
            ("it cannot be told whether the slice is alive", "this node cannot ask: Too many open files"),
            ("the slice is asked again whether it is alive", None),
        ]

    async def test_what_is_not_alive_is_told_before_it_is_stopped(self, stage: Stage) -> None:
        manifest = Manifest(
            port="auto",
            readiness=Readiness(check=Tcp(), timeout=20),
            liveness=Liveness(Http(), interval=0.05, timeout=0.2, failures=1),
            stop_grace=20,
        )
        key = await stage.up(STUBBORN + LISTEN + "time.sleep(600)", manifest)
        await eventually(lambda: stage.restarts)
        assert stage.living == stage.pids
        assert stage.restarts[0][0] == key
        assert stage.restarts[0][2] == 20 + 0.5 + 20 + 20

    async def test_told_when_it_is_not_to_be_started_again(self, stage: Stage) -> None:
        manifest = Manifest(
            port="auto",
            readiness=Readiness(check=Tcp(), timeout=20),
            liveness=Liveness(Http(), interval=0.05, timeout=0.2, failures=2),
            restart=NEVER,
        )
        key = await stage.up(LISTEN + "time.sleep(600)", manifest)  # accepts, and never answers
        await eventually(lambda: stage.crashes)
        assert stage.crashes[0].key == key
        assert re.search(r"not alive \(port \d+: no answer within 0.2 s, 2 times in a row\)", stage.crashes[0].reason)
        assert stage.runtime.slices == {key: False}
        assert stage.living == []


class TestRestart:
    async def test_started_again_until_the_attempts_are_over(self, stage: Stage) -> None:
        manifest = Manifest(restart=Restart(attempts=2, backoff=0.1))
        began = time.monotonic()
        key = await stage.up("print('boom', flush=True); until_up(); sys.exit(9)", manifest)
        await eventually(lambda: stage.crashes)
        assert len(stage.pids) == 3
        assert time.monotonic() - began >= 0.1 + 0.2
        (crash,) = stage.crashes
        assert (crash.key, crash.fatal) == (key, False)
        assert "exit status 9" in crash.reason
        assert "last output: boom" in crash.reason
        assert "started again 2 times" in crash.reason
        assert stage.runtime.slices == {key: False}
        stage.told_up.unlink()
        await stage.runtime.activate(key)  # may be tried again
        assert stage.runtime.slices == {key: True}

    async def test_it_must_be_ready_again(self, stage: Stage) -> None:
        manifest = Manifest(readiness=Readiness(check=Line(), timeout=8), restart=Restart(attempts=2, backoff=0.05))
        program = """
            if len(Path(os.environ["PIDS"]).read_text().split()) == 1:
                print("READY=1", flush=True)
                until_up()
                sys.exit(1)
            time.sleep(600)
            """
        await stage.up(program, manifest)
        await eventually(lambda: stage.crashes)
        assert len(stage.pids) == 3
        assert (
            stage.crashes[0].reason
            == "not ready within 8 s (the line 'READY=1' was not written); it was started again 2 times"
        )
        assert stage.living == []

    @pytest.mark.parametrize(("policy", "starts"), [("always", 2), ("on-failure", 1), ("never", 1)])
    @pytest.mark.quick
    async def test_exit_status_0(self, stage: Stage, policy: str, starts: int) -> None:
        manifest = Manifest(restart=Restart(policy=RestartPolicy(policy), attempts=1, backoff=0.05))
        key = await stage.up("until_up()", manifest)
        await eventually(lambda: stage.crashes)
        assert "exit status 0" in stage.crashes[0].reason
        assert len(stage.pids) == starts
        assert stage.runtime.slices == {key: False}

    async def test_gone_meanwhile_is_fatal(self, stage: Stage) -> None:
        key = await stage.up("until_up(); os.unlink(__file__); sys.exit(1)", Manifest(entry="main.py"))
        await eventually(lambda: stage.crashes)
        (crash,) = stage.crashes
        assert crash.fatal
        assert "'main.py' is neither" in crash.reason
        assert stage.runtime.slices == {key: False}

    async def test_it_listens_where_it_did_before(self, stage: Stage) -> None:
        key = await stage.load(
            LISTEN + "time.sleep(600)",
            Manifest(port="auto", readiness=Readiness(check=Tcp()), restart=Restart(backoff=0.1)),
        )
        port = await stage.runtime.activate(key)
        assert port is not None
        first = stage.pids[-1]
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: stage.pids[-1] != first)
        await eventually(lambda: _answers(port))

    async def test_what_a_crashed_program_leaves_is_ended_before_it_is_started_again(self, stage: Stage) -> None:
        program = """
            fork(SLEEP)
            if len(Path(os.environ["PIDS"]).read_text().split()) < 3:
                noted(2)
                until_up()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
            """
        await stage.up(program, Manifest(restart=Restart(backoff=0.05)))
        await stage.noted(4)
        assert len(stage.living) == 2
        assert stage.living == stage.pids[2:]

    async def test_stopped_while_it_waits_to_be_started_again(self, stage: Stage) -> None:
        key = await stage.up("until_up(); sys.exit(1)", Manifest(restart=Restart(backoff=300)))
        await stage.noted(1)
        await eventually(lambda: not stage.living)
        await anyio.sleep(0.1)
        with bounded():  # not the pause before it is started again
            await stage.runtime.deactivate(key)
        assert stage.runtime.slices == {key: False}
        assert stage.crashes == []

    async def test_its_end_is_told_at_once_and_again_when_it_is_ready(self, stage: Stage) -> None:
        program = """
            if len(Path(os.environ["PIDS"]).read_text().split()) == 1:
                print("READY=1", flush=True)
                until_up()
                sys.exit(3)
            if len(Path(os.environ["PIDS"]).read_text().split()) == 2:
                sys.exit(4)
            print("READY=1")
            time.sleep(600)
            """
        readiness = Readiness(check=Line(), timeout=40)
        restart = Restart(attempts=2, backoff=0.5)
        started: list[int] = []

        class Told(list[tuple[object, ...]]):
            """What the agent was told, beside how often the program had been started by then."""

            def append(self, told: tuple[object, ...]) -> None:
                started.append(len(stage.pids))
                super().append(told)

        stage.restarts = Told()
        key = await stage.up(program, Manifest(port="auto", readiness=readiness, restart=restart, stop_grace=3))
        await eventually(lambda: len(stage.restarts) == 3)
        assert started == [1, 2, 3]
        first, second, third = stage.restarts
        assert first[0] == key
        assert re.fullmatch(r"exit status 3 after \d+\.\d s; last output: READY=1", str(first[1]))
        assert first[2] == 0.5 + 40 + 3  # back-off, readiness, grace
        assert second == (key, "exit status 4", 1 + 40 + 3)
        assert third == (key, await stage.runtime.activate(key))
        assert stage.crashes == []

    async def test_one_that_was_stable_is_started_again_at_once(self, stage: Stage) -> None:
        work = stage.work("", Manifest(entry="sleep", args=("600",), restart=Restart(stable=0.3, backoff=300)))
        await stage.runtime.load(work)
        await stage.runtime.activate(work.key)
        keeper = stage.runtime.keeper
        assert keeper is not None
        for times in range(1, 4):
            (pid,) = children(keeper)
            await anyio.sleep(0.4)  # longer than it must have been up, counted from when it is told to be
            os.kill(pid, signal.SIGKILL)
            await eventually(partial(_others, keeper, pid))
            await stage.up_again(times)

    async def test_how_long_it_is_up_counts_from_when_it_is_ready(self, stage: Stage) -> None:
        """One that takes long to start, and then ends at once, is not stable."""
        manifest = Manifest(readiness=Readiness(check=Line()), restart=Restart(stable=4.0, attempts=1, backoff=0.05))
        program = """
            time.sleep(4.2)
            print("READY=1", flush=True)
            if len(Path(os.environ["PIDS"]).read_text().split()) == 1:
                until_up()
            sys.exit(1)
            """
        await stage.up(program, manifest)
        await eventually(lambda: stage.crashes)
        assert len(stage.pids) == 2

    async def test_a_signal_from_outside_is_a_crash(self, stage: Stage) -> None:
        await stage.up("time.sleep(600)", Manifest(restart=NEVER))
        (pid,) = await stage.noted(1)
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: stage.crashes)
        assert "killed by SIGKILL" in stage.crashes[0].reason


async def test_python_is_the_nodes(stage: Stage) -> None:
    key = await stage.up("print(sys.executable)\ntime.sleep(600)")
    lines: list[str] = []
    while not lines:
        lines = await stage.text(key)
    assert lines == [sys.executable]


def _others(parent: int, child: int) -> list[int]:
    return [each for each in children(parent) if each != child]


def _answers(port: int) -> bool:
    with socket.socket() as asker:
        return asker.connect_ex(("127.0.0.1", port)) == 0
