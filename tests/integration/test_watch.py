"""The watch follows a real bucket and never loses its place."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import anyio
import nats.errors
import pytest

from cdm import clock
from cdm.dispatch.messages import (
    Cause,
    KeyRejected,
    Message,
    RejectedKeyRemoved,
    ValuePut,
    ValueRejected,
    ValueRemove,
)
from cdm.errors import StoreError, Uncertain
from cdm.model.blueprint import Blueprint
from cdm.model.keys import BLUEPRINTS, NODES, SLICES, STATUS, Layout, encode
from cdm.model.node import HEARING_PACE
from cdm.store import intake as intake_module
from cdm.store import link as link_module
from cdm.store import watch as watch_module
from cdm.store.backpressure import Backpressure
from cdm.store.bucket import Bucket
from cdm.store.configuration import created
from cdm.store.connection import REQUEST_TIMEOUT
from cdm.store.watch import Hearing, Phase, Watch
from cdm.store.wire import StreamState
from tests.harness.servers import FORGIVEN, NatsServer, running_cluster
from tests.harness.store import Mirror, Watching, connected, watching
from tests.harness.waiting import bounded, eventually
from tests.harness.wire import Raw, Rejection, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

KEY = "org.example/one/1.0.0"
EACH = Hearing(of_each_node=True)


def slice_value(term: int = 1, state: str = "LOAD") -> dict[str, Any]:
    return {"state": state, "term": term}


@pytest.fixture
def quick_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers that are lost are missed sooner."""
    monkeypatch.setattr(watch_module, "HEARTBEAT", 0.5)


@pytest.fixture
def patient_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stands still for some seconds is not left."""
    monkeypatch.setattr(link_module, "PING_INTERVAL", 30)


@asynccontextmanager
async def between_sessions(watch: Watch) -> AsyncIterator[None]:
    """The watch's next session begins when the block is over."""
    session, gate = watch._run_session, anyio.Event()

    async def gated() -> str:
        await gate.wait()
        return await session()

    watch._run_session = gated  # type: ignore[method-assign]
    yield
    gate.set()


def consumer_of(watch: Watch) -> str:
    """The name of the watch's consumer; empty while it has none."""
    return watch._consumer.name if watch._consumer else ""


async def renewed(watch: Watch, before: str) -> None:
    """Wait until the watch has another consumer than the one before."""
    await eventually(lambda: consumer_of(watch) != before and watch.phase is Phase.LIVE)


async def listed_again(watch: Watch) -> None:
    """Let the watch list everything again."""
    before = consumer_of(watch)
    watch.relist()
    await renewed(watch, before)


@pytest.mark.quick
async def test_snapshot_then_live(server: NatsServer) -> None:
    async with raw(server) as user, connected(server) as connection:
        await Bucket(connection, SLICES).ensure(create=True)
        await user.put("slices", f"n1.{KEY}", slice_value())
        await user.put("slices", f"n2.{KEY}", slice_value())
        await user.put("slices", f"n2.{KEY}", slice_value(2))
        await user.delete("slices", f"n1.{KEY}")
        async with watching(server, SLICES) as watched:
            assert watched.mirror.names(ValuePut) == [f"n2.{KEY}"]
            assert watched.mirror.live == [True]
            revision = await user.put("slices", f"n3.{KEY}/1", slice_value(3))
            await watched.watch.caught_up()
            assert watched.mirror.values[f"n3.{KEY}/1"] == ("good", revision)
            await user.delete("slices", f"n2.{KEY}")
            await watched.watch.caught_up()
            last = watched.mirror.heard[-1]
            assert isinstance(last, ValueRemove)
            assert last.cause is Cause.DELETED
            assert await watched.equals(user)


async def test_an_empty_bucket_is_complete_at_once(server: NatsServer) -> None:
    async with watching(server, SLICES) as watched:
        assert watched.watch.phase is Phase.LIVE
        assert watched.mirror.live == [True]
        assert not watched.mirror.heard
        with bounded(5):  # nothing comes that could be waited for
            await watched.watch.caught_up()


async def test_a_bucket_of_nothing_but_tombstones_is_complete(server: NatsServer) -> None:
    async with raw(server) as user, connected(server) as connection:
        await Bucket(connection, SLICES).ensure(create=True)
        for number in range(5):
            await user.put("slices", f"n{number}.{KEY}", slice_value())
            await user.delete("slices", f"n{number}.{KEY}")
        async with watching(server, SLICES) as watched:
            assert watched.mirror.live == [True]
            assert not watched.mirror.heard


async def test_what_does_not_decode_is_told_and_so_is_its_end(server: NatsServer) -> None:
    async with raw(server) as user, watching(server, BLUEPRINTS) as watched:
        await user.put("blueprints", "no-artifact", b"3")
        await user.put("blueprints", KEY, b"many")
        await user.put("blueprints", "org.example/two/1", b"\xff\xfe")
        await user.put("blueprints", "org.example/=C3/1", b"1")
        await watched.watch.caught_up()
        assert {name: kind for name, (kind, _) in watched.mirror.values.items()} == {
            "no-artifact": "key",
            KEY: "value",
            "org.example/two/1": "value",
            "org.example/=C3/1": "key",
        }
        rejected = [message for message in watched.mirror.heard if isinstance(message, (KeyRejected, ValueRejected))]
        assert all(message.reason for message in rejected)
        for name in list(watched.mirror.values):
            await user.delete("blueprints", name)
        await watched.watch.caught_up()
        assert not watched.mirror.values
        kinds = [type(message) for message in watched.mirror.heard[4:]]
        assert kinds.count(RejectedKeyRemoved) == 2
        assert kinds.count(ValueRemove) == 2


