"""The agent obeys: real nodes with the runtime ``process``, on a real server. The test leads, or a node does."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import rmtree
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from cdm.agent.shared import LOADS
from cdm.model.artifact import Artifact
from cdm.model.node import Role
from tests.harness.judging import assert_legal, histories, names
from tests.harness.nodes import nodes_on
from tests.harness.proc import keepers
from tests.harness.servers import NatsServer
from tests.harness.serving import ANSWERING, PLAIN, PORTS, SLEEP, agent_alone, ask, yard
from tests.harness.waiting import eventually
from tests.harness.wire import on_nodes

pytestmark = pytest.mark.anyio


@pytest.mark.quick
async def test_from_a_blueprint_to_answering_ports_and_back(server: NatsServer, tmp_path: Path) -> None:
    async with yard(server, tmp_path) as ground, nodes_on(server, reconcile_interval=1) as nodes:
        user = ground.user
        for name in ("n1", "n2", "n3"):
            await nodes.start(name, runtime="process", folder=tmp_path / name)
        one = await ground.push("one")
        await user.put("blueprints", one, 3)
        keys = await ground.settles(3)
        assert on_nodes(dict.fromkeys(keys, "")) == {"n1": 1, "n2": 1, "n3": 1}
        said = {ask(record.value["port"]) for record in keys.values()}
        assert said == {f"{node}/g:one:1 " for node in ("n1", "n2", "n3")}

        await user.put("blueprints", one, {"instances": 5, "env": {"LEVEL": "loud"}})
        keys = await ground.settles(5)
        assert sorted(on_nodes(dict.fromkeys(keys, "")).values()) == [1, 2, 2]
        louder = [key for key, record in keys.items() if ask(record.value["port"]).endswith(" loud")]
        assert len(louder) >= 2, "what is started from now on has the blueprint's variables"
        assert len({record.value["port"] for record in keys.values()}) == 5
        assert all(ask(record.value["port"]) for record in keys.values())

        await user.put("blueprints", one, 0)
        await ground.settles(0)
        await user.put("blueprints", one, 1)
        await ground.settles(1)
        await user.delete("blueprints", one)
        await ground.settles(0)
        nodes.unharmed()
    await ground.nothing_left(0.1)
    assert not keepers()


@pytest.mark.quick
async def test_every_step_of_a_life_is_reported(server: NatsServer, tmp_path: Path) -> None:
    async with agent_alone(server, tmp_path) as (ground, hand, _):
        key = hand.key(await ground.push("one"))
        told: dict[str, Any] = {"failures": 3, "blueprint": 12, "overrides": {"env": {"LEVEL": "x"}}}
        await hand.put(key, "LOAD", **told)
        loaded = await hand.reaches(key, "LOADED")
        content = loaded["content"]
        assert len(content) == 64, "what it has loaded, where the command does not say"
        assert loaded == {"state": "LOADED", "term": 7, "content": content, **told}
        assert not ground.living
        await hand.put(key, "ACTIVATE", **told)
        active = await hand.reaches(key, "ACTIVE")
        assert ask(active.pop("port")) == "n1/g:one:1 x"
        assert active == {"state": "ACTIVE", "term": 7, "address": "127.0.0.1", "content": content, **told}
        await hand.put(key, "DEACTIVATE", **told)
        assert await hand.reaches(key, "LOADED") == loaded
        assert not ground.living
        await hand.put(key, "ACTIVATE", **told)
        await hand.reaches(key, "ACTIVE")
        await hand.put(key, "UNLOAD", **told)
        await hand.reaches(key, None)
        assert not ground.living
        records = await ground.user.recorded()
        assert_legal(records)
        assert names(histories(records)[key]) == (
            "LOAD LOADING LOADED ACTIVATE ACTIVATING ACTIVE DEACTIVATE DEACTIVATING LOADED "
            "ACTIVATE ACTIVATING ACTIVE UNLOAD UNLOADING gone"
        )


async def test_unload_interrupts_a_slow_start(server: NatsServer, tmp_path: Path) -> None:
    async with agent_alone(server, tmp_path) as (ground, hand, _):
        key = hand.key(await ground.push("slow", SLEEP, ANSWERING))  # never listens
        await hand.put(key, "LOAD")
        await hand.reaches(key, "LOADED")
        await hand.put(key, "ACTIVATE")
        await eventually(lambda: ground.living, what="it is being started")
        await hand.put(key, "UNLOAD")
        await hand.reaches(key, None, within=5)
        assert not ground.living
        assert_legal(await ground.user.recorded())


async def test_slow_starts_hold_up_nobody(server: NatsServer, tmp_path: Path) -> None:
    async with agent_alone(server, tmp_path) as (ground, hand, _):
        slow = await ground.push("slow", SLEEP, replace(ANSWERING, readiness=replace(ANSWERING.readiness, timeout=60)))
        keys = [hand.key(slow, ordinal) for ordinal in range(LOADS + 1)]
        for key in keys:
            await hand.put(key, "LOAD")
        for key in keys:
            await hand.reaches(key, "LOADED", within=20)
            await hand.put(key, "ACTIVATE")
        await eventually(lambda: len(ground.living) == len(keys), 30, "all are being started")
        await hand.up(hand.key(await ground.push("one")))


async def test_a_key_that_is_gone_stops_its_slice_whatever_it_is_doing(server: NatsServer, tmp_path: Path) -> None:
    async with agent_alone(server, tmp_path) as (ground, hand, _):
        slow = hand.key(await ground.push("slow", SLEEP, ANSWERING))
        one = hand.key(await ground.push("one", SLEEP, PLAIN))
        await hand.up(one)
        await hand.put(slow, "LOAD")
        await hand.reaches(slow, "LOADED")
        await hand.put(slow, "ACTIVATE")
        await eventually(lambda: len(ground.living) == 2, what="it is being started")
        for key in (slow, one):
            await ground.user.delete("slices", key)
        await ground.nothing_left(5)
        assert not await ground.user.slices(), "nothing is written under keys that are gone"
        await hand.up(one)  # and again


async def test_a_malformed_value_changes_nothing(server: NatsServer, tmp_path: Path) -> None:
    async with agent_alone(server, tmp_path) as (ground, hand, _):
        key = hand.key(await ground.push("one"))
        port = (await hand.up(key))["port"]
        pids = ground.living
        for value in (b"{", b"\xff", b'{"state": "DANCE"}', b'{"state": "UNLOAD", "term": "x"}', b"[" * 9000):
            await ground.user.put("slices", key, value)
        await ground.user.put("slices", "n1.%%", b"1")
        await anyio.sleep(0.5)
        assert ask(port)
        assert ground.living == pids
        await hand.put(key, "DEACTIVATE")
        await hand.reaches(key, "LOADED")
        await hand.unload(key)


async def test_the_newest_command_is_obeyed_however_fast_they_come(server: NatsServer, tmp_path: Path) -> None:
    """The leader does not wait: reports are refused, and what it wrote last is what is so in the end."""
    async with agent_alone(server, tmp_path) as (ground, hand, _):
        one = await ground.push("one", SLEEP, PLAIN)
        keys = [hand.key(one, ordinal) for ordinal in range(6)]

        async def harass(number: int, key: str) -> None:
            for turn in range(8):
                await hand.put(key, "LOAD", blueprint=turn)
                await anyio.sleep(0.01 * ((number + turn) % 5))
                await hand.put(key, "UNLOAD", blueprint=turn)
                await anyio.sleep(0.02 * ((number * turn) % 3))
            await hand.reaches(key, None)
            await hand.up(key, blueprint=99)

        async with anyio.create_task_group() as tasks:
            for number, key in enumerate(keys):
                tasks.start_soon(harass, number, key)
        found = await ground.settles(6)
        assert [json.loads(record.data)["blueprint"] for record in found.values()] == [99] * 6


async def test_the_content_that_is_told_is_run_although_another_was_pushed_over_it(
    server: NatsServer, tmp_path: Path
) -> None:
    async with agent_alone(server, tmp_path) as (ground, hand, nodes):
        one = Artifact("g", "one", "1")
        key, later = hand.key(await ground.push("one")), hand.key("g/one/1", 1)
        old = (await ground.artifacts.describe(one)).content.sha256
        await hand.up(key, content=old)
        await ground.push("one", PORTS.replace("CDM_SLICE", "CDM_ARTIFACT"), force=True)
        new = (await ground.artifacts.describe(one)).content.sha256
        # Also by a node that has nothing of it any more.
        await nodes.all["n1"].stop()
        rmtree(tmp_path / "n1" / "artifacts")
        await nodes.start("n1", role=Role.AGENT, runtime="process", folder=tmp_path / "n1")
        active = await hand.up(later, content=old)
        assert active["content"] == old
        assert ask(active["port"]).startswith("n1/g:one:1#1")
        assert ask((await hand.up(hand.key("g/one/1", 2), content=new))["port"]).startswith("g:one:1")
        assert ask((await hand.up(hand.key("g/one/1", 3)))["port"]).startswith("g:one:1"), "what is there now"

        # Told with ACTIVATE, of what was loaded as something else.
        await hand.put(key, "LOAD", content=new)
        await hand.reaches(key, "LOADED")
        await hand.put(key, "ACTIVATE", content=old)
        assert ask((await hand.reaches(key, "ACTIVE"))["port"]).startswith("n1/g:one:1")

        gone = hand.key("g/one/1", 4)
        await hand.put(gone, "LOAD", content="0" * 64)
        failed = await hand.reaches(gone, "FAILED")
        assert failed["reason"] == (
            "cannot fetch g:one:1: content 000000000000 of g:one:1 is not in bucket artifacts any more: "
            "another was pushed over it"
        )
        assert "fatal" not in failed, "the next command may tell another"
