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
from tests.security.site import THIEF, VICTIM, VICTIMS, Site, site

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]


@pytest.mark.parametrize("size", [1, 3])
async def test_a_site_lives(tmp_path: Path, size: int) -> None:
    """Slices run, move and are replaced; their output is read; a leader dies, and a server."""
    async with site(tmp_path, size) as there:
        await _live(there)


async def _live(there: Site) -> None:
    user = there.user
    await eventually(there.at_rest)
    logs = await command_line("logs", "g:victim:1", *there.found.options("operator"))
    assert logs.returncode == 0, logs.stderr
    assert b"served" in logs.stdout
    there.start(THIEF)
    await eventually(lambda: _registered(there), 30, "another node is there")
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
    for process in there.processes.all.values():
        assert "denied" not in process.log
        assert "violation" not in process.log.lower()


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
