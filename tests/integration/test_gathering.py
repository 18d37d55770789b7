"""What can wait is read several messages at a time, on real connections; who waits for something does not notice."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from cdm.model.keys import NODES
from cdm.model.node import Role
from cdm.store.bucket import Bucket
from cdm.store.connection import Access, Connection, connect
from cdm.store.gathering import GAP
from cdm.store.watch import Hearing, Phase, Watch
from tests.harness.nodes import nodes_on
from tests.harness.secure import Certificates
from tests.harness.servers import FORGIVEN, NatsServer, running_server
from tests.harness.store import connected
from tests.harness.waiting import bounded, eventually
from tests.harness.wire import Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

ONE = "g/one/1"
CAN_WAIT = Hearing(can_wait=True)
OFTEN = GAP / 5
"""Seconds between two messages."""


def gathers(connection: Connection) -> bool:
    """Whether nothing is read at this moment, although there is a connection."""
    line: Any = connection._client._transport
    writer = None if line is None else line._bare_io_writer
    return writer is not None and not writer.transport.is_closing() and not writer.transport.is_reading()


class Steady:
    """Somebody who says something again and again, and how it is heard. Made by `steady`."""

    def __init__(self, hears: Connection) -> None:
        self.said = 0
        self.heard: list[int] = []
        self._hears = hears

    def gathers(self) -> bool:
        """Whether nothing is read at this moment."""
        return gathers(self._hears)

    async def gather(self) -> None:
        """Wait until nothing is read for a moment."""
        await eventually(self.gathers, pause=OFTEN / 4)

    async def all_heard(self) -> None:
        """Wait until all that was said by now is heard, in order."""
        said = self.said
        await eventually(lambda: self.heard[-1:] >= [said])
        assert self.heard == [*range(self.heard[0], self.heard[-1] + 1)]


@asynccontextmanager
async def steady(server: NatsServer, hears: Connection) -> AsyncIterator[Steady]:
    """Somebody says something all the time in the ``with`` block, which ``hears`` hears, and can wait for."""
    async with connect(Access((server.url,), ca=hears.access.ca), name="says") as says:
        told = Steady(hears)
        subscription = await hears.subscribe_directly("news", lambda _s, _r, data, _b: told.heard.append(int(data)))
        await hears.flush()
        hears.can_wait(subscription)

        async def say() -> None:
            while True:
                if says.is_up:
                    told.said += 1
                    await says.publish("news", b"%d" % told.said)
                await asyncio.sleep(OFTEN)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(say)
            yield told
            tasks.cancel_scope.cancel()


async def loaded(user: Raw, count: int) -> bool:
    """Whether so many slices are ordered."""
    return list((await user.slices()).values()) == ["LOAD"] * count


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_nothing_is_lost_and_all_is_in_order(tmp_path: Path, secure: bool) -> None:
    tls = Certificates(tmp_path)
    arguments = ["--tls", "--tlscert", str(tls.cert), "--tlskey", str(tls.key)] if secure else []
    async with running_server(arguments=arguments) as server:
        access = Access((server.url,), ca=tls.ca if secure else None)
        async with connect(access, name="test") as hears, steady(server, hears) as news:
            for _ in range(5):
                await news.gather()
                await news.all_heard()


async def test_an_answer_is_read_although_what_can_wait_is_gathered(server: NatsServer) -> None:
    async with connected(server) as hears, steady(server, hears) as news:
        for _ in range(5):
            await news.gather()
            answer = await hears._client.ask("$JS.API.INFO", b"", None)
            assert not news.gathers()
            with bounded():
                await answer
            await news.gather()
            flushed = asyncio.ensure_future(hears.flush())
            for _ in range(3):
                await asyncio.sleep(0)
            assert not news.gathers()
            with bounded():
                await flushed
            await news.gather()
            hears.hurry()
            assert not news.gathers()
        await news.all_heard()


async def test_what_cannot_wait_ends_it_for_as_long_as_it_comes(server: NatsServer) -> None:
    async with connected(server) as hears, steady(server, hears) as news:
        heard: list[bytes] = []
        await hears.subscribe_directly("urgent", lambda _s, _r, data, _b: heard.append(data))
        await hears.flush()
        await news.gather()
        async with connected(server) as says:
            for number in range(50):
                await says.publish("urgent", b"%d" % number)
                await eventually(partial(heard.__contains__, b"%d" % number), pause=0)
                assert not news.gathers()
        await news.gather()
        await news.all_heard()


async def test_a_connection_that_is_lost_meanwhile_is_made_again(server: NatsServer) -> None:
    async with connected(server) as hears, steady(server, hears) as news:
        await news.gather()
        server.kill()
        await eventually(lambda: not hears.is_up)
        await server.start()
        await eventually(lambda: hears.is_up)
        heard = len(news.heard)
        await eventually(lambda: len(news.heard) > heard)
        await news.gather()


async def test_who_subscribed_no_more_makes_nobody_wait(server: NatsServer) -> None:
    async with connected(server) as hears:
        nothing = await hears.subscribe_directly("nothing", lambda *_: None)
        hears.can_wait(nothing)
        await hears.unsubscribe(nothing)
        assert not hears._client._unhurried


async def test_managers_gather_the_heartbeats_of_many_nodes_and_agents_wait_for_nothing(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server, capacity=0) as nodes:
        await nodes.start("m1", "m2", role=Role.MANAGER)
        await nodes.start("a", role=Role.AGENT)
        leader = await nodes.leader()
        running = nodes.all.values()
        seen: Counter[str] = Counter()
        beating = True

        async def beat() -> None:
            for number in itertools.count():
                await user.client.publish(f"$KV.nodes.x{number % 40}", b'{"capacity":2}', headers={"Nats-TTL": "30s"})
                seen.update(each.settings.node for each in running if gathers(each.node.connection))
                if not beating:
                    return
                await asyncio.sleep(OFTEN)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beat)
            await eventually(lambda: seen.keys() >= {"m1", "m2"})
            # What each heard of nodes can wait, and who asks whether the leader lives.
            of_client = {each.settings.node: each.node.connection._client._unhurried for each in running}
            assert {name: len(found) for name, found in of_client.items()} == {
                "m1": 1 + (leader.settings.node == "m1"),
                "m2": 1 + (leader.settings.node == "m2"),
                "a": 0,
            }
            known = leader.managing.topology
            await eventually(lambda: len([*known.registrations]) == 40 + 3)
            await user.put("blueprints", ONE, 80)
            await eventually(lambda: loaded(user, 80))
            beating = False
        assert "a" not in seen


async def test_a_mirror_can_wait_once_it_is_complete_and_not_where_somebody_waits_for_it(server: NatsServer) -> None:
    async with raw(server) as user, connected(server) as connection:
        bucket = Bucket(connection, NODES)
        await bucket.ensure(create=True)
        for number in range(3):
            await user.put("nodes", f"x{number}", {"capacity": 2})
        could_wait: list[bool] = []
        watch = Watch(bucket, lambda _: could_wait.append(bool(connection._client._unhurried)), hearing=CAN_WAIT)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run)
            await eventually(lambda: watch.phase is Phase.LIVE)
            assert could_wait == [False] * 3
            hurried = 0

            def hurry() -> None:
                nonlocal hurried
                hurried += 1

            connection.hurry = watch._barrier._hurry = hurry

            async def waited_for() -> bool:
                await user.client.publish("$KV.nodes.x1", b'{"capacity":3}')
                await watch.caught_up()
                return hurried > 0

            await eventually(waited_for)
            assert could_wait[-1]
            tasks.cancel_scope.cancel()
