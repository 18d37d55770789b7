"""The version before beside this one: managers are upgraded first, and until all are no rollout begins.

The older version does not know rollouts: it is built from the history (`tests.harness.versions`).
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.harness.processes import command_line
from tests.harness.releases import MIN_HEALTHY, SERVICE, Site, site
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.versions import library
from tests.harness.waiting import eventually
from tests.integration.test_rollouts import condition, levels, versions

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

BEFORE = "4961751"
"""The last commit before there were rollouts."""
WAITS = "waiting for manager m2: its cdm 0.1.0 does not know rollouts; upgrade managers first"


@pytest.fixture(scope="session")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the older version is imported from. All workers of one run share it."""
    own = tmp_path_factory.getbasetemp()
    return library(BEFORE, own.parent if own.name.startswith("popen-") else own)


async def put(place: Site, version: str, **fields: Any) -> int:
    """Put a blueprint that both versions can read, where the fields are."""
    known = {"instances": place.wanted, "min_healthy": MIN_HEALTHY}
    return await place.user.stubborn("blueprints", f"{SERVICE}/{version}", {**known, **fields})


async def leads(place: Site, node: str) -> None:
    """Wait until this node leads, and has looked at everything."""
    await eventually(lambda: _leads(place, node), 30, f"{node} leads")


async def _leads(place: Site, node: str) -> bool:
    lease = await place.user.lease()
    return lease.get("node") == node and "active" in place.nodes.all[node].log


async def stop(place: Site, node: str) -> None:
    """Stop a node in good order, and wait until it is gone."""
    process = place.nodes.all[node]
    process.send(signal.SIGTERM)
    assert await process.ends(20) == 0
    await eventually(lambda: _gone(place, node), 20, f"{node} is gone")


async def _gone(place: Site, node: str) -> bool:
    return node not in await place.user.registrations()


async def start(place: Site, node: str) -> None:
    """Start a node, and wait until it is registered."""
    place.start(node)

    async def up() -> bool:
        place.nodes.unharmed()
        return node in await place.user.registrations()

    await eventually(up, 30, f"{node} is registered")


async def upgrade(place: Site, node: str) -> None:
    """Stop a node, and start it with the version that is tested."""
    await stop(place, node)
    place.older.remove(node)
    await start(place, node)


async def identities(place: Site) -> dict[str, Any]:
    """Which instances there are, and what they do; the port tells one from another under the same key."""
    found = await place.user.contents("slices")
    return {key: (record.value["state"], record.value.get("port")) for key, record in found.items() if key[0] != "_"}


async def waits(place: Site, version: str) -> None:
    """Wait until the status says which manager is waited for."""
    status = await condition(place, version, "Progressing")
    assert status["reason"] == WAITS


async def test_nothing_begins_before_all_managers_are_upgraded(server: NatsServer, tmp_path: Path, older: Path) -> None:
    async with site(server, tmp_path, ("m1",)) as place:
        place.older, place.library = {"m2"}, older
        await place.release("1", env={"LEVEL": "low"})
        await start(place, "m2")
        before = await identities(place)
        # Another variable.
        await place.nodes.heard(place.user)
        await place.put("1", env={"LEVEL": "high"})
        await waits(place, "1")
        # What is lost is made up for by what runs.
        lost = min(before).partition(".")[0]
        place.nodes.all[lost].kill()
        await eventually(lambda: taken_over(place, lost), 40, "the others have taken over")
        assert await levels(place) == {"low"}
        await start(place, lost)
        # Another version.
        await place.push("2")
        await place.put("2", rollout={"from": "1"}, env={"LEVEL": "high"})
        await waits(place, "2")
        await anyio.sleep(2)
        assert await versions(place) == {"1": 3}
        assert not place.legs
        await stop(place, "m2")
        place.older.clear()
        await place.reaches("rolling", 3)
        await start(place, "m2")
        await place.reaches("complete")
        await place.serves("2")
        assert await levels(place) == {"high"}


async def taken_over(place: Site, lost: str) -> bool:
    found = await place.user.slices()
    return (
        len(found) == place.wanted and set(found.values()) == {"ACTIVE"} and not any(k.startswith(lost) for k in found)
    )


async def test_pushed_over_content_waits_too(server: NatsServer, tmp_path: Path, older: Path) -> None:
    async with site(server, tmp_path, ("m1",)) as place:
        place.older, place.library = {"m2"}, older
        await place.release("1")
        await start(place, "m2")
        before = await identities(place)
        await place.nodes.heard(place.user)
        await place.push("1", remark="another", force=True)
        await waits(place, "1")
        await anyio.sleep(2)
        assert await identities(place) == before
        assert not place.legs
        await upgrade(place, "m2")
        await place.reaches("complete")
        await place.serves("1")
        assert not set(before.items()) & set((await identities(place)).items())