@pytest.mark.usefixtures("patient_pings")
async def test_keys_that_only_a_program_of_ones_own_can_write_are_left_alone(server: NatsServer) -> None:
    """The server takes nearly every byte in a subject; what the client makes of it must not cost the connection."""
    odd = [b"n1.a/b/1\x0b", b"n1.a/b\x0c/1", b"n1.a\x1c", b"n1.\xff", b"n1.\x00"]
    async with raw(server) as user, watching(server, SLICES) as watched:
        connection = watched.watch.bucket.connection
        up_since = connection.up_since
        await connection.send_frames(b"".join(b"PUB $KV.slices." + key + b" 1\r\n7\r\n" for key in odd))
        revision = await user.put("slices", f"n1.{KEY}", slice_value())
        await watched.watch.caught_up()
        assert watched.mirror.values.pop(f"n1.{KEY}") == ("good", revision)
        assert [kind for kind, _ in watched.mirror.values.values()] == ["key"] * len(odd)
        assert connection.up_since == up_since


async def test_a_session_that_ends_while_it_catches_up_tells_nothing_twice(server: NatsServer) -> None:
    async with raw(server) as user, watching(server, SLICES) as watched:
        watch, mirror = watched.watch, watched.mirror
        listen = watch._mirror._emit

        def end_after_three(message: Message) -> None:
            listen(message)
            if len(mirror.values) == 3:
                watch._end("of the test, again")

        async with between_sessions(watch):
            watch._end("of the test")
            for number in range(6):
                await user.put("slices", f"n1.{KEY}/{number + 1}", slice_value())
            watch._mirror._emit = end_after_three
        await eventually(lambda: len(mirror.values) == 6, 5)
        await watch.caught_up()
        assert len(mirror.heard) == 6
        assert await watched.equals(user)


@pytest.mark.quick
async def test_expiry_is_told_as_such(server: NatsServer) -> None:
    async with raw(server) as user, watching(server, NODES) as watched:
        await user.put("nodes", "n1", {"ttl": 10}, {"Nats-TTL": "10s"})
        await eventually(lambda: "n1" in watched.mirror.values)
        await eventually(lambda: "n1" not in watched.mirror.values, 20)
        last = watched.mirror.heard[-1]
        assert isinstance(last, ValueRemove)
        assert last.cause is Cause.EXPIRED
        await watched.watch.caught_up()


@pytest.mark.parametrize("before", [False, True])
async def test_how_a_node_went_is_told_to_those_who_never_knew_it(server: NatsServer, before: bool) -> None:
    """Whoever lists `nodes` afterwards sees by the marker that it left; that it was not heard any more, in old ones."""
    async with raw(server) as user:
        await user.make("nodes", before=before)
        for name in ("left", "purged", "back", "here", "not.a.node"):
            await user.put("nodes", name, {})
        for name in ("left", "back", "not.a.node"):
            await user.delete("nodes", name)
        await user.put("nodes", "purged", b"", {"KV-Operation": "PURGE"})
        await user.put("nodes", "back", {})
        await user.put("nodes", "expired", {"ttl": 1}, {"Nats-TTL": "1s"})
        await eventually(lambda: _expired(user, "expired"), 20)
        async with watching(server, NODES) as watched:
            assert set(watched.mirror.values) == {"back", "here"}
            removes = [message for message in watched.mirror.heard if isinstance(message, ValueRemove)]
            told = {encode(remove.key): remove.cause for remove in removes}
            expired = {"expired": Cause.EXPIRED} if before else {}
            assert told == {"left": Cause.DELETED, "purged": Cause.DELETED, **expired}


async def _expired(user: Raw, name: str) -> bool:
    return name not in await user.registrations()


async def test_a_purged_key_is_deleted(server: NatsServer) -> None:
    """``nats kv purge`` rolls a key up into its marker, where the bucket lets it."""
    async with raw(server) as user:
        await user.make("slices", before=True)
    async with raw(server) as user, watching(server, SLICES) as watched:
        await user.put("slices", f"n1.{KEY}", slice_value())
        await watched.watch.caught_up()  # a bucket keeps one value a key: what is replaced may never be delivered
        await user.put("slices", f"n1.{KEY}", b"", {"KV-Operation": "PURGE", "Nats-Rollup": "sub"})
        await watched.watch.caught_up()
        last = watched.mirror.heard[-1]
        assert isinstance(last, ValueRemove)
        assert last.cause is Cause.DELETED


@pytest.mark.usefixtures("quick_heartbeats")
@pytest.mark.quick
async def test_a_lost_consumer_is_replaced(server: NatsServer) -> None:
    async with raw(server) as user, watching(server, SLICES) as watched:
        await user.put("slices", f"n1.{KEY}", slice_value())
        await watched.watch.caught_up()
        await user.api(f"CONSUMER.DELETE.KV_slices.{consumer_of(watched.watch)}")
        await user.put("slices", f"n2.{KEY}", slice_value())
        await user.delete("slices", f"n1.{KEY}")
        await eventually(lambda: set(watched.mirror.values) == {f"n2.{KEY}"}, 10)
        assert watched.mirror.names(ValuePut) == [f"n1.{KEY}", f"n2.{KEY}"], "nothing is told twice"


@pytest.mark.usefixtures("quick_heartbeats", "patient_pings")
async def test_a_consumer_with_rare_heartbeats_is_missed_when_one_is_late_and_at_once_with_its_connection(
    server: NatsServer,
) -> None:
    async with (
        raw(server) as user,
        watching(server, SLICES, keys="n1.>", hearing=Hearing(1.0, 1.0)) as soon,
        watching(server, SLICES, keys="n1.>", hearing=Hearing(600.0, 600.0)) as late,
    ):
        for each in (soon, late):
            await each.watch.caught_up()
            await user.api(f"CONSUMER.DELETE.KV_slices.{consumer_of(each.watch)}")
        await user.put("slices", f"n1.{KEY}", slice_value())
        await eventually(lambda: set(soon.mirror.values) == {f"n1.{KEY}"})
        assert late.watch.phase is Phase.LIVE
        assert not late.mirror.values, "nothing has shown it that its consumer is gone"
        late.connection._client._transport.close()  # type: ignore[union-attr]
        await eventually(lambda: set(late.mirror.values) == {f"n1.{KEY}"})


