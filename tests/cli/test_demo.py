"""``cdm demo`` plays through, tells what was asked, fails where a step does, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cdm.cli.demo.playground import commanded
from cdm.cli.demo.script import NEW
from cdm.model.slice import SliceState
from tests.docs.documents import commands
from tests.harness.processes import environment
from tests.harness.waiting import patience
from tests.harness.web import ask

STEPS = 12


def test_a_command_that_was_written_over_is_known_by_its_answer() -> None:
    states = [SliceState(name) for name in ("LOADING", "LOADED", "ACTIVATE", "ACTIVE", "UNLOADING", "LOAD", "UNLOAD")]
    load, unload = SliceState.LOAD, SliceState.UNLOAD
    assert [commanded(None, now) for now in states] == [load, load, None, None, unload, load, unload]
    assert [commanded(load, now) for now in states] == [None, None, None, None, unload, load, unload]
    assert commanded(unload, SliceState.UNLOADING) is None
    assert commanded(SliceState.ACTIVE, SliceState.LOADING) is load, "what was deleted is loaded again"


@contextmanager
def playing(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The demo, started as the documents say, with all its files in this folder."""
    _install, demo = commands("Try it")[0].split(" && ")
    process = subprocess.Popen(
        [sys.executable, "-m", *demo.split(), *options],
        # By the PATH all that it starts is known: even slices and their keepers have it.
        env={**environment(), "COLUMNS": "200", "TMPDIR": str(folder), "PATH": f"{os.environ['PATH']}:{folder}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """Read what the demo prints until a line has this."""
    assert process.stdout is not None
    shown = ""
    for line in process.stdout:
        shown += line
        if found := re.search(pattern, line):
            return found
    raise AssertionError(shown)


def rest_of(process: subprocess.Popen[str]) -> str:
    """All that it goes on to print."""
    assert process.stdout is not None
    return process.stdout.read()


def left(folder: Path) -> list[str]:
    """The command lines of all processes that have the folder in their environment."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(folder).encode() in (each / "environ").read_bytes():
                found.append((each / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def nothing_is_left(folder: Path) -> bool:
    return list(folder.iterdir()) == [] and left(folder) == []


def test_the_demo_plays_through_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with playing(tmp_path) as demo:
        shown = rest_of(demo)
        assert demo.wait(30) == 0, shown
    assert shown.count("✓") == STEPS
    assert len(re.findall(r"http://127\.0\.0\.1:\d+  node-\d/org\.example:slice:1\.\d\.0", shown)) >= 9
    assert "taken back by itself" in shown
    (asked,) = re.findall(r"the service was asked ([\d,]+) times, .*: 0 failed", shown)
    assert int(asked.replace(",", "")) > 50
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize(
    ("number", "after"),
    [
        (signal.SIGINT, "elected"),
        (signal.SIGTERM, r"cdm scale \S+ 3"),
    ],
)
def test_the_demo_that_is_interrupted_leaves_nothing_behind(number: int, after: str, tmp_path: Path) -> None:
    with playing(tmp_path) as demo:
        read_until(demo, f"✓.*{after}")
        assert len(left(tmp_path)) > 3
        demo.send_signal(number)
        rest = rest_of(demo)
        assert demo.wait(30) == 130, rest
    assert "Traceback" not in rest
    assert nothing_is_left(tmp_path)


def told(at: str, path: str, field: str) -> object:
    """What the page says; it says it without this while NATS, or who has it, does not answer."""
    until = time.monotonic() + patience()
    while not (found := ask(at, path).json.get(field)) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def test_the_demo_can_be_looked_at_and_stays_to_be_played_with(tmp_path: Path) -> None:
    with playing(tmp_path, "--page", "--stay") as demo:
        url = urlsplit(read_until(demo, r"^The page: (\S+)$")[1])
        assert url.netloc
        # As the last hint says.
        for pid in read_until(demo, r"kill -9 (\d+) (\d+) +# node-3").groups():
            os.kill(int(pid), signal.SIGKILL)
        assert b"page/main.js" in ask(url.netloc, url.path).body
        about = f"kind=version&name={NEW}"
        assert told(url.netloc, f"/page/explain?{about}", "history")
        assert told(url.netloc, f"/page/logs?{about}", "lines")
        demo.send_signal(signal.SIGINT)
        rest = rest_of(demo)
        assert demo.wait(30) == 0, rest
    assert rest == "Nothing is left behind.\n"
    assert nothing_is_left(tmp_path)


def test_a_step_that_does_not_happen_as_it_should_ends_the_demo_with_1(tmp_path: Path) -> None:
    with playing(tmp_path) as demo:
        assert demo.stdout is not None
        rest = ""
        for line in demo.stdout:  # whatever runs when it is read: no instance that a step counts on is left
            rest += line
            for pid in re.findall(r"pid (\d+)", line):
                with suppress(OSError):
                    if str(tmp_path).encode() in Path(f"/proc/{pid}/environ").read_bytes():
                        os.kill(int(pid), signal.SIGKILL)
        assert demo.wait(30) == 1, rest
    assert "✗" in rest
    assert "last lines of node-1" in rest
    assert nothing_is_left(tmp_path)
