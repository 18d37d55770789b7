"""One replica is behind, as it is when its server has just come back: nobody takes what it lacks for deleted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import nats.errors
import pytest

from cdm.errors import StoreBusy, Uncertain
from cdm.model.keys import BLUEPRINTS, SLICES, Layout
from cdm.store.bucket import Bucket
from cdm.store.connection import Access, Connection, connect
from cdm.store.revisions import revisions
from cdm.store.watch import Watch
from tests.harness.servers import FORGIVEN, NatsServer, running_cluster
from tests.harness.store import Mirror
from tests.harness.waiting import bounded, eventually
from tests.harness.wire import Raw, Rejection, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

T = TypeVar("T")
KEYS = 50
LONG = b" " * 500_000
"""So it takes a moment to catch up, and what is there already is delivered faster than more comes."""
ROUNDS = 20
"""How often it is tried at most until a consumer is made while its server is behind."""
NAMES = {BLUEPRINTS: "g/a/{}", SLICES: "n1.g/a/1/{}"}
VALUES = {BLUEPRINTS: b"3", SLICES: b'{"state":"LOAD","term":1}'}


class Behind:
    """A bucket on three servers, one of which falls behind, and a connection whose consumers are all on that one."""

    def __init__(self, layout: Layout, server: NatsServer, user: Raw, connection: Connection) -> None:
        self.bucket = Bucket(connection, layout)
        self.keys = 0
        """How many there are."""
        self.lacked: list[int] = []
        """How much each consumer's server lacked when the consumer was made."""
        self._server = server
        self._user = user
        self._call = connection.api_retried

    async def put(self, count: int) -> None:
        """More keys, and new values for those that are there."""
        name, value = NAMES[self.bucket.layout], VALUES[self.bucket.layout]
        stream = self._user.client.jetstream(publish_async_max_pending=20)
        self.keys += count
        subjects = [self.bucket.subject(name.format(number)) for number in range(self.keys)]
        acks = [await stream.publish_async(subject, value + LONG) for subject in subjects]
        await asyncio.gather(*acks)

    async def fall_behind(self) -> None:
        """The server comes back, and lacks what was put meanwhile."""
        self._server.pause()
        try:
            await self.put(KEYS)
        finally:
            self._server.resume()

    async def call(self, call: str, body: Any = None, patience: float = 1.0) -> Any:
        """Call the API; a consumer is made again until it is on that server. Nothing is delivered before."""
        if not call.startswith("CONSUMER.CREATE."):
            return await self._call(call, body, patience)
        nowhere = {**body, "config": {**body["config"], "deliver_subject": "nowhere"}}
        while True:
            made = await self._call(call, nowhere)
            if made["cluster"]["leader"] == self.name:
                self.lacked.append(self.keys - made["num_pending"])
                return await self._call(call, body)
            await self._call("CONSUMER.DELETE." + ".".join(call.split(".")[2:4]))

    @property
    def name(self) -> str:
        """The server that falls behind."""
        return self._server.folder.name


@asynccontextmanager
async def _behind(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Behind]:
    async with running_cluster() as servers:
        async with connect(Access(tuple(server.url for server in servers)), name="init") as connection:
            await _patiently(lambda: Bucket(connection, layout).ensure(create=True, replicas=3))
            leader = (await connection.api(f"STREAM.INFO.KV_{layout.name}"))["cluster"]["leader"]
        behind = servers[2] if leader != servers[2].folder.name else servers[1]
        others = [server for server in servers if server is not behind]
        urls = tuple(server.url for server in others)
        async with raw(others) as user, connect(Access(urls), name="test") as connection:
            made = Behind(layout, behind, user, connection)
            monkeypatch.setattr(connection, "api_retried", made.call)
            await made.put(10)
            yield made


