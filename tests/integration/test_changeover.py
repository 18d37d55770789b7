"""Buckets of an earlier version, which took roll-ups and marked what expired: the nodes of that version, which need
them so, run beside this one's, and when none is left the buckets are changed over.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import anyio
import pytest

from tests.harness.judging import assert_terms_grow
from tests.harness.nodes import nodes_on
from tests.harness.processes import Processes, command_line, node_processes
from tests.harness.secure import fortress
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.versions import library
from tests.harness.waiting import Stopwatch, eventually
from tests.harness.wire import Raw, artifact_of, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

BEFORE = "d79374d"
"""The last commit that needed markers."""
BUCKETS = ("slices", "nodes", "status")
OLD = {"role": "manager", "version": "0.1.0", "incarnation": "x", "ttl": 3600, "features": ["rollouts", "placement"]}
"""What a manager of the version before says of itself."""
EVERYBODY = {"m1", "m2", "m3", "a1"}
WAITS = (
    "slices, nodes, status: whoever may write one key can still have others removed (roll-ups); "
    "waiting for manager m9: its cdm 0.1.0 does not know that leases and registrations expire without a marker; "
    "upgrade managers first"
)


async def old_buckets(user: Raw) -> None:
    """Make the buckets as the version before did."""
    for name in ("blueprints", *BUCKETS):
        await user.make(name, before=True)


async def changed_over(user: Raw) -> bool:
    """Whether no bucket takes roll-ups that need not."""
    return not any([await user.takes_roll_ups(name) for name in BUCKETS])


async def unchanged(user: Raw) -> bool:
    """Whether all still do."""
    return all([await user.takes_roll_ups(name) for name in BUCKETS])


async def served(user: Raw, artifact: str) -> None:
    """A blueprint that is put now is served: somebody leads."""
    await user.stubborn("blueprints", artifact, 1)

    async def there() -> bool:
        return sum(artifact_of(key) == artifact for key in await user.slices()) == 1

    await eventually(there, 20, f"{artifact} is served")


async def test_buckets_wait_for_the_last_manager_that_needs_them_and_no_longer(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server, reconcile_interval=0.2) as nodes:
        await old_buckets(user)
        await user.put("nodes", "m9", OLD)
        await nodes.start("n1", "n2")
        await nodes.leader()
        await served(user, "g/before/1")
        await anyio.sleep(1)
        assert await unchanged(user)
        shown = await command_line("status", "--server", server.url)
        assert f"note: {WAITS}" in shown.stdout.decode()
        refused = await command_line("init", "--upgrade", "--server", server.url)
        assert refused.returncode == 1
        assert "manager m9 (cdm 0.1.0) does not know that leases" in refused.stderr.decode()
        plain = await command_line("init", "--server", server.url)
        assert "slices: existed; takes roll-ups still: see --upgrade" in plain.stdout.decode()
        assert await unchanged(user)
        leader = await nodes.leader()
        term = leader.active
        await user.delete("nodes", "m9")
        await eventually(lambda: changed_over(user), 10, "the leader changes them over")
        assert "roll-ups" not in (await command_line("status", "--server", server.url)).stdout.decode()
        assert leader.active == term, "leadership is not touched by it"
        await served(user, "g/after/1")
        nodes.unharmed()


async def test_who_may_change_buckets_changes_them_over_where_no_node_may(server: NatsServer) -> None:
    async with raw(server) as user:
        await old_buckets(user)
        done = await command_line("init", "--upgrade", "--server", server.url, "--json")
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)["buckets"]
        assert [made[name] for name in ("blueprints", *BUCKETS)] == ["existed", *3 * ["upgraded"]]
        assert await changed_over(user)
        again = await command_line("init", "--upgrade", "--server", server.url)
        assert "slices: existed\n" in again.stdout.decode()


async def test_the_admin_of_the_shipped_configuration_may(tmp_path: Path) -> None:
    async with fortress(tmp_path, "node-1") as found:
        options = found.options("admin")
        assert (await command_line("init", *options)).returncode == 0
        done = await command_line("init", "--upgrade", *options)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the older version is imported from. All workers of one run share it."""
    own = tmp_path_factory.getbasetemp()
    return library(BEFORE, own.parent if own.name.startswith("popen-") else own)


async def leads(user: Raw, but: str = "") -> str:
    """Wait until somebody leads who is not this one; returns who."""

    async def other() -> str:
        node = str((await user.lease()).get("node", ""))
        return "" if node == but else node

    return await eventually(other, 20, f"somebody leads, and not {but or 'nobody'}")


async def all_up(user: Raw, nodes: Processes) -> None:
    """Wait until all nodes are registered."""

    async def they_are() -> bool:
        up = all("node is up" in process.log for process in nodes.all.values())
        return up and set(await user.registrations()) == EVERYBODY

    await eventually(they_are, 20, f"{EVERYBODY} are registered")


async def test_the_version_before_runs_beside_this_one_until_it_is_upgraded(
    server: NatsServer, tmp_path: Path, older: Path
) -> None:
    manager = ("--role", "manager")
    async with raw(server) as user:
        for name in ("blueprints", "nodes", "status"):
            await user.make(name, before=True)
        await user.record(before=True)
        with node_processes(server, tmp_path, lease_ttl=2) as nodes:
            for name in ("m1", "m2"):
                nodes.start(name, *manager, library=older)
            nodes.start("m3", *manager)
            nodes.start("a1", "--runtime", "external", "--role", "agent")
            await all_up(user, nodes)
            # Whoever leads and dies, or hangs, of either version, is replaced, and follows again afterwards.
            for number in range(3):
                leader = await leads(user)
                await served(user, f"g/beside/{number}")
                await anyio.sleep(1.2)
                if number == 1:  # the lease has to expire
                    nodes.all[leader].send(signal.SIGSTOP)
                    await leads(user, leader)
                    nodes.all[leader].send(signal.SIGCONT)
                else:
                    nodes.all[leader].kill()
                    await leads(user, leader)
                    nodes.start(leader, *manager, library=None if leader == "m3" else older)
                await all_up(user, nodes)
                assert await unchanged(user)
            for name in ("m1", "m2"):
                assert await unchanged(user)
                await upgrade(user, nodes, name)
            await eventually(lambda: changed_over(user), 10, "the leader changes them over")
            await served(user, "g/after/1")
            leader = await leads(user)
            nodes.all[leader].send(signal.SIGSTOP)
            watch = Stopwatch()
            await leads(user, leader)
            assert watch.took < watch.bound(2 + 1), "a hung leader is replaced when its lease ends"
            nodes.all[leader].send(signal.SIGCONT)
            await served(user, "g/after/2")
        assert_terms_grow(await user.recorded())


async def upgrade(user: Raw, nodes: Processes, name: str) -> None:
    """Stop a node, and start it with the version that is tested."""
    nodes.all[name].send(signal.SIGTERM)
    assert await nodes.all[name].ends(20) == 0
    nodes.start(name, "--role", "manager")
    await all_up(user, nodes)
    if name == "m1":
        await anyio.sleep(2.5)  # two rounds of the leader
