"""Buckets that are created anew by hand, or set back, while nodes run are adapted as at the start, and followed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from cdm.model.artifact import Artifact
from cdm.model.keys import LAYOUTS, SLICES
from cdm.store import watch as watch_module
from cdm.store.bucket import Bucket
from cdm.store.connection import Connection
from cdm.store.watch import Phase, Watch
from tests.harness.nodes import Nodes, Running, nodes_on
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.store import Mirror
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, raw
from tests.integration.test_leadership import serves
from tests.integration.test_taken_away import guarded
from tests.integration.test_watch import between_sessions, elsewhere, set_back

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

KEY = "org.example/one/1.0.0"
NAMES = tuple(layout.name for layout in LAYOUTS)


async def delete_and_add(user: Raw | Connection, name: str) -> None:
    """``nats kv del NAME`` and ``nats kv add NAME``."""
    await user.api(f"STREAM.DELETE.KV_{name}")
    await add(user, name)


async def add(user: Raw | Connection, name: str) -> None:
    """``nats kv add NAME``: neither TTLs nor atomic batches, one revision a key, sequences from 1 on."""
    config = {
        "name": f"KV_{name}",
        "subjects": [f"$KV.{name}.>"],
        "max_msgs_per_subject": 1,
        "storage": "file",
        "discard": "new",
        "num_replicas": 1,
        "deny_delete": True,
        "allow_rollup_hdrs": True,
        "allow_direct": True,
    }
    await user.api(f"STREAM.CREATE.KV_{name}", config)


async def config_of(user: Raw | Connection, name: str) -> dict[str, Any]:
    info = await user.api(f"STREAM.INFO.KV_{name}")
    config: dict[str, Any] = info["config"]
    return config


async def adapted(user: Raw | Connection, name: str) -> bool:
    config = await config_of(user, name)
    history = 10 if name == "blueprints" else 1
    return bool(config.get("allow_atomic") and config.get("allow_msg_ttl")) and (
        config["max_msgs_per_subject"] == history
    )


async def well(user: Raw, nodes: Nodes, names: tuple[str, ...]) -> None:
    """The buckets are as they must be, and everything works again."""
    for name in names:
        await eventually(lambda name=name: adapted(user, name), 15, f"{name} is adapted")  # type: ignore[misc]
    await nodes.leader(within=15)
    await eventually(lambda: _registered(user, *nodes.all), 10, "all nodes are registered again")
    await serves(user, KEY, 2, within=15)
    await serves(user, "org.example/two/1.0.0", 2)
    await eventually(lambda: _told(user, KEY, "org.example/two/1.0.0"), 10, "both have a status")
    nodes.unharmed()


async def _registered(user: Raw, *names: str) -> bool:
    return {name for name, record in (await user.registrations()).items() if not record.gone} >= set(names)


async def _told(user: Raw, *names: str) -> bool:
    return set(await user.contents("status")) >= set(names)


@pytest.mark.parametrize("names", [(name,) for name in NAMES] + [NAMES], ids="-".join)
async def test_buckets_created_anew_by_hand_are_adapted(server: NatsServer, names: tuple[str, ...]) -> None:
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1", "n2")
        await nodes.leader()
        await serves(user, KEY, 2)
        for name in names:
            await delete_and_add(user, name)
        await anyio.sleep(0.1)
        await well(user, nodes, names)


async def test_a_setting_that_is_taken_away_is_given_back(server: NatsServer) -> None:
    """``nats stream edit``: the stream stays, and so do its consumers."""
    async with raw(server) as user, nodes_on(server, reconcile_interval=1.0) as nodes:
        await nodes.start("n1", "n2")
        await nodes.leader()
        for name in NAMES:
            config = await config_of(user, name)
            await user.api(f"STREAM.UPDATE.KV_{name}", {**config, "allow_atomic": False})
        await well(user, nodes, NAMES)


async def test_what_may_not_be_adapted_is_refused_in_one_line_and_adapted_once_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch_module, "HEARTBEAT", 0.5)
    async with guarded(tmp_path) as (server, connection):
        bucket, mirror = Bucket(connection, SLICES), Mirror()
        await bucket.ensure(create=True)
        provide = partial(bucket.ensure, create=False)
        watch = Watch(bucket, mirror, on_reset=mirror.reset, provide=provide)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run)
            await eventually(lambda: watch.phase is Phase.LIVE)
            await server.change({"publish": {"deny": ["$JS.API.STREAM.UPDATE.>"]}})
            async with between_sessions(watch):  # one that found no stream would tell that, and not what this one lacks
                await delete_and_add(connection, "slices")
            await connection.request(f"$KV.slices.n1.{KEY}", b'{"state":"LOAD"}')
            await eventually(lambda: set(mirror.values) == {f"n1.{KEY}"}, 10, "it is followed all the same")
            for _ in range(3):
                await watch.check()
            told = capfd.readouterr().out
            assert told.count("[error") == 1
            assert "cannot be used; run `cdm init`" in told
            assert "it lacks allow_msg_ttl, allow_atomic: permission denied" in told
            await server.change({})
            await watch.check()
            assert await adapted(connection, "slices")
            tasks.cancel_scope.cancel()


async def test_a_store_that_was_set_back_and_written_over_is_found_out(server: NatsServer) -> None:
    """A blueprint of the old store is in force again, within seconds and not with the next full comparison."""
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1", "n2")
        await nodes.leader()
        await serves(user, KEY, 1)
        async with set_back(server):
            await serves(user, KEY, 3, within=20)
        async with elsewhere(server) as other:
            for number in range(20):
                await other.put("blueprints", f"g/other-{number}/1", 0)
        await server.start()
        await eventually(lambda: all(wanted(running) == 1 for running in nodes.all.values()), 10, "one is wanted again")
        await nodes.leader()
        await serves(user, "org.example/two/1.0.0", 2)
        nodes.unharmed()


def wanted(running: Running) -> int | None:
    """How many instances the node's manager takes to be wanted."""
    desired = running.managing.manager.cluster.desired.get(Artifact("org.example", "one", "1.0.0"))
    return desired.blueprint.instances if desired and desired.blueprint else None


async def test_purged_buckets_are_noticed_within_a_reconcile_interval(server: NatsServer) -> None:
    """Slices of purged blueprints end, and purged statuses are written again."""
    async with raw(server) as user, nodes_on(server, reconcile_interval=2.0) as nodes:
        await nodes.start("n1", "n2")
        await nodes.leader()
        await serves(user, KEY, 1)
        await eventually(lambda: _told(user, KEY), 5)
        await user.api("STREAM.PURGE.KV_status", {})
        await eventually(lambda: _told(user, KEY), 3.5, "it has a status again")
        await user.api("STREAM.PURGE.KV_blueprints", {})
        await eventually(lambda: _unloaded(user), 3.5, "it is unloaded")
        await nodes.leader()
        nodes.unharmed()


async def _unloaded(user: Raw) -> bool:
    return all(state == "UNLOAD" for key, state in (await user.slices()).items() if KEY in key)
