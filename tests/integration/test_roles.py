"""What a process of each role does, and what it leaves alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
import pytest

from cdm.agent.own_slices import OwnSlices
from cdm.dispatch.messages import ValuePut
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SliceKey
from cdm.model.node import Role
from cdm.model.slice import SliceState, SliceValue
from cdm.node import registration
from cdm.node.managing import Managing
from cdm.node.serving import Serving
from cdm.store.watch import HEARTBEAT
from tests.harness.agents import agents
from tests.harness.nodes import nodes_on
from tests.harness.processes import command_line, processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.waiting import eventually, in_time
from tests.harness.wire import Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

ONE = "g/one/1"


async def _settles(user: Raw, expected: dict[str, int], state: str = "ACTIVE") -> None:
    async def settled() -> bool:
        found = await user.slices()
        counts = {node: sum(key.startswith(f"{node}.") for key in found) for node in expected}
        return counts == expected and len(found) == sum(expected.values()) and set(found.values()) <= {state}

    await eventually(settled, 10, f"{expected} in {state}")


@pytest.mark.quick
async def test_a_manager_leads_and_agents_run_the_slices(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server, lease_ttl=2.0) as nodes, agents(server, "m1", "m2", "a1", "a2"):
        await nodes.start("m1", "m2", role=Role.MANAGER)
        await nodes.start("a1", "a2", role=Role.AGENT)
        await user.put("blueprints", ONE, 4)
        await _settles(user, {"a1": 2, "a2": 2})
        first = await nodes.leader()
        assert first.settings.role is Role.MANAGER
        term = first.active
        await first.crash()
        second = await nodes.leader(above=term)
        assert second.settings.role is Role.MANAGER
        await second.crash()
        await in_time(lambda: _vacant(user), 2, "the lease expires")
        await anyio.sleep(1)
        assert not await user.lease(), "an agent never leads"
        await _settles(user, {"a1": 2, "a2": 2})


async def _vacant(user: Raw) -> bool:
    return not await user.lease()


async def test_who_hears_its_own_slices_alone_costs_the_server_little(server: NatsServer) -> None:
    """Each node has such a consumer; heartbeats of a manager's are frequent, for what it misses everybody misses."""
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("m", role=Role.MANAGER)
        await nodes.start("a", role=Role.AGENT)

        async def found() -> dict[str, float]:
            listed = (await user.api("CONSUMER.LIST.KV_slices"))["consumers"]
            configs = [each["config"] for each in listed or ()]
            # A leader's beacon is a consumer, too: it hears nothing, and has no heartbeat.
            return {
                each["filter_subject"]: each["idle_heartbeat"] / 1e9 for each in configs if "idle_heartbeat" in each
            }

        expected = {"$KV.slices.>": HEARTBEAT, "$KV.slices.a.>": 10.0}

        async def as_expected() -> bool:
            return await found() == expected

        await eventually(as_expected)


