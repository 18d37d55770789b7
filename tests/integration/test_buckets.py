"""Buckets on a real server: single keys, batches, and what a bucket is made of."""

from __future__ import annotations

import json
import time
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import nats
import pytest

from cdm.errors import (
    BucketMissing,
    Conflict,
    StoreBusy,
    StoreError,
    Unsuitable,
)
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import (
    BLUEPRINTS,
    FENCE,
    LAYOUTS,
    LEASE,
    NODES,
    SLICES,
    STATUS,
    BlueprintKey,
    Layout,
    NodeKey,
    SliceKey,
    encode,
)
from cdm.model.node import EXTERNAL, Fence
from cdm.node.node import NodeSettings, ensure
from cdm.node.node import node as make_node
from cdm.store.batch import MAX_BATCH, Write
from cdm.store.bucket import Bucket
from cdm.store.configuration import MOST_CONSUMERS
from cdm.store.connection import Access, Connection
from cdm.store.wire import dump
from tests.harness.servers import FORGIVEN, NatsServer, running_server
from tests.harness.store import connected
from tests.harness.waiting import bounded, eventually
from tests.harness.wire import EXPECT, EXPECT_SUBJECT, Raw, Rejection, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

ONE = Artifact("org.example", "one", "1.0.0")
N1 = NodeId("n1")
SECRET = "s3cr3t"


# One key


@pytest.mark.quick
async def test_compare_and_set(server: NatsServer) -> None:
    async with connected(server) as connection:
        bucket, key = Bucket(connection, SLICES), SliceKey(N1, ONE)
        assert await bucket.ensure(create=True) is True
        assert await bucket.ensure(create=True) is False
        assert await bucket.read(key) is None
        first = await bucket.put(key, b"1", expect=0)
        with pytest.raises(Conflict):
            await bucket.put(key, b"2", expect=0)
        with pytest.raises(Conflict):
            await bucket.put(key, b"2", expect=first + 1)
        second = await bucket.put(key, b"2", expect=first)
        stored = await bucket.read(key)
        assert stored is not None
        assert (stored.payload, stored.revision) == (b"2", second)
        with pytest.raises(Conflict):
            await bucket.delete(key, expect=first)
        third = await bucket.delete(key, expect=second)
        stored = await bucket.read(key)
        assert stored is not None
        assert (stored.payload, stored.revision) == (None, third)
        with pytest.raises(Conflict):
            await bucket.put(key, b"3", expect=0)
        await bucket.put(key, b"3", expect=third)
        await bucket.put(key, b"whatever is there")


@pytest.mark.quick
async def test_every_kind_of_byte_survives(server: NatsServer) -> None:
    async with connected(server) as connection:
        bucket = Bucket(connection, SLICES)
        await bucket.ensure(create=True)
        for payload in (b"", bytes(range(256)), b"\r\nMSG", b"KV-Operation: DEL"):
            await bucket.put(LEASE, payload)
            stored = await bucket.read(LEASE)
            assert stored is not None
            assert stored.payload == payload


async def test_what_plain_clients_delete_is_gone(server: NatsServer) -> None:
    async with connected(server) as connection, raw(server) as user:
        bucket, key = Bucket(connection, BLUEPRINTS), BlueprintKey(ONE)
        await bucket.ensure(create=True)
        store = await user.client.jetstream().key_value("blueprints")
        for operation in (store.delete, store.purge):
            await store.put(encode(key), b"3")
            await operation(encode(key))
            stored = await bucket.read(key)
            assert stored is not None
            assert stored.payload is None