async def test_heartbeats_may_be_rare_where_a_consumer_is_lost_with_the_connection_only(server: NatsServer) -> None:
    hearing = Hearing(clustered=4.0, alone=9.0)
    async with raw(server) as user, watching(server, SLICES, hearing=hearing) as watched:
        assert await _heartbeat(user, watched.watch) == 9.0
    async with (
        running_cluster() as servers,
        raw(servers) as user,
        watching(servers[0], SLICES, hearing=hearing) as watched,
    ):
        assert await _heartbeat(user, watched.watch) == 4.0


async def _heartbeat(user: Raw, watch: Watch) -> float:
    """Seconds of silence after which the watch's consumer sends one."""
    info = await user.api(f"CONSUMER.INFO.KV_slices.{consumer_of(watch)}")
    return float(info["config"]["idle_heartbeat"] / 1e9)


async def test_consumers_do_not_pile_up(server: NatsServer) -> None:
    async with raw(server) as user, watching(server, SLICES) as watched:
        seen = set()
        for _ in range(30):
            seen.add(consumer_of(watched.watch))
            await listed_again(watched.watch)
        assert len(seen) == 30
        await eventually(lambda: _is(user, 1), what="one consumer is left")
    async with raw(server) as user:
        await eventually(lambda: _is(user, 0), what="none is left after the watch")


async def _is(user: Raw, count: int) -> bool:
    return await user.consumers("slices") == count


async def test_consumers_do_not_pile_up_over_reconnects(server: NatsServer) -> None:
    async with raw(server) as user, watching(server, SLICES) as watched:
        for _ in range(3):
            before = consumer_of(watched.watch)
            watched.connection._client._transport.close()  # type: ignore[union-attr]
            await renewed(watched.watch, before)

        async def few() -> bool:
            return await user.consumers("slices") <= 4

        await eventually(few, 20)
        info = await user.api(f"CONSUMER.INFO.KV_slices.{consumer_of(watched.watch)}")
        assert info["config"]["inactive_threshold"] <= 10e9, "those of lost connections go soon, by themselves"


async def test_a_relist_tells_nothing_again(server: NatsServer) -> None:
    for layout in (SLICES, BLUEPRINTS):
        async with raw(server) as user, watching(server, layout) as watched:
            for number in range(20):
                value = b"many" if number % 5 == 4 else b'{"state":"LOAD"}' if layout is SLICES else b"3"
                name = f"n1.{KEY}/{number + 1}" if layout is SLICES else f"g/n/{number}"
                await user.put(layout.name, name, b"0" if layout is BLUEPRINTS else value)
                await user.put(layout.name, name, value)
            await user.put(layout.name, "what", b"?")
            await user.delete(layout.name, "n1.org.example/one/1.0.0/1" if layout is SLICES else "g/n/0")
            await watched.watch.caught_up()
            told = len(watched.mirror.heard)
            await listed_again(watched.watch)
            await watched.watch.caught_up()
            assert watched.mirror.heard[told:] == []
            assert await watched.equals(user)


async def test_a_timed_relist_happens_and_tells_nothing(server: NatsServer) -> None:
    async with raw(server) as user, watching(server, SLICES, relist_interval=0.3) as watched:
        await user.put("slices", f"n1.{KEY}", slice_value())
        before = consumer_of(watched.watch)
        await eventually(lambda: consumer_of(watched.watch) != before, 5)
        await watched.watch.caught_up()
        assert watched.mirror.names(ValuePut) == [f"n1.{KEY}"]


async def test_what_is_listed_at_the_same_time_is_listed_again_at_different_times(server: NatsServer) -> None:
    """Where NATS was away for long all nodes list at once. In a cluster a consumer is work for all of its servers."""
    interval = 600.0

    def left(watch: Watch) -> float:
        return watch._rereader.relist_due(watch._mirror) - watch._mirror.listed_at

    async with connected(server) as connection:
        await Bucket(connection, SLICES).ensure(create=True)
    async with AsyncExitStack() as stack:
        following = [
            (await stack.enter_async_context(watching(server, SLICES, relist_interval=interval))).watch
            for _ in range(20)
        ]
        for _ in range(2):
            await eventually(lambda: all(watch.phase is Phase.LIVE for watch in following), 30)
            each = sorted(map(left, following))
            assert interval / 2 <= each[0] < each[-1] <= interval * 1.5
            assert each[-1] - each[0] > interval / 4, "they are not all due at once"
            assert interval * 0.6 < sum(each) / len(each) < interval * 1.4, "nor more often than was asked for"
            for watch in following:
                await listed_again(watch)


