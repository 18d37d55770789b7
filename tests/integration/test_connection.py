"""The connection to a real server: how it is made, lost and found again, and how that is told."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import nats
import pytest

from cdm.errors import (
    AccessDenied,
    NoResponders,
    StoreError,
    Uncertain,
    Unreachable,
    Unsuitable,
)
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import (
    SLICES,
    SliceKey,
)
from cdm.node.node import NodeSettings
from cdm.store import listening
from cdm.store.bucket import Bucket
from cdm.store.connection import Access, Connection, connect
from cdm.store.link import PING_INTERVAL
from cdm.store.phases import LinkUp
from cdm.store.responder import Identity, Responder
from tests.harness.proxy import proxied
from tests.harness.secure import Certificates
from tests.harness.servers import FORGIVEN, NatsServer, free_port, running_cluster, running_server, temporary_folder
from tests.harness.store import connected
from tests.harness.waiting import Stopwatch, bounded, eventually, patience
from tests.harness.wire import ANSWER, Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

ONE = Artifact("org.example", "one", "1.0.0")
N1 = NodeId("n1")
SECRET = "s3cr3t"


@pytest.mark.quick
async def test_a_server_without_jetstream_is_refused(tmp_path: Any) -> None:
    async with running_server(jetstream=False) as plain, connected(plain) as connection:
        watch = Stopwatch()
        with pytest.raises(Unsuitable) as refused:
            await connection.check_server()
        assert watch.took < watch.bound(1), "the time-out of a request was not waited for"
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
    watch = Stopwatch()
    with pytest.raises(Unreachable) as refused:
        async with connect(Access(servers=(url,)), name="test", timeout=0.7):
            pass
    assert 0.5 < watch.took < watch.bound(0.7)
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


async def test_credentials_that_come_late_are_not_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process that stood still as it connected hears of an authentication timeout, and tries again."""
    configuration = tmp_path / "nats.conf"
    configuration.write_text(f"authorization {{ user: me, password: {SECRET}, timeout: 0.2 }}\n", encoding="utf-8")
    async with running_server(arguments=["-c", str(configuration)]) as server, proxied(server) as proxy:
        proxy.delay_up = 6.0
        access = Access((proxy.url,), user="me", password=SECRET)
        async with anyio.create_task_group() as tasks:
            done = anyio.Event()

            async def late() -> None:
                async with connect(access, name="test", timeout=None) as connection:
                    await connection.check_server()
                    done.set()

            tasks.start_soon(late)
            await eventually(lambda: "'Authentication Timeout'" in capsys.readouterr().out)
            assert not done.is_set()
            proxy.delay_up = 0.0
            with bounded():
                await done.wait()


async def test_a_server_that_does_not_know_the_credentials_yet_is_passed_over() -> None:
    """They reach the servers one by one. Which of them is asked first is random."""
    async with (
        running_server(arguments=["--user", "me", "--pass", SECRET]) as ready,
        running_server(arguments=["--user", "me", "--pass", "before"]) as lagging,
        running_server(arguments=["--user", "me", "--pass", "before"]) as other,
    ):
        access = Access((ready.url, lagging.url), user="me", password=SECRET)
        for timeout in (patience(), None) * 6:
            with bounded():
                async with connect(access, name="test", timeout=timeout) as connection:
                    assert connection.is_up
        access = Access((lagging.url, other.url), user="me", password=SECRET)
        for timeout in (patience(), None):
            with pytest.raises(AccessDenied) as refused, bounded():
                async with connect(access, name="test", timeout=timeout):
                    pass
            assert lagging.url in str(refused.value)
            assert other.url in str(refused.value)


async def test_a_node_waits_for_a_server_that_may_know_the_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    """One refused them, and the other is down: a command ends in time and tells of the refusal, a node goes on."""
    async with running_server(arguments=["--user", "me", "--pass", "before"]) as lagging:
        with temporary_folder() as folder:
            down = NatsServer(folder, arguments=["--user", "me", "--pass", SECRET], port=free_port())
            access = Access((lagging.url, down.url), user="me", password=SECRET)
            with pytest.raises(AccessDenied, match=f"^{lagging.url} refused the credentials"), bounded():
                async with connect(access, name="test", timeout=2):
                    pass
            async with anyio.create_task_group() as tasks:
                done = anyio.Event()

                async def patient() -> None:
                    async with connect(access, name="test", timeout=None):
                        done.set()

                tasks.start_soon(patient)
                await eventually(lambda: "a NATS server refused the credentials" in capsys.readouterr().out)
                assert not done.is_set()
                try:
                    await down.start()
                    with bounded():
                        await done.wait()
                finally:
                    down.kill()


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
        watch = Stopwatch()
        with pytest.raises(Unreachable):
            await bucket.put(SliceKey(N1, ONE), b"{}")
        with pytest.raises(Unreachable):
            await connection.publish("x")
        assert watch.took < watch.bound(0)
        await server.start()
        await eventually(lambda: connection.is_up)
        assert await bucket.read(SliceKey(N1, ONE)) is None


