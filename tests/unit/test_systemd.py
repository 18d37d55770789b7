"""What systemd is asked for, and told; what it does is in tests/systemd."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from cdm.errors import SliceFailed
from cdm.model.artifact import NodeId
from cdm.model.limits import Limits, Logs
from cdm.output.files import MAX_LINE
from cdm.output.reading import parse
from cdm.runtimes import Surroundings
from cdm.runtimes.keeper.protocol import Exited, SpawnRefused
from cdm.runtimes.process.handle import RunHandle
from cdm.runtimes.systemd.bus import UnitState
from cdm.runtimes.systemd.output import FREED, RawOutput
from cdm.runtimes.systemd.runs import UnitRun
from cdm.runtimes.systemd.unit import STATE, environment_file, unenforced
from cdm.runtimes.systemd.watchdog import ALONE, remaining

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("after", "outlive", "silent", "seconds"),
    [
        (30.0, None, 10.0, 20.0),
        (30.0, 600.0, 10.0, 20.0),
        (30.0, 600.0, 31.0, 0.0),
        (30.0, None, math.inf, 0.0),
        (None, None, 0.0, ALONE),
        (None, None, math.inf, ALONE),
        (None, 59.0, 10.0, 49.0),
        (None, 59.0, 58.0, ALONE),
    ],
)
def test_what_must_not_run_twice_has_what_is_left_since_the_last_heartbeat(
    after: float | None, outlive: float | None, silent: float, seconds: float
) -> None:
    assert remaining(after, outlive, silent) == seconds


@pytest.mark.anyio
async def test_one_that_was_never_started_clears_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What slices of other nodes have on this machine is beside what its own would have."""
    pytest.importorskip("dbus_fast", reason="the extra systemd is not installed")
    from cdm.runtimes.systemd import runtime  # noqa: PLC0415  # it needs that

    monkeypatch.setattr(runtime, "PRIVATE", tmp_path)
    monkeypatch.setattr(runtime, "LINKS", tmp_path)
    of_another = tmp_path / STATE / "0123456789abcdef" / "g=2Fone=2F1"
    of_another.mkdir(parents=True)
    await runtime.SystemdRuntime(Surroundings(NodeId("n1"), tmp_path / "runtime", lambda *_: None)).close()
    assert of_another.exists()


@pytest.mark.anyio
async def test_a_bus_that_is_away_is_no_mistake_of_whoever_chose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the node ends with another exit code, and is started again."""
    pytest.importorskip("dbus_fast", reason="the extra systemd is not installed")
    from cdm.runtimes.systemd import runtime  # noqa: PLC0415  # it needs that

    monkeypatch.setattr(runtime, "BOOTED", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    asked = runtime.SystemdRuntime(Surroundings(NodeId("n1"), tmp_path / "runtime", lambda *_: None))
    with pytest.raises(SliceFailed, match="the machine's bus cannot be reached"):
        await asked.check_machine()


def test_variables_are_quoted_and_those_that_systemd_would_drop_are_refused() -> None:
    assert (
        environment_file({"A": 'a "b" $c `d` \\', "B": "1\n2\t3"}) == 'A="a \\"b\\" \\$c \\`d\\` \\\\"\nB="1\n2\t3"\n'
    )
    for value in ("\a", "\x1b[1m", "\x7f", "\r"):
        with pytest.raises(SliceFailed, match="variable A has a control character"):
            environment_file({"A": value})


def test_a_limit_without_its_controller_is_none() -> None:
    everything = frozenset({"memory", "pids", "cpu"})
    assert unenforced(Limits(memory=1, processes=1, open_files=1, cpu_seconds=1), everything) is None
    assert "limits.memory" in (unenforced(Limits(memory=1), frozenset({"pids"})) or "")
    assert "limits.processes" in (unenforced(Limits(processes=1), frozenset({"memory"})) or "")
    assert "limits.file_size" in (unenforced(Limits(file_size=1), everything) or "")


def test_output_is_taken_once_whoever_takes_it(tmp_path: Path) -> None:
    """Whole lines first; what was taken takes no room; and the files go when the program has ended."""
    path, folder = tmp_path / "run", tmp_path / "output"
    first = RawOutput(path, folder, Logs())
    block = b"x" * 100_000 + b"\n"
    with first.out.open("ab", buffering=0) as out, first.err.open("ab", buffering=0) as err:
        out.write(b"one\ntw")
        err.write(b"fault\n")
        assert first.more
        assert first.take()
        assert not first.take(), "a line that has no end yet waits"
        first.writer.close()
        first.close()
        again = RawOutput(path, folder, Logs())
        again.writer.go_on()
        out.write(b"o\n" + block * (FREED // len(block) + 1))
        while again.take():
            pass
        assert not again.more
        assert again.out.stat().st_size > FREED > 512 * again.out.stat().st_blocks
        out.write(b"unfinished")
        again.end("exit status 0")
    assert [each.name for each in tmp_path.iterdir()] == ["output"]
    lines = [parse(line) for each in sorted(folder.iterdir()) for line in each.read_bytes().splitlines()]
    told = [(line.stream, line.text) for line in lines if line is not None and len(line.text) < MAX_LINE // 2]
    short = [each for each in told if not each[1].startswith("x")]
    assert short == [
        ("out", "one"),
        ("err", "fault"),
        ("out", "two"),
        ("out", "unfinished"),
        ("cdm", "ended: exit status 0"),
    ]


@pytest.mark.parametrize("ran", [True, False])
def test_what_ends_at_once_is_told_with_its_exit_status_whichever_look_saw_it_run(ran: bool) -> None:
    run = UnitRun("r", "cdm-r.service", RunHandle("r", None, 0.0), None)
    told = run.ended(UnitState("failed", ran=ran, pid=0, result="exit-code", status=47))
    assert isinstance(told, Exited)
    assert (told.status, told.words) == (47, "exit status 47")
    assert isinstance(run.ended(UnitState("failed", ran=False, pid=0, result="exit-code", status=203)), SpawnRefused)
    assert run.ended(UnitState("activating", ran=False, pid=0, result="success", status=None)) is None
