"""What a server would end the connection for is not sent, and what it says of us ends no node."""

from __future__ import annotations

import anyio
import pytest

from cdm.errors import RequestRefused
from cdm.model.keys import SLICES, STATUS
from cdm.store import link as link_module
from cdm.store.batch import LONGEST_KEY, Write
from cdm.store.bucket import Bucket
from cdm.store.connection import Access, connect
from tests.harness.nodes import nodes_on
from tests.harness.servers import FORGIVEN, NatsServer, free_port
from tests.harness.store import connected
from tests.harness.waiting import eventually
from tests.harness.wire import raw
from tests.integration.test_leadership import serves

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]


@pytest.mark.parametrize("key", ["x" * 4_060, "x" * 3_990, "g/a/" + "x" * 3_900, "\u00e4" * 1_900])
async def test_the_longest_keys_that_a_user_can_write_disturb_nobody(server: NatsServer, key: str) -> None:
    """Their statuses would be longer than the protocol's longest line, as that of the first is."""
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1", "n2")
        leader, written = await nodes.leader(), len(server.log)
        await user.client.publish(f"$KV.blueprints.{key}", b"1")
        await user.client.flush()
        await serves(user, "g/other/1")
        changes: list[bool] = []
        leader.node.connection.listen(changes.append)
        await anyio.sleep(3)
        assert "[ERR]" not in server.log[written:], "the server takes offence at nothing"
        assert changes.count(False) <= 1, "and is left only where it stood still"
        nodes.unharmed()


async def test_what_is_too_long_is_refused_and_not_sent(server: NatsServer) -> None:
    async with connected(server) as connection:
        changes: list[bool] = []
        connection.listen(changes.append)
        slices, status = Bucket(connection, SLICES), Bucket(connection, STATUS)
        for bucket in (slices, status):
            await bucket.ensure(create=True)
        long = b"x" * connection.max_payload
        for writes in (
            [Write("a", b"1"), Write("b", long)],
            [Write("a", long), Write("b", b"1")],
            [Write("x" * (LONGEST_KEY + 1), b"1"), Write("b", b"1")],
        ):
            with pytest.raises(RequestRefused, match="more than the"):
                await status.batch(writes)
        with pytest.raises(RequestRefused, match="too long"):
            await connection.request("$JS.API.INFO", long + b"x")
        await status.batch([Write("x" * LONGEST_KEY, b"1"), Write("b", b"x" * (connection.max_payload - 600))])
        assert changes == []


@pytest.mark.parametrize("greeting", [b"x" * 70_000, b"INFO []\r\n", b"INFO null\r\n", b"-ERR '\xff'\r\n", b"-ERR\r\n"])
async def test_nonsense_in_place_of_a_greeting_ends_no_attempts(
    server: NatsServer, greeting: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that comes up before its server, for example."""
    monkeypatch.setattr(link_module, "RECONNECT_PAUSE", 0.05)
    port, greeted = free_port(), 0

    async def greet(stream: anyio.abc.SocketStream) -> None:
        nonlocal greeted
        async with stream:
            greeted += 1
            await stream.send(greeting)

    async with connect(Access((server.url, f"nats://127.0.0.1:{port}")), name="test") as connection:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, greet)
            server.kill()
            await eventually(lambda: greeted > 2, 20)
            await server.start()
            await eventually(lambda: connection.is_up, 20)
            tasks.cancel_scope.cancel()
        await connection.api("INFO")
