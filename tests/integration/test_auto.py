"""Nodes whose role changes: so many of them manage as there are slots, and others step in."""

from __future__ import annotations

import pytest

from cdm.model.node import Role
from tests.harness.nodes import Nodes, nodes_on
from tests.harness.servers import NatsServer
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
        assert _managers(nodes) == {"n1", "n2", "n3"}
        await nodes.leader()
        said = {key: record.value for key, record in (await user.registrations()).items()}
        assert {name: (each.get("role", "all"), each["auto"]) for name, each in said.items()} == dict.fromkeys(
            ("n1", "n2", "n3"), ("all", True)
        )
        assert set((await _seats(user)).values()) == {"n1", "n2", "n3"}


async def test_of_seven_five_manage_and_another_one_steps_in(server: NatsServer) -> None:
    names = [f"n{number}" for number in range(1, 8)]
    async with raw(server) as user, nodes_on(server, role=Role.AUTO) as nodes:
        await nodes.start(*names)
        assert len(_managers(nodes)) == 5
        assert set((await _seats(user)).values()) == _managers(nodes)
        agents = set(names) - _managers(nodes)
        assert await user.consumers("nodes") == await user.consumers("status") == 5, "an agent mirrors its own slices"
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