async def test_what_runs_is_not_rolled_by_the_upgrade(server: NatsServer, tmp_path: Path, older: Path) -> None:
    async with site(server, tmp_path, ("m2",), older=("m2", "a1", "a2"), library=older) as place:
        place.ground.inside = False  # as `cdm artifact push` does where such nodes are registered
        await place.push("1")
        await put(place, "1", env={"LEVEL": "low"})
        await place.serves("1")
        before = await identities(place)
        # Here the older version lets a change reach only what it loads later.
        await put(place, "1", env={"LEVEL": "middle"})
        await anyio.sleep(1)
        await upgrade(place, "m2")
        await leads(place, "m2")
        await condition(place, "1", "Ready")
        await put(place, "1", env={"LEVEL": "middle"}, instances=4)
        place.wanted = 4
        await place.serves("1")
        found = await identities(place)
        assert before.items() <= found.items()
        assert not place.legs
        # The next change reaches all, also through agents that are older.
        done = await command_line("restart", "g:web:1", "--no-wait", "--server", server.url)
        assert done.returncode == 0, done.stderr
        await place.reaches("complete", 40)
        await place.serves("1")
        assert await levels(place) == {"middle"}
        assert not before.items() & (await identities(place)).items()
        told = time.time()
        for node in ("a1", "a2"):
            await upgrade(place, node)
        await put(place, "1", env={"LEVEL": "high"})
        await place.reaches("complete", 40, after=told)
        await place.serves("1")
        assert await levels(place) == {"high"}


async def rounds() -> None:
    """The leader looks at everything twice; it does so once a second."""
    await anyio.sleep(2.5)


async def hand_over(place: Site, node: str, after: str) -> None:
    """Let another manager lead; nobody has choked on anything."""
    log = place.nodes.all[after]
    if node not in await place.user.registrations():
        await start(place, node)
    await stop(place, after)
    await leads(place, node)
    assert "Traceback" not in log.log
    await rounds()


async def settles(place: Site, **wanted: int) -> dict[str, Any]:
    """Wait until so many instances of each version are ACTIVE, and nothing else is there; returns what they are."""
    counts = {name.removeprefix("v"): count for name, count in wanted.items()}

    async def settled() -> dict[str, Any]:
        found = await identities(place)
        at_rest = {state for state, _ in found.values()} == {"ACTIVE"}
        return found if at_rest and await versions(place) == counts else {}

    return await eventually(settled, 30, f"there are {counts}", pause=0.1)


async def refused(place: Site, version: str, field: str) -> None:
    """Wait until the older version says that it does not know a field."""
    status = await condition(place, version, "Invalid")
    assert status["reason"].startswith(field), status


async def test_an_older_leader_starts_what_was_replaced_and_this_one_ends_it_again(
    server: NatsServer, tmp_path: Path, older: Path
) -> None:
    """Why going back is not supported: the older version does not know that another one has taken over."""
    async with site(server, tmp_path, ("m1",)) as place:
        place.older, place.library = {"m2"}, older
        await place.push("1")
        await put(place, "1")
        await place.serves("1")
        await place.push("2")
        await put(place, "2", rollout={"from": "1"})
        await place.reaches("complete")
        await place.serves("2")
        legs, new = len(place.legs), await identities(place)
        await start(place, "m2")
        await rounds()
        await condition(place, "2", "Ready")
        await hand_over(place, "m2", "m1")
        await refused(place, "2", "rollout: ")  # what runs of it stays
        assert new.items() <= (await settles(place, v1=3, v2=3)).items()
        await condition(place, "1", "Ready")
        assert len(place.legs) == legs
        await hand_over(place, "m1", "m2")
        assert await settles(place, v2=3) == new
        await condition(place, "1", "Superseded")
        await condition(place, "2", "Ready")
        assert len(place.legs) == legs


async def test_an_older_leader_keeps_to_the_last_blueprint_that_it_can_read(
    server: NatsServer, tmp_path: Path, older: Path
) -> None:
    rollout = {"kind": "canary", "steps": [{"weight": 34}, {"pause": "approve"}]}
    async with site(server, tmp_path, ("m1",)) as place:
        place.older, place.library = {"m2"}, older
        await place.push("1")
        await put(place, "1", env={"LEVEL": "low"})
        await place.serves("1")
        await put(place, "1", env={"LEVEL": "high"}, rollout=rollout)
        await place.reaches("paused")
        middle = await settles(place, v1=3)
        assert await levels(place) == {"low", "high"}
        # In the middle of a rollout nothing changes.
        await hand_over(place, "m2", "m1")
        await refused(place, "1", "rollout: ")
        place.wanted = 4
        await put(place, "1", env={"LEVEL": "high"}, rollout={**rollout, "approved": 1})
        await anyio.sleep(1.5)
        assert await settles(place, v1=3) == middle
        # What was refused meanwhile begins at once.
        await hand_over(place, "m1", "m2")
        await place.reaches("complete")
        await place.serves("1")
        assert await levels(place) == {"high"}
        # The number of instances is that of the last blueprint that it can read, too.
        four = await settles(place, v1=4)
        await hand_over(place, "m2", "m1")
        three = await settles(place, v1=3)
        assert three.items() <= four.items()
        await hand_over(place, "m1", "m2")
        assert three.items() <= (await settles(place, v1=4)).items()
        assert await levels(place) == {"high"}
