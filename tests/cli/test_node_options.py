"""The options of `cdm node` are read by a process of its own, which ends: nobody can tell but by what is in memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest

from cdm.cli import Exit, aside
from tests.harness.proc import children, exists
from tests.harness.processes import environment
from tests.harness.servers import NatsServer
from tests.harness.waiting import eventually, patience

pytestmark = pytest.mark.anyio

WATCHED = """
import atexit, os, sys
from cdm.cli import main
own = os.getpid()
def tell():
    who = "node" if os.getpid() == own else "other"
    os.write(1, f"{who} {'cyclopts' in sys.modules}\\n".encode())
atexit.register(tell)
main()
"""
"""`cdm`, which tells in the end whether that is imported which reads options, in each of its processes."""


class SlowStart:
    """A node whose options are being read: of its context, which is a pipe, nothing has come yet."""

    def __init__(self, process: subprocess.Popen[bytes], context: int, log: Path) -> None:
        self.process = process
        (self.reader,) = children(process.pid)
        self._context = context
        self._log = log

    @property
    def told(self) -> str:
        """What the two have written."""
        return self._log.read_text()

    def go_on(self, url: str) -> None:
        """Have the context read."""
        with suppress(BrokenPipeError):
            os.write(self._context, json.dumps({"url": url}).encode())
        os.close(self._context)

    async def ends(self) -> int:
        """Wait for the end of both; returns the exit code."""
        code = await anyio.to_thread.run_sync(self.process.wait, patience())
        await eventually(lambda: not exists(self.reader), what="what reads options ends, too")
        return code


def _started(folder: Path, log: Path, *words: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", WATCHED, *words],
            env={**environment(), "XDG_CONFIG_HOME": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


@asynccontextmanager
async def reading(folder: Path) -> AsyncIterator[SlowStart]:
    contexts = folder / "nats" / "context"
    contexts.mkdir(parents=True)
    os.mkfifo(contexts / "slow.json")
    log = folder / "log"
    process = _started(folder, log, "node", "--id", "n1", "--role", "manager", "--context", "slow")

    def opened() -> int:
        assert process.poll() is None, log.read_text()
        with suppress(OSError):  # nobody reads it yet
            return os.open(contexts / "slow.json", os.O_WRONLY | os.O_NONBLOCK)
        return 0

    try:
        yield SlowStart(process, await eventually(opened, what="the options are read"), log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def test_a_node_that_runs_has_nothing_in_memory_that_read_its_options(server: NatsServer, tmp_path: Path) -> None:
    """A reload meanwhile harms neither; nothing is left of the process that did it."""
    async with reading(tmp_path) as it:
        os.killpg(it.process.pid, signal.SIGHUP)
        it.go_on(server.url)
        await eventually(lambda: "node is up" in it.told, 30)
        assert not exists(it.reader)
        assert not children(it.process.pid)
        it.process.send_signal(signal.SIGTERM)
        assert await it.ends() == 0
        assert it.told.startswith("other True\n"), it.told
        assert it.told.endswith("node False\n"), it.told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
async def test_a_node_that_is_told_to_stop_while_its_options_are_read_ends(tmp_path: Path, number: int) -> None:
    async with reading(tmp_path) as it:
        it.process.send_signal(number)
        assert await anyio.to_thread.run_sync(it.process.wait, patience()) == -number
        it.go_on("127.0.0.1:1")
        await it.ends()
        assert "Error" not in it.told, "that nobody wants to know any more is no error"


async def test_ctrl_c_while_options_are_read_ends_both_quietly(tmp_path: Path) -> None:
    async with reading(tmp_path) as it:
        os.killpg(it.process.pid, signal.SIGINT)
        assert await it.ends() == 130
        assert sorted(it.told.splitlines()) == ["node False", "other True"]


async def test_where_the_process_that_reads_options_is_killed_that_is_told(tmp_path: Path) -> None:
    async with reading(tmp_path) as it:
        os.kill(it.reader, signal.SIGKILL)
        assert await it.ends() == Exit.FAILED
        assert it.told == "cdm: the options were not read: SIGKILL ended the process that does that\nnode False\n"


def _ran(
    *words: str, code: str = "from cdm.cli import main; main()", closed: str = ""
) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code, *words]
    env = {**environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=patience(30))


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--bogus"], Exit.USAGE, "cdm: there is no option --bogus"),
        (["--id", "n1", "n2"], Exit.USAGE, "cdm: 'n2' is one argument too many; see `cdm node --help`\n"),
        (["--id", "n 1"], Exit.USAGE, "cdm: "),
        (["--node-ttl", "soon"], Exit.USAGE, "cdm: --node-ttl: 'soon' is not a duration"),
        (["--role", "agent", "--traces", "x"], Exit.USAGE, "cdm: 'x' is not the beginning of a URL"),
        (["--context", "nowhere"], Exit.USAGE, "cdm: nats context 'nowhere' cannot be read: "),
        (["--secrets", "/nowhere"], Exit.USAGE, "cdm: --secrets /nowhere: "),
    ],
)
def test_what_is_wrong_is_told_once_in_a_line_and_with_its_code(words: list[str], code: int, told: str) -> None:
    ran = _ran("node", *words)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (code, "", 1), ran
    assert ran.stderr.startswith(told)


def test_a_help_is_printed_by_one_process() -> None:
    code = """
