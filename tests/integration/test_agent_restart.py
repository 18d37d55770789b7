"""Machines and servers die and come back: what runs is what the keys say, once, and nothing outlives its node.

Where the node's process alone dies: `test_outliving`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from msgspec.structs import replace

from cdm.cli import Exit
from cdm.errors import FolderTaken
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey
from cdm.model.manifest import Line, Manifest, Readiness
from cdm.node import node as runtime
from cdm.node.serving import Running
from cdm.runtimes import Surroundings
from cdm.runtimes.process.runtime import ORPHAN_BOUND
from cdm.store.bucket import buckets
from cdm.store.watch import Phase
from tests.harness.judging import assert_legal
from tests.harness.nodes import nodes_on
from tests.harness.proc import end_keepers, left_keepers
from tests.harness.processes import Processes, command_line, environment, node_processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.serving import PLAIN, SLEEP, Hand, Yard, agent_alone, ask, made, yard
from tests.harness.store import connected
from tests.harness.waiting import bounded, eventually, in_time, patience
from tests.harness.wire import Rejection, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]


@asynccontextmanager
async def one_process(server: NatsServer, folder: Path) -> AsyncIterator[tuple[Yard, Hand, Processes]]:
    """Node n1 as a process that only serves; the test leads."""
    async with yard(server, folder) as ground:
        await made(server, ground.user)
        with node_processes(server, folder) as running:
            yield ground, Hand(ground.user), running
        await ground.nothing_left(ORPHAN_BOUND)


def start(running: Processes, folder: Path, name: str = "n1", role: str = "agent") -> None:
    running.start(name, "--role", role, "--runtime", "process", "--folder", str(folder / name))


@pytest.mark.quick
async def test_after_a_sigkill_the_same_slices_serve_again_once(server: NatsServer, tmp_path: Path) -> None:
    async with one_process(server, tmp_path) as (ground, hand, running):
        start(running, tmp_path)
        one, two = await ground.push("one"), await ground.push("two", SLEEP, PLAIN)
        stays, goes, ends, rests, late = (
            hand.key(one),
            hand.key(one, 1),
            hand.key(two),
            hand.key(two, 1),
            hand.key(two, 2),
        )
        for key in (stays, goes, ends, rests):
            await hand.up(key, blueprint=5)
        await hand.put(rests, "DEACTIVATE")
        await hand.reaches(rests, "LOADED")

        running.all["n1"].kill()
        await ground.user.delete("slices", goes)
        await hand.put(ends, "UNLOAD")
        await hand.put(late, "LOAD")
        await ground.nothing_left(ORPHAN_BOUND)

        start(running, tmp_path)
        await hand.reaches(ends, None)
        await hand.reaches(late, "LOADED")
        await eventually(ground.exact, 10, "what is ACTIVE lives")
        value = await hand.reaches(stays, "ACTIVE")
        await eventually(lambda: _answers(hand, stays), 5, "the key tells the port of now")
        assert value["blueprint"] == 5
        assert await ground.user.slices() == {stays: "ACTIVE", rests: "LOADED", late: "LOADED"}
        assert_legal(await ground.user.recorded(), deleted=True)


async def _answers(hand: Hand, key: str) -> bool:
    return bool(ask((await hand.reaches(key, "ACTIVE"))["port"]))


async def test_a_node_that_starts_at_once_again_doubles_nothing(server: NatsServer, tmp_path: Path) -> None:
    """Also while what the dead one, and its keeper, left is still alive."""
    async with one_process(server, tmp_path) as (ground, hand, running):
        start(running, tmp_path)
        stubborn = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SLEEP}"
        one = await ground.push("one", stubborn, PLAIN)
        keys = [hand.key(one, ordinal) for ordinal in range(3)]
        for key in keys:
            await hand.up(key)
        for _ in range(3):
            before = {pid for pids in ground.living.values() for pid in pids}
            keepers = running.all["n1"].keepers()
            running.all["n1"].crash()
            for pid in keepers:
                os.kill(pid, signal.SIGKILL)
            start(running, tmp_path)

            def renewed(before: set[int] = before) -> bool:
                living = ground.living
                assert all(len(set(pids) - before) <= 1 for pids in living.values())
                # None of the new ones beside any of the old ones.
                assert not any(set(pids) & before and set(pids) - before for pids in living.values())
                return len(living) == 3 and not before & {pid for pids in living.values() for pid in pids}

            await eventually(renewed, 15, "all were started again")
        await eventually(ground.exact)


async def test_sigterm_leaves_no_process_and_the_slices_run_elsewhere(server: NatsServer, tmp_path: Path) -> None:
    async with yard(server, tmp_path) as ground:
        with node_processes(server, tmp_path) as running:
            for name in ("n1", "n2"):
                start(running, tmp_path, name, "all")
            await eventually(lambda: _registered(ground, 2), 15)
            await running.heard(ground.user)
            one = await ground.push("one")
            await ground.user.put("blueprints", one, 4)
            keys = await ground.settles(4)
            assert {key[:2] for key in keys} == {"n1", "n2"}
            running.all["n1"].send(signal.SIGTERM)
            assert await running.all["n1"].ends(10) == 0
            assert not [name for name in ground.living if name.startswith("n1/")], "nothing is left when it has exited"
            keys = await ground.settles(4)
            assert {key[:2] for key in keys} == {"n2"}
            running.all["n2"].send(signal.SIGTERM)
            assert await running.all["n2"].ends(10) == 0
            assert not ground.living
            assert not await ground.user.slices(), "nobody else would tell that they are gone"


async def _registered(ground: Yard, count: int) -> bool:
    return len(await ground.user.registrations()) == count if await ground.user.lease() else False


async def test_a_killed_node_is_replaced_and_unloads_when_it_returns(server: NatsServer, tmp_path: Path) -> None:
    """A dead node's slices are replaced elsewhere; when it returns, it unloads what is not its own any more."""
    async with yard(server, tmp_path) as ground:
        with node_processes(server, tmp_path, node_ttl=5) as running:
            running.start("m1", "--role", "manager")
            for name in ("n1", "n2"):
                start(running, tmp_path, name)
            await eventually(lambda: _registered(ground, 3), 15)
            one = await ground.push("one")
            await ground.user.put("blueprints", one, 2)
            await ground.settles(2)
            running.all["n1"].kill()
            killed = time.monotonic()

            async def moved() -> bool:
                found = await ground.user.slices()
                return sum(key.startswith("n2.") and state == "ACTIVE" for key, state in found.items()) == 2

            await in_time(moved, 5 + 1, "both run on n2")
            print(f"replaced after {time.monotonic() - killed:.1f} s")
            start(running, tmp_path)
            await eventually(lambda: _registered(ground, 3), 15)
            keys = await ground.settles(2)
            assert all(key.startswith("n2.") for key in keys)
    await ground.nothing_left(ORPHAN_BOUND)


