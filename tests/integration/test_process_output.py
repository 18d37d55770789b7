"""What slices write: nothing holds them up, nothing grows without bound, nothing starves the node."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import cast

import anyio
import pytest

from cdm.model.keys import SliceKey
from cdm.model.limits import Logs
from cdm.model.manifest import Line, Manifest, Readiness, Restart, RestartPolicy
from cdm.output.files import OutputWriter
from cdm.runtimes.keeper.keeper import Keeper
from cdm.runtimes.keeper.protocol import Spawn
from cdm.runtimes.keeper.runs import Run
from tests.harness.proc import children, exists, read
from tests.harness.programs import Stage, key_of, staged
from tests.harness.waiting import SLOWNESS, bounded, eventually

pytestmark = pytest.mark.anyio

READY = Readiness(check=Line())


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as stage:
        yield stage


async def test_a_flood_starves_nobody(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """A program that writes as fast as it can: others start and stop, the loop turns, the disk does not fill."""
    logs = Logs(max_bytes=1_000_000, files=2)
    flood = await stage.up(
        "print('READY=1')\nblock = (b'x' * 99 + b'\\n') * 1000\nwhile True: os.write(1, block)",
        Manifest(readiness=READY, logs=logs),
    )
    delays, began = [], time.monotonic()
    for _ in range(100):
        before = time.monotonic()
        await anyio.sleep(0.01)
        delays.append(time.monotonic() - before - 0.01)
    started = time.monotonic()
    other = await stage.up("print('READY=1')\ntime.sleep(600)", Manifest(readiness=READY), key_of("other"))
    took = time.monotonic() - started
    await stage.runtime.deactivate(other)
    (writer,) = [int(pid) for pid in stage.pids if exists(pid)]
    written = int(read(f"/proc/{writer}/io").split()[3])  # wchar
    rate = written / (time.monotonic() - began) / 1e6
    with capsys.disabled():
        print(f"\nflood: {rate:.0f} MB/s taken, loop late by {max(delays) * 1000:.0f} ms, another up in {took:.2f} s")
    assert sorted(delays)[-5] < 0.1 * SLOWNESS
    assert took < 5 * SLOWNESS
    before = time.monotonic()
    await stage.runtime.deactivate(flood)
    assert time.monotonic() - before < 5 * SLOWNESS
    folder = stage.runtime.output_folder(flood)
    assert sum(each.stat().st_size for each in folder.iterdir()) <= 2 * (1_000_000 + 200)
    assert len(list(folder.iterdir())) == 2


async def test_a_megabyte_without_an_end_of_line_and_garbage(stage: Stage) -> None:
    key = await stage.up(
        "os.write(1, b'\\xff\\x00' * 500_000 + b'\\n')\nprint('READY=1')\ntime.sleep(600)", Manifest(readiness=READY)
    )
    await stage.runtime.deactivate(key)
    *parts, end, ready = [line async for line in stage.runtime.output(key) if line.stream == "out"]
    assert len(parts) > 50
    assert all(part.partial and len(part.text) < 20_000 for part in parts)
    assert "".join(part.text for part in (*parts, end)) == "\ufffd\0" * 500_000
    assert (ready.text, ready.partial, end.partial) == ("READY=1", False, False)


async def test_one_that_closes_its_output_runs_on(stage: Stage) -> None:
    key = await stage.up(
        "print('READY=1')\nos.write(1, b'last')\nos.close(1)\n"
        "print('still here', file=sys.stderr)\nos.close(2)\ntime.sleep(600)",
        Manifest(readiness=READY),
    )
    await eventually(partial(_wrote, stage, key, "still here", "err"))
    await eventually(partial(_wrote, stage, key, "last"))
    await anyio.sleep(0.3)
    assert len(stage.living) == 1
    assert stage.crashes == []
    assert await stage.text(key) == ["READY=1", "last"]
    assert await stage.text(key, "err") == ["still here"]


@pytest.mark.quick
async def test_all_that_was_written_before_the_end_is_there(stage: Stage) -> None:
    """More than a pipe holds, written in one go, and out."""
    key = await stage.up(
        "until_up()\nfor i in range(20000): os.write(1 + i % 2, b'line %d\\n' % i)\nos._exit(7)",
        Manifest(restart=Restart(policy=RestartPolicy.NEVER)),
    )
    await eventually(lambda: stage.crashes)
    assert "last output: line 19990 | " in stage.crashes[0].reason
    assert "line 19999" in stage.crashes[0].reason
    found = [line.text async for line in stage.runtime.output(key)]
    assert {f"line {i}" for i in range(20000)} <= set(found)


async def test_output_stays_after_unload_and_a_new_start_of_the_node(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        key = await stage.up("print('first')\nprint('READY=1')\ntime.sleep(600)", Manifest(readiness=READY))
        await stage.runtime.unload(key)
        assert await stage.text(key) == ["first", "READY=1"]
    async with staged(tmp_path) as stage:
        assert await stage.text(key) == ["first", "READY=1"]
        await stage.up("print('second')\nprint('READY=1')\ntime.sleep(600)", Manifest(readiness=READY))
        assert await stage.text(key) == ["first", "READY=1", "second", "READY=1"]
        assert await stage.text(key, "cdm") == ["ended: killed by SIGTERM", "begins again"]


async def test_output_of_old_slices_is_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdm.runtimes.process.slice_runtime.KEPT", 2)
    for number in range(5):
        key = await stage.up("print('READY=1')\ntime.sleep(600)", Manifest(readiness=READY), key_of(ordinal=number))
        await stage.runtime.unload(key)
    assert len(list((stage.folder / "runtime" / "logs").iterdir())) == 2


async def test_followed_while_it_runs_and_over_a_restart(stage: Stage) -> None:
    key = await stage.load("print('hello', flush=True)\nuntil_up()\nsys.exit(1)")
    found: list[str] = []
    with bounded(20):
        async with anyio.create_task_group() as tasks:

            async def follow() -> None:
                async for line in stage.runtime.output(key, follow=True):
                    found.append(line.text)
                    if len(found) == 4:
                        return

            tasks.start_soon(follow)
            await stage.runtime.activate(key)
            stage.told_up.touch()
    assert found == ["hello", "ended: exit status 1", "begins again", "hello"]


async def test_a_disk_that_cannot_be_written_to(stage: Stage) -> None:
    (stage.folder / "runtime" / "logs").write_text("no folder")
    key = await stage.up("print('READY=1')\ntime.sleep(600)", Manifest(readiness=READY))
    assert len(stage.living) == 1
    await stage.runtime.deactivate(key)
    keeper = stage.runtime.keeper
    assert keeper is not None
    assert children(keeper) == []


async def test_output_that_is_lost_is_warned_of_while_it_is_lost(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit of the size of files stands for a full disk: the system refuses to write more."""
    program = """
        print('READY=1')
        for step in ("lost", "after"):
            while not os.path.exists(os.path.join(os.environ["STEPS"], step)): time.sleep(0.01)
            for _ in range(100): os.write(1, step.encode() * 50 + b"\\n")
        time.sleep(600)
        """
    key = await stage.up(program, Manifest(readiness=READY, env={"STEPS": str(stage.folder)}))
    keeper = stage.runtime.keeper
    assert keeper is not None
    _, most = resource.prlimit(keeper, resource.RLIMIT_FSIZE)
    resource.prlimit(keeper, resource.RLIMIT_FSIZE, (4096, most))
    (stage.folder / "lost").touch()
    told: list[str] = []

    def warned() -> bool:
        told.extend(line for line in capsys.readouterr().out.splitlines() if "output is being lost" in line)
        return bool(told)

    await eventually(warned)
    assert str(key) in told[0]
    assert "File too large" in told[0]
    assert len(stage.living) == 1
    resource.prlimit(keeper, resource.RLIMIT_FSIZE, (most, most))
    (stage.folder / "after").touch()
    await eventually(partial(_wrote, stage, key, "after" * 50))
    (remark,) = await stage.text(key, "cdm")
    assert remark.endswith("bytes of output could not be written, and are lost (File too large)")
    assert not warned() or len(told) == 1


