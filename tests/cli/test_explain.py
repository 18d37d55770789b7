"""``cdm explain`` as its users meet it: why instances are where they are, and why others are nowhere."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from cdm.store.wire import WRITER
from tests.cli.test_cli import run
from tests.docs.documents import commands
from tests.harness.servers import NatsServer
from tests.harness.terminal import terminal
from tests.harness.wire import Raw, raw

pytestmark = pytest.mark.anyio


async def type_in(server: NatsServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await anyio.to_thread.run_sync(
        lambda: run("explain", *arguments, "--server", server.url, env={"COLUMNS": "200"})
    )


async def lines_of(server: NatsServer, *arguments: str) -> list[str]:
    done = await type_in(server, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


async def fields_of(server: NatsServer, *arguments: str) -> dict[str, Any]:
    done = await type_in(server, *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


async def fill(user: Raw) -> None:
    """A cluster on which one of three instances has no place."""
    await user.put("slices", "_leader", {"node": "m1", "term": 3})
    await user.put("nodes", "m1", {"role": "manager", "capacity": 0})
    await user.put("nodes", "n1", {"capacity": 2, "labels": {"zone": "a"}})
    await user.put("nodes", "n2", {"capacity": 1})
    await user.put("nodes", "n3", {})
    await user.put("nodes", "n3.intent", {"schedule": "cordon"})
    await user.put("nodes", "n4", {})
    await user.put("nodes", "n4.intent", {"schedule": "drain"})
    await user.put("nodes", "n5.seen", {"registration": {}})
    await user.put("nodes", "n6.seen", {"registration": {}, "gone": "lost"})
    revision = await user.put("blueprints", "acme/web/1", 3, {WRITER: "ann@host"})
    for key in ("n1.acme/web/1", "n1.acme/web/1/1"):
        await user.put("slices", key, {"state": "ACTIVE", "term": 3, "blueprint": revision, "restarts": 2})
    await user.put("slices", "n2.acme/db/1", {"state": "ACTIVE"})
    reason = "all nodes are full"
    status = {"condition": "Unschedulable", "reason": reason, "desired": 3, "observed_revision": revision}
    await user.put("status", "acme/web/1", status)


async def test_every_node_says_what_keeps_an_instance_out(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        await fill(user)
        ruled = {"instances": 1, "require": ["zone in (b, c)"], "prefer": [{"if": "ssd", "weight": 7}]}
        await user.put("blueprints", "acme/gpu/1", ruled)
    lines = await lines_of(server, "acme:web:1")
    assert lines[:6] == [
        "acme:web:1 Unschedulable 3 wanted, 2 placed",
        "all nodes are full",
        "one more: 0 of 5 nodes take it: 2 full (2 of 2 slices and the like), 1 cordoned, 1 draining, 1 missing",
        "only capacity keeps n1 out: 2 of 2 slices",
        "only capacity keeps n2 out: 1 of 1 slices",
        "only cordon keeps n3 out",
    ]
    assert lines[-7:] == [
        "m1 0 no running no slices (role manager)",
        "n1 2 no full (2 of 2 slices)",
        "n2 0 no full (1 of 1 slices)",
        "n3 0 no cordoned",
        "n4 0 no draining",
        "n5 0 no missing",
        "n6 0 no lost",
    ]
    lines = await lines_of(server, "acme:gpu:1", "--node", "n1")
    assert lines[2:4] == ["rule: require zone in (b, c)", "rule: prefer ssd, weight 7"]
    assert lines[-1] == "n1 0 no zone is not one of b, c: one of b, c needed, it is a; full (2 of 2 slices)"
    found = await fields_of(server, "acme:web:1", "--node", "n2")
    assert (found["desired"], found["placed"], found["leader"]) == (3, 2, "m1")
    (node,) = found["nodes"]
    assert (node["node"], node["fits"], node["obstacles"][0]["what"]) == ("n2", False, "capacity")


async def test_a_slice_says_since_when_and_why_it_is_there(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        await fill(user)
    first, second, third, *others = await lines_of(server, "n1/acme:web:1/1")
    assert re.fullmatch(
        r"n1/acme:web:1#1 ACTIVE since \S+ \S+ UTC \(\d+ s ago\), told by node n1, term 3, revision \d+", first
    )
    assert re.fullmatch(
        r"serves blueprint revision \d+, written \S+ \S+ UTC by ann@host; it is in force, 3 wanted", second
    )
    assert (third, others) == ("failures before: 0, restarts of its program: 2", [])
    found = await fields_of(server, "n1.acme/web/1/1")
    for text in ("n1/acme:web:1#1", "slices/n1.acme/web/1/1"):
        assert await fields_of(server, text) == found
    assert (found["standing"], found["said_by"], found["blueprint_by"]) == ("live", "node", "ann@host")


async def test_a_slice_whose_node_is_to_be_emptied_or_gone_says_so(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        await fill(user)
        await user.put("nodes", "n7", {"runtime": "process"})  # it does not answer who asks for output
        await user.put("slices", "n7.acme/old/1", {"state": "FAILED", "reason": "boom"})
        await user.put("slices", "n4.acme/web/1", {"state": "ACTIVE"})
        await user.put("slices", "n6.acme/web/1", {"state": "ACTIVE"})
        await user.put("slices", "n5.acme/web/1", {"state": "FAILED", "reason": "boom"})
        await user.put("slices", "n3.acme/old/1", {"state": "UNLOAD"})
    assert "boom" in await lines_of(server, "n7/acme:old:1")
    assert "its node is to be emptied" in (await lines_of(server, "n4/acme:web:1"))[1]
    gone = await lines_of(server, "n6/acme:web:1")
    assert gone[1] == "its node is gone, and it with it"
    assert re.fullmatch(r"no blueprint is told; revision \d+ is in force, 3 wanted", gone[2])
    old = await lines_of(server, "n3/acme:old:1")
    assert ", commanded by the leader, term 0" in old[0]
    assert old[1:] == ["it is being unloaded", "no blueprint is told; no blueprint is in force"]
    lines = await lines_of(server, "acme:web:1")
    assert lines[0] == "acme:web:1 Unschedulable 3 wanted, 2 placed, 1 draining, 1 failed, 1 gone"
    assert "n5 0 no missing; failed there: boom" in lines


async def test_what_is_not_there_is_told_with_what_is_most_like_it(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        await fill(user)
    for arguments, code, told in (
        (["acme:wbe:1"], 1, "there is no blueprint of acme:wbe:1, and no slice (did you mean acme:web:1?)"),
        (["acme:web:1", "--node", "n12"], 2, "--node n12: there is no such node (did you mean n"),
        (["n1/acme:web:1/7"], 1, "there is no slice n1/acme:web:1#7 (did you mean n1/acme:web:1"),
        (["n1/acme:web:1", "--node", "n1"], 2, "--node: a slice is on one node alone"),
        (["acme:web"], 2, "acme:web is a service; write the version too, acme:web:VERSION"),
        *(([text], 2, f"{text!r} is neither a version, group:name:version, nor") for text in ("nope", "", "/", "n1/")),
        (["_leader"], 2, "'_leader' is neither a version, group:name:version, nor a slice, NODE/"),
    ):
        done = await type_in(server, *arguments)
        assert done.returncode == code, arguments
        assert told in done.stderr
        assert len(done.stderr.splitlines()) == 1


async def test_of_a_blueprint_that_was_never_valid_nothing_is_placed(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        await user.put("nodes", "n1", {})
        await user.put("blueprints", "acme/web/1", "each")
        lines = await lines_of(server, "acme:web:1")
        assert lines[-1] == "one more: nothing is placed while no blueprint is in force"
        refused = await anyio.to_thread.run_sync(lambda: run("rebalance", "acme:web:1", "--server", server.url))
        assert refused.returncode == 1
        (told,) = refused.stderr.splitlines()
        assert told.startswith("cdm: acme:web:1: its newest blueprint is refused (")
        assert '{"instances": "each"}' in told


async def test_where_nobody_leads_that_is_why_nothing_is_placed(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        await user.put("blueprints", "acme/web/1", 3)
    assert await lines_of(server, "acme:web:1") == [
        "acme:web:1 Unknown 3 wanted, 0 placed",
        "nobody leads: nothing is placed until somebody does",
        "no leader has processed it yet",
        "one more: there is no node that runs slices",
    ]


async def test_the_commands_of_the_documents(server: NatsServer, tmp_path: Path) -> None:
    whole, one, some = commands("Why it is there, or not")
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user, terminal(tmp_path, NATS_URL=server.url, COLUMNS="200") as shell:
        for node in ("node-1", "node-2"):
            await user.put("nodes", node, {"capacity": 2})
            await user.put("slices", f"{node}.org.example/slice/1.0.0/1", {"state": "ACTIVE"})
        await user.put("blueprints", "org.example/slice/1.0.0", 2)
        assert "2 of 2 nodes take it" in await shell.good(whole)
        assert "node-1" not in await shell.good(one)
        assert "node-1/org.example:slice:1.0.0#1  ACTIVE" in await shell.good(some)