@pytest.mark.quick
@pytest.mark.parametrize("layout", [SLICES, NODES, STATUS], ids=lambda layout: layout.name)
async def test_whoever_may_write_one_key_can_remove_no_other(server: NatsServer, layout: Layout) -> None:
    """A message that says that it rolls the bucket up is refused, alone and in a batch."""
    async with connected(server) as connection, raw(server) as user:
        await Bucket(connection, layout).ensure(create=True)
        for key in ("n1", "n2"):
            await user.put(layout.name, key, {})
        batch = {"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "1"}
        for rollup in ("all", "sub"):
            for headers in ({}, batch):
                with pytest.raises(Rejection) as refused:
                    await user.put(layout.name, "n1", b"", {"Nats-Rollup": rollup, **headers})
                assert refused.value.code == 10111
        assert set(await user.contents(layout.name)) == {"n1", "n2"}


async def test_a_ttl_ends_without_a_trace(server: NatsServer) -> None:
    async with connected(server) as connection:
        bucket, key = Bucket(connection, NODES), NodeKey(N1)
        await bucket.ensure(create=True)
        await bucket.put(key, b"{}", ttl=2.0)
        revision = await bucket.put(key, b"{}", ttl=60.0)
        await anyio.sleep(2.2)  # longer than the first one
        began = time.monotonic()
        revision = await bucket.put(key, b"{}", expect=revision, ttl=1.0)

        async def expired() -> bool:
            return await bucket.read(key) is None

        await eventually(expired, 20)
        assert time.monotonic() - began > 0.5
        with pytest.raises(Conflict):
            await bucket.put(key, b"{}", expect=revision)
        again = await bucket.put(key, b"{}", expect=0)
        assert again > revision
        await anyio.sleep(1.2)
        stored = await bucket.read(key)
        assert stored is not None
        assert stored.payload == b"{}", "what was put without a TTL stays"


async def test_a_ttl_ends_in_a_marker_in_a_bucket_of_an_earlier_version(server: NatsServer) -> None:
    async with connected(server) as connection, raw(server) as user:
        await user.make("nodes", before=True)
        bucket, key = Bucket(connection, NODES), NodeKey(N1)
        await bucket.ensure(create=False)
        assert await user.takes_roll_ups("nodes"), "it is changed over only when no manager needs it any more"
        await bucket.put(key, b"{}", ttl=2.0)
        revision = await bucket.put(key, b"{}", ttl=60.0)
        await anyio.sleep(2.2)  # longer than the first one
        began = time.monotonic()
        revision = await bucket.put(key, b"{}", expect=revision, ttl=1.0)

        async def expired() -> int:
            stored = await bucket.read(key)
            assert stored is not None
            return stored.revision if stored.payload is None else 0

        marker = await eventually(expired, 20)
        assert time.monotonic() - began > 0.5
        assert marker > revision
        with pytest.raises(Conflict):
            await bucket.put(key, b"{}", expect=revision)
        again = await bucket.put(key, b"{}", expect=marker)
        assert again > marker
        await anyio.sleep(1.2)
        stored = await bucket.read(key)
        assert stored is not None
        assert stored.payload == b"{}", "what was put without a TTL stays"


# Batches


def _writes(count: int, start: int = 0) -> list[Write]:
    return [Write(encode(SliceKey(N1, ONE, ordinal)), b'{"state":"LOAD"}') for ordinal in range(start, start + count)]


@pytest.mark.quick
async def test_a_batch_is_all_or_nothing(server: NatsServer) -> None:
    async with connected(server) as connection, raw(server) as user:
        bucket = Bucket(connection, SLICES)
        await bucket.ensure(create=True)
        fence = await bucket.put(FENCE, b'{"term":1}')
        guard = {EXPECT: str(fence), EXPECT_SUBJECT: bucket.subject(encode(FENCE))}
        writes = _writes(MAX_BATCH)
        writes[0] = Write(writes[0].name, writes[0].payload, guard)
        last = await bucket.batch(writes)
        assert last == fence + MAX_BATCH
        assert len(await user.contents("slices")) == MAX_BATCH + 1
        await bucket.put(FENCE, b'{"term":2}')
        late = _writes(10, start=MAX_BATCH)
        late[0] = Write(late[0].name, late[0].payload, guard)
        with pytest.raises(Conflict):
            await bucket.batch(late)
        wrong_inside = _writes(3, start=MAX_BATCH)
        wrong_inside[1] = Write(wrong_inside[1].name, b"{}", {EXPECT: "77"})
        with pytest.raises(Conflict):
            await bucket.batch(wrong_inside)
        assert len(await user.contents("slices")) == MAX_BATCH + 1
        await bucket.batch(_writes(1, start=MAX_BATCH))
        assert len(await user.contents("slices")) == MAX_BATCH + 2


async def test_a_missing_bucket_takes_nothing(server: NatsServer) -> None:
    """Nobody answers for it: nothing is stored, and it may come back."""
    async with connected(server) as connection:
        bucket = Bucket(connection, SLICES)
        for attempt in (bucket.put(LEASE, b"{}"), bucket.batch(_writes(2)), bucket.delete(LEASE)):
            with pytest.raises(StoreBusy, match="slices"), bounded():
                await attempt
        with pytest.raises(BucketMissing):
            await bucket.read(LEASE)
        with pytest.raises(BucketMissing):
            await bucket.state()


# Buckets


async def _config(user: Raw, bucket: str) -> dict[str, Any]:
    config: dict[str, Any] = (await user.api(f"STREAM.INFO.KV_{bucket}"))["config"]
    return config


async def test_buckets_are_plain_kv_buckets(server: NatsServer) -> None:
    async with connected(server) as connection, raw(server) as user:
        for layout in LAYOUTS:
            assert await Bucket(connection, layout).ensure(create=True)
            store = await user.client.jetstream().key_value(layout.name)
            status = await store.status()
            assert status.history == layout.history
            assert status.values == 0
            config = await _config(user, layout.name)
            assert config["allow_atomic"]
            assert config["allow_msg_ttl"]
            assert config["allow_direct"]
            assert config["storage"] == "file"
        store = await user.client.jetstream().key_value("blueprints")
        await store.put("org.example/one/1.0.0", b"3")
        stored = await Bucket(connection, BLUEPRINTS).read(BlueprintKey(ONE))
        assert stored is not None
        assert stored.payload == b"3"


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
async def test_a_bucket_that_a_plain_client_made_is_upgraded(server: NatsServer, layout: Layout) -> None:
    async with connected(server) as connection, raw(server) as user:
        store = await user.client.jetstream().create_key_value(bucket=layout.name, description="mine")
        await store.put("n1", b"kept")
        bucket = Bucket(connection, layout)
        assert await bucket.ensure(create=False) is False
        config = await _config(user, layout.name)
        assert config["description"] == "mine"
        assert config["max_msgs_per_subject"] == layout.history
        assert (await store.get("n1")).value == b"kept"
        # Where its end leaves a marker, that has a number of its own.
        revision = await bucket.put(LEASE, b"{}", ttl=1.0 if layout.expires else 60.0)
        assert await bucket.batch([Write("n2", b"{}"), Write("n3", b"{}")]) == revision + 2

        async def expired() -> bool:
            stored = await bucket.read(LEASE)
            return stored is None or (stored.payload is None and stored.revision > revision)

        if layout.expires:
            await eventually(expired, 20, "its TTLs end")
        before = await _config(user, layout.name)
        assert await bucket.ensure(create=False) is False
        assert await _config(user, layout.name) == before


async def test_each_of_many_nodes_may_have_a_consumer_of_slices(server: NatsServer) -> None:
    """Servers from 2.15 on make a thousand for a stream that says nothing of it."""
    async with connected(server) as connection, raw(server) as user:
        for layout in LAYOUTS:
            await Bucket(connection, layout).ensure(create=True)
            assert (await _config(user, layout.name))["max_consumers"] == (MOST_CONSUMERS if layout is SLICES else -1)
        config = await _config(user, "slices")
        for others, then in ((-1, MOST_CONSUMERS), (70, 70)):
            await user.api("STREAM.UPDATE.KV_slices", {**config, "max_consumers": others})
            await Bucket(connection, SLICES).ensure(create=False)
            assert (await _config(user, "slices"))["max_consumers"] == then


async def test_the_consumers_of_an_account_are_its_owners_to_limit(tmp_path: Path) -> None:
    config = tmp_path / "limited.conf"
    account = {"jetstream": {"max_consumers": 70}, "users": [{"user": "u", "password": "p"}]}
    config.write_text(json.dumps({"accounts": {"A": account}, "no_auth_user": "u"}), encoding="utf-8")
    async with (
        running_server(arguments=["-c", str(config)]) as server,
        connected(server) as connection,
        raw(server) as user,
    ):
        for created in (True, False):
            assert await Bucket(connection, SLICES).ensure(create=True) is created
            assert (await _config(user, "slices"))["max_consumers"] == -1


@pytest.mark.parametrize("layout", [SLICES, NODES], ids=lambda layout: layout.name)
async def test_ttls_work_in_a_bucket_made_with_a_history(server: NatsServer, layout: Layout) -> None:
    """With a history the server would lift every TTL to that of its markers, and leases would last for minutes."""
    async with connected(server) as connection, raw(server) as user:
        await user.client.jetstream().create_key_value(bucket=layout.name, history=5)
        bucket = Bucket(connection, layout)
        try:
            await bucket.ensure(create=False)
        except Unsuitable as refused:
            assert "max_msgs_per_subject" in str(refused)  # noqa: PT017  # either is right
            return
        await bucket.put(LEASE, b"{}", ttl=1.0)

        async def expired() -> bool:
            stored = await bucket.read(LEASE)
            return stored is None or stored.payload is None

        await eventually(expired, 20)


async def test_a_longer_history_of_blueprints_is_left_alone(server: NatsServer) -> None:
    async with connected(server) as connection, raw(server) as user:
        await user.client.jetstream().create_key_value(bucket="blueprints", history=30)
        await Bucket(connection, BLUEPRINTS).ensure(create=True)
        assert (await _config(user, "blueprints"))["max_msgs_per_subject"] == 30


async def test_a_missing_bucket_is_an_error_that_says_what_to_do(server: NatsServer) -> None:
    async with connected(server, "east") as connection, raw(server) as user:
        with pytest.raises(BucketMissing, match=r"east_slices .*cdm init"):
            await Bucket(connection, SLICES).ensure(create=False)
        with pytest.raises(nats.js.errors.BucketNotFoundError):
            await user.client.jetstream().key_value("east_slices")


async def test_of_several_who_make_a_bucket_at_the_same_time_one_makes_it(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []
    moments = count(time.time_ns(), 10**6)  # what each would begin to number at
    monkeypatch.setattr("cdm.store.configuration.time.time_ns", lambda: next(moments))

    async def make(connection: Connection) -> None:
        made.append(await Bucket(connection, SLICES).ensure(create=True))

    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        connections = [await stack.enter_async_context(connected(server)) for _ in range(5)]
        for connection in connections:
            tasks.start_soon(make, connection)
    assert sorted(made) == [False, False, False, False, True]


async def test_a_node_that_may_not_create_buckets_says_so(server: NatsServer) -> None:
    settings = NodeSettings(N1, Access(servers=(server.url,)), create=False, runtime=EXTERNAL)
    with pytest.raises(BucketMissing, match="cdm init"), bounded():
        async with make_node(settings):
            pass


async def test_a_stream_that_is_something_else_is_unsuitable(server: NatsServer) -> None:
    async with connected(server) as connection, raw(server) as user:
        body = {"name": "KV_slices", "subjects": ["$KV.slices.>"], "retention": "limits", "mirror_direct": False}
        await user.api("STREAM.CREATE.KV_slices", body | {"sealed": False, "storage": "memory", "max_age": 10**9})
        await user.api("STREAM.UPDATE.KV_slices", body | {"storage": "memory", "max_age": 10**9, "sealed": True})
        with pytest.raises(Unsuitable, match="slices"):
            await Bucket(connection, SLICES).ensure(create=True)


async def test_prefixes_are_part_of_names(server: NatsServer) -> None:
    async with connected(server, "east") as connection, raw(server) as user:
        bucket = Bucket(connection, SLICES)
        await bucket.ensure(create=True)
        await bucket.put(LEASE, b"{}")
        store = await user.client.jetstream().key_value("east_slices")
        assert (await store.get("_leader")).value == b"{}"
        assert connection.subject("cdm", "leader", 7) == "east.cdm.leader.7"


async def test_replicas_that_cannot_be_are_refused(server: NatsServer) -> None:
    """One server takes no three replicas; nothing is made, and it is said in one line."""
    async with connected(server) as connection, raw(server) as user:
        with pytest.raises(StoreError, match="replicas"):
            await Bucket(connection, SLICES).ensure(create=True, replicas=3)
        with pytest.raises(nats.js.errors.BucketNotFoundError):
            await user.client.jetstream().key_value("slices")


async def test_a_start_with_impossible_replicas_ends_soon(server: NatsServer) -> None:
    async with connected(server) as connection:
        with bounded(), pytest.raises(Unsuitable, match="replicas"):
            await ensure(Bucket(connection, SLICES), create=True, replicas=3)


async def test_a_start_is_patient_with_a_server_that_comes_back(server: NatsServer) -> None:
    async with connected(server) as connection:
        bucket = Bucket(connection, SLICES)
        server.kill()
        async with anyio.create_task_group() as tasks:

            async def make() -> None:
                assert await ensure(bucket, create=True, replicas=1)

            tasks.start_soon(make)
            await anyio.sleep(0.3)
            await server.start()
            await eventually(lambda: connection.is_up)
        assert (await bucket.state()).created


async def test_a_bucket_that_is_made_anew_numbers_on(server: NatsServer) -> None:
    """A fence of the stream before must not hold in the new one."""
    async with connected(server) as connection:
        bucket = Bucket(connection, SLICES)
        await bucket.ensure(create=True)
        fence = await bucket.put(FENCE, dump(Fence(1)), expect=0)
        await connection.api(f"STREAM.DELETE.{bucket.stream}")
        await bucket.ensure(create=True)
        assert await bucket.put(FENCE, dump(Fence(1)), expect=0) > fence


@pytest.mark.parametrize("layout", [SLICES, NODES, STATUS], ids=lambda layout: layout.name)
async def test_a_bucket_of_an_earlier_version_is_changed_over(server: NatsServer, layout: Layout) -> None:
    """Markers that it holds still end, what is there stays, and what has a TTL ends without a marker from then on."""
    async with connected(server) as connection, raw(server) as user:
        await user.make(layout.name, before=True)
        bucket = Bucket(connection, layout)
        await bucket.put(LEASE, b"{}", ttl=12.0)  # what ended before the change would leave a marker of a quarter hour
        kept = await user.put(layout.name, "n1", {})
        await user.put(layout.name, "n2", b"", {"KV-Operation": "DEL", "Nats-TTL": "12s"})
        assert (await bucket.state()).rolls_up
        assert await bucket.change_over() is True
        assert await bucket.change_over() is False
        state = await bucket.state()
        assert not state.rolls_up
        assert not state.lacks

        async def ended() -> bool:
            return await bucket.subjects(bucket.all_subjects) == {bucket.subject("n1")}

        await eventually(ended, 20, "leases end, and markers that were put with a TTL")
        assert (await user.contents(layout.name))["n1"].sequence == kept
        await bucket.ensure(create=True)
        assert not (await bucket.state()).rolls_up


async def test_blueprints_can_still_be_purged(server: NatsServer) -> None:
    async with connected(server) as connection, raw(server) as user:
        bucket = Bucket(connection, BLUEPRINTS)
        await bucket.ensure(create=True)
        assert await user.takes_roll_ups("blueprints")
        assert not (await bucket.state()).rolls_up, "nothing is to be changed"
        assert await bucket.change_over() is False
