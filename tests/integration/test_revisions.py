"""Reading what a bucket keeps of its keys: all of it, in order, with who wrote it and when."""

from __future__ import annotations

import time

import pytest

from cdm.errors import BucketMissing
from cdm.model.artifact import Artifact
from cdm.model.keys import BLUEPRINTS, STATUS, BlueprintKey
from cdm.store.bucket import Bucket
from cdm.store.revisions import revisions
from cdm.store.wire import WRITER
from tests.harness.servers import NatsServer
from tests.harness.store import connected
from tests.harness.waiting import eventually
from tests.harness.wire import raw

pytestmark = pytest.mark.anyio


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


async def test_however_many_there_are_all_are_read(server: NatsServer) -> None:
    async with connected(server) as connection, raw(server) as user:
        bucket = Bucket(connection, STATUS)
        await bucket.ensure(create=True)
        value = b"x" * 4_000  # more than the server sends without asking whether to go on
        for number in range(3_000):
            await user.client.publish(f"$KV.status.g/a/{number}", value)
        await user.put("status", "g/last/1", b"y")
        found = await revisions(bucket)
        assert len(found) == 3_001
        assert found[-1].payload == b"y"
        first = found[0].number
        assert [each.number for each in found] == list(range(first, first + 3_001))