async def test_many_who_lost_the_connection_make_their_consumers_one_after_the_other(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not those who follow a whole bucket, as managers do: they are few, and all others need them."""
    back: dict[Watch, float] = {}
    following: list[Watch] = []
    async with AsyncExitStack() as stack:
        for number in range(4):
            watch = (await stack.enter_async_context(watching(server, SLICES, keys=f"n{number}.>", hearing=EACH))).watch
            await renewed(watch, "")
            following.append(watch)
        assert (await watch.bucket.state()).consumers == len(following)
        for number, watch in enumerate(following):
            assert watch._crowd.span == 0, "this server is in no cluster"
            watch._crowd.see(StreamState("", 0, 0.0, consumers=int(number / HEARING_PACE)))
            monkeypatch.setattr(watch._crowd, "_random", lambda: 0.5)
            note = partial(back.__setitem__, watch)
            watch.bucket.connection.listen(lambda up, note=note: note(clock.now()) if up else None)  # type: ignore[misc]
        before = [*map(consumer_of, following)]
        await server.restart()
        for watch, name in zip(following, before, strict=True):
            await renewed(watch, name)
        waited = [watch._consumer.made - back[watch] for watch in following if watch._consumer]
        assert len(waited) == len(following)
        for each, least in zip(waited, (0, 0.5, 1.0, 1.5), strict=True):
            assert each >= least


@pytest.mark.usefixtures("quick_heartbeats")
async def test_who_waits_for_a_consumer_for_long_is_told_that_the_mirror_may_be_behind(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where many ask for theirs an answer may take longer than the silence after which a consumer counts as lost."""
    async with raw(server) as user, watching(server, SLICES, keys="n1.>", hearing=Hearing(1.0, 1.0)) as watched:
        await user.put("slices", f"n1.{KEY}", slice_value())
        await watched.watch.caught_up()
        assert watched.mirror.live == [True]
        create, may_go_on = watched.watch._own.create, anyio.Event()

        async def late(*question: Any) -> Any:
            await may_go_on.wait()
            return await create(*question)

        monkeypatch.setattr(watched.watch._own, "create", late)
        watched.watch.relist()
        await eventually(lambda: watched.mirror.live == [True, False], 30)
        may_go_on.set()
        await eventually(lambda: watched.mirror.live == [True, False, True], 30)


async def test_questions_are_put_again_later_where_many_ask(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that has more to do than it can drops some; and what is made for a question put twice is more to do."""
    waited: list[float] = []

    async def unanswered(call: str, body: object = None, timeout: float = 0.0) -> Any:
        waited.append(timeout)
        raise Uncertain("no answer in time")

    async with watching(server, SLICES, keys="n1.>", hearing=EACH) as watched:
        source, connection = watched.watch._own, watched.watch.bucket.connection
        with monkeypatch.context() as patch:
            patch.setattr(connection, "api", unanswered)
            for patience in (1.0, 8.0):
                source.patience = patience
                with pytest.raises(Uncertain):
                    await source.create("cdm-1", "inbox", None, 1.0)
        usual, patient = waited[: len(waited) // 2], waited[len(waited) // 2 :]
        assert len(usual) > 1
        assert patient == [8 * timeout for timeout in usual]
        assert sum(usual) == REQUEST_TIMEOUT


async def test_updates_during_relists_are_told_once(server: NatsServer) -> None:
    async with raw(server) as user, watching(server, BLUEPRINTS, relist_interval=0.05) as watched:
        for number in range(600):
            name = f"g/n/{random.randrange(20)}"
            if number % 7 == 0:
                await user.delete("blueprints", name)
            else:
                await user.put("blueprints", name, b"x" if number % 5 == 0 else str(number).encode())
        await watched.watch.caught_up()
        assert await watched.equals(user)
        revisions = [m.revision for m in watched.mirror.heard if isinstance(m, (ValuePut, ValueRejected))]
        assert len(revisions) == len(set(revisions))


# Blueprint history


async def _fresh(server: NatsServer) -> Mirror:
    """What a watch that starts now would tell."""
    async with watching(server, BLUEPRINTS) as watched:
        return watched.mirror


async def test_the_last_valid_blueprint_is_found_behind_refused_ones(server: NatsServer) -> None:
    async with raw(server) as user, connected(server) as connection:
        await Bucket(connection, BLUEPRINTS).ensure(create=True)
        await user.put("blueprints", KEY, b"1")
        await user.put("blueprints", KEY, b"3")
        for text in (b"x", b"-1", b'{"instance": 4}'):
            await user.put("blueprints", KEY, text)
        mirror = await _fresh(server)
        first, second = mirror.heard
        assert isinstance(first, ValuePut)
        assert first.value == Blueprint(3)
        assert isinstance(second, ValueRejected)
        assert "instance" in second.reason


async def test_deleted_blueprints_do_not_flash_up(server: NatsServer) -> None:
    async with raw(server) as user, connected(server) as connection:
        await Bucket(connection, BLUEPRINTS).ensure(create=True)
        await user.put("blueprints", KEY, b"1")
        await user.delete("blueprints", KEY)
        await user.put("blueprints", "g/n/1", b"1")
        await user.delete("blueprints", "g/n/1")
        await user.put("blueprints", "g/n/1", b"oops")
        mirror = await _fresh(server)
        # That a valid one was deleted may be told, lest it be taken for the one in force.
        assert [type(message) for message in mirror.heard] in ([ValueRejected], [ValueRemove, ValueRejected])
        async with watching(server, BLUEPRINTS) as watched:
            told = len(watched.mirror.heard)
            await listed_again(watched.watch)
            assert len(watched.mirror.heard) == told


@pytest.mark.parametrize("anew", [b"oops", b"5"])
async def test_a_deletion_missed_before_a_relist_is_not_forgotten(server: NatsServer, anew: bytes) -> None:
    """Deleted and put again while nobody watched: a refused one afterwards must not keep the deleted one in force."""
    async with raw(server) as user, connected(server) as connection:
        bucket, mirror = Bucket(connection, BLUEPRINTS), Mirror()
        await bucket.ensure(create=True)
        await user.put("blueprints", KEY, b"3")
        watch = Watch(bucket, mirror)
        await _run_until_caught_up(watch)
        await user.delete("blueprints", KEY)
        await user.put("blueprints", KEY, anew)
        watch.relist()
        await _run_until_caught_up(watch)
        kinds = [type(message) for message in mirror.heard]
        if anew == b"oops":
            assert kinds == [ValuePut, ValueRemove, ValueRejected]
        else:
            assert kinds in ([ValuePut, ValuePut], [ValuePut, ValueRemove, ValuePut])


async def _run_until_caught_up(watch: Watch) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        with bounded():
            await watch.caught_up()
        tasks.cancel_scope.cancel()


# The read barrier


async def test_the_barrier_waits_for_what_was_written_before(server: NatsServer) -> None:
    async with raw(server) as user, watching(server, SLICES) as watched:
        for number in range(50):
            revision = await user.put("slices", f"n1.{KEY}/{number + 1}", slice_value())
            await watched.watch.caught_up()
            assert watched.mirror.revisions[f"n1.{KEY}/{number + 1}"] == revision


async def test_the_barrier_passes_where_the_last_message_vanished(server: NatsServer) -> None:
    """Markers expire without a trace: then the stream's last sequence is never delivered."""
    async with raw(server) as user, connected(server) as connection:
        bucket = Bucket(connection, NODES)
        await bucket.ensure(create=True)
        await user.put("nodes", "n1", {})
        await _vanish(user, "n2")
        async with watching(server, NODES) as watched:
            with bounded():
                await watched.watch.caught_up()
            assert set(watched.mirror.values) == {"n1"}
            assert watched.mirror.names(ValuePut) == ["n1"]


@pytest.mark.usefixtures("quick_heartbeats")
async def test_the_barrier_passes_where_the_last_message_vanished_behind_a_live_watch(server: NatsServer) -> None:
    async with raw(server) as user, watching(server, NODES) as watched:
        await user.put("nodes", "n1", {})
        await watched.watch.caught_up()
        await user.api(f"CONSUMER.DELETE.KV_nodes.{consumer_of(watched.watch)}")
        await _vanish(user, "n2")
        with bounded(15):
            await _patiently(watched.watch)
        assert await watched.equals(user)


async def _vanish(user: Raw, key: str) -> None:
    """Put a key that is gone again without a marker."""
    await user.put("nodes", key, {})
    await user.api("STREAM.PURGE.KV_nodes", {"filter": f"$KV.nodes.{key}"})


async def _patiently(watch: Watch) -> None:
    """The barrier, as a new leader waits for it."""
    while True:
        try:
            await watch.caught_up()
            return
        except StoreError:
            await anyio.sleep(0.1)


# Harder times


@asynccontextmanager
async def set_back(server: NatsServer) -> AsyncIterator[None]:
    """At the end of the ``with`` block the server is stopped, and its store is what it was at the beginning."""
    store, backup = server.folder / "store", server.folder / "backup"
    server.stop()
    await anyio.run_process(["cp", "-a", str(store), str(backup)])
    await server.start()
    yield
    server.stop()
    await anyio.run_process(["rm", "-r", str(store)])
    await anyio.run_process(["mv", str(backup), str(store)])


@asynccontextmanager
async def elsewhere(server: NatsServer) -> AsyncIterator[Raw]:
    """Somebody who writes to the store of a server that is stopped, where nobody else sees it."""
    other = NatsServer(server.folder)
    try:
        await other.start()
        async with raw(other) as user:
            yield user
    finally:
        other.stop()


@pytest.mark.parametrize("layout_name", ["slices", "blueprints"])
async def test_a_server_killed_under_load(server: NatsServer, layout_name: str) -> None:
    layout = SLICES if layout_name == "slices" else BLUEPRINTS
    chance = random.Random(7)
    async with raw(server) as user, watching(server, layout) as watched:

        async def load(worker: int) -> None:
            for number in range(120):
                which = chance.randrange(40)
                name = f"n{worker}.{KEY}/{which + 1}" if layout is SLICES else f"g{worker}/n/{which}"
                good = slice_value(number) if layout is SLICES else number
                kind = chance.random()
                if kind < 0.3:
                    await user.stubborn(layout_name, name, b"", {"KV-Operation": "DEL"})
                else:
                    await user.stubborn(layout_name, name, b"rubbish" if kind > 0.9 else good)

        async with anyio.create_task_group() as tasks:
            for worker in range(4):
                tasks.start_soon(load, worker)
            for _ in range(2):
                await anyio.sleep(0.15)  # in the middle of the load, wherever that is
                await server.restart()
        with bounded(15):
            await _patiently(watched.watch)
        assert await watched.equals(user)
        assert not watched.mirror.resets, "a restart is no other stream"
        told = [m.revision for m in watched.mirror.heard if isinstance(m, (ValuePut, ValueRejected))]
        assert len(told) == len(set(told)), "no update is told twice"
        stored = {record.sequence for record in await user.records(layout_name, "all") if not record.gone}
        assert set(watched.mirror.revisions.values()) <= stored, "no update was invented"


@pytest.mark.usefixtures("quick_heartbeats")
@pytest.mark.quick
async def test_a_bucket_deleted_and_created_anew(server: NatsServer) -> None:
    async with raw(server) as user, watching(server, SLICES) as watched:
        for number in range(10):
            await user.put("slices", f"n1.{KEY}/{number + 1}", slice_value())
        await watched.watch.caught_up()
        async with between_sessions(watched.watch):
            await user.api("STREAM.DELETE.KV_slices")
            await watched.bucket.ensure(create=True)
            await user.put("slices", f"n1.{KEY}/3", slice_value(9))
            await user.put("slices", f"n2.{KEY}", slice_value(9))
        await eventually(lambda: watched.equals(user), 10, "the mirror equals the new bucket")
        assert len(watched.mirror.resets) == 1
        removed = set(watched.mirror.names(ValueRemove))
        assert removed == {f"n1.{KEY}/{number + 1}" for number in range(10) if number != 2}


@pytest.mark.usefixtures("quick_heartbeats")
async def test_a_bucket_deleted_is_made_again(server: NatsServer) -> None:
    async with raw(server) as user, watching(server, SLICES) as watched:
        await user.put("slices", f"n1.{KEY}", slice_value())
        await watched.watch.caught_up()
        await user.api("STREAM.DELETE.KV_slices")
        await eventually(lambda: not watched.mirror.values, 15, "nothing is there any more")
        await eventually(lambda: watched.equals(user), 5)
        assert watched.mirror.resets


async def test_a_bucket_restored_with_a_lower_sequence(server: NatsServer) -> None:
    """The same stream, as far as its name and age tell, that has gone back in time: an old store was put in place."""
    async with raw(server) as user, watching(server, SLICES) as watched:
        for number in range(5):
            await user.put("slices", f"n1.{KEY}/{number + 1}", slice_value())
        await watched.watch.caught_up()
        server.stop()
        store = server.folder / "store"
        backup = server.folder / "backup"
        await anyio.run_process(["cp", "-a", str(store), str(backup)])
        await server.start()
        for number in range(5):
            await user.stubborn("slices", f"n2.{KEY}/{number + 1}", slice_value())
            await user.stubborn("slices", f"n1.{KEY}/{number + 1}", b"", {"KV-Operation": "DEL"})
        await _patiently(watched.watch)
        assert await watched.equals(user)
        server.stop()
        await anyio.run_process(["rm", "-r", str(store)])
        await anyio.run_process(["mv", str(backup), str(store)])
        await server.start()
        await user.stubborn("slices", f"n3.{KEY}", slice_value())
        await eventually(lambda: watched.equals(user), 10, "the mirror equals what was restored")
        assert watched.mirror.resets


@pytest.mark.parametrize("layout", [SLICES, BLUEPRINTS], ids=["slices", "blueprints"])
async def test_a_bucket_set_back_and_grown_since(server: NatsServer, layout: Layout) -> None:
    """Neither its age nor its last sequence tells of it, but the messages do that are known."""
    keys = [f"n1.{KEY}/{number + 1}" if layout is SLICES else f"g/n/{number}" for number in range(8)]
    value = slice_value() if layout is SLICES else 3
    async with raw(server) as user, watching(server, layout) as watched:
        for key in keys[:5]:
            await user.put(layout.name, key, value)
        async with set_back(server):
            await user.stubborn(layout.name, keys[0], value)
            await _patiently(watched.watch)
            assert await watched.equals(user)
        async with elsewhere(server) as other:
            for key in keys[5:]:
                await other.put(layout.name, key, value)
        await server.start()
        await eventually(lambda: watched.connection.is_up)
        await eventually(lambda: watched.equals(user), 5, "the mirror equals what is there now")
        assert len(watched.mirror.resets) == 1


@pytest.mark.usefixtures("patient_pings")
@pytest.mark.parametrize("layout", [SLICES, BLUEPRINTS], ids=["slices", "blueprints"])
@pytest.mark.parametrize("purge", ["all", "seq", "keep", "one"])
async def test_a_purged_stream(server: NatsServer, layout: Layout, purge: str) -> None:
    """``nats stream purge`` leaves no markers: what the stream holds is fewer than what is known."""
    keys = [f"n1.{KEY}/{number + 1}" if layout is SLICES else f"g/n/{number}" for number in range(8)]
    value = slice_value() if layout is SLICES else 3
    async with raw(server) as user, watching(server, layout) as watched:
        for key in keys:
            last = await user.put(layout.name, key, value)
        await user.delete(layout.name, keys[-1])
        await watched.watch.caught_up()
        options: dict[str, dict[str, Any]] = {
            "all": {},
            "seq": {"seq": last},
            "keep": {"keep": 3},
            "one": {"filter": f"$KV.{layout.name}.{keys[3]}"},
        }
        consumer = consumer_of(watched.watch)
        await watched.watch.check()
        await anyio.sleep(0.1)
        assert consumer_of(watched.watch) == consumer, "nothing is missed as long as nothing is gone"
        await user.api(f"STREAM.PURGE.KV_{layout.name}", options[purge])
        await (watched.watch.check() if purge != "one" else watched.watch.caught_up())
        await eventually(lambda: watched.equals(user), 5, "the mirror equals the purged bucket")
        assert not watched.mirror.resets
        assert set(watched.mirror.names(ValueRemove)) >= {keys[3]} if purge != "keep" else {keys[0]}
        await eventually(lambda: watched.watch.phase is Phase.LIVE)
        consumer = consumer_of(watched.watch)
        await watched.watch.check()
        await anyio.sleep(0.1)
        assert consumer_of(watched.watch) == consumer, "it was listed once"


@pytest.mark.usefixtures("quick_heartbeats")
async def test_a_stream_purged_while_it_is_listed(server: NatsServer) -> None:
    """Nothing more is delivered then, and yet the list must come to an end."""
    async with raw(server) as user, connected(server) as connection:
        bucket, mirror = Bucket(connection, STATUS), Mirror()
        await bucket.ensure(create=True)
        await _fill(user, 30_000)
        begun = anyio.Event()

        def hear(message: Message) -> None:
            mirror(message)
            if len(mirror.heard) == 500:
                begun.set()

        watch = Watch(bucket, hear)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run)
            with bounded():
                await begun.wait()
            phases = [watch.phase]
            assert phases == [Phase.LISTING], "the list was too fast for this test"
            await user.api("STREAM.PURGE.KV_status", {})
            await eventually(lambda: watch.phase is Phase.LIVE, 15, "the list is complete")
            tasks.cancel_scope.cancel()


async def _fill(user: Raw, count: int) -> None:
    """Publish many statuses; only the last one is acknowledged."""
    payload = b'{"condition":"Ready"}'
    for number in range(count - 1):
        await user.client.publish(f"$KV.status.g/n/{number}", payload)
        if number % 2000 == 0:
            await user.client.flush()
    await user.client.flush()
    last = await user.put("status", f"g/n/{count - 1}", payload, timeout=20)
    assert last >= count


async def test_fifty_thousand_messages_to_a_slow_receiver(server: NatsServer) -> None:
    async with raw(server) as user, connected(server) as connection:
        bucket, mirror = Bucket(connection, STATUS), Mirror()
        await bucket.ensure(create=True)
        count = 50_000

        def slow(message: Message) -> None:
            mirror(message)
            if len(mirror.heard) % 5000 == 0:
                time.sleep(0.3)  # a loop that is busy elsewhere

        watch = Watch(bucket, slow)
        await _fill(user, count // 2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run)
            await _fill_on(user, count // 2, count)
            with bounded(40):
                await _patiently(watch)
            tasks.cancel_scope.cancel()
        assert len(mirror.values) == count
        assert len(mirror.heard) == count, "each one is told once"


async def _fill_on(user: Raw, start: int, stop: int) -> None:
    for number in range(start, stop):
        await user.client.publish(f"$KV.status.g/n/{number}", b'{"condition":"Ready"}')
        if number % 2000 == 0:
            await user.client.flush()
    await user.put("status", f"g/n/{stop - 1}", b'{"condition":"Ready"}', timeout=20)


@pytest.mark.usefixtures("patient_pings")
async def test_a_held_watch_lets_the_server_stop_and_catches_up_when_let_go(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "LONGEST_HOLD", 60.0)
    backpressure, count = Backpressure(), 20_000
    async with (
        raw(server) as user,
        watching(server, STATUS, backpressure=backpressure, hearing=Hearing(600.0, 600.0)) as watched,
    ):
        # Heartbeats are held with the rest.
        backpressure.much = lambda: True
        await _fill_on(user, 0, count)
        consumer = watched.watch._consumer
        assert consumer is not None

        async def stopped() -> bool:
            before = await _delivered(watched, consumer.name)
            await anyio.sleep(0.5)
            return 0 < before == await _delivered(watched, consumer.name) < count

        await eventually(stopped, 20, "the server waits for an answer")
        assert not watched.mirror.heard
        backpressure.much = lambda: False
        with bounded(20):
            await _patiently(watched.watch)
        assert len(watched.mirror.heard) == count
        assert await watched.equals(user)


async def _delivered(watched: Watching, consumer: str) -> int:
    """How much the server has sent."""
    bucket = watched.watch.bucket
    info = await bucket.connection.api(f"CONSUMER.INFO.{bucket.stream}.{consumer}")
    return int(info["delivered"]["consumer_seq"])


async def test_a_watch_is_not_held_for_ever_and_never_while_it_lists(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "LONGEST_HOLD", 60.0)
    backpressure, count = Backpressure(), 20_000
    backpressure.much = lambda: True
    async with raw(server) as user, connected(server) as connection:
        await Bucket(connection, STATUS).ensure(create=True)
        await _fill_on(user, 0, count)
        async with watching(server, STATUS, backpressure=backpressure) as watched:
            assert len(watched.mirror.heard) == count
            monkeypatch.setattr(intake_module, "LONGEST_HOLD", 0.2)
            await _fill_on(user, count, 2 * count)
            with bounded(30):
                await _patiently(watched.watch)


async def test_an_answer_does_not_wait_until_all_that_came_before_it_is_taken_in(server: NatsServer) -> None:
    async with raw(server) as user, watching(server, STATUS) as watched:
        taken: list[int] = []

        def slowly(_: object) -> None:
            time.sleep(0.002)
            taken.append(0)

        watched.watch._mirror._emit = slowly
        await _fill_on(user, 0, 5_000)
        await watched.watch.bucket.state()
        assert len(taken) < 4_000
        await eventually(lambda: len(taken) == 5_000, 30, "all of it is taken in")


async def test_a_list_that_is_overwritten_while_it_is_read(server: NatsServer) -> None:
    """Keys that change while the list is under way are delivered later or not at all; the list ends all the same."""
    async with raw(server) as user, connected(server) as connection:
        bucket, mirror = Bucket(connection, STATUS), Mirror()
        await bucket.ensure(create=True)
        await _fill(user, 5_000)
        watch = Watch(bucket, mirror)
        async with anyio.create_task_group() as tasks:
            stop, stopped = anyio.Event(), anyio.Event()

            async def overwrite() -> None:
                number = 0
                while not stop.is_set():
                    for _ in range(200):
                        await user.client.publish(f"$KV.status.g/n/{number * 7 % 5000}", b'{"condition":"Invalid"}')
                        number += 1
                    await user.client.flush()
                await user.put("status", "g/n/0", {"condition": "Ready"}, timeout=20)  # stored behind all others
                stopped.set()

            tasks.start_soon(overwrite)
            tasks.start_soon(watch.run)
            await eventually(lambda: watch.phase is Phase.LIVE, 15, "the list is complete")
            stop.set()
            with bounded(20):
                await stopped.wait()
            await _patiently(watch)
            contents = await user.contents("status")
            assert mirror.revisions == {key: record.sequence for key, record in contents.items()}
            tasks.cancel_scope.cancel()


async def test_a_receiver_that_raises_ends_the_watch(server: NatsServer) -> None:
    class Broken(Exception):
        pass

    def receiver(message: Message) -> None:
        raise Broken

    async with raw(server) as user, connected(server) as connection:
        bucket = Bucket(connection, SLICES)
        await bucket.ensure(create=True)
        watch = Watch(bucket, receiver)

        async def watch_and_put() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch.run)
                await eventually(lambda: watch.phase is Phase.LIVE)
                await user.put("slices", f"n1.{KEY}", slice_value())
                await anyio.sleep_forever()

        with bounded(), pytest.raises(ExceptionGroup) as caught:
            await watch_and_put()
        assert caught.group_contains(Broken)
        await eventually(lambda: _is(user, 0), what="its consumer is gone")


async def test_a_receiver_that_raises_at_the_end_of_a_list_ends_the_watch(server: NatsServer) -> None:
    """Removals found by comparison are told when a list ends, outside any delivery."""

    class Broken(Exception):
        pass

    def receiver(message: Message) -> None:
        if isinstance(message, ValueRemove):
            raise Broken

    async with raw(server) as user, connected(server) as connection:
        bucket = Bucket(connection, SLICES)
        await bucket.ensure(create=True)
        await user.put("slices", f"n1.{KEY}", slice_value())
        watch = Watch(bucket, receiver)

        async def watch_and_purge() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch.run)
                await eventually(lambda: watch.phase is Phase.LIVE)
                await user.api("STREAM.PURGE.KV_slices", {})
                watch.relist()
                await anyio.sleep_forever()

        with bounded(), pytest.raises(ExceptionGroup) as caught:
            await watch_and_purge()
        assert caught.group_contains(Broken)


async def test_a_frozen_server_is_survived(server: NatsServer) -> None:
    async with raw(server) as user, watching(server, SLICES) as watched:
        await user.put("slices", f"n1.{KEY}", slice_value())
        await watched.watch.caught_up()
        server.pause()
        await eventually(lambda: not watched.connection.is_up, 10, "a hung server is left")
        assert watched.mirror.live[-1:] == [False]
        server.resume()
        await user.stubborn("slices", f"n2.{KEY}", slice_value())
        with bounded(15):
            await _patiently(watched.watch)
        assert await watched.equals(user)
        assert watched.mirror.live[-1] is True
        assert watched.mirror.names(ValuePut) == [f"n1.{KEY}", f"n2.{KEY}"]


@pytest.mark.usefixtures("quick_heartbeats")
async def test_a_stale_barrier_does_not_outlive_its_stream(server: NatsServer) -> None:
    """A barrier asked for on the old stream must not make a shorter new one look complete, or reset again."""
    async with raw(server) as user, watching(server, SLICES) as watched:
        for _ in range(40):
            await user.put("slices", f"n1.{KEY}", slice_value())
        await watched.watch.caught_up()
        # A consumer that is gone keeps the watch behind, and the barrier waiting, while the stream is replaced.
        await user.api(f"CONSUMER.DELETE.KV_slices.{consumer_of(watched.watch)}")
        await user.put("slices", f"n1.{KEY}", slice_value())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_patiently, watched.watch)
            await anyio.sleep(0.02)  # the barrier has its target
            await user.api("STREAM.DELETE.KV_slices")
            await watched.bucket.ensure(create=True)
            await user.put("slices", f"n2.{KEY}", slice_value())
            await eventually(lambda: watched.equals(user), 15)
        last = (await watched.bucket.state()).last
        assert watched.watch.reached <= last
        assert len(watched.mirror.resets) == 1