async def test_without_nats_all_runs_on_and_nothing_begins(server: NatsServer, tmp_path: Path) -> None:
    async with (
        yard(server, tmp_path) as ground,
        nodes_on(server, reconcile_interval=1, lease_ttl=2.0, node_ttl=2.0) as nodes,
    ):
        for name in ("n1", "n2"):
            await nodes.start(name, runtime="process", folder=tmp_path / name)
        one = await ground.push("one")
        await ground.user.put("blueprints", one, 4)
        keys = await ground.settles(4)
        before = ground.living
        ports = {key: record.value["port"] for key, record in keys.items()}
        server.kill()
        for _ in range(30):  # half as long again as the nodes' TTL
            await anyio.sleep(0.1)
            assert ground.living == before
        assert all(ask(port) for port in ports.values())
        await server.start()
        await eventually(lambda: _registered(ground, 2), 20)
        await ground.user.stubborn("blueprints", one, 5)
        keys = await ground.settles(5, within=30)
        after = ground.living
        assert all(after[name] == pids for name, pids in before.items()), "nobody was evicted"
        assert all(keys[key].value["port"] == port for key, port in ports.items())
        nodes.unharmed()
    await ground.nothing_left(0.1)


async def test_nothing_begins_before_all_slices_are_known(server: NatsServer, tmp_path: Path) -> None:
    """The nodes are known earlier: what was known of a slice before may be void, and another have its place."""
    async with yard(server, tmp_path) as ground, nodes_on(server) as nodes:
        await made(server, ground.user)
        for number in range(1, 20_001):
            await ground.user.client.publish(f"$KV.slices.n2.g/other/1/{number}", b'{"state":"FAILED"}')
            if number % 2000 == 0:
                await ground.user.client.flush()
        await nodes.start("n1", runtime="process", folder=tmp_path / "n1")
        node = nodes.all["n1"].node
        agent = node.part(Running).agent
        await eventually(lambda: agent._shared.hearing, 30, "it hears")
        assert node.watches["slices"].phase is Phase.LIVE
        nodes.unharmed()