@pytest.mark.parametrize(
    ("layout", "keys"), [(BLUEPRINTS, ">"), (SLICES, ">"), (SLICES, "n1.>")], ids=["history", "newest", "an agent's"]
)
async def test_nothing_is_missed_or_goes_back(layout: Layout, keys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mirror of the harness fails where a key goes back to an older value."""
    async with _behind(layout, monkeypatch) as behind, anyio.create_task_group() as tasks:
        known = Mirror()
        watch = Watch(behind.bucket, known, keys=keys)
        tasks.start_soon(watch.run)
        await _patiently(watch.caught_up)
        for _ in range(ROUNDS):
            behind.lacked.clear()
            await behind.fall_behind()
            watch.relist()
            with bounded(60):
                await _patiently(watch.caught_up)
            assert len(known.values) == behind.keys
            if any(behind.lacked):
                break
        else:
            raise AssertionError("it was never behind")
        tasks.cancel_scope.cancel()


async def test_a_read_barrier_is_not_passed_before_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _behind(SLICES, monkeypatch) as behind, anyio.create_task_group() as tasks:
        known = Mirror()
        watch = Watch(behind.bucket, known)
        tasks.start_soon(watch.run)
        await _patiently(watch.caught_up)
        for _ in range(5):
            await behind.fall_behind()
            with bounded(60):
                await _patiently(watch.caught_up)
            assert len(known.values) == behind.keys
        tasks.cancel_scope.cancel()


async def test_revisions_that_are_read_are_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _behind(BLUEPRINTS, monkeypatch) as behind:
        for _ in range(ROUNDS):
            behind.lacked.clear()
            await behind.fall_behind()
            with bounded(60):
                found = await _patiently(partial(revisions, behind.bucket))
            assert len({each.name for each in found}) == behind.keys
            if any(behind.lacked):
                return
        raise AssertionError("it was never behind")


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """What is asked, again and again while servers elect who answers; as whoever needs it does."""
    while True:
        try:
            return await ask()
        except (StoreBusy, Uncertain):
            await anyio.sleep(0.1)


def _room_in_sockets() -> int:
    """How many bytes a server can be sent while it stands still."""
    return sum(int(Path(f"/proc/sys/net/ipv4/tcp_{way}").read_text().split()[-1]) for way in ("rmem", "wmem"))


async def test_a_server_that_knows_of_no_leader_is_not_believed() -> None:
    """It answers itself what is asked of the leader, and may lack what the others have stored."""
    async with running_cluster() as servers:
        urls = tuple(server.url for server in servers)
        async with connect(Access(urls), name="init") as connection, raw(servers) as user:
            bucket = Bucket(connection, BLUEPRINTS)
            await _patiently(lambda: bucket.ensure(create=True, replicas=3))
            await user.stubborn(BLUEPRINTS.name, "g/a/1", 1)
            info = await user.api(f"STREAM.INFO.{bucket.stream}")
        *others, alone = sorted(servers, key=lambda each: each.folder.name != info["cluster"]["leader"])
        alone.pause()
        async with raw(others) as user:
            for number in range(_room_in_sockets() // len(LONG) + 5):
                newest = await user.put(BLUEPRINTS.name, f"g/b/{number}", os.urandom(len(LONG)))
        for other in others:
            other.pause()
        alone.resume()
        async with raw([alone]) as user, connect(Access((alone.url,)), name="test") as connection:
            stale: list[int] = []

            async def answers() -> bool:
                with suppress(nats.errors.Error, Rejection):
                    sent = await user.api(f"STREAM.INFO.{bucket.stream}", timeout=1)
                    assert not sent["cluster"].get("leader")
                    stale.append(sent["state"]["last_seq"])
                return bool(stale)

            await eventually(answers, 60, "the server answers itself")
            assert stale[0] < newest
            bucket = Bucket(connection, BLUEPRINTS)
            for call in (bucket.state, partial(bucket.subjects, ">"), partial(bucket.ensure, create=False)):
                with pytest.raises(StoreBusy):
                    await call()
            for other in others:
                other.resume()

            async def knows() -> bool:
                with suppress(StoreBusy, Uncertain):
                    return (await bucket.state()).last == newest
                return False

            await eventually(knows, 60, "the leader answers")
