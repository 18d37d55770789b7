"""The connection and the buckets on a real server: what is asked for, what is refused, and in which words."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, suppress
from itertools import count
from typing import Any

import anyio
import anyio.lowlevel
import nats
import pytest

from cdm.errors import (
    AccessDenied,
    BucketMissing,
    Conflict,
    NoResponders,
    StoreBusy,
    StoreError,
    Uncertain,
    Unreachable,
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
from cdm.store.connection import Access, Connection, connect
from cdm.store.responder import Identity, Responder
from cdm.store.wire import dump
from tests.harness.servers import FORGIVEN, NatsServer, free_port, running_cluster, running_server
from tests.harness.store import connected
from tests.harness.waiting import bounded, eventually
from tests.harness.wire import ANSWER, EXPECT, EXPECT_SUBJECT, Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

ONE = Artifact("org.example", "one", "1.0.0")
N1 = NodeId("n1")
SECRET = "s3cr3t"


# The connection


@pytest.mark.quick
async def test_a_server_without_jetstream_is_refused(tmp_path: Any) -> None:
    async with running_server(jetstream=False) as plain, connected(plain) as connection:
        began = time.monotonic()
        with pytest.raises(Unsuitable) as refused:
            await connection.check_server()
        assert time.monotonic() - began < 2
        text = str(refused.value)
        assert "\n" not in text
        assert "JetStream" in text
        assert "-js" in text
        assert plain.url in text


async def test_a_suitable_server_passes(server: NatsServer) -> None:
    async with connected(server) as connection:
        await connection.check_server()
        assert connection.is_up
        assert connection.max_payload >= 1024 * 1024


async def test_an_old_server_is_refused(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(server) as connection:
        for version in ("2.11.9", "2.9.0-beta.1", "1.4.1"):
            monkeypatch.setitem(connection._client._server_info, "version", version)
            with pytest.raises(Unsuitable, match=r"too old; cdm needs 2\.12\.0") as refused:
                await connection.check_server()
            assert version in str(refused.value)
        for version in ("2.12.0", "2.12.0-preview.2", "3.0.0"):
            monkeypatch.setitem(connection._client._server_info, "version", version)
            await connection.check_server()


@pytest.mark.quick
async def test_nobody_listens() -> None:
    url = f"nats://me:{SECRET}@127.0.0.1:{free_port()}"
    began = time.monotonic()
    with pytest.raises(Unreachable) as refused:
        async with connect(Access(servers=(url,)), name="test", timeout=0.7):
            pass
    assert 0.5 < time.monotonic() - began < 3
    text = str(refused.value)
    assert "127.0.0.1" in text
    assert "0.7 s" in text
    assert "--server" in text
    assert "NATS_URL" in text
    assert SECRET not in text


async def test_somebody_who_is_no_nats_server_listens() -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener:
        with pytest.raises(Unreachable), bounded():
            async with connect(Access(servers=(f"nats://127.0.0.1:{port}",)), name="test", timeout=1):
                pass


async def test_a_hung_server_is_unreachable_in_time(server: NatsServer) -> None:
    server.pause()
    try:
        with pytest.raises(Unreachable), bounded():
            async with connect(Access(servers=(server.url,)), name="test", timeout=1.5):
                pass
    finally:
        server.resume()


async def test_a_server_that_comes_late_is_waited_for(server: NatsServer) -> None:
    server.kill()
    async with anyio.create_task_group() as tasks:
        done = anyio.Event()

        async def late() -> None:
            async with connect(Access(servers=(server.url,)), name="test", timeout=None) as connection:
                await connection.check_server()
                done.set()

        tasks.start_soon(late)
        await anyio.sleep(0.5)
        assert not done.is_set()
        await server.start()
        with bounded():
            await done.wait()


@pytest.mark.parametrize("timeout", [3.0, None])
async def test_wrong_credentials_are_refused_at_once(timeout: float | None) -> None:
    async with running_server(arguments=["--user", "me", "--pass", SECRET]) as closed:
        good = Access(servers=(closed.url,), user="me", password=SECRET)
        async with connect(good, name="test") as connection:
            await connection.check_server()
        inline = Access(servers=(closed.url.replace("//", f"//me:{SECRET}@"),))
        async with connect(inline, name="test") as connection:
            assert SECRET not in connection.access.shown
        for bad in (
            Access(servers=(closed.url,)),
            Access(servers=(closed.url,), user="me", password=f"{SECRET}x"),
            Access(servers=(closed.url.replace("//", f"//me:{SECRET}x@"),)),
            Access(servers=(closed.url,), token=f"{SECRET}x"),
        ):
            with pytest.raises(AccessDenied) as refused, bounded():
                async with connect(bad, name="test", timeout=timeout):
                    pass
            assert SECRET not in str(refused.value)
            assert SECRET not in repr(refused.value)
            assert SECRET not in repr(bad)
            assert "127.0.0.1" in str(refused.value)


AWKWARD = "pa/s#w?o,r[d]%41@:ü"
ENCODED = "pa%2Fs%23w%3Fo%2Cr%5Bd%5D%2541%40%3A%C3%BC"


async def test_who_one_is_in_the_address_may_be_percent_encoded() -> None:
    """Each server is told its own user, or token, decoded."""
    async with (
        running_server(arguments=["--user", "me@home", "--pass", AWKWARD]) as one,
        running_server(arguments=["--auth", AWKWARD]) as two,
    ):
        first = one.url.replace("//", f"//me%40home:{ENCODED}@")
        second = two.url.replace("//", f"//{ENCODED}@")
        for servers, who in (((first, second), "user me@home"), ((second,), "token"), ((second[7:],), "token")):
            for server in servers:
                async with connect(Access((server,)), name="test") as connection:
                    await connection.check_server()
            assert Access(servers).who == who
        access = Access((first, second))
        assert access.shown == f"{one.url}, {two.url}"
        async with connect(access, name="test") as connection:
            for down in (one, two, one):
                down.kill()
                await eventually(lambda: _answered(connection), 20)
                await down.start()
        with pytest.raises(AccessDenied, match=r"refused the credentials .*user me@home\)"):
            async with connect(Access((first.replace("%23", "%24"),)), name="test"):
                pass


async def _answered(connection: Connection) -> bool:
    try:
        await connection.check_server()
    except StoreError:
        return False
    return True


async def test_secrets_are_never_shown() -> None:
    access = Access(
        servers=(
            f"nats://me:{SECRET}@one:4222",
            f"{SECRET}@two:4222",
            f"tls://{SECRET}@three",
            f"nats://me:1/{SECRET}#{SECRET}[{SECRET}@four",
        ),
        user="me",
        password=SECRET,
        token=SECRET,
    )
    for text in (repr(access), str(access), access.shown, f"{access}", f"{[access]}"):
        assert SECRET not in text
        assert "one:4222" in text
        assert "two:4222" in text
        assert "three" in text
        assert "nats://four" in text
    assert SECRET not in repr(NodeSettings(N1, access))


async def test_nothing_is_kept_for_later(server: NatsServer) -> None:
    """What is sent while disconnected is refused at once, and not delivered minutes late."""
    async with connected(server) as connection:
        bucket = Bucket(connection, SLICES)
        await bucket.ensure(create=True)
        server.kill()
        await eventually(lambda: not connection.is_up)
        began = time.monotonic()
        with pytest.raises(Unreachable):
            await bucket.put(SliceKey(N1, ONE), b"{}")
        with pytest.raises(Unreachable):
            await connection.publish("x")
        assert time.monotonic() - began < 2
        await server.start()
        await eventually(lambda: connection.is_up)
        assert await bucket.read(SliceKey(N1, ONE)) is None


async def test_a_request_that_hangs_is_uncertain(server: NatsServer) -> None:
    async with connected(server) as connection:
        bucket = Bucket(connection, SLICES)
        await bucket.ensure(create=True)
        server.pause()
        began = time.monotonic()
        with pytest.raises(Uncertain):
            await bucket.put(SliceKey(N1, ONE), b"{}", timeout=0.4)
        assert time.monotonic() - began < 2
        server.resume()


async def test_a_request_ends_with_its_connection(server: NatsServer) -> None:
    """An answer can only come on the connection that is gone: the time-out is not waited for."""
    async with connected(server) as connection, raw(server) as user:

        async def silent(message: Any) -> None:
            pass

        await user.client.subscribe("black.hole", cb=silent)
        for _ in range(2):  # the client's first ping may overtake the subscription
            await user.client.flush()
        async with anyio.create_task_group() as tasks:

            async def soon() -> None:
                await anyio.sleep(0.2)
                server.kill()

            tasks.start_soon(soon)
            began = time.monotonic()
            with pytest.raises((Uncertain, Unreachable)):
                await connection.request("black.hole", timeout=10)
            assert time.monotonic() - began < 9


async def test_what_nobody_heard_is_asked_again_soon(server: NatsServer) -> None:
    """As servers do that are about to elect a leader: one of them answers later what is asked later."""
    async with connected(server) as connection, raw(server) as user:
        asked = 0

        async def drop_the_first_two(message: Any) -> None:
            nonlocal asked
            asked += 1
            if asked > 2:
                await message.respond(b'{"late": true}')

        await user.client.subscribe("$JS.API.CDM.TEST", cb=drop_the_first_two)
        for _ in range(2):  # the client's first ping may overtake the subscription
            await user.client.flush()
        began = time.monotonic()
        assert await connection.api_retried("CDM.TEST") == {"late": True}
        assert time.monotonic() - began < 4.5  # the time-out of one request is 5 s
        asked = -100
        with pytest.raises(Uncertain):
            await connection.api_retried("CDM.TEST")


async def test_a_hung_server_is_left_though_much_was_to_be_sent_to_it() -> None:
    """A leader's commands, for example: what the server does not take must not be waited for."""
    async with (
        running_server() as first,
        running_server() as second,
        connect(Access((first.url, second.url)), name="test") as connection,
    ):
        at = connection._client.connected_url
        assert at is not None
        hung = next(server for server in (first, second) if server.url.endswith(f":{at.port}"))
        hung.pause()
        with suppress(Unreachable), anyio.move_on_after(20):
            while True:
                await connection.send_frames(b"PUB x 1000000\r\n" + b"x" * 1_000_000 + b"\r\n")
        await eventually(lambda: connection.is_up and connection._client.connected_url != at, 15, "another is found")
        await connection.api("INFO")
        hung.resume()