async def test_a_request_that_hangs_is_uncertain(server: NatsServer) -> None:
    async with connected(server) as connection:
        bucket = Bucket(connection, SLICES)
        await bucket.ensure(create=True)
        server.pause()
        watch = Stopwatch()
        with pytest.raises(Uncertain):
            await bucket.put(SliceKey(N1, ONE), b"{}", timeout=0.4)
        assert watch.took < watch.bound(0.4)
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
            watch = Stopwatch()
            with pytest.raises((Uncertain, Unreachable)):
                await connection.request("black.hole", timeout=600)
            assert watch.took < watch.bound(2)


async def test_a_server_is_pinged_only_once_it_is_silent_and_left_where_it_does_not_answer(
    server: NatsServer,
) -> None:
    async with proxied(server) as way, connected(way) as connection, raw(server) as user:
        heard: list[float] = []
        lost = anyio.Event()
        connection.listen(lambda up: None if up else lost.set())
        await connection.subscribe_directly("news", lambda *_: heard.append(time.monotonic()))
        while not heard:
            await user.client.publish("news")
            await anyio.sleep(0.1)
        way.hold(b"PING\r\n")
        until = time.monotonic() + 2.5 * PING_INTERVAL
        while time.monotonic() < until:
            await user.client.publish("news")
            await anyio.sleep(0.1)
        longest = max(later - sooner for sooner, later in pairwise(heard))
        assert not way.holding.is_set() or longest > PING_INTERVAL / 2, "it was pinged although it was heard"
        with bounded(4 * PING_INTERVAL):
            await way.holding.wait()
            await lost.wait()


def _pinging() -> int:
    """How many tasks ping."""
    return sum(getattr(each.get_coro(), "__name__", "") == "_ping_interval" for each in asyncio.all_tasks())


async def test_a_hung_server_is_left_also_while_much_is_to_be_sent_to_it(server: NatsServer) -> None:
    """A ping that waited until all was written waited for ever, and went on beside the next connection's."""
    async with connected(server) as connection:
        lost = anyio.Event()
        connection.listen(lambda up: None if up else lost.set())

        async def send() -> None:
            while not lost.is_set():
                with suppress(nats.errors.Error):
                    await connection._client.publish("news", bytes(100_000))
                await anyio.lowlevel.checkpoint()

        server.pause()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            with bounded(4 * PING_INTERVAL):
                await lost.wait()
            server.resume()
            await eventually(lambda: connection.is_up)
            tasks.cancel_scope.cancel()
        assert _pinging() == 1
    assert _pinging() == 0


@pytest.mark.parametrize(
    ("kept", "messages", "delay"),
    [pytest.param(64 * 1024, 20, 0.1, id="in the process"), pytest.param(4_000_000, 5, 0.3, id="in the system")],
)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_a_slow_line_is_no_hung_server(
    tmp_path: Path, kept: int, messages: int, delay: float, secure: bool
) -> None:
    """Wherever what it has not taken yet waits, the ping is behind it."""
    tls = Certificates(tmp_path)
    arguments = ["--tls", "--tlscert", str(tls.cert), "--tlskey", str(tls.key)] if secure else []
    async with (
        running_server(jetstream=False, arguments=arguments) as server,
        proxied(server, room=8 * 1024) as way,
        connect(Access((way.url,), ca=tls.ca if secure else None), name="test") as connection,
    ):
        lost = anyio.Event()
        connection.listen(lambda up: None if up else lost.set())
        line: Any = connection._client._transport
        line._io_writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, kept)
        way.delay_up = delay
        async with anyio.create_task_group() as tasks:
            for _ in range(messages):
                tasks.start_soon(connection.publish, "news", bytes(80_000))
        watch = Stopwatch()
        await connection._client.flush(int(patience(60)))
        assert watch.took > 2 * PING_INTERVAL, "else it proves nothing"
        assert not lost.is_set()


