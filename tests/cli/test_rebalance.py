"""``cdm rebalance`` on a real leader: what it plans is what is moved, and never fewer serve than are wanted."""

from __future__ import annotations

import json

import anyio
import pytest

from tests.cli import test_releases
from tests.cli.test_cli import run
from tests.docs.documents import commands
from tests.harness.processes import command_line
from tests.harness.servers import NatsServer
from tests.harness.waiting import eventually
from tests.harness.wire import on_nodes, raw

pytestmark = pytest.mark.anyio


async def test_what_is_on_one_node_is_spread_by_one_command(server: NatsServer) -> None:
    planned, waited = (command.split()[1:] for command in commands("Balance"))
    async with test_releases.cluster(server, "n1", "n2") as cluster:
        user = cluster.user
        blueprint = {"instances": 4, "min_healthy": 0, "drain_delay": 0}
        await user.put("blueprints", "org.example/slice/1.0.0", {**blueprint, "require": ["node = n1"]})

        async def all_on_one() -> bool:
            found = await user.slices()
            return on_nodes(found) == {"n1": 4} and set(found.values()) == {"ACTIVE"}

        await eventually(all_on_one, 30, "all are on one node")
        assert (await cluster.json("rebalance", "--plan"))["artifacts"] == []
        await user.put("blueprints", "org.example/slice/1.0.0", blueprint)
        plan = (await cluster.json("rebalance", "--plan", "org.example:slice:1.0.0"))["artifacts"]
        assert [move["to"] for move in plan[0]["moves"]] == ["n2", "n2"]
        shown = await cluster.cdm(*planned)
        assert shown.startswith("org.example:slice:1.0.0: 2 moves\n    n1/org.example:slice:1.0.0")
        assert "left out (--max-moves)" in await cluster.cdm("rebalance", "--max-moves", "1")
        assert on_nodes(await user.slices()) == {"n1": 4}
        assert "rebalanced" not in json.dumps((await user.contents("blueprints"))["org.example/slice/1.0.0"].value)

        done = (await cluster.json(*waited, "--timeout", "60s"))["artifacts"]
        assert [each["result"] for each in done] == ["complete"]

        async def spread() -> bool:
            return on_nodes(await user.slices()) == {"n1": 2, "n2": 2}

        await eventually(spread, what="those that were moved are gone")
        assert "nothing is to be moved" in await cluster.cdm("rebalance")
        missing = await cluster.cdm("rebalance", "org.example:slcie:1.0.0", code=1)
        assert "there is no blueprint of org.example:slcie:1.0.0 (did you mean org.example:slice:1.0.0?)" in missing


async def test_a_wait_ends_where_another_rebalancing_is_asked_for_or_time_is_over(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        for node in ("n1", "n2"):
            await user.put("nodes", node, {})
        for ordinal in ("", "/1"):
            await user.put("slices", f"n1.acme/web/1{ordinal}", {"state": "ACTIVE"})
        await user.put("blueprints", "acme/web/1", 2)
        await user.put("status", "acme/web/1", {"condition": "Ready", "desired": 2})
        late = await command_line("rebalance", "--wait", "--timeout", "1s", env={"NATS_URL": server.url}, within=40)
        assert (late.returncode, b"acme:web:1: timed out" in late.stdout) == (3, True), late.stderr

        async def ask_for_another() -> None:
            async def asked() -> bool:
                return (await user.contents("blueprints"))["acme/web/1"].sequence > known

            await eventually(asked, 30, "it is asked for")
            revision = await user.put("blueprints", "acme/web/1", {"instances": 2, "rebalanced": "x"})
            await user.put("status", "acme/web/1", {"condition": "Ready", "observed_revision": revision})

        async def stays_in_part() -> None:
            async def asked() -> str:
                return (await user.contents("blueprints"))["acme/web/1"].value.get("rebalanced") or ""

            text = await eventually(asked, 30, "it is asked for")
            status = {"condition": "Ready", "rebalanced": text, "violations": 1, "reason": "1 instance is …"}
            await user.put("status", "acme/web/1", status)

        await user.put("blueprints", "acme/web/1", {"instances": 2})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stays_in_part)
            part = await command_line("rebalance", "--wait", env={"NATS_URL": server.url}, within=40)
        assert (part.returncode, "acme:web:1: incomplete: 1 instance is …" in part.stdout.decode()) == (3, True), part
        await user.put("status", "acme/web/1", {"condition": "Ready", "desired": 2})
        known = (await user.contents("blueprints"))["acme/web/1"].sequence
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask_for_another)
            other = await command_line("rebalance", "--wait", env={"NATS_URL": server.url}, within=40)
        assert (other.returncode, b"acme:web:1: superseded" in other.stdout) == (4, True), other.stderr


async def test_a_plan_names_the_hard_rule(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        await user.put("nodes", "n1", {"labels": {"zone": "a"}})
        await user.put("nodes", "n2", {"labels": {"zone": "b"}})
        await user.put("slices", "n1.acme/web/1/1", {"state": "ACTIVE"})
        await user.put("blueprints", "acme/web/1", {"instances": 1, "require": ["zone = b"]})
        done = await command_line("rebalance", "--plan", env={"NATS_URL": server.url}, within=40)
    lines = done.stdout.decode().splitlines()
    assert lines == ["acme:web:1: 1 move", "    n1/acme:web:1#1 -> n2, for a hard rule: zone is not b"], done.stderr


async def test_what_no_node_takes_although_a_rule_forbids_it_there_is_told(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        await user.put("nodes", "n1", {"labels": {"zone": "a"}})
        for ordinal in ("", "/1", "/2", "/3"):
            await user.put("slices", f"n1.acme/web/1{ordinal}", {"state": "ACTIVE"})
        await user.put("blueprints", "acme/web/1", {"instances": 4, "require": ["zone = b"]})
        env = {"NATS_URL": server.url}
        planned = await command_line("rebalance", "--plan", env=env, within=40)
        told = await command_line("rebalance", env=env, within=40)
        listed = await command_line("rebalance", "--plan", "--json", env=env, within=40)
        waited = await command_line("rebalance", "--wait", "--json", env=env, within=40)
    stay = (
        "n1/acme:web:1, n1/acme:web:1#1, n1/acme:web:1#2 and 1 more stay where a rule forbids them (zone is not b): "
        "no other node takes one; cdm explain acme:web:1 says why"
    )
    assert planned.stdout.decode().splitlines() == ["acme:web:1: 0 moves", f"    {stay}"], planned.stderr
    first, last = told.stdout.decode().splitlines()
    assert first.endswith(f"  acme:web:1: {stay}")
    assert last.endswith("  nothing is to be moved")
    (found,) = json.loads(listed.stdout)["artifacts"]
    assert found["stay"][1] == {"slice": "n1.acme/web/1/1", "why": "zone is not b"}
    (found,) = json.loads(waited.stdout)["artifacts"]
    assert (waited.returncode, found["result"], found["reason"]) == (3, "incomplete", stay)
