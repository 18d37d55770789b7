"""Slices outlive their node's process: the next one goes on with them, and without one they end with the node's TTL."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from cdm.model.manifest import Manifest, Restart
from tests.harness.processes import Process, Processes, node_processes
from tests.harness.proc import all_pids, exists, read
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.serving import ANSWERING, PLAIN, PORTS, SLEEP, Hand, Yard, ask, made, yard
from tests.harness.waiting import eventually, in_time
from tests.harness.wire import raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

TTL = 60.0
"""Long enough for a process to start on a machine that has much else to do."""


@asynccontextmanager
async def kept(server: NatsServer, folder: Path, ttl: float = TTL) -> AsyncIterator[tuple[Yard, Hand, Processes]]:
    """Room for node n1 as a process whose slices outlive it; the test leads. In the end nothing of it is left."""
    async with yard(server, folder) as ground:
        await made(server, ground.user)
        try:
            with node_processes(server, folder, ttl) as running:
                yield ground, Hand(ground.user), running
            await ground.nothing_left(min(ttl, 10))
            await eventually(lambda: not left_keepers(folder), what="no keeper is left")
        finally:
            for pid in left_keepers(folder):
                os.kill(pid, signal.SIGKILL)


def left_keepers(folder: Path) -> list[int]:
    """Keepers of nodes with folders in this one, whoever their parents are."""
    found = []
    for name in all_pids():
        with contextlib.suppress(OSError):
            command = read(f"/proc/{name}/cmdline")
            if b"cdm.runtimes.keeper" in command and os.fsencode(folder) in command:
                found.append(int(name))
    return found


def start(running: Processes, folder: Path, *options: str, name: str = "n1", role: str = "agent") -> Process:
    where = ("--runtime", "process", "--folder", str(folder / name))
    return running.start(name, "--role", role, "--on-stop", "keep", *where, *options)


async def up(process: Process) -> None:
    await eventually(lambda: "node is up" in process.log, 30, "it is registered")


@pytest.mark.quick
async def test_the_next_process_goes_on_with_what_runs(server: NatsServer, tmp_path: Path) -> None:
    """However the one before ended: nobody who asks a slice notices, and nothing is written but a registration."""
    async with kept(server, tmp_path) as (ground, hand, running):
        await up(start(running, tmp_path))
        talks = f"import threading, time\nthreading.Thread(target=lambda: [print(i) or time.sleep(0.01) for i in range(9999)]).start()\n"
        one = await ground.push("one", talks + PORTS.replace("\n    ", "\n"))
        keys = [hand.key(one, ordinal) for ordinal in range(2)]
        port = (await hand.up(keys[0]))["port"]
        await hand.up(keys[1])
        before = ground.living
        stored = {key: (await ground.user.contents("slices"))[key].sequence for key in keys}
        failed: list[float] = []
        asked = 0

        async def keep_asking() -> None:
            nonlocal asked
            while True:
                if not await anyio.to_thread.run_sync(ask, port):
                    failed.append(time.monotonic())
                asked += 1
                await anyio.sleep(0.02)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep_asking)
            for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
                last = running.all["n1"]
                last.send(number)
                await last.ends()
                again = start(running, tmp_path)
                await up(again)
                await eventually(lambda again=again: again.log.count("goes on since") == 2, 30, "both go on")
            tasks.cancel_scope.cancel()
        assert asked
        assert not failed
        assert ground.living == before
        assert {key: (await ground.user.contents("slices"))[key].sequence for key in keys} == stored
        for key in keys:
            await hand.unload(key)
        assert not ground.living