async def test_a_connection_is_closed_while_it_is_being_lost(server: NatsServer) -> None:
    """Closing it is over soon and cancels nobody, wherever the client is in losing it."""
    async with AsyncExitStack() as closing:
        connections = [await closing.enter_async_context(connected(server)) for _ in range(40)]
        reader, writer = await asyncio.open_connection(*server.url.removeprefix("nats://").split(":"))
        await reader.readline()
        server.kill()
        with suppress(ConnectionError), bounded(10):
            await reader.read()  # it is told when they are

        async def close(connection: Connection, turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await connection.close()

        # Not in a task group of anyio's, which says nothing of a task that was cancelled from elsewhere.
        await asyncio.gather(*(close(connection, turns) for turns, connection in enumerate(connections)))
        writer.close()
    assert not any(connection.is_up for connection in connections)


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
        watch = Stopwatch()
        assert await connection.api_retried("CDM.TEST") == {"late": True}
        assert watch.took < watch.bound(1.5)  # the time-out of one request is 5 s
        asked = -100
        with pytest.raises(Uncertain):
            await connection.api_retried("CDM.TEST")


async def test_a_batch_is_on_its_way_before_the_next_one_is_worked_out(server: NatsServer) -> None:
    """The event loop may not go round for a while: whoever has sent one makes the next one ready."""
    port = int(server.url.rpartition(":")[2])
    async with connect(Access((server.url,)), name="test") as connection:
        with socket.create_connection(("127.0.0.1", port)) as listener:
            listener.settimeout(ANSWER)
            heard = listener.makefile("rb")
            listener.sendall(b"CONNECT {}\r\nSUB there 1\r\nPING\r\n")
            while b"PONG" not in heard.readline():
                pass
            await connection.send_frames(b"PUB there 1000000\r\n" + b"x" * 1_000_000 + b"\r\n")
            assert b"MSG there 1" in heard.readline()


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
        await connection.flush()  # its pong comes behind the other one
        await connection.api("INFO")
        assert changes == []


async def test_waiting_for_the_server_ends_with_the_connection(server: NatsServer) -> None:
    async with connected(server) as connection:
        server.pause()
        watch = Stopwatch()
        async with anyio.create_task_group() as tasks:

            async def soon() -> None:
                await anyio.sleep(0.2)
                server.kill()

            tasks.start_soon(soon)
            with pytest.raises((Uncertain, Unreachable)):
                await connection.flush()
        assert watch.took < watch.bound(1)
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
        watch = Stopwatch()
        with pytest.raises(NoResponders):
            await connection.request("nobody.there", timeout=600)
        assert watch.took < watch.bound(0)


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


class Greeter:
    """Greets as a NATS server does, and answers pings on its first connection only. Made by `greeter`."""

    def __init__(self) -> None:
        self.again = asyncio.Event()
        """Set ``turns`` turns of the loop after a second connection was greeted."""
        self.turns = 0
        self.blocks = 0.0
        """Seconds for which the whole process stands still when the first connection was greeted."""
        self._first: asyncio.StreamWriter | None = None

    def drop(self) -> None:
        """Close the first connection."""
        assert self._first
        self._first.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        writer.write(b'INFO {"server_id":"x","version":"2.12.0","headers":true,"max_payload":1048576}\r\n')
        if self._first is None:
            self._first = writer
            time.sleep(self.blocks)  # noqa: ASYNC251  # that is what it is for
            while line := await reader.readline():
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
        else:
            for _ in range(self.turns):
                await anyio.lowlevel.checkpoint()
            self.again.set()
        writer.close()


@asynccontextmanager
async def greeter() -> AsyncIterator[tuple[Greeter, Access]]:
    """Something that greets, in this very process, and the way to it."""
    made = Greeter()
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0) as server:
        yield made, Access((f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}",))


def _connecting() -> list[str]:
    """The attempts to connect that are under way in this process."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return [name for name in names if name.endswith(("._connect", "._attempt_reconnect"))]


async def test_an_attempt_that_is_given_up_in_the_moment_of_the_answer_ends() -> None:
    """Python 3.11 swallows its cancellation: it went on for ever, or ended with a traceback on stderr."""
    async with greeter() as (server, access):
        server.blocks = 0.4  # greeting and time-out are noticed in one turn of the loop
        with pytest.raises(Unreachable, match=r"within 0\.3 s"):
            async with connect(access, name="test", timeout=0.3):
                pass
        assert not _connecting()


@pytest.mark.parametrize("turns", range(8))
async def test_a_connection_that_is_closed_in_the_moment_of_the_answer_ends(turns: int) -> None:
    """The same while it was reconnecting: the client came back after it had been closed."""
    async with greeter() as (server, access):
        server.turns = turns
        async with connect(access, name="test") as connection:
            server.drop()
            with bounded():
                await server.again.wait()
        assert not _connecting()
        assert not connection._client.is_connected


async def _lose_as_it_fails(connection: Connection) -> None:
    up = LinkUp(0.0, asyncio.get_running_loop().create_future())

    async def talk() -> None:
        up.over.set_result(None)
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            raise nats.errors.TimeoutError from None

    with pytest.raises(Uncertain):
        await connection._while_up(up, talk())


async def test_what_fails_as_it_is_cancelled_prints_no_traceback(server: NatsServer) -> None:
    loop = asyncio.get_running_loop()
    complaints: list[str] = []
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
    try:
        async with connected(server) as connection:
            await _lose_as_it_fails(connection)
            await anyio.wait_all_tasks_blocked()
            gc.collect()
    finally:
        loop.set_exception_handler(handler)
    assert complaints == []


async def test_a_subscription_that_is_not_confirmed_is_taken_back_and_made_again(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "PAUSE", 0.01)
    heard: list[bytes] = []
    async with connected(server) as connection:
        flush, failures = connection.flush, [Uncertain("the server says nothing")]

        async def flush_at_last() -> None:
            await flush()
            if failures:
                raise failures.pop()

        monkeypatch.setattr(connection, "flush", flush_at_last)
        hear = partial(connection.subscribe_directly, "here", lambda *message: heard.append(message[2]))
        await listening.subscribed_in_time(connection, "here", hear)
        assert not failures
        await connection.publish("here", b"once")
        await connection.publish("here", b"and again")
        await eventually(lambda: b"and again" in heard)
        assert heard == [b"once", b"and again"]
