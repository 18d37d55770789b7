"""Permissions that are taken away while a client is connected: what cannot work any more is told, and comes back."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from cdm.errors import AccessDenied
from cdm.model.keys import SLICES
from cdm.store import watch as watch_module
from cdm.store.beacon import Beacon
from cdm.store.bucket import Bucket
from cdm.store.connection import Access, Connection, connect
from cdm.store.watch import Phase, Watch
from tests.harness.servers import FORGIVEN, NatsServer, running_server
from tests.harness.store import Mirror
from tests.harness.waiting import bounded, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

RELOADED = "Reloaded server configuration"


class Guarded:
    """A server whose one user's permissions can be changed."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "server.conf"
        self._pid = folder / "pid"
        self._store = folder / "store"
        self.server: NatsServer
        self.write({})

    def write(self, permissions: dict[str, Any], **settings: Any) -> None:
        user = {"user": "me", "password": "pw", "permissions": {"publish": ">", "subscribe": ">", **permissions}}
        config = {
            "jetstream": {"store_dir": str(self._store)},
            "pid_file": str(self._pid),
            "authorization": {"users": [user]},
            **settings,
        }
        self.config.write_text(json.dumps(config), encoding="utf-8")

    async def change(self, permissions: dict[str, Any], **settings: Any) -> None:
        """Give the user other permissions, and the server other settings."""
        before = self.server.log.count(RELOADED)
        self.write(permissions, **settings)
        os.kill(int(self._pid.read_text()), signal.SIGHUP)
        await eventually(lambda: self.server.log.count(RELOADED) > before)


@asynccontextmanager
async def guarded(folder: Path) -> AsyncIterator[tuple[Guarded, Connection]]:
    found = Guarded(folder)
    async with running_server(jetstream=False, arguments=["-c", str(found.config)]) as server:
        found.server = server
        async with connect(Access((server.url,), user="me", password="pw"), name="test") as connection:
            yield found, connection


async def test_answers_that_are_not_delivered_any_more_are_named_also_after_a_reconnect(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (server, connection):
        await connection.api("INFO")
        await server.change({"subscribe": {"deny": ["_INBOX.>"]}})
        before = connection.up_since
        await connection._client.force_reconnect()
        await eventually(lambda: connection.up_since not in (None, before))
        with pytest.raises(AccessDenied, match="_INBOX"):
            await connection.api("INFO")
        await server.change({})
        before = connection.up_since
        await connection._client.force_reconnect()
        await eventually(lambda: connection.up_since not in (None, before))
        await connection.api("INFO")


async def test_who_may_not_hear_of_a_leaders_end_does_not_rely_on_it(tmp_path: Path) -> None:
    """As a user of a site that was made by an earlier version."""
    async with guarded(tmp_path) as (server, connection):
        await server.change({"subscribe": {"deny": ["$JS.EVENT.ADVISORY.>"]}})
        slices = Bucket(connection, SLICES)
        await slices.ensure(create=True)
        beacon = Beacon(slices, lambda: None)
        beacon.follow(1, own=True)
        with bounded():
            await beacon.run()
        assert not beacon.burns


async def test_a_mirror_that_gets_no_updates_any_more_is_not_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is complete, as far as it goes: after a while that is not far enough."""
    monkeypatch.setattr(watch_module, "HEARTBEAT", 0.5)
    async with guarded(tmp_path) as (server, connection):
        bucket, mirror = Bucket(connection, SLICES), Mirror()
        await bucket.ensure(create=True)
        watch = Watch(bucket, mirror, on_live=mirror.live.append)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run)
            await eventually(lambda: mirror.live[-1:] == [True])
            await connection.publish("$KV.slices.n1.g/a/1", b'{"state":"LOAD","term":1}')
            await eventually(lambda: watch.reached)
            await server.change({"publish": {"deny": ["$JS.API.CONSUMER.CREATE.>"]}})
            watch.relist()
            await eventually(lambda: watch.phase is Phase.SEEKING and mirror.live[-1] is False, 20)
            await server.change({})
            await eventually(lambda: mirror.live[-1] is True, 20)
            tasks.cancel_scope.cancel()
    told = capfd.readouterr().out
    # Twice where the server stood still before.
    assert 1 <= told.count("updates do not come") == told.count("[error") <= told.count("updates come again") <= 2


async def test_a_server_that_takes_fewer_connections_from_now_on_ends_nobody(tmp_path: Path) -> None:
    """It sends one of them away with an error."""
    async with guarded(tmp_path) as (server, one), connect(one.access, name="another") as other:
        await server.change({}, max_connections=1)
        await eventually(lambda: one.is_up is not other.is_up, 10, "one is sent away")
        await anyio.sleep(1)
        await server.change({}, max_connections=100)
        await eventually(lambda: one.is_up and other.is_up, 10, "it is back")
        for each in (one, other):
            await each.api("INFO")
