"""Nodes whose role changes: so many of them manage as there are slots, and others step in."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import anyio
import pytest

import cdm
from cdm.model.node import Role
from cdm.node import candidacy
from cdm.node.candidacy import Candidacy
from cdm.node.manager import imported
from tests.harness.nodes import Nodes, nodes_on
from tests.harness.processes import processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, raw

pytestmark = pytest.mark.anyio

ONE = "g/one/1"


def _managers(nodes: Nodes) -> set[str]:
    return {name for name, each in nodes.all.items() if not each.ended.is_set() and each.manages}


async def _seats(user: Raw) -> dict[str, str]:
    """Who holds which slot."""
    found = await user.contents("nodes")
    return {key: record.value["node"] for key, record in found.items() if key.startswith("_manager.")}


async def _placed(user: Raw, count: int) -> bool:
    return len(await user.slices()) == count


@pytest.mark.quick
async def test_three_nodes_all_manage_at_once(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server, role=Role.AUTO) as nodes:
        await nodes.start("n1", "n2", "n3")
        await eventually(lambda: _managers(nodes) == {"n1", "n2", "n3"}, what="there is a slot for each")
        await nodes.leader()

        async def said() -> dict[str, tuple[str, bool]]:
            found = {key: record.value for key, record in (await user.registrations()).items()}
            return {name: (each.get("role", "all"), each["auto"]) for name, each in found.items()}

        async def all_say_so() -> bool:
            return await said() == dict.fromkeys(("n1", "n2", "n3"), ("all", True))

        await eventually(all_say_so)
        assert set((await _seats(user)).values()) == {"n1", "n2", "n3"}


async def _mirrored(user: Raw, count: int) -> bool:
    return await user.consumers("nodes") == await user.consumers("status") == count


async def test_of_seven_five_manage_and_another_one_steps_in(server: NatsServer) -> None:
    names = [f"n{number}" for number in range(1, 8)]
    async with raw(server) as user, nodes_on(server, role=Role.AUTO, node_ttl=10.0) as nodes:
        await nodes.start(*names)
        await eventually(lambda: len(_managers(nodes)) == 5, what="there is a slot for so many")
        assert set((await _seats(user)).values()) == _managers(nodes)
        agents = set(names) - _managers(nodes)
        await eventually(lambda: _mirrored(user, 5), what="an agent mirrors its own slices")
        await user.put("blueprints", ONE, 7)
        await eventually(lambda: _placed(user, 7))
        leader = await nodes.leader()
        await leader.crash()
        second = await nodes.leader(above=leader.active)
        assert second.settings.node not in agents
        await eventually(lambda: len(_managers(nodes)) == 5, what="an agent takes the slot")
        (promoted,) = _managers(nodes) & agents
        await eventually(lambda: nodes.all[promoted].managing.topology.candidates >= _managers(nodes))
        registered = (await user.registrations())[promoted].value
        assert registered.get("role", "all") == "all"
        for name in _managers(nodes) - {promoted}:
            await nodes.all[name].stop()
        await nodes.leader(above=second.active)
        nodes.unharmed()


async def test_a_node_that_comes_back_has_its_slot_again(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server, role=Role.AUTO, managers=1, node_ttl=60.0) as nodes:
        await nodes.start("n1", "n2")
        await eventually(lambda: _managers(nodes) == {"n1"}, what="there is a slot for one")
        await nodes.all["n1"].crash()
        await nodes.start("n1")
        await eventually(lambda: _managers(nodes) == {"n1"}, what="it does not wait for the end of its slot")
        await nodes.leader()
        await nodes.all["n1"].stop()
        await eventually(lambda: _managers(nodes) == {"n2"}, what="a slot that is given back is taken")
        assert set((await _seats(user)).values()) == {"n2"}
        nodes.unharmed()


async def test_an_agent_is_promoted_though_another_version_is_installed_by_then(
    server: NatsServer, tmp_path: Path
) -> None:
    library = tmp_path / "library"
    shutil.copytree(Path(cdm.__file__).parent, library / "cdm")
    options = ("--managers", "1")
    async with raw(server) as user, processes(server, user, tmp_path, "n1", options=options) as nodes:
        agent = nodes.start("n2", library=library)
        await eventually(lambda: "this node can manage" in agent.log, 30)
        shutil.rmtree(library)
        nodes.all["n1"].send(signal.SIGTERM)

        async def succeeded() -> bool:
            nodes.unharmed("n1")
            leads = (await user.lease()).get("node")
            return leads == "n2" and set((await _seats(user)).values()) == {"n2"}

        await eventually(succeeded, 30)


async def test_beside_managers_that_know_of_no_slots_all_manage_without(
    server: NatsServer,
) -> None:
    async with raw(server) as user, nodes_on(server, role=Role.AUTO, managers=1, node_ttl=2.0) as nodes:
        await nodes.start("n1")
        old = {"role": "manager", "capacity": 0, "version": "0.1.0", "incarnation": "x", "features": [], "ttl": 600}
        await user.put("nodes", "old", old)
        await nodes.start("n2")
        await eventually(lambda: _managers(nodes) == {"n1", "n2"}, what="a slot that is not renewed is taken")
        await eventually(lambda: _nobody_sits(user), what="nor is that one")
        await nodes.leader()
        await user.delete("nodes", "old")
        await eventually(lambda: _one_sits(user, nodes), what="once all know of slots, the slots decide")
        nodes.unharmed()


async def _nobody_sits(user: Raw) -> bool:
    return not await _seats(user)


async def _one_sits(user: Raw, nodes: Nodes) -> bool:
    seats = set((await _seats(user)).values())
    return len(seats) == 1 and seats == _managers(nodes)


@pytest.mark.usefixtures("sockets_forgiven")
@FORGIVEN
async def test_a_manager_that_was_frozen_resigns_first_and_one_that_is_killed_is_replaced(
    server: NatsServer, tmp_path: Path
) -> None:
    names = ("n1", "n2", "n3")
    async with (
        raw(server) as user,
        processes(
            server,
            user,
            tmp_path,
            *names,
            lease_ttl=5,
            node_ttl=5,
            options=("--managers", "2", "--runtime", "external"),
        ) as running,
    ):

        async def managers() -> set[str]:
            return set((await _seats(user)).values())

        async def replaced(by: str, beside: str) -> bool:
            said = {key: record.value.get("role", "all") for key, record in (await user.registrations()).items()}
            return await managers() == {by, beside} and said.get(by) == "all"

        async def two_manage() -> bool:
            return len(await managers()) == 2

        await eventually(two_manage)
        frozen = (await eventually(user.lease))["node"]
        (agent,) = set(names) - await managers()
        (other,) = set(names) - {frozen, agent}
        running.all[frozen].send(signal.SIGSTOP)
        await eventually(lambda: replaced(agent, other), what="the agent manages in its place")
        await eventually(lambda: _leads(user, agent, other), what="one of the two leads")
        running.all[frozen].send(signal.SIGCONT)
        await eventually(lambda: "manages no more" in running.all[frozen].log, what="it resigns")
        assert await managers() == {agent, other}
        assert (await user.contents("slices"))["_term"].value["leader"] in (agent, other), "it took no term"
        await eventually(lambda: _role(user, frozen, "agent"))
        running.all[other].kill()
        await eventually(lambda: replaced(frozen, agent), what="the one that was frozen manages again")
        await eventually(lambda: _leads(user, agent, frozen))
        running.unharmed(other)


async def _leads(user: Raw, *nodes: str) -> bool:
    return (await user.lease()).get("node") in nodes


async def _role(user: Raw, node: str, role: str) -> bool:
    found = (await user.registrations()).get(node)
    return found is not None and found.value.get("role", "all") == role


async def test_a_node_that_leaves_while_what_manages_is_imported_is_no_candidate(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = anyio.Event(), anyio.Event()

    async def slowly() -> None:
        begun.set()
        await may_end.wait()
        await imported()

    async with nodes_on(server, role=Role.AUTO) as nodes:
        await nodes.start("n1")
        await nodes.leader()
        monkeypatch.setattr(candidacy, "imported", slowly)
        await nodes.start("n2")
        await begun.wait()
        part = nodes.all["n2"].node.part(Candidacy)
        await part.resign()
        may_end.set()
        await eventually(lambda: part.office is not None and part.office.managing.election.withdrawn)