async def test_what_each_role_says_of_itself(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("x")
        await nodes.start("m", role=Role.MANAGER, labels={"zone": "a"})
        await nodes.start("a", role=Role.AGENT, capacity=3)
        said = {key: record.value for key, record in (await user.registrations()).items()}
        assert "role" not in said["x"], "as before there were roles"
        assert (said["m"]["role"], said["m"]["capacity"], said["m"]["runtime"]) == ("manager", 0, "none")
        assert said["m"]["labels"].keys() == {"zone", "arch", "os"}
        assert (said["a"]["role"], said["a"]["capacity"]) == ("agent", 3)
        shown = await command_line("status", "--server", server.url)
        rows = [line.split()[:2] for line in shown.stdout.decode().splitlines()]
        assert ["x", "all"] in rows
        assert ["m", "manager"] in rows
        assert ["a", "agent"] in rows
        report = json.loads((await command_line("status", "--json", "--server", server.url)).stdout)
        assert {node["node"]: node["role"] for node in report["nodes"]} == {"x": "all", "m": "manager", "a": "agent"}


async def test_only_candidates_count_for_the_pace_of_probes(server: NatsServer) -> None:
    async with nodes_on(server) as nodes:
        await nodes.start("m1", "m2", "m3", role=Role.MANAGER)
        await nodes.start("a1", "a2", "a3", role=Role.AGENT)
        managers = [running for running in nodes.all.values() if running.settings.role is Role.MANAGER]
        await eventually(lambda: [running.managing.election.detector.followers for running in managers] == [2, 2, 2])
        await managers[0].stop()
        await eventually(lambda: [running.managing.election.detector.followers for running in managers[1:]] == [1, 1])


async def test_an_agent_mirrors_its_own_slices_and_nothing_else(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("m", role=Role.MANAGER)
        await nodes.start("a1", "a2", role=Role.AGENT)
        await user.put("blueprints", ONE, 2)
        await _settles(user, {"a1": 1, "a2": 1}, "LOAD")
        agent = nodes.all["a1"].node
        own = agent.part(Serving).own
        await eventually(lambda: own.complete and list(own.slices) == [SliceKey(NodeId("a1"), _artifact())])
        assert set(agent.watches) == {"slices"}
        with pytest.raises(LookupError, match="agent"):
            agent.part(Managing)
        consumers = await user.api("CONSUMER.LIST.KV_slices")
        filters = {each["config"]["filter_subject"] for each in consumers["consumers"]}
        # What the manager has besides matches no key, and tells of its end.
        assert sorted(filters - {"$KV.slices._nobody"}) == ["$KV.slices.>", "$KV.slices.a1.>", "$KV.slices.a2.>"]

        async def the_managers() -> bool:
            return await user.consumers("blueprints") == await user.consumers("nodes") == 1

        await eventually(the_managers, 20, "one consumer of what only the manager reads")
        await user.put("blueprints", ONE, 0)
        await eventually(lambda: own.slices[SliceKey(NodeId("a1"), _artifact())].state is SliceState.UNLOAD)
        await user.delete("slices", f"a1.{ONE}")
        await eventually(lambda: not own.slices)


def _artifact() -> Artifact:
    return Artifact("g", "one", "1")


async def test_an_agents_mirror_survives_its_server(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("m", role=Role.MANAGER)
        await nodes.start("a1", role=Role.AGENT)
        own = nodes.all["a1"].node.part(Serving).own
        await eventually(lambda: own.complete)
        server.kill()
        await eventually(lambda: not own.complete)
        await server.start()
        await user.stubborn("blueprints", ONE, 1)
        await eventually(lambda: own.complete and len(own.slices) == 1, 15)
        nodes.unharmed()


async def test_what_ran_on_a_node_that_comes_back_as_a_manager_moves(server: NatsServer) -> None:
    """It crashed, so that its registration is taken over by its successor, and nothing was given up in between."""
    async with raw(server) as user, nodes_on(server, node_ttl=30.0) as nodes, agents(server, "n1", "n2"):
        await nodes.start("m", role=Role.MANAGER)
        await nodes.leader()
        await nodes.start("n1", "n2", role=Role.AGENT)
        await user.put("blueprints", ONE, 2)
        await _settles(user, {"n1": 1, "n2": 1})
        await nodes.all["n1"].crash()
        await nodes.start("n1", role=Role.MANAGER)
        await _settles(user, {"n1": 0, "n2": 2})


async def test_only_managers_is_unschedulable(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("m1", "m2", role=Role.MANAGER)
        await nodes.leader()
        await user.put("blueprints", ONE, 1)

        async def told() -> bool:
            found = await user.status(ONE)
            return found.get("condition") == "Unschedulable" and "no node takes new slices" in found["reason"]

        await eventually(told)
        await nodes.start("x")
        await _settles(user, {"x": 1}, "LOAD")


async def test_an_agents_id_is_its_own(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server) as nodes, nodes_on(server) as others:
        await nodes.start("m", role=Role.MANAGER)
        await nodes.start("n1", role=Role.AGENT)
        with pytest.raises(AssertionError, match="NodeIdTaken"):
            await others.start("n1", role=Role.AGENT)
        with pytest.raises(AssertionError, match="NodeIdTaken"):
            await others.start("m", role=Role.AGENT)
        await nodes.all["n1"].stop()
        assert "n1" not in await user.registrations()


async def test_a_dead_agents_slices_move(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server, node_ttl=2.0) as nodes, agents(server, "a2"):
        await nodes.start("m", role=Role.MANAGER)
        await nodes.start("a1", "a2", role=Role.AGENT)
        await nodes.leader()
        await user.put("blueprints", ONE, 2)
        await eventually(lambda: _both(user))
        await nodes.all["a1"].crash()
        await in_time(lambda: _moved(user), 3)


async def _both(user: Raw) -> bool:
    return {key.partition(".")[0] for key in await user.slices()} == {"a1", "a2"}


async def _moved(user: Raw) -> bool:
    found = await user.slices()
    return len(found) == 2 and all(key.startswith("a2.") for key in found) and set(found.values()) == {"ACTIVE"}


async def test_an_agent_waits_for_buckets_says_so_and_makes_none(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registration, "UNTOLD", 0.5)
    async with raw(server) as user, nodes_on(server) as nodes:
        said: list[str] = []

        def told(line: str = "not registered yet; trying again") -> bool:
            said.append(capsys.readouterr().out)
            return line in "".join(said)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(nodes.start, "a1", role=Role.AGENT))
            await eventually(told)
            assert (await user.api("STREAM.NAMES"))["streams"] is None
            await nodes.start("m", role=Role.MANAGER)
        await eventually(lambda: told("registered at last"))
        own = nodes.all["a1"].node.part(Serving).own
        await eventually(lambda: own.complete)
        nodes.unharmed()


async def test_processes_of_all_roles_together(server: NatsServer, tmp_path: Path) -> None:
    async with raw(server) as user, processes(server, user, tmp_path, "x") as running, agents(server, "x", "a"):
        running.start("m", "--role", "manager")
        running.start("a", "--role", "agent")
        await eventually(lambda: _registered(user, "x", "m", "a"))
        await running.heard(user)
        await user.put("blueprints", ONE, 2)
        await _settles(user, {"x": 1, "a": 1})
        running.unharmed()


async def _registered(user: Raw, *names: str) -> bool:
    return set(names) <= set(await user.registrations())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--role", "manager", "--capacity", "3"], ["--capacity", "manager", "no slices"]),
        (["--role", "manager", "--folder", "/var/lib/n1"], ["--folder", "manager", "no slices"]),
        (["--role", "manager", "--cache", "1G"], ["--cache", "manager", "no slices"]),
        (["--role", "boss"], ["--role", "boss"]),
    ],
)
async def test_options_that_contradict_a_role_are_refused(arguments: list[str], told: Sequence[str]) -> None:
    refused = await command_line("node", "--id", "n1", "--server", "nats://127.0.0.1:1", *arguments)
    text = refused.stderr.decode()
    assert refused.returncode == 2
    assert all(word in text for word in told), text
    assert "Traceback" not in text


def test_what_is_kept_of_own_slices_is_this_nodes_alone() -> None:
    """The router of a node that does both brings every node's."""
    own = OwnSlices(NodeId("n1"))
    for node in ("n1", "n2"):
        own.on_slice(ValuePut(SliceKey(NodeId(node), _artifact()), SliceValue(SliceState.LOAD), 1))
    assert [key.node for key in own.slices] == ["n1"]
