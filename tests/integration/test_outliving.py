"""Slices outlive a node's process that was not told to leave: the next one goes on with them.

Without one they end with the node's TTL.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import anyio
import anyio.to_thread
import pytest

from cdm.model.manifest import Line, Manifest, Readiness, Restart
from cdm.node.holders import holders_of, note_holder
from tests.harness.judging import assert_legal
from tests.harness.proc import end_keepers, left_keepers, unkillable
from tests.harness.processes import Process, Processes, command_line, node_processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.serving import PLAIN, PORTS, SLEEP, Hand, Yard, ask, made, shown, yard
from tests.harness.versions import library
from tests.harness.waiting import eventually, in_time, patience

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

COUNTS = """
import threading, time
def count():
    number = 0
    while True:
        print(number)
        number += 1
        time.sleep(0.01)
threading.Thread(target=count).start()
"""
STRAY = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
time.sleep(600)
"""
"""Its child does not end with its keeper."""
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
            end_keepers(*left_keepers(folder))


async def the_keeper(folder: Path) -> int:
    """The only one. What a keeper has just forked has its command line for a moment."""

    def only() -> int:
        found = left_keepers(folder)
        return found[0] if len(found) == 1 else 0

    return await eventually(only, 30, "there is one keeper")


def kill_keepers(folder: Path) -> None:
    """Kill these keepers, with which the programs end."""
    for pid in left_keepers(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def start(
    running: Processes,
    folder: Path,
    name: str = "n1",
    role: str = "agent",
    on_stop: str = "",
    *,
    of: Path | None = None,
    fresh: bool = False,
) -> Process:
    """Start a node, which stops as nodes do that are not told otherwise, or ``on_stop``."""
    where = ("--runtime", "process", "--folder", str(folder / name))
    stops = ("--on-stop", on_stop) if on_stop else ()
    return running.start(name, "--role", role, *stops, *where, library=of, fresh=fresh)


async def up(process: Process) -> None:
    await eventually(lambda: "node is up" in process.log, 30, "it is registered")


def _goes_on(process: Process, slices: int) -> bool:
    return process.log.count("goes on since") == slices


@pytest.mark.quick
async def test_the_next_process_goes_on_with_what_runs(server: NatsServer, tmp_path: Path) -> None:
    """However the one before ended, and whatever stopping means: nobody who asks a slice notices.

    Nothing is written but registrations.
    """
    async with kept(server, tmp_path) as (ground, hand, running):
        await up(start(running, tmp_path))
        one = await ground.push("one", COUNTS + PORTS.replace("\n    ", "\n"))
        keys = [hand.key(one, ordinal) for ordinal in range(2)]
        port = (await hand.up(keys[0]))["port"]
        await hand.up(keys[1])
        before = ground.living
        stored = {key: (await ground.user.contents("slices"))[key].sequence for key in keys}
        async with asked(port) as failed:
            for number, on_stop in ((signal.SIGKILL, "keep"), (signal.SIGTERM, "drain"), (signal.SIGKILL, "leave")):
                last = running.all["n1"]
                last.send(number)
                await last.ends()
                again = start(running, tmp_path, on_stop=on_stop)
                await up(again)
                await eventually(partial(_goes_on, again, 2), 30, "both go on")
        assert failed == []
        assert ground.living == before
        assert {key: (await ground.user.contents("slices"))[key].sequence for key in keys} == stored
        for folder in (tmp_path / "n1" / "runtime" / "logs").iterdir():
            counted = await eventually(partial(_counted, folder, 100), 20, "much is written")
            assert counted == list(range(len(counted))), "nothing of the output is missing"
        for key in keys:
            await hand.unload(key)
        assert not ground.living


def _counted(folder: Path, least: int) -> list[int]:
    """What `COUNTS` has written, up to the last whole line; nothing where there are fewer."""
    lines = (folder / "00000001.log").read_text().rpartition("\n")[0].splitlines()
    return [int(line.split()[2]) for line in lines] if len(lines) > least else []


async def test_what_is_not_to_run_as_it_does_is_dealt_with_first(server: NatsServer, tmp_path: Path) -> None:
    """The leader took slices away, or wants another thing of them; programs ended; one was still starting."""
    async with kept(server, tmp_path) as (ground, hand, running):
        process = start(running, tmp_path)
        await up(process)
        one = await ground.push("one", SLEEP, PLAIN)
        once = await ground.push("once", SLEEP, Manifest(stop_grace=2, restart=Restart(backoff=0.1, attempts=1)))
        late = await ground.push("late", SLEEP, Manifest(stop_grace=2, readiness=Readiness(Line("never"), timeout=60)))
        stays, gone, goes, other = (hand.key(one, ordinal) for ordinal in range(4))
        ended, starting = hand.key(once), hand.key(late)
        for key in (stays, gone, goes, other, ended):
            await hand.up(key)
        (first,) = ground.living[shown(ended)]
        os.kill(first, signal.SIGKILL)
        assert (await _again(hand, ended))["restarts"] == 1
        await hand.put(starting, "LOAD")
        await hand.reaches(starting, "LOADED")
        await hand.put(starting, "ACTIVATE")
        await eventually(lambda: shown(starting) in ground.living, what="it starts")
        before = ground.living

        process.crash()
        await ground.user.delete("slices", gone)
        await hand.put(goes, "UNLOAD")
        await hand.put(other, "ACTIVE", overrides={"env": {"LEVEL": "2"}})
        (second,) = before[shown(ended)]
        os.kill(second, signal.SIGKILL)
        assert ground.living[shown(stays)] == before[shown(stays)]
        start(running, tmp_path)

        await hand.reaches(goes, None, 30)
        value = await hand.reaches(ended, "FAILED", 30)
        assert "it was started again once" in value["reason"], "its restarts are counted on"

        def settled() -> bool:
            living = ground.living
            return {*living} == {shown(stays), shown(other), shown(starting)} and not any(
                set(living[shown(key)]) & set(before[shown(key)]) for key in (other, starting)
            )

        await eventually(settled, 30, "what could not go on was started anew")
        assert ground.living[shown(stays)] == before[shown(stays)]
        for key in (stays, other, starting, ended):
            await hand.unload(key)
        assert_legal(await ground.user.recorded(), deleted=True)


async def _again(hand: Hand, key: str) -> dict[str, Any]:
    """Wait until it was started again, and is ready."""

    async def told() -> bool:
        return bool((await hand.reaches(key, "ACTIVE")).get("restarts"))

    await eventually(told, 30, "it was started again")
    return await hand.reaches(key, "ACTIVE")


async def beats(ground: Yard, node: str = "n1") -> None:
    """Wait for the node's next heartbeat: times are counted from its last one."""

    async def revision() -> int:
        record = (await ground.user.registrations()).get(node)
        return record.sequence if record else 0

    before = await revision()

    async def newer() -> bool:
        return await revision() > before

    await eventually(newer, what="a heartbeat")


async def test_without_a_next_process_all_ends_with_the_ttl(server: NatsServer, tmp_path: Path) -> None:
    """Also while NATS is away: the keeper has the clock. What has stop_after has until then."""
    ttl, stop_after = 6.0, 10.0
    async with kept(server, tmp_path, ttl) as (ground, hand, running):
        process = start(running, tmp_path)
        await up(process)
        one = await ground.push("one", SLEEP, PLAIN)
        plain, alone = hand.key(one), hand.key(one, 1)
        await hand.up(plain)
        await hand.up(alone, overrides={"stop_after": stop_after})
        await beats(ground)
        killed = time.monotonic()
        server.pause()
        try:
            process.crash()
            await anyio.sleep(0.5)
            there = len(ground.living)
            assert there == 2 or time.monotonic() - killed > ttl - 1 - ttl / 3 - 0.2
            await in_time(lambda: shown(plain) not in ground.living, ttl - 0.5, "it ends before the TTL is over")
            assert time.monotonic() - killed > ttl - 1 - ttl / 3 - 0.2, "not before the last heartbeat's TTL"
            lives = shown(alone) in ground.living
            assert lives or time.monotonic() - killed > stop_after - ttl / 3 - 0.2
            await in_time(lambda: not ground.living, stop_after - ttl + 0.5, "and the other one when that says so")
            assert time.monotonic() - killed > stop_after - ttl / 3 - 0.2
            await eventually(lambda: not left_keepers(tmp_path), what="the keeper has nothing to wait for")
        finally:
            server.resume()
        start(running, tmp_path)
        await eventually(ground.exact, 30, "both run again")
        for key in (plain, alone):
            await hand.unload(key)


async def test_the_next_process_keeps_what_runs_also_where_it_finds_no_nats(server: NatsServer, tmp_path: Path) -> None:
    """As the process before would have kept it: what has stop_after ends when that says so, and nothing else does."""
    ttl, stop_after = 12.0, 16.0  # a process starts within the first on a slow machine
    async with kept(server, tmp_path, ttl) as (ground, hand, running):
        await up(start(running, tmp_path))
        one = await ground.push("one", SLEEP, PLAIN)
        plain, alone = hand.key(one), hand.key(one, 1)
        await hand.up(plain)
        await hand.up(alone, overrides={"stop_after": stop_after})
        before = ground.living
        await beats(ground)
        began = time.monotonic()
        server.pause()
        try:
            running.all["n1"].crash()
            again = start(running, tmp_path)
            await eventually(lambda: "is taken over" in again.log, what="the keeper is taken over")
            assert ground.living == before
            left = began + stop_after - time.monotonic()
            await in_time(lambda: shown(alone) not in ground.living, max(left, 0), "it ends when stop_after says so")
            assert time.monotonic() - began > stop_after - ttl / 3 - 0.2
            await anyio.sleep(max(began + 2 * ttl - time.monotonic(), 0))
            assert ground.living == {shown(plain): before[shown(plain)]}
            assert "node is up" not in again.log
        finally:
            server.resume()
        await up(again)
        value = await hand.reaches(alone, "FAILED", 30)
        assert "(stop_after)" in value["reason"]
        await eventually(partial(_goes_on, again, 2), 30, "what ran was found, also what ended meanwhile")
        assert ground.living == {shown(plain): before[shown(plain)]}
        for key in (plain, alone):
            await hand.unload(key)


async def test_a_process_that_finds_no_nats_takes_its_node_along_when_it_is_told_to_leave(
    server: NatsServer, tmp_path: Path
) -> None:
    """And one whose folder another one has ends at once."""
    async with kept(server, tmp_path) as (ground, hand, running):
        await up(start(running, tmp_path))
        await hand.up(hand.key(await ground.push("one", SLEEP, PLAIN)))
        server.pause()
        try:
            running.all["n1"].crash()
            again = start(running, tmp_path)
            await eventually(lambda: "is taken over" in again.log, what="the keeper is taken over")
            second = start(running, tmp_path)
            assert await second.ends(30) == 4
            assert "is used by another process" in second.log
            again.send(signal.SIGTERM)
            assert await again.ends(30) == 0
            assert not ground.living
            assert not left_keepers(tmp_path)
        finally:
            server.resume()


async def test_a_keeper_that_is_killed_alone_leaves_nothing_for_the_next_process(
    server: NatsServer, tmp_path: Path
) -> None:
    async with kept(server, tmp_path, 20.0) as (ground, hand, running):
        process = start(running, tmp_path)
        await up(process)
        key = hand.key(await ground.push("one", SLEEP, PLAIN))
        await hand.up(key)
        before = ground.living
        process.crash()
        keeper = await the_keeper(tmp_path)
        os.kill(keeper, signal.SIGKILL)
        await ground.nothing_left(2)
        start(running, tmp_path)
        await eventually(lambda: ground.living and ground.living != before, 30, "it was started again")
        keeper = await the_keeper(tmp_path)
        os.kill(keeper, signal.SIGSTOP)  # one that hangs is ended with all that it has, once the TTL is over
        before = ground.living
        running.all["n1"].crash()
        start(running, tmp_path)
        await eventually(lambda: ground.living and ground.living != before, 40, "it was started again")
        assert all(len(pids) == 1 for pids in ground.living.values())
        await hand.reaches(key, "ACTIVE")
        await hand.unload(key)


async def test_a_node_that_leaves_stops_also_what_it_has_not_taken_over(server: NatsServer, tmp_path: Path) -> None:
    async with kept(server, tmp_path) as (ground, hand, running):
        await up(start(running, tmp_path))
        key = hand.key(await ground.push("one", SLEEP, PLAIN))
        await hand.up(key, overrides={"stop_after": 2 * TTL})
        running.all["n1"].crash()
        again = start(running, tmp_path, on_stop="leave")
        await eventually(lambda: "is taken over" in again.log, 30, "the keeper is taken over")
        again.send(signal.SIGTERM)
        assert await again.ends(30) == 0
        assert not ground.living
        assert not left_keepers(tmp_path)


async def test_a_process_of_systemd_makes_way_for_the_next_version_and_leaves_when_told(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGHUP: another process with the same pid. `cdm node leave`: for good, however it stops else."""
    told = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        monkeypatch.chdir(tmp_path)  # addresses of sockets must be short
        systemd.bind("notify")
        systemd.settimeout(120)
        monkeypatch.setenv("NOTIFY_SOCKET", str(told))
        monkeypatch.setenv("WATCHDOG_USEC", "20000000")
        async with kept(server, tmp_path) as (ground, hand, running):
            process = start(running, tmp_path, on_stop="keep", fresh=True)
            await anyio.to_thread.run_sync(_hears, systemd, "READY=1", "WATCHDOG=1")
            key = hand.key(await ground.push("one", SLEEP, PLAIN))
            await hand.up(key)
            before = ground.living
            process.send(signal.SIGHUP)
            await anyio.to_thread.run_sync(_hears, systemd, "RELOADING=1")
            until = time.monotonic() + 0.3
            while time.monotonic() < until:  # while it is another program, and starts
                process.send(signal.SIGHUP)
                await anyio.sleep(0.01)
            await anyio.to_thread.run_sync(_hears, systemd, "READY=1", "WATCHDOG=1")
            await eventually(lambda: "goes on since" in process.log, 30, "it goes on")
            process.unharmed()
            assert ground.living == before

            server.pause()
            try:
                process.send(signal.SIGHUP)
                # The watchdog of the process before goes on, and waits no longer for one that waits for NATS.
                await anyio.to_thread.run_sync(_hears, systemd, "RELOADING=1", "WATCHDOG=1")
                process.unharmed()
                assert ground.living == before
            finally:
                server.resume()
            await anyio.to_thread.run_sync(_hears, systemd, "READY=1", "WATCHDOG=1")
            await eventually(lambda: process.log.count("goes on since") == 2, 30, "it goes on")
            assert ground.living == before
            left = await command_line("node", "leave", "--id", "n1", "--folder", str(tmp_path / "n1"), within=60)
            assert (left.returncode, left.stdout) == (0, b"n1 has left\n"), left
            assert await process.ends() == 0
            assert not ground.living
            assert not await ground.user.slices()
            assert not await ground.user.registrations()
            _hears(systemd, "STOPPING=1")
            nothing = await command_line("node", "leave", "--id", "n1", "--folder", str(tmp_path / "n1"))
            assert nothing.returncode == 1
            assert b"no process of node n1 runs here, and no slice of it" in nothing.stderr


def _hears(systemd: socket.socket, *wanted: str) -> None:
    """These come, in this order, and others between them."""
    waits = list(wanted)
    while waits:
        if systemd.recv(1000).decode().partition("\n")[0] == waits[0]:
            del waits[0]


async def test_leaving_stops_what_a_dead_process_left(server: NatsServer, tmp_path: Path) -> None:
    """And the cluster does not take it for alive any more, well before the TTL is over."""
    async with kept(server, tmp_path) as (ground, hand, running):
        await up(start(running, tmp_path))
        one = await ground.push("one", SLEEP, PLAIN)
        await hand.up(hand.key(one))
        await hand.up(hand.key(one, 1), overrides={"stop_after": 2 * TTL})
        await ground.user.put("slices", "n2.org.example/one/1.0.0", {"state": "ACTIVE"})
        running.all["n1"].crash()
        left = await leave(tmp_path, server.url)
        assert left.returncode == 0, left
        assert left.stdout == (
            b"n1: no process of it runs here; 2 of its slices did, and are stopped; its registration is taken back\n"
        )
        assert not ground.living
        assert not left_keepers(tmp_path)
        assert not await ground.user.registrations()
        assert [*await ground.user.slices()] == ["n2.org.example/one/1.0.0"]
        assert (await leave(tmp_path, server.url)).returncode == 1


async def test_leaving_tells_what_cannot_be_stopped(server: NatsServer, tmp_path: Path) -> None:
    """Its registration stands then, for its slice is not to run twice."""
    async with kept(server, tmp_path) as (ground, hand, running):
        await up(start(running, tmp_path))
        await hand.up(hand.key(await ground.push("one", SLEEP, PLAIN)))
        running.all["n1"].crash()
        ((pid,),) = ground.living.values()
        with unkillable(pid):
            left = await leave(tmp_path, server.url)
            told = left.stdout.decode()
            assert left.returncode == 1, left
            assert f"of its slices (1) not all are stopped: SIGKILL does not end pid {pid};" in told
            assert "its registration is not taken back (what runs on of its slices would run twice)" in told
            assert await ground.user.registrations()
            again = json.loads((await leave(tmp_path, server.url, "--json")).stdout)
            assert (again["slices"], again["alive"]) == (0, [f"SIGKILL does not end pid {pid}"])
        await ground.nothing_left(10)
        assert (await leave(tmp_path, server.url)).returncode == 0
        assert not await ground.user.registrations()


@pytest.mark.slow
async def test_leaving_tells_what_a_living_process_could_not_stop(server: NatsServer, tmp_path: Path) -> None:
    async with kept(server, tmp_path) as (ground, hand, running):
        await up(start(running, tmp_path))
        await hand.up(hand.key(await ground.push("one", SLEEP, PLAIN)))
        ((pid,),) = ground.living.values()
        with unkillable(pid):
            left = await leave(tmp_path, server.url)
            assert left.returncode == 1, left
            told = f"n1 has left; not all of its slices are stopped: SIGKILL does not end pid {pid}\n"
            assert left.stdout.decode() == told
        await ground.nothing_left(10)


async def test_leaving_in_good_order_asks_nothing_of_what_was_never_needed(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine, for instance, that only the node's own process reaches; unless something was not stopped there."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nowhere")
    async with kept(server, tmp_path) as (_, _, running):
        await up(start(running, tmp_path))
        runtime = tmp_path / "n1" / "runtime"
        for each in ("containers", "units"):  # as other runtimes leave them there
            (runtime / each).mkdir()
        (runtime / "heard").write_text("1.0")
        left = await leave(tmp_path, server.url)
        assert (left.returncode, left.stdout) == (0, b"n1 has left\n"), left
        await up(start(running, tmp_path))
        (runtime / "containers" / "cdm-0-0").touch()
        left = await leave(tmp_path, server.url)
        assert left.returncode == 1, left
        assert b"n1 has left; not all of its slices are stopped: the container engine" in left.stdout


async def test_leaving_tells_what_it_ends_that_a_killed_keeper_left(server: NatsServer, tmp_path: Path) -> None:
    """Also where the cluster knows nothing of the node any more."""
    async with kept(server, tmp_path) as (ground, hand, running):
        await up(start(running, tmp_path))
        await hand.up(hand.key(await ground.push("one", STRAY, PLAIN)))

        def living() -> int:
            return sum(map(len, ground.living.values()))

        await eventually(lambda: living() == 2, what="there is a child")
        running.all["n1"].crash()
        kill_keepers(tmp_path)
        await eventually(lambda: living() == 1, what="the child alone is left")
        await ground.user.delete("nodes", "n1")
        left = await leave(tmp_path, server.url)
        assert left.stdout.decode() == (
            "n1: no process of it runs here; 1 process of its slices did, and is ended; its registration is gone, or"
            " another process's\n"
        )
        assert left.returncode == 0
        assert not ground.living
        assert (await leave(tmp_path, server.url)).returncode == 1, "there is nothing"


async def test_the_next_process_goes_on_though_the_disk_is_full(
    server: NatsServer, tmp_path: Path, small_disk: Path
) -> None:
    async with kept(server, tmp_path) as (ground, hand, running):
        await up(start(running, small_disk))
        key = hand.key(await ground.push("one"))
        await hand.up(key)
        before = ground.living
        running.all["n1"].crash()
        with contextlib.suppress(OSError), (small_disk / "full").open("wb", buffering=0) as full:
            while True:
                full.write(bytes(4096))
        again = start(running, small_disk)
        await up(again)
        await eventually(partial(_goes_on, again, 1), 30, "it goes on")
        assert ground.living == before
        assert "cdm node leave will not know of this process" in again.log
        (small_disk / "full").unlink()
        await hand.unload(key)


async def test_leaving_takes_back_what_its_own_processes_wrote_and_nothing_else(
    server: NatsServer, tmp_path: Path
) -> None:
    """A process on another machine may have the id by now; and NATS may be away."""
    async with kept(server, tmp_path) as (ground, _hand, running):
        await up(start(running, tmp_path))
        await eventually(lambda: holders_of(tmp_path / "n1").settled, what="it knows its slices")
        running.all["n1"].crash()
        (own,) = (await ground.user.registrations()).values()
        others = {**own.value, "incarnation": "another"}
        await ground.user.put("nodes", "n1", others)
        assert (await leave(tmp_path, server.url)).returncode == 1, "there is nothing of its own"
        assert [each.value for each in (await ground.user.registrations()).values()] == [others]

        await ground.user.put("nodes", "n1", own.value)
        await up(start(running, tmp_path))
        await eventually(lambda: holders_of(tmp_path / "n1").settled, what="it knows its slices")
        running.all["n1"].crash()
        nowhere = await leave(tmp_path, "nats://127.0.0.1:1", "--json")
        assert nowhere.returncode == 0, nowhere
        told = json.loads(nowhere.stdout)
        assert (told["node"], told["process"], told["registration"], told["ttl"]) == ("n1", False, False, TTL)
        assert told["problem"]
        assert await ground.user.registrations()
        noted = holders_of(tmp_path / "n1")
        note_holder(tmp_path / "n1", noted.incarnations[-1], TTL)
        doubtful = await leave(tmp_path, server.url, "--json")
        assert "must not run twice" in json.loads(doubtful.stdout)["problem"]
        assert await ground.user.registrations(), "as if it had come after one with another folder"
        note_holder(tmp_path / "n1", noted.incarnations[-1], TTL, settled=True)
        left = await leave(tmp_path, server.url, "--json")
        assert json.loads(left.stdout)["registration"] is True, left
        assert not await ground.user.registrations()


async def leave(folder: Path, server: str, *more: str) -> CompletedProcess[bytes]:
    """Give n1 up."""
    where = ("--id", "n1", "--folder", str(folder / "n1"), "--server", server)
    return await command_line("node", "leave", *where, *more, within=60)


BEFORE = "9d10644"
"""A released version, whose keepers this one is to understand."""


@pytest.mark.parametrize("version", ["", BEFORE], ids=["this version", "an earlier one"])
async def test_nodes_are_upgraded_one_by_one_and_nobody_who_asks_notices(
    server: NatsServer, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, version: str
) -> None:
    """From this version, or an earlier one: no process is another, no request fails, one change of leader a node."""
    own, old = tmp_path_factory.getbasetemp(), None
    if version:
        cache = own.parent if own.name.startswith("popen-") else own
        old = await anyio.to_thread.run_sync(library, version, cache)
    async with kept(server, tmp_path) as (ground, _, running):
        names = ("n1", "n2", "n3")
        for name in names:
            start(running, tmp_path, name, "all", "keep", of=old)

        async def all_there() -> bool:
            return len(await ground.user.registrations()) == len(names) and bool(await ground.user.lease())

        await eventually(all_there, 60, "all are registered")
        one = await ground.push("one")
        await ground.user.put("blueprints", one, 6)
        keys = await ground.settles(6, 60)
        # Not 2 each, where one began elsewhere: an earlier version gives up a slice whose port another one took.
        held = Counter(key.partition(".")[0] for key in keys)
        before, term = ground.living, (await ground.user.lease())["term"]
        async with asked(*(record.value["port"] for record in keys.values())) as failed:
            for name in names:
                last = running.all[name]
                last.send(signal.SIGTERM)
                assert await last.ends(60) == 0
                await up(start(running, tmp_path, name, "all", "keep"))
                await eventually(partial(_goes_on, running.all[name], held[name]), 60, "its slices go on")
        assert failed == []
        assert ground.living == before
        assert (await ground.user.lease())["term"] <= term + len(names)
        assert await ground.settles(6, 60) == keys, "nothing was written"
        await ground.user.put("blueprints", one, 0)
        await eventually(lambda: not ground.living, 60, "nothing is to run")


@asynccontextmanager
async def asked(*ports: int) -> AsyncIterator[list[int]]:
    """Ask slices about fifty times a second; what is given is filled with the ports of requests that failed."""
    failed: list[int] = []
    answered = 0

    async def keep_asking(port: int) -> None:
        nonlocal answered
        while True:
            if await anyio.to_thread.run_sync(ask, port, patience()):
                answered += 1
            else:
                failed.append(port)
            await anyio.sleep(0.02 * len(ports))

    async with anyio.create_task_group() as tasks:
        for port in ports:
            tasks.start_soon(keep_asking, port)
        yield failed
        tasks.cancel_scope.cancel()
    assert answered
