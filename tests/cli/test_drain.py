"""``cdm drain``, ``cordon``, ``uncordon`` and ``nodes`` on real servers, managers and agents."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

import anyio
import pytest

from cdm.cli.drain import exit_code
from cdm.cli.drained import DrainFollower, Result
from cdm.model.artifact import NodeId
from cdm.model.node import Intent, Schedule
from tests.cli.test_releases import Cluster, cluster
from tests.docs.documents import commands
from tests.harness.agents import agents
from tests.harness.nodes import nodes_on
from tests.harness.processes import command_line, environment
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.store import connected
from tests.harness.waiting import bounded, eventually
from tests.harness.wire import Raw, artifact_of, on_nodes, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

ONE = {"instances": 1, "min_healthy": 0, "drain_delay": 0}


async def settled(it: Cluster, *wanted: dict[str, int]) -> None:
    """Wait until so many slices are on each node, all of them ACTIVE."""

    async def there() -> bool:
        found = await it.user.slices()
        return on_nodes(found) in wanted and set(found.values()) <= {"ACTIVE"}

    await eventually(there, 30, f"slices are on {wanted}")


def spread(slices: int, *nodes: str) -> Iterator[dict[str, int]]:
    """Every way so many slices can be on these nodes."""
    for each in itertools.combinations_with_replacement(nodes, slices):
        yield dict(Counter(each))


@pytest.mark.quick
async def test_a_machine_is_taken_out_and_back(server: NatsServer) -> None:
    async with cluster(server, "n1", "n2") as it:
        await it.cdm("cordon", "n2")
        await it.heard()
        # Long enough that its replacement is told: a line of a node follows the one before a second later at most.
        await it.user.put("blueprints", "acme/web/1", {**ONE, "min_healthy": 10})
        await settled(it, {"n1": 1})
        await it.settles("1")  # it is healthy: nobody waits for the replacement of what is not
        assert "n2: takes slices again" in await it.cdm("uncordon", "n2")

        shown = await it.cdm("drain", "n1", "--wait", "--reason", "new kernel", "--timeout", "60s")
        assert "n1: to be drained: 1 slice\n" in shown
        assert "its replacement on n2" in shown
        assert shown.endswith("n1: drained\n")
        assert on_nodes(await it.user.slices()) == {"n2": 1}

        (node,) = (await it.json("nodes", "n1"))["draining"]
        assert (node["reason"], node["left"], node["deadline"]) == ("new kernel", [], "")
        assert "@" in node["by"]
        assert "new kernel; empty" in await it.cdm("nodes")
        again = await it.cdm("drain", "n1", "--reason", "new kernel")
        assert "n1: to be drained: 0 slices; as it was before" in again
        assert "n1: takes slices again" in await it.cdm("uncordon", "--all")
        assert (await it.json("uncordon", "n1"))["nodes"] == [{"node": "n1", "schedule": "normal", "changed": False}]
        assert "did you mean n1?" in await it.cdm("drain", "n11", code=1)


async def test_the_commands_of_the_documents(server: NatsServer) -> None:
    nodes, cordon, wait, uncordon, force, parallel, uncordon_all, everything = (
        shlex.split(command)[1:] for command in commands("Draining")
    )
    names = ("node-1", "node-2", "node-3")
    async with cluster(server, *names) as it:
        await it.user.put("blueprints", "acme/web/1", {**ONE, "instances": 3})
        await settled(it, dict.fromkeys(names, 1))
        assert "node-1: cordoned: it keeps what it has" in await it.cdm(*cordon)
        assert "cordon" in await it.cdm(*nodes)
        assert (await it.cdm(*wait)).endswith("node-1: drained\n")
        assert "node-1: takes slices again" in await it.cdm(*uncordon)
        assert "node-1: to be drained: 0 slices" in await it.cdm(*force)
        (drained,) = (await it.json(*nodes))["draining"]
        assert (drained["force"], drained["overdue"], drained["left"]) == (True, False, [])
        assert "3 of acme:web:1" not in (shown := await it.cdm(*parallel))
        assert [line.split("  ")[1] for line in shown.splitlines() if line.endswith(": drained")] == [
            "node-1: drained",
            "node-2: drained",
        ]
        assert "node-2: cordoned, to be drained in its turn: " in shown
        await settled(it, {"node-3": 3})
        assert (await it.cdm(*uncordon_all)).count("takes slices again") == 2

        refused = await it.cdm(*everything, code=2)
        assert "--all stops everything, 3 slices on 3 nodes, and there is no terminal to ask: say --yes" in refused
        stopped = await it.json(*everything, "--yes", "--wait", "--timeout", "60s")
        assert {each["result"] for each in stopped["nodes"]} == {"drained"}
        assert await it.user.slices() == {}
        await it.cdm(*uncordon_all)  # one node after another: what is missing goes to those that take it by then
        await settled(it, *spread(3, *names))


async def test_everything_is_stopped_what_needs_others_first(server: NatsServer) -> None:
    async with raw(server) as user:
        await user.record()
        async with cluster(server, "n1", "n2") as it:
            await it.user.put("blueprints", "acme/db/1", {**ONE, "instances": "each"})
            await it.user.put("blueprints", "acme/api/1", {**ONE, "instances": 2, "after": ["acme:db"]})
            await it.user.put("blueprints", "acme/web/1", {**ONE, "instances": 3, "after": ["acme:api", "acme:db"]})
            for one in ("x", "y"):
                await it.user.put("blueprints", f"acme/{one}/1", ONE)
            await settled(it, {"n1": 5, "n2": 4}, {"n1": 4, "n2": 5})
            for one, other in (("x", "y"), ("y", "x")):  # a circle, which runs as it was no circle before
                await it.user.put("blueprints", f"acme/{one}/1", {**ONE, "after": [f"acme:{other}"]})
            done = await it.cdm("drain", "--all", "--yes", "--wait", "--timeout", "60s", "--reason", "the end")
            last = dict(line.split("  ")[1].split(": ", 1) for line in done.splitlines() if "  " in line)
            assert last == {"n1": "drained", "n2": "drained"}, done
        records = await user.recorded()
    gone: dict[str, list[int]] = {}
    told: dict[str, list[int]] = {}
    for record in records:
        if record.gone and "acme/" in record.key:
            gone.setdefault(artifact_of(record.key), []).append(record.sequence)
        elif record.value.get("state") == "UNLOAD":
            told.setdefault(artifact_of(record.key), []).append(record.sequence)
    assert {artifact: len(each) for artifact, each in gone.items()} == {
        "acme/db/1": 2,
        "acme/api/1": 2,
        "acme/web/1": 3,
        "acme/x/1": 1,
        "acme/y/1": 1,
    }
    assert max(gone["acme/web/1"]) < min(told["acme/api/1"])
    assert max(gone["acme/api/1"]) < min(told["acme/db/1"])


async def test_what_no_node_takes_is_told_and_goes_at_the_deadline_also_after_a_change_of_leader(
    server: NatsServer,
) -> None:
    names = ("n1", "n2", "n3")
    async with raw(server) as user, nodes_on(server) as running, agents(server, *names):
        await running.start(*names)
        it = Cluster(server, user)
        leader = await running.leader()
        node = next(name for name in names if running.all[name] is not leader)
        await user.put("blueprints", "acme/web/1", {**ONE, "require": [f"node = {node}"], "stop_after": 5})
        await settled(it, {node: 1})
        waited = await it.cdm("drain", node, "--wait", "--timeout", "10s", code=3)
        assert "acme:web:1 must not run twice, and stops before another one starts" in waited
        assert "stops once another node takes it: 0 of 3 nodes take it" in waited
        assert f"no longer waited for; {node} goes on being drained (`cdm nodes {node}` shows how far)" in waited

        before = time.monotonic()
        await it.cdm("drain", node, "--deadline", "15s", "--on-deadline", "force", "--reason", "power")
        (told,) = (await it.json("status"))["draining"]
        assert (told["node"], told["reason"], told["overdue"], len(told["left"])) == (node, "power", False, 1)
        await leader.crash()

        async def empty() -> bool:
            return await user.slices() == {}

        await eventually(empty, 30, "the node is empty")
        assert time.monotonic() - before > 14
        await running.leader(above=leader.active)

        async def told_of() -> bool:
            status = await user.status("acme/web/1")
            return bool(status.get("condition") == "Unschedulable")

        await eventually(told_of, what="status says that no node takes it")
        shown = await it.cdm("nodes", node)
        assert "by " in shown
        assert "forced; empty" in shown


async def test_nodes_that_are_drained_in_turn_take_nothing_from_each_other_and_an_interruption_says_what_is_left(
    server: NatsServer,
) -> None:
    names = ("n1", "n2", "n3", "n4")
    async with cluster(server, *names) as it:
        await it.user.put("blueprints", "acme/web/1", {**ONE, "instances": 4})
        await it.user.put("blueprints", "acme/own/1", {**ONE, "require": ["node = n2"]})
        await settled(it, {"n1": 1, "n2": 2, "n3": 1, "n4": 1})
        command = ["drain", "n1", "n2", "n3", "--parallel", "1", "--server", server.url]
        async with await anyio.open_process(
            [sys.executable, "-m", "cdm", *command], env=environment(), stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            said = b""
            with bounded(30):
                while b"no other node takes it" not in said:
                    said += await process.stdout.receive()
                process.send_signal(signal.SIGINT)
                told = b"".join([chunk async for chunk in process.stderr])
                assert await process.wait() == 130
        assert b"n1: drained" in said
        assert told.decode() == (
            "cdm: no longer waited for; n2 goes on being drained (`cdm nodes n2` shows how far); n3 is cordoned and "
            "was not begun: `cdm drain n3` does it, `cdm uncordon n3` uses them again\n"
        )
        await settled(it, {"n2": 1, "n3": 1, "n4": 3})

        command = ["drain", "n2", "n3", "--wait", "--timeout", "60s", "--server", server.url]
        async with await anyio.open_process(
            [sys.executable, "-m", "cdm", *command], env=environment(), stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            said = b""
            with bounded(60):
                while b"n3: drained" not in said:  # by then it has seen what it asked of n2, too
                    said += await process.stdout.receive()
                await settled(it, {"n2": 1, "n4": 4})
                await it.cdm("cordon", "n2")
                said += b"".join([chunk async for chunk in process.stdout])
                assert await process.wait() == 4
        assert b"n2: superseded" in said
        again = await it.json("drain", "n3", "--wait", "--timeout", "60s")
        assert [each["result"] for each in again["nodes"]] == ["drained"]


async def cordoned(server: NatsServer, user: Raw) -> list[NodeId]:
    """Two nodes that have nothing to drain."""
    assert (await command_line("init", env={"NATS_URL": server.url})).returncode == 0
    names = [NodeId("n1"), NodeId("n2")]
    for name in names:
        await user.put("nodes", name, {"runtime": "process"})
        await user.put("nodes", f"{name}.intent", {"schedule": "cordon"})
    return names


async def test_the_turn_of_a_node_comes_again_where_nats_does_not_answer(server: NatsServer) -> None:
    async with raw(server) as user, connected(server) as connection:
        names = await cordoned(server, user)
        said: list[str] = []

        def say(line: str) -> None:
            said.append(line)
            if line == "n1: drained":
                server.pause()  # in the moment in which n2 is to be begun
            if line.startswith("n2: not begun so far"):
                server.resume()

        try:
            with bounded(60):
                found = await DrainFollower(connection, names, Intent(Schedule.DRAIN), 1, say).run(None)
        finally:
            server.resume()
        assert [each.result for each in found] == [Result.DRAINED] * 2, said
        assert any(line.startswith("n2: not begun so far, and tried again: ") for line in said), said
        assert (await user.contents("nodes"))["n2.intent"].value["schedule"] == "drain"


async def test_what_was_not_begun_in_time_is_not_done(server: NatsServer) -> None:
    async with raw(server) as user, connected(server) as connection:
        names = await cordoned(server, user)

        def say(line: str) -> None:
            if line == "n1: drained":
                server.pause()  # in the moment in which n2 is to be begun

        try:
            with bounded(60):
                found = await DrainFollower(connection, names, Intent(Schedule.DRAIN), 1, say).run(15.0)
        finally:
            server.resume()
        assert [each.result for each in found] == [Result.DRAINED, Result.NOT_BEGUN]
        assert exit_code(found) == 3


async def test_a_lost_node_is_listed_with_what_it_had_until_it_is_forgotten(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server) as running, agents(server, "n1", "n2", "n3"):
        await running.start("n1")
        await running.leader()
        await running.start("n2", node_ttl=8.0)  # it is to be lost soon
        await running.start("n3")
        it = Cluster(server, user)
        await user.put("blueprints", "acme/web/1", {**ONE, "instances": 3})
        await settled(it, {"n1": 1, "n2": 1, "n3": 1})
        assert "node n2 is registered: stop it first; nothing was forgotten" in await it.cdm(
            "node", "forget", "n2", code=4
        )
        await it.cdm("cordon", "n2")
        await running.all["n2"].crash()
        await running.all["n3"].stop()
        await settled(it, {"n1": 3})

        async def lost() -> bool:
            return (await user.contents("nodes"))["n2.seen"].value.get("gone") == "lost"

        await eventually(lost, what="n2 is lost")
        found = (await it.json("nodes"))["gone"]
        assert {each["node"]: each["how"] for each in found} == {"n2": "lost", "n3": "left"}
        assert found[0]["had"] == {"acme:web:1": 1}
        assert found[0]["since"][:4].isdigit()
        shown = await it.cdm("status")
        assert "n2  lost " in shown
        assert "ago; it had 1 of acme:web:1" in shown
        assert "n3  left" not in shown
        assert "n3  left" in await it.cdm("nodes")
        assert "did you mean n2?" in await it.cdm("node", "forget", "n22", code=1)
        forgotten = (await it.json("node", "forget", "n2", "n3"))["nodes"]
        assert [(each["node"], each["how"]) for each in forgotten] == [("n2", "lost"), ("n3", "left")]
        assert sorted(await user.contents("nodes")) == ["n1", "n1.seen"]
        assert (await it.json("nodes"))["gone"] == []


async def test_a_node_is_not_forgotten_while_what_must_not_run_twice_may_run_there(server: NatsServer) -> None:
    async with raw(server) as user:
        assert (await command_line("init", env={"NATS_URL": server.url})).returncode == 0
        it = Cluster(server, user)
        await user.put("slices", "_leader", {"node": "n1", "term": 3})
        await user.put("nodes", "n1", {})
        await user.put("nodes", "n2.seen", {"registration": {}})
        assert "has not been given up yet" in await it.cdm("node", "forget", "n2", code=4)
        await user.put("slices", "n2.acme/db/1", {"state": "ACTIVE", "overrides": {"stop_after": 600}})
        await user.put("nodes", "n2.seen", {"registration": {}, "gone": "lost"})
        refused = await it.cdm("node", "forget", "n2", code=4)
        assert re.search(r"must not run twice \(stop_after\), and may run there for \d{3} s more", refused)
        await user.delete("slices", "n2.acme/db/1")
        assert "n2 (lost): forgotten" in await it.cdm("node", "forget", "n2")


async def test_stopping_everything_is_asked_for_on_a_terminal(server: NatsServer) -> None:
    async with cluster(server, "n1") as it:
        await it.user.put("blueprints", "acme/web/1", ONE)
        await settled(it, {"n1": 1})
        for typed, code in (("no", 2), ("yes", 0)):
            ours, theirs = os.openpty()
            command = [sys.executable, "-m", "cdm", "drain", "--all", "--server", server.url]
            async with await anyio.open_process(
                command, stdin=theirs, env=environment(), stderr=subprocess.PIPE
            ) as process:
                assert process.stderr is not None
                said = b""
                with bounded(20):
                    while not said.endswith(b"Type yes to go on: "):
                        said += await process.stderr.receive()
                    os.write(ours, f"{typed}\n".encode())
                    assert await process.wait() == code
            for each in (ours, theirs):
                os.close(each)
            assert said.startswith(b"This stops everything, 1 slice on 1 node, and replaces nothing.\n")
            await settled(it, {"n1": 1} if code else {})


async def test_what_an_earlier_manager_would_not_understand_is_not_written(server: NatsServer) -> None:
    async with raw(server) as user:
        assert (await command_line("init", env={"NATS_URL": server.url})).returncode == 0
        it = Cluster(server, user)
        await user.put("nodes", "n1", {"version": "0.1.0", "features": ["rollouts", "placement"]})
        refused = await it.cdm("drain", "n1", "--deadline", "1h", code=1)
        assert "manager n1 (cdm 0.1.0) does not know deadlines of drains; upgrade managers first" in refused
        assert (await user.contents("nodes")).keys() == {"n1"}
        assert "the reason is not stored" in await it.cdm("drain", "n1", "--reason", "kernel")
        assert (await user.contents("nodes"))["n1.intent"].value == {"schedule": "drain"}
        await user.put("nodes", "n1.intent", {"schedule": "drain", "deadline": 1, "force": True, "deadlien": "1h"})
        await user.put("slices", "n1.acme/web/1", {"state": "ACTIVE"})
        await user.put("slices", "_leader", {"node": "n1", "term": 1})
        await user.put("blueprints", "acme/web/1", 1)

        async def overdue() -> bool:
            (told,) = (await it.json("nodes"))["draining"]
            return bool(told["overdue"])

        await eventually(overdue, what="its deadline is over")
        shown = await it.cdm("status")
        assert "nothing is forced: waiting for manager n1: its cdm 0.1.0 does not know deadlines of drains" in shown
        assert "nodes/n1.intent: deadlien has no effect: there is no such field (did you mean deadline?)" in shown