async def test_a_pong_that_nobody_waits_for_any_more_ends_nothing(server: NatsServer) -> None:
    async with connected(server) as connection:
        changes: list[bool] = []
        connection.listen(changes.append)
        server.pause()
        with anyio.move_on_after(0.3):
            await connection.flush()
        server.resume()
        await anyio.sleep(4)  # a connection that is read no more would be given up
        await connection.api("INFO")
        assert changes == []


async def test_waiting_for_the_server_ends_with_the_connection(server: NatsServer) -> None:
    async with connected(server) as connection:
        server.pause()
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:

            async def soon() -> None:
                await anyio.sleep(0.2)
                server.kill()

            tasks.start_soon(soon)
            with pytest.raises((Uncertain, Unreachable)):
                await connection.flush()
        assert time.monotonic() - began < 4
        with pytest.raises(Unreachable):
            await connection.flush()


async def test_user_and_password_of_an_address_are_good_for_servers_that_it_tells_of() -> None:
    async with running_cluster(login=("me", "p/w")) as servers:
        address = servers[0].url.replace("nats://", "nats://me:p%2Fw@")
        async with connect(Access((address,)), name="test") as connection:
            pool = connection._client._server_pool
            await eventually(lambda: len(pool) == 3)
            places = set()
            for _ in range(4):  # what it is told again it knows
                up_since = connection.up_since
                await connection.leave_server()
                await eventually(lambda: connection.up_since not in (None, up_since), 10, "each server lets it in")  # noqa: B023
                places.add(connection._client._current_server.uri.port)  # type: ignore[union-attr]
            assert len(places) == len(pool) == 3
            servers[0].kill()
            await eventually(lambda: _answers(connection), 30)