import os
from cdm.cli import main
os.register_at_fork(before=lambda: os.write(1, b"forked\\n"))
main()
"""
    ran = _ran("node", "--id", "n1", "--help", code=code)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("Usage:") == 1
    assert "forked" not in ran.stdout
    assert _ran("node", "--bogus", code=code).stdout == "forked\n", "and this is how one would know"


@pytest.mark.parametrize("interrupted", ["after_in_parent", "after_in_child"])
def test_ctrl_c_at_the_fork_is_not_lost(interrupted: str) -> None:
    """Libraries have Python do something at each fork; an exception there is printed, and that is all."""
    code = f"""
import os, signal
from cdm.cli import main
os.register_at_fork({interrupted}=lambda: os.kill(os.getpid(), signal.SIGINT))
main()
"""
    ran = _ran("node", "--bogus", code=code)
    assert ran.returncode == 130
    assert "KeyboardInterrupt" not in ran.stderr


def test_what_is_wrong_has_its_code_where_the_end_of_children_is_ignored() -> None:
    """Whatever a process ignores, the programs that it becomes or starts ignore, too."""
    code = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-m", "cdm", *sys.argv[1:]])
"""
    ran = _ran("node", "--bogus", code=code)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (Exit.USAGE, "", 1)
    assert ran.stderr.startswith("cdm: there is no option --bogus")


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>&-", "<&-", ">&-"])
def test_what_is_wrong_has_its_code_where_standard_streams_are_closed(closed: str) -> None:
    ran = _ran("node", "--bogus", closed=closed)
    assert ran.returncode == Exit.USAGE
    assert ran.stderr.startswith("" if "2>" in closed else "cdm: there is no option --bogus")


def test_where_there_may_be_no_more_processes_the_node_reads_its_options_itself() -> None:
    code = """
import errno, os
from cdm.cli import main
def refused():
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
os.fork = refused
main()
"""
    ran = _ran("node", "--bogus", code=code)
    assert (ran.returncode, ran.stdout) == (Exit.USAGE, "")
    assert ran.stderr.startswith("cdm: there is no option --bogus")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "runs"),
    [
        ("node", True),
        ("node --id leave --on-stop leave", True),
        ("node leave --id n1", False),
        ("node forget n1", False),
        ("node --id n1 --help", False),
        ("node --version", False),
        ("nodes", False),
        ("", False),
    ],
)
def test_only_a_node_that_is_to_run_has_its_options_read_aside(line: str, runs: bool) -> None:
    assert aside.runs_a_node(line.split()) is runs
