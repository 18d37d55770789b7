"""Instances that are told to go serve a while yet, out of the endpoints, and then stop: on a real server."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import anyio
import anyio.to_thread
import pytest
from msgspec.structs import replace

from cdm.model.artifact import Artifact
from cdm.model.manifest import Http, Manifest, Readiness
from cdm.runtimes.process.runtime import ORPHAN_BOUND
from tests.harness.judging import assert_legal
from tests.harness.listing import listing
from tests.harness.processes import Processes, node_processes
from tests.harness.servers import FORGIVEN, NatsServer, free_port
from tests.harness.serving import ANSWERING, Hand, Yard, agent_alone, ask, made, yard
from tests.harness.waiting import eventually, in_time
from tests.harness.wire import Record

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

WEB = Path(__file__).parents[1] / "harness" / "web_slice.py"
HTTP = Manifest(port="auto", readiness=Readiness(check=Http(), interval=0.05, timeout=20), stop_grace=5)


async def push_web(ground: Yard, manifest: Manifest = HTTP) -> str:
    await ground.push_file(Artifact("g", "web", "1"), WEB, manifest)
    return "g/web/1"


async def answers(port: int) -> bool:
    """Whether an HTTP server answers there, on a new connection."""

    def get() -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    return await anyio.to_thread.run_sync(get)


async def stands_silent(port: int) -> bool:
    """Whether no HTTP server answers there."""
    return not await answers(port)


def at_of(records: list[Record], key: str) -> dict[str, int]:
    """At which sequence a key had each state."""
    return {record.value.get("state", "gone"): record.sequence for record in records if record.key == key}


@pytest.mark.quick
async def test_it_answers_for_as_long_as_it_was_told_out_of_the_endpoints(server: NatsServer, tmp_path: Path) -> None:
    async with agent_alone(server, tmp_path) as (ground, hand, _):
        web = await push_web(ground)
        going, staying = hand.key(web), hand.key(web, 1)
        port, other = (await hand.up(going))["port"], (await hand.up(staying))["port"]
        async with listing(server, "g:web", tmp_path) as told:
            await told.comes_to(port, other)
            ordered = time.monotonic()
            await hand.put(going, "UNLOAD", after=8.0)
            await told.comes_to(other, promised=0.3)

            async def silent() -> bool:
                return not await answers(port)

            await in_time(silent, 8.2, "it is stopped")
            assert time.monotonic() - ordered >= 7.9, "it answered until then"
            await hand.reaches(going, None)
            records = [each for each in await ground.user.recorded() if each.key == going]
            (said,) = (each.value for each in records if each.value.get("state") == "UNLOADING")
            assert said["deadline"] > 8
            assert 0 < said["after"] <= 8
            assert await answers(other)
            assert [[each["port"] for each in each_list] for each_list in told.lists[-2:]] == [
                sorted((port, other)),
                [other],
            ]
        assert_legal(await ground.user.recorded())


async def test_a_second_order_makes_it_stop_sooner(server: NatsServer, tmp_path: Path) -> None:
    async with agent_alone(server, tmp_path) as (ground, hand, _):
        key = hand.key(await push_web(ground))
        port = (await hand.up(key))["port"]
        await hand.put(key, "UNLOAD", after=3600)
        await hand.reaches(key, "UNLOADING")
        await hand.put(key, "UNLOAD", after=0.5)
        await hand.reaches(key, None)
        assert not await answers(port)
        assert_legal(await ground.user.recorded())


async def test_what_is_deactivated_after_a_while_serves_again_when_it_is_told_to(
    server: NatsServer, tmp_path: Path
) -> None:
    async with agent_alone(server, tmp_path) as (ground, hand, _):
        key = hand.key(await push_web(ground))
        port = (await hand.up(key))["port"]
        await hand.put(key, "DEACTIVATE", after=3600)
        await hand.reaches(key, "DEACTIVATING")
        assert await answers(port)
        await hand.put(key, "DEACTIVATE", after=0.5)
        await hand.reaches(key, "LOADED")
        assert not await answers(port)
        await hand.put(key, "ACTIVATE")
        assert await answers((await hand.reaches(key, "ACTIVE"))["port"])


async def test_a_program_that_ends_by_itself_meanwhile_has_not_failed(server: NatsServer, tmp_path: Path) -> None:
    async with agent_alone(server, tmp_path) as (ground, hand, _):
        key = hand.key(await push_web(ground))
        await hand.up(key)
        await hand.put(key, "UNLOAD", after=3600)
        await hand.reaches(key, "UNLOADING")
        (pids,) = ground.living.values()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await hand.reaches(key, None)
        records = await ground.user.recorded()
        assert "FAILED" not in at_of(records, key)


def start(running: Processes, folder: Path) -> None:
    running.start("n1", "--role", "agent", "--runtime", "process", "--folder", str(folder / "n1"))


@pytest.mark.parametrize("how", ["dies", "is told to stop", "crashes"])
async def test_its_node_ends_meanwhile(server: NatsServer, tmp_path: Path, how: str) -> None:
    """What runs ends with the node; where only its process dies, the next one lets it serve for as long as is left."""
    async with yard(server, tmp_path) as ground:
        await made(server, ground.user)
        hand = Hand(ground.user)
        with node_processes(server, tmp_path, 60) as running:
            start(running, tmp_path)
            key = hand.key(await push_web(ground))
            port = (await hand.up(key))["port"]
            await hand.put(key, "UNLOAD", after=3600)
            await hand.reaches(key, "UNLOADING")
            node = running.all["n1"]
            match how:
                case "dies":
                    node.kill()
                    await ground.nothing_left(ORPHAN_BOUND)
                case "is told to stop":
                    node.send(signal.SIGTERM)
                case _:
                    node.crash()
            await node.ends()
            if how != "is told to stop":
                assert await ground.user.slices() == {key: "UNLOADING"}
                start(running, tmp_path)
            if how == "crashes":
                await eventually(lambda: "node is up" in running.all["n1"].log, 30, "the next process is up")
                assert await answers(port)
                await hand.put(key, "UNLOAD", after=0.5)
            await hand.reaches(key, None)
            await ground.nothing_left(ORPHAN_BOUND)
            assert_legal(await ground.user.recorded())


async def test_the_server_is_away_meanwhile(server: NatsServer, tmp_path: Path) -> None:
    async with agent_alone(server, tmp_path) as (ground, hand, _):
        key = hand.key(await push_web(ground))
        port = (await hand.up(key))["port"]
        await hand.put(key, "UNLOAD", after=15)
        await hand.reaches(key, "UNLOADING")
        server.kill()
        assert await answers(port)
        await eventually(lambda: stands_silent(port), what="it is stopped when its time is over")
        await server.restart()
        await hand.reaches(key, None)


async def test_what_must_not_run_twice_does_not_serve_on_when_its_node_is_cut_off(
    server: NatsServer, tmp_path: Path
) -> None:
    async with agent_alone(server, tmp_path, node_ttl=6.0) as (ground, hand, _):
        key = hand.key(await push_web(ground, replace(HTTP, stop_grace=1)))
        told: dict[str, Any] = {"overrides": {"stop_after": 6.0}}
        port = (await hand.up(key, **told))["port"]
        await hand.put(key, "UNLOAD", after=3600, **told)
        await hand.reaches(key, "UNLOADING")
        server.kill()
        await in_time(lambda: stands_silent(port), 8, "it is stopped")
        await server.restart()
        await hand.reaches(key, None)


@pytest.mark.quick
async def test_a_fixed_port_is_told_when_it_is_loaded_and_whoever_waits_for_it_says_so(
    server: NatsServer, tmp_path: Path
) -> None:
    async with agent_alone(server, tmp_path) as (ground, hand, _):
        port = free_port()
        fixed = await ground.push("fixed", manifest=replace(ANSWERING, port=port))
        first, second = hand.key(fixed), hand.key(fixed, 1)
        await hand.put(first, "LOAD")
        assert (await hand.reaches(first, "LOADED"))["port"] == port
        await hand.put(first, "ACTIVATE")
        await hand.reaches(first, "ACTIVE")
        await hand.put(first, "UNLOAD", after=3600)
        await hand.put(second, "LOAD")
        await hand.reaches(second, "LOADED")
        await hand.put(second, "ACTIVATE")
        waits = f"waits for port {port}, which slices/n1/g:fixed:1 has until it is stopped"

        async def waiting() -> bool:
            return (await ground.user.contents("slices"))[second].value.get("reason") == waits

        await eventually(waiting, what="it says what it waits for")
        await hand.put(first, "UNLOAD", after=0.1)
        await eventually(lambda: ask(port) == "n1/g:fixed:1#1 ", what="the second one serves")
        await hand.reaches(second, "ACTIVE")
        await hand.reaches(first, None)
        records = await ground.user.recorded()
        assert_legal(records, repeated=True)
        reasons = [record.value.get("reason") for record in records if record.key == second and not record.gone]
        assert waits in reasons
        assert reasons[-1] is None