async def _wrote(stage: Stage, key: SliceKey, line: str, stream: str = "out") -> bool:
    return line in await stage.text(key, stream)


async def test_a_stray_file_beside_the_output(stage: Stage) -> None:
    key = await stage.load("print('READY=1')\ntime.sleep(600)", Manifest(readiness=READY))
    folder = stage.runtime.output_folder(key)
    folder.mkdir(parents=True)
    (folder / "2026-11-25.log").touch()
    keeper = stage.runtime.keeper
    await stage.runtime.activate(key)
    await anyio.sleep(0.2)
    assert stage.runtime.keeper == keeper
    assert len(stage.pids) == 1
    assert await stage.text(key) == ["READY=1"]


def test_no_error_of_an_output_writer_ends_the_keeper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its output is lost, and told once."""

    monkeypatch.setattr("cdm.runtimes.keeper.spawn.raise_open_files", lambda: (64, 64))

    class Broken:
        said, last, lost = False, (), 0

        def feed(self, stream: str, data: bytes) -> None:
            raise ValueError("broken")

        def end(self, stream: str) -> None:
            raise ValueError("broken")

    node, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with node, other:
        keeper = Keeper(node, str(tmp_path), "token", None)
        run = Run(Spawn("r", "", (), {}, "", ""), 0, 0, {}, cast("OutputWriter", Broken()), None)
        for data in (b"one\n", b"two\n", b""):
            read, write = os.pipe()
            os.write(write, data)
            os.close(write)
            run.streams[read] = "out"
            keeper._watch(read, lambda: None)
            assert keeper._read(run, read) == bool(data)
            if data:
                keeper._unwatch(read)
    assert capfd.readouterr().err.count("Traceback") == 1
