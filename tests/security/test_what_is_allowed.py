"""What everybody may do goes on working: a site lives on its permissions, and misses none."""

from __future__ import annotations

import signal
from pathlib import Path

import nats.errors
import pytest

from tests.harness.processes import command_line
from tests.harness.servers import FORGIVEN
from tests.harness.waiting import eventually
from tests.harness.wire import Rejection
from tests.security.attacks import offices
from tests.security.site import SLOTS, THIEF, VICTIM, VICTIMS, Site, site

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]


@pytest.mark.parametrize(("size", "told"), [(1, True), (3, False)])
async def test_a_site_lives(tmp_path: Path, size: int, told: bool) -> None:
    """Slices run, move and are replaced; their output is read; a leader dies, and a server.

    With roles that are told on one server; on three each node finds out what it may be.
    """
    async with site(tmp_path, size, told=told, node_ttl=30) as there:  # none ends while servers elect
        await _live(there)
        if not told:
            await _without_managers(there)
        for process in there.processes.all.values():
            said = "\n".join(line for line in process.log.splitlines() if "[debug" not in line)
            assert "denied" not in said
            assert "violation" not in said.lower()


async def _live(there: Site) -> None:
    user = there.user
    await eventually(there.at_rest)
    assert b"served" in await eventually(lambda: _logs(there), 30, "every node tells what it has")
    there.start(THIEF)
    await eventually(lambda: _registered(there), 30, "another node is there")
    await eventually(lambda: _met(there, THIEF), 30, "managers know of it: a blueprint may go past it")
    await user.stubborn("blueprints", VICTIMS, 2)
    await eventually(lambda: _active(there, {THIEF: 1, VICTIM: 1}), 30, "one on each node")
    await user.stubborn("nodes", f"{VICTIM}.intent", {"schedule": "drain"})
    await eventually(lambda: _active(there, {THIEF: 2}), 30, "the node was drained")

    lease = await there.audit.lease()
    there.processes.all[lease["node"]].send(signal.SIGKILL)
    await eventually(lambda: _led_by_another(there, lease["term"]), 30, "another manager leads")
    await there.found.servers[-1].restart()
    await user.stubborn("nodes", f"{VICTIM}.intent", b"", {"KV-Operation": "DEL"})
    freed = (lambda: there.processes.know("normal", VICTIM, managers=there.found.managers), 30)
    await eventually(*freed, "the leader knows that the node may be used again")
    await user.stubborn("blueprints", VICTIMS, 4)
    await eventually(lambda: _active(there, {THIEF: 2, VICTIM: 2}), 60, "two on each node")

    thief = there.processes.all[THIEF]
    thief.send(signal.SIGTERM)
    assert await thief.ends() == 0, thief.log
    await eventually(lambda: _active(there, {VICTIM: 4}), 60, "what was on the other node is here")


async def _logs(there: Site) -> bytes:
    """What the slice wrote; empty where a node did not begin to answer within two seconds, as a busy one may not."""
    logs = await command_line("logs", "g:victim:1", *there.found.options("operator"))
    return logs.stdout if logs.returncode == 0 else b""


def _met(there: Site, node: str) -> bool:
    """Whether the managers that run have heard of a node."""
    managers = [there.processes.all[name] for name in there.found.managers]
    running = [process for process in managers if process.code is None]
    return bool(running) and all(
        any("node joined" in line and f" node={node} " in line for line in process.log.splitlines())
        for process in running
    )


async def _without_managers(there: Site) -> None:
    """Who was made a manager becomes one, and nobody else does, be there managers or not."""
    names, nodes = there.found.managers, (THIEF, VICTIM)
    (dead,) = (name for name in names if there.processes.all[name].code is not None)
    there.start(dead)
    await eventually(lambda: _managed_by(there, *names), 60, "who was made a manager takes a slot when it starts")
    for name in names:
        there.processes.all[name].kill()
    thief = there.start(THIEF)
    await eventually(lambda: _managed_by(there), 60, "slots and the lease expire")
    await eventually(lambda: "never manages" in thief.log, 30, "it is told what the node is")
    async with there.found.client(THIEF) as insider:
        await offices(insider)
    assert await _managed_by(there)
    there.processes.unharmed(*names)
    await eventually(lambda: _registered(there), 30, "the node says of itself again what it is")
    for name in names:
        there.start(name)
    await eventually(lambda: _managed_by(there, *names), 60, "managers are back")
    await there.user.stubborn("blueprints", VICTIMS, 6)
    await eventually(lambda: _active(there, {VICTIM: 4, THIEF: 2}), 60, "nodes are told what to run, both")
    registered = (await there.audit.registrations()).items()
    roles = {node: (record.value.get("role", "all"), record.value.get("auto", False)) for node, record in registered}
    assert roles == {**dict.fromkeys(names, ("all", True)), **dict.fromkeys(nodes, ("agent", False))}


async def _managed_by(there: Site, *names: str) -> bool:
    """Whether processes of these hold slots, and say so; nobody else does, and one of them leads."""
    try:
        nodes, lease = await there.audit.contents("nodes"), await there.audit.lease()
    except (Rejection, nats.errors.Error):
        return False
    held = {(slot["node"], slot["incarnation"]) for slot in (nodes[key].value for key in SLOTS if key in nodes)}
    told = {(name, nodes[name].value["incarnation"]) for name in names if name in nodes}
    if len(told) < len(names) or held != told:
        return False
    return lease.get("node") in names if names else not lease


async def _active(there: Site, wanted: dict[str, int]) -> bool:
    try:
        found = {key: state for key, state in (await there.audit.slices()).items() if VICTIMS in key}
    except (Rejection, nats.errors.Error):
        return False
    counts = {node: sum(key.startswith(f"{node}.") for key in found) for node in wanted}
    return counts == wanted and sum(wanted.values()) == len(found) and set(found.values()) == {"ACTIVE"}


async def _registered(there: Site) -> bool:
    found = (await there.audit.registrations()).get(THIEF)
    return found is not None and found.value.get("runtime") == "process"


async def _led_by_another(there: Site, term: int) -> bool:
    lease = await there.audit.lease()
    return bool(lease) and lease["term"] > term
