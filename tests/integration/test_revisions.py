"""Reading what a bucket keeps of its keys: all of it, in order, with who wrote it and when."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

import cdm.cli.watches as watches_module
import cdm.store.revisions as revisions_module
from cdm.cli.watches import Watches
from cdm.errors import BucketMissing, Uncertain
from cdm.model.artifact import Artifact
from cdm.model.keys import BLUEPRINTS, NODES, SLICES, STATUS, BlueprintKey
from cdm.store.bucket import Bucket
from cdm.store.revisions import revisions
from cdm.store.snapshot import look
from cdm.store.wire import WRITER
from tests.harness.proxy import Proxy, proxied
from tests.harness.servers import NatsServer
from tests.harness.store import connected
from tests.harness.waiting import bounded, eventually
from tests.harness.wire import Raw, raw

pytestmark = pytest.mark.anyio

PATIENCE = 3.0
"""Seconds without anything that comes; after four the connection itself would be given up."""


@pytest.mark.quick
async def test_revisions_are_read_with_who_wrote_them_and_when(server: NatsServer) -> None:
    async with connected(server) as connection, raw(server) as user:
        bucket = Bucket(connection, BLUEPRINTS)
        with pytest.raises(BucketMissing):
            await revisions(bucket)
        await bucket.ensure(create=True)
        assert await revisions(bucket) == []
        began = time.time()
        first = await bucket.put(BlueprintKey(Artifact("g.x", "a", "1")), b"3", expect=0, headers={WRITER: "me@here"})
        second = await user.put("blueprints", "g.x/a/1", 4)
        third = await user.delete("blueprints", "g.x/a/1")
        other = await user.put("blueprints", "h/a/1", 5)
        found = await revisions(bucket)
        assert [(each.name, each.number, each.payload, each.by) for each in found] == [
            ("g.x/a/1", first, b"3", "me@here"),
            ("g.x/a/1", second, b"4", ""),
            ("g.x/a/1", third, None, ""),
            ("h/a/1", other, b"5", ""),
        ]
        assert all(began - 1 < each.at < time.time() + 1 for each in found)
        assert [each.number for each in await revisions(bucket, "g.>")] == [first, second, third]
        assert await revisions(bucket, "nowhere.>") == []

        async def none_left() -> bool:
            return await user.consumers("blueprints") == 0

        await eventually(none_left, 30)


async def _fill(user: Raw, bucket: Bucket) -> None:
    """More than the server sends without asking whether to go on: 12 MB."""
    await bucket.ensure(create=True)
    for number in range(3_000):
        await user.client.publish(f"$KV.status.g/a/{number}", b"x" * 4_000)
    await user.put("status", "g/last/1", b"y")


@pytest.mark.parametrize("reads", [revisions, lambda bucket: look(bucket.connection, PATIENCE, ("status",))])
async def test_a_slow_line_is_waited_for_and_one_that_is_cut_is_not(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, reads: Callable[[Bucket], Awaitable[object]]
) -> None:
    """However long all of it takes: what counts is that something comes."""
    monkeypatch.setattr(revisions_module, "PATIENCE", PATIENCE)
    async with raw(server) as user, proxied(server) as way, connected(way) as connection:
        bucket = Bucket(connection, STATUS)
        await _fill(user, bucket)
        way.delay, began = 0.03, time.monotonic()
        await reads(bucket)
        assert time.monotonic() > began + 1.5 * PATIENCE, "the line is not slow enough to show anything"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cut_soon, way)
            with pytest.raises(Uncertain, match=f"nothing more came for {PATIENCE:g} s"):
                await reads(bucket)


async def test_what_is_listed_already_is_no_news_of_what_is_not(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats come for ever; the bucket that does not answer is given up all the same."""
    monkeypatch.setattr(watches_module, "LISTING_PATIENCE", PATIENCE)
    async with (
        raw(server) as user,
        proxied(server) as way,
        connected(server) as connection,
        connected(way) as held_back,
    ):
        nodes, slices = Bucket(connection, NODES), Bucket(held_back, SLICES)
        for bucket in (nodes, slices):
            await bucket.ensure(create=True)
        way.hold(b"CONSUMER.CREATE.KV_slices")
        watches = Watches(lambda: None)
        heard: list[Any] = []
        watches.add(nodes, heard.append)
        watches.add(slices, heard.append)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_beat, user)
            with bounded(), pytest.raises(Uncertain, match=f"nothing more came for {PATIENCE:g} s"):
                await watches.start(tasks)
            await eventually(lambda: len(heard) > 3)
            tasks.cancel_scope.cancel()


async def _beat(user: Raw) -> None:
    while True:
        await user.put("nodes", "n1", {})
        await anyio.sleep(0.05)


async def _cut_soon(way: Proxy) -> None:
    await anyio.sleep(0.3)
    way.cut()


async def test_however_many_there_are_all_are_read(server: NatsServer) -> None:
    async with connected(server) as connection, raw(server) as user:
        bucket = Bucket(connection, STATUS)
        await _fill(user, bucket)
        found = await revisions(bucket)
        assert len(found) == 3_001
        assert found[-1].payload == b"y"
        first = found[0].number
        assert [each.number for each in found] == list(range(first, first + 3_001))