async def test_a_bucket_that_is_made_anew_is_obeyed(server: NatsServer, tmp_path: Path) -> None:
    """What was learned of the old one is void: revisions begin at 1 again."""
    async with agent_alone(server, tmp_path) as (ground, hand, _):
        one = await ground.push("one", SLEEP, PLAIN)
        keeps, goes, changes = (hand.key(one, ordinal) for ordinal in range(3))
        for key in (keeps, goes, changes):
            await hand.up(key)
        await ground.user.api("STREAM.DELETE.KV_slices")
        async with connected(server) as connection:
            await buckets(connection)["slices"].ensure(create=True)
        await ground.user.put("slices", keeps, {"state": "ACTIVE", "term": 1})
        await hand.put(changes, "UNLOAD")
        await hand.reaches(changes, None, 15)
        await eventually(ground.exact, 15)
        assert await ground.user.slices() == {keeps: "ACTIVE"}
        await hand.up(goes)
        await hand.put(keeps, "DEACTIVATE")
        await hand.reaches(keeps, "LOADED")
        await eventually(ground.exact)


async def test_a_cluster_whose_slices_bucket_is_made_anew_converges(server: NatsServer, tmp_path: Path) -> None:
    async with yard(server, tmp_path) as ground, nodes_on(server, reconcile_interval=1) as nodes:
        for name in ("n1", "n2"):
            await nodes.start(name, runtime="process", folder=tmp_path / name)
        one = await ground.push("one")
        await ground.user.put("blueprints", one, 6)
        await ground.settles(6)
        await ground.user.api("STREAM.DELETE.KV_slices")
        await anyio.sleep(1)
        await eventually(lambda: _settled(ground, 6), 30, "all run again")
        await ground.user.put("blueprints", one, 0)
        await eventually(lambda: _settled(ground, 0), 15, "all are gone")
        nodes.unharmed()


async def _settled(ground: Yard, wanted: int) -> bool:
    try:
        found = await ground.user.slices()
        return list(found.values()) == ["ACTIVE"] * wanted and await ground.exact()
    except Rejection:
        return False


async def test_a_folder_that_another_node_uses_is_refused_before_anybody_hears_of_the_node(
    server: NatsServer, tmp_path: Path
) -> None:
    async with one_process(server, tmp_path) as (ground, hand, running):
        start(running, tmp_path)
        key = hand.key(await ground.push("one"))
        await hand.up(key)
        before = ground.living
        download = tmp_path / "n1" / "artifacts" / "tmp-0123"
        download.mkdir()
        own = ("--runtime", "process", "--folder", str(tmp_path / "n1"))
        refused = await command_line("node", "--id", "n2", "--server", server.url, *own)
        assert refused.returncode == Exit.CONFLICT
        assert b"is used by another process" in refused.stderr
        assert b"--folder" in refused.stderr
        assert [*await ground.user.registrations()] == ["n1"]
        assert ground.living == before
        assert download.exists()


class Idle:
    """A runtime of somebody's own that runs nothing."""

    slices: Mapping[SliceKey, bool] = {}

    def __init__(self, surroundings: Surroundings) -> None:
        pass

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass


async def test_a_folder_is_one_nodes_whatever_its_runtime(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdm.node.serving.runtime_named", lambda _: Idle)
    async with nodes_on(server, runtime="idle", folder=tmp_path) as nodes:
        await nodes.start("n1")
        other = replace(nodes.all["n1"].settings, node=NodeId("n2"))
        with pytest.raises(FolderTaken, match="is used by another process"):
            async with runtime.node(other):
                pass
        await nodes.all["n1"].stop()
        await nodes.start("n3")


async def test_a_folder_that_is_deleted_while_its_node_runs_is_told_and_stays_its_own(
    server: NatsServer, tmp_path: Path
) -> None:
    async with one_process(server, tmp_path) as (ground, hand, running):
        start(running, tmp_path)
        key = hand.key(await ground.push("one"))
        port = (await hand.up(key))["port"]
        await anyio.to_thread.run_sync(shutil.rmtree, tmp_path / "n1")
        own = ("--role", "agent", "--runtime", "process", "--folder", str(tmp_path / "n1"))
        other = await command_line("node", "--id", "n2", "--server", server.url, *own)
        assert other.returncode == Exit.CONFLICT, other.stderr
        assert b"is used by another process" in other.stderr
        told = "the node's folder was deleted while the node runs"
        await eventually(lambda: told in running.all["n1"].log)
        await anyio.sleep(3)
        assert running.all["n1"].log.count(told) == 1
        assert ask(port), "what runs goes on"
        running.unharmed()
        running.all["n1"].kill()
        start(running, tmp_path)
        await hand.reaches(key, "ACTIVE")


@pytest.mark.parametrize("folder", ["file", "/proc/nowhere"])
async def test_a_folder_that_cannot_be_used_is_told_in_one_line(
    server: NatsServer, tmp_path: Path, folder: str
) -> None:
    (tmp_path / "file").touch()
    path = str(tmp_path / folder)
    own = ("--runtime", "process", "--folder", path)
    refused = await command_line("node", "--id", "n1", "--server", server.url, *own)
    assert refused.returncode == Exit.USAGE
    assert refused.stderr.decode().splitlines()[-1].startswith(f"cdm: folder {path} cannot be used: ")
    assert b"Traceback" not in refused.stderr
    async with raw(server) as user:
        assert (await user.api("STREAM.NAMES"))["total"] == 0, "nothing is made there either"


def _started_without(closed: str, server: NatsServer, folder: Path) -> subprocess.Popen[bytes]:
    options = ["--id", "n1", "--server", server.url, "--role", "agent", "--folder", str(folder / "n1")]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "cdm", "node", *options],
            env=environment(),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _target(pid: int, descriptor: int) -> str:
    return str(Path(f"/proc/{pid}/fd/{descriptor}").readlink())


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>&-", "<&-", ">&-"])
async def test_a_node_that_is_started_without_standard_streams_runs(
    server: NatsServer, tmp_path: Path, closed: str
) -> None:
    """As by some supervisors: what it opens must not get their numbers."""
    async with yard(server, tmp_path) as ground:
        await made(server, ground.user)
        process = _started_without(closed, server, tmp_path)
        try:
            hand = Hand(ground.user)
            key = hand.key(await ground.push("one"))
            assert ask((await hand.up(key))["port"])
            for number, text in enumerate(("<&-", " >&-", "2>&-")):
                if text in f" {closed}":
                    assert _target(process.pid, number) == os.devnull
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert await anyio.to_thread.run_sync(process.wait, patience(20)) == 0
        finally:
            process.kill()
            process.wait()
            end_keepers(*left_keepers(tmp_path))


async def test_a_second_signal_lets_no_slice_have_its_grace(server: NatsServer, tmp_path: Path) -> None:
    async with one_process(server, tmp_path) as (ground, hand, running):
        start(running, tmp_path)
        deaf = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\n{SLEEP}"
        manifest = Manifest(readiness=Readiness(check=Line("deaf")), stop_grace=60)
        await hand.up(hand.key(await ground.push("deaf", deaf, manifest)))
        node = running.all["n1"]
        node.send(signal.SIGTERM)
        await eventually(lambda: "stopping" in node.log)
        await anyio.sleep(0.5)
        assert len(ground.living) == 1
        node.send(signal.SIGTERM)
        with bounded():
            await node.ends()
        assert ground.living == {}
        assert "stopping at once" in node.log
        assert "Traceback" not in node.log


async def test_slices_whose_keys_are_gone_are_stopped_and_that_is_told(server: NatsServer, tmp_path: Path) -> None:
    async with one_process(server, tmp_path) as (ground, hand, running):
        start(running, tmp_path)
        key = hand.key(await ground.push("one", SLEEP, PLAIN))
        await hand.up(key)
        await ground.user.delete("slices", key)
        await ground.nothing_left()
        told = "its key is gone: stopping"
        await eventually(lambda: told in running.all["n1"].log)
