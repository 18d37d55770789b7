"""What the operator and readers read: copies of the buckets, in an account where a consumer can do no harm."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cdm.cli import Exit
from tests.harness import forked
from tests.harness.processes import command_line, environment
from tests.harness.secure import Fortress, Insider, fortress
from tests.harness.servers import FORGIVEN, free_port
from tests.harness.waiting import eventually, patience
from tests.harness.web import asked
from tests.harness.wire import Raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

ONE = "g/one/1"
TARGETS = (
    "$KV.slices._leader",
    "$KV.slices._term",
    "$KV.slices.node-1.g/one/1",
    "$KV.nodes.node-1",
    "$KV.status.g/one/1",
    "$JS.API.STREAM.DELETE.KV_blueprints",
    "$JS.API.STREAM.PURGE.KV_blueprints",
    "$JS.cdm.API.CONSUMER.RESET.KV_slices.copies",
    "$JS.cdm.API.$KV.slices._leader",
    "cdm.copies.slices",
    "cdm.node.node-1",
    "_INBOX_manager-1.x",
)
"""Where an operator, or a reader, might have consumers deliver."""


@asynccontextmanager
async def prepared(folder: Path) -> AsyncIterator[Fortress]:
    async with fortress(folder, readers=("router",)) as found:
        made = await command_line("init", *found.options("admin"))
        assert made.returncode == 0, made.stderr
        assert b"blueprints for operators: created" in made.stdout
        yield found


async def _state(manager: Insider) -> dict[str, Any]:
    """What the buckets themselves hold, but for what the operator may write."""
    user = Raw(manager.client)
    return {name: await user.contents(name) for name in ("slices", "nodes", "status")}


async def test_a_consumer_of_whoever_reads_delivers_to_nobody_else(tmp_path: Path) -> None:
    async with (
        prepared(tmp_path) as found,
        found.client("operator") as operator,
        found.client("router") as router,
        found.client("manager-1") as manager,
    ):
        await Raw(operator.client).put("blueprints", ONE, 3)
        await eventually(lambda: _reads(operator, ONE))
        heard: list[str] = []

        async def hear(message: Any) -> None:
            heard.append(message.subject)

        await manager.client.subscribe("_INBOX_manager-1.x", cb=hear)
        await manager.client.flush()
        # A consumer's delivery would be a question to the server: where the copies' consumers are to go on.
        await Raw(operator.client).put("blueprints", "g/reset/1", {"seq": 99999999999999})
        before = await _state(manager)
        for who in (operator, router):
            for number, target in enumerate(TARGETS):
                await _deliver(who, f"{who.name}{number}", target)
            mine = who.client.new_inbox()
            last = await who.client.subscribe(mine)
            await _deliver(who, f"{who.name}-own", mine)
            assert (await last.next_msg(timeout=10)).subject == f"$KV.blueprints.{ONE}"  # so the others had their turn
        await manager.client.flush()
        assert await _state(manager) == before
        assert not heard
        assert (await Raw(manager.client).contents("blueprints")).keys() == {ONE, "g/reset/1"}
        # What he reads is whole, and goes on.
        await eventually(lambda: _follows(operator, manager))
        await Raw(operator.client).put("blueprints", "g/two/1", 3)
        await eventually(lambda: _reads(operator, "g/two/1"))


async def _deliver(who: Insider, name: str, target: str) -> None:
    config = {"name": name, "deliver_subject": target, "ack_policy": "none", "deliver_policy": "all"}
    await who.ask(f"$JS.API.CONSUMER.CREATE.KV_blueprints.{name}", {"stream_name": "KV_blueprints", "config": config})


async def test_nothing_but_copies_is_written_by_making_them(tmp_path: Path) -> None:
    """A copy takes no writes, and what the operator may not write does not get to the bucket by way of it."""
    async with (
        prepared(tmp_path) as found,
        found.client("operator") as operator,
        found.client("router") as router,
    ):
        for who in (operator, router):
            assert not await who.may_publish("$KV.slices._leader", b"{}")
            assert not await who.may_publish("$JS.cdm.API.$KV.slices._leader", b"{}")
            assert not await who.may_publish("$JS.cdm.API.CONSUMER.RESET.KV_slices.copies", b'{"seq":1}')
            assert not await who.may_publish("$JS.API.STREAM.UPDATE.KV_blueprints", b"{}")
            assert not await who.may_publish("$JS.API.STREAM.DELETE.KV_blueprints")
        for subject in (
            "$KV.blueprints.g/one/1",
            f"$JS.cdm.API.$KV.blueprints.{ONE}",
            "$O.artifacts.M.x",
            "cdm.logs.a",
        ):
            assert not await router.may_publish(subject, b"3")
        # Not even by an answer that goes elsewhere.
        await router.may_publish("$JS.API.INFO", reply=f"$KV.blueprints.{ONE}")
        await router.may_publish("$JS.API.STREAM.INFO.KV_blueprints", reply="$JS.cdm.API.$KV.blueprints.g/two/1")
        async with found.client("manager-1") as manager:
            assert not await Raw(manager.client).contents("blueprints")
        assert not await router.may_subscribe("_INBOX_operator.>")


async def test_a_bucket_that_is_made_anew_is_copied_anew(tmp_path: Path) -> None:
    async with prepared(tmp_path) as found, found.client("operator") as operator:
        user = Raw(operator.client)
        await user.put("blueprints", ONE, 3)
        await eventually(lambda: _reads(operator, ONE))
        again = await command_line("init", *found.options("admin"))
        assert b"blueprints for operators: existed" in again.stdout, again.stderr
        assert found.server is not None
        found.server.stop()  # nobody may delete a bucket; who has the server's disk may
        shutil.rmtree(found.folder / "store-0" / "jetstream" / "CDM" / "streams" / "KV_blueprints")
        await found.server.start()
        anew = await command_line("init", *found.options("admin"))
        assert b"blueprints: created" in anew.stdout, anew.stderr
        assert b"blueprints for operators: created" in anew.stdout
        await user.put("blueprints", "g/two/1", 1)
        await eventually(lambda: _reads(operator, "g/two/1"))
        assert (await user.contents("blueprints")).keys() == {"g/two/1"}


async def _follows(operator: Insider, manager: Insider) -> bool:
    """Whether the copies still follow."""
    await Raw(manager.client).put("slices", "node-1.g/probe/1", {"state": "LOAD"})
    return "node-1.g/probe/1" in await Raw(operator.client).contents("slices")


async def _reads(operator: Insider, key: str) -> bool:
    return key in await Raw(operator.client).contents("blueprints")


async def test_a_reader_may_serve_what_there_is_and_a_node_may_not(tmp_path: Path) -> None:
    async with prepared(tmp_path) as found:
        async with found.client("manager-1") as manager:
            user = Raw(manager.client)
            await user.put("nodes", "manager-1", {"address": "10.0.0.1"})
            await user.put("slices", "manager-1.g/one/1", {"state": "ACTIVE", "port": 8001})
        log = tmp_path / "serve.log"
        at = f"127.0.0.1:{free_port()}"
        with log.open("wb") as told:
            process = forked.started(
                "serve", "--http", at, *found.options("router"), env=environment(), stdout=told, stderr=told
            )
        try:
            await eventually(lambda: "serving HTTP" in log.read_text(), 30)

            async def served() -> bool:
                answer = await asked(at, "/v1/services")
                return answer.status == 200 and b'"port":8001' in answer.body

            await eventually(served, 30, "the reader's copies are served")
            assert "denied" not in log.read_text()
        finally:
            process.kill()
            process.wait(patience())
        refused = await command_line("serve", "--http", at, *found.options("node-1"))
        assert refused.returncode == Exit.DENIED, refused.stderr
        assert b"Traceback" not in refused.stderr