async def _answers(connection: Connection) -> bool:
    try:
        await connection.api("INFO", timeout=1)
    except StoreError:
        return False
    return True


async def test_no_responders_are_told_at_once(server: NatsServer) -> None:
    async with connected(server) as connection:
        began = time.monotonic()
        with pytest.raises(NoResponders):
            await connection.request("nobody.there", timeout=60)
        assert time.monotonic() - began < 10


async def test_a_closed_connection_is_closed_even_when_cancelled(server: NatsServer) -> None:
    """Whoever is cancelled must not go on answering for a process that is gone."""
    async with raw(server) as user:
        with anyio.CancelScope() as scope:
            async with connected(server) as connection:
                responder = await Responder.start(connection, "voice", Identity("n1", "a"))
                assert responder
                assert (await user.client.request("voice", b"", timeout=ANSWER)).data
                scope.cancel()
                await anyio.lowlevel.checkpoint()
        await eventually(lambda: _silent(user))


async def _silent(user: Raw) -> bool:
    try:
        await user.client.request("voice", b"", timeout=0.2)
    except nats.errors.NoRespondersError:
        return True
    except nats.errors.TimeoutError:
        return False  # the server has not seen yet that the socket is closed
    return False


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
        bucket, key = Bucket(connection, NODES), NodeKey(N1)
        await bucket.ensure(create=True)
        store = await user.client.jetstream().key_value("nodes")
        for operation in (store.delete, store.purge):
            await store.put("n1", b"{}")
            await operation("n1")
            stored = await bucket.read(key)
            assert stored is not None
            assert stored.payload is None