async def test_a_barrier_holds_no_new_stream_to_a_sequence_of_the_one_before(server: NatsServer) -> None:
    """Its target was taken while there was no consumer; before there was one the stream was created anew."""
    async with raw(server) as user, watching(server, SLICES) as watched:
        await user.put("slices", f"n1.{KEY}", slice_value())
        watch = watched.watch
        async with anyio.create_task_group() as tasks, between_sessions(watch):
            watch.relist()
            await eventually(lambda: watch.phase is Phase.SEEKING)
            tasks.start_soon(watch.caught_up)
            await eventually(lambda: watch._barrier.awaited, what="the barrier has its target")
            await user.api("STREAM.DELETE.KV_slices")
            await user.api(
                "STREAM.CREATE.KV_slices", {**created(SLICES, "KV_slices", "$KV.slices.>", 1), "first_seq": 1}
            )
            last = await user.put("slices", f"n2.{KEY}", slice_value())
        assert watch.reached == last
        assert await watched.equals(user)
        await listed_again(watch)
        assert len(watched.mirror.resets) == 1, "its sequences go back once, not twice"


async def test_raw_puts_are_refused_for_what_they_are(server: NatsServer) -> None:
    """The tests' own tool tells refusals from time-outs."""
    async with raw(server) as user, connected(server) as connection:
        await Bucket(connection, SLICES).ensure(create=True)
        await user.put("slices", "x", b"1")
        with pytest.raises(Rejection):
            await user.put("slices", "x", b"1", {"Nats-Expected-Last-Subject-Sequence": "99"})
        with pytest.raises(nats.errors.NoRespondersError):
            await user.put("nodes", "x", b"1")


async def test_a_clock_that_is_another_one_is_noticed(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another server leads the stream, with another clock, or a clock was set: times are those of this machine."""
    monkeypatch.setattr(watch_module, "DRIFT_INTERVAL", 0.0)
    async with raw(server) as user, watching(server, SLICES) as found:
        for shift in (60.0, -60.0):
            before = consumer_of(found.watch)
            assert found.watch._consumer
            found.watch._consumer.offset += shift
            await user.put("slices", f"n1.{KEY}", slice_value())
            await renewed(found.watch, before)
            await user.put("slices", f"n1.{KEY}", slice_value())
            await found.watch.caught_up()
            last = found.mirror.heard[-1]
            assert isinstance(last, ValuePut)
            assert -30 < last.at - clock.now() <= 0
        assert all(put.at <= clock.now() for put in found.mirror.heard if isinstance(put, ValuePut))