async def test_a_ttl_ends_in_a_marker(server: NatsServer) -> None:
    async with connected(server) as connection:
        bucket, key = Bucket(connection, NODES), NodeKey(N1)
        await bucket.ensure(create=True)
        revision = await bucket.put(key, b"{}", ttl=1.0)
        for _ in range(2):  # kept alive
            await anyio.sleep(0.7)
            revision = await bucket.put(key, b"{}", expect=revision, ttl=1.0)

        async def expired() -> int:
            stored = await bucket.read(key)
            assert stored is not None
            return stored.revision if stored.payload is None else 0

        began = time.monotonic()
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
        revision = await bucket.put(LEASE, b"{}", ttl=1.0)
        assert await bucket.batch([Write("n2", b"{}"), Write("n3", b"{}")]) == revision + 2

        async def expired() -> bool:
            stored = await bucket.read(LEASE)
            return stored is not None and stored.payload is None and stored.revision > revision

        if layout.expires:
            await eventually(expired, 20, "its TTLs end in markers")
        before = await _config(user, layout.name)
        assert await bucket.ensure(create=False) is False
        assert await _config(user, layout.name) == before


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
            return stored is not None and stored.payload is None

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
    """A fence of the stream before must not hold in the new one (I1)."""
    async with connected(server) as connection:
        bucket = Bucket(connection, SLICES)
        await bucket.ensure(create=True)
        fence = await bucket.put(FENCE, dump(Fence(1)), expect=0)
        await connection.api(f"STREAM.DELETE.{bucket.stream}")
        await bucket.ensure(create=True)
        assert await bucket.put(FENCE, dump(Fence(1)), expect=0) > fence
