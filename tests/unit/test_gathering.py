"""When a connection is read on which only what can wait comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from nats.aio.subscription import Subscription

from cdm.store.client import Client
from cdm.store.gathering import GAP, MUCH, Gathering


class Clock:
    """Time that goes on when it is told to; then what is due is called."""

    def __init__(self) -> None:
        self.now = 100.0
        self._due: list[asyncio.TimerHandle] = []
        self._loop = asyncio.new_event_loop()
        self._loop.close()

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        self._due.append(asyncio.TimerHandle(self.now + delay, callback, (), self._loop))
        return self._due[-1]

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        due = [each for each in self._due if each.when() <= self.now]
        self._due = [each for each in self._due if each.when() > self.now]
        for each in due:
            if not each.cancelled():
                each._run()


class Line(asyncio.ReadTransport):
    """Counts how often nothing was to be read."""

    def __init__(self) -> None:
        super().__init__()
        self._reads = True
        self.pauses = 0

    def is_reading(self) -> bool:
        return self._reads

    def pause_reading(self) -> None:
        assert self._reads
        self._reads = False
        self.pauses += 1

    def resume_reading(self) -> None:
        assert not self._reads
        self._reads = True


class Read:
    """A connection that is read, at the times that a test says."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.line = Line()
        self.gathering = Gathering(self.clock)
        self.waiting = 0
        self.readings = 0

    def come(self, every: float, count: int, *, urgent: bool = False, size: int = 600) -> None:
        """So many messages come, so far apart."""
        for _ in range(count):
            self.clock.pass_by(every)
            self.waiting += 1
            if self.line.is_reading():
                self.read(urgent=urgent, size=size)

    def read(self, *, urgent: bool = False, size: int = 600) -> None:
        self.gathering.urgent |= urgent
        self.readings += 1
        self.waiting = 0
        self.gathering.after(self.line, size)


@pytest.fixture
def read() -> Read:
    return Read()


def test_what_comes_often_and_can_wait_is_read_several_at_a_time(read: Read) -> None:
    read.come(every=0.003, count=1000)
    assert read.readings <= 3.0 / GAP + 2


def test_nothing_waits_longer_than_the_gap(read: Read) -> None:
    read.come(every=0.003, count=10)
    read.clock.pass_by(GAP)
    assert read.line.is_reading()


def test_what_comes_seldom_is_read_at_once(read: Read) -> None:
    read.come(every=2 * GAP, count=100)
    assert read.readings == 100
    assert not read.line.pauses


def test_what_cannot_wait_is_read_at_once_for_as_long_as_it_comes(read: Read) -> None:
    read.come(every=0.003, count=100, urgent=True)
    assert read.readings == 100
    read.come(every=0.003, count=int(GAP / 0.003))
    assert not read.line.pauses, "more of it may come"
    read.come(every=0.003, count=2)
    assert read.line.pauses


def test_where_much_comes_at_once_the_rest_is_read_at_once(read: Read) -> None:
    read.come(every=0.001, count=100, size=MUCH)
    assert not read.line.pauses


def test_who_waits_for_something_does_not_wait_for_the_gap(read: Read) -> None:
    read.come(every=0.003, count=2)
    assert not read.line.is_reading()
    read.gathering.read_on()
    assert read.line.is_reading()
    read.come(every=0.003, count=1)
    assert not read.line.is_reading(), "what can wait comes as often as before"
    read.gathering.hurry()
    assert read.line.is_reading()
    read.come(every=0.003, count=5)
    assert read.line.is_reading()


def test_a_connection_that_is_not_paused_may_be_read_on(read: Read) -> None:
    read.gathering.read_on()
    read.gathering.hurry()
    read.come(every=1.0, count=1)
    assert read.line.is_reading()


def test_what_is_due_once_does_not_end_what_began_since(read: Read) -> None:
    read.come(every=0.003, count=2)
    read.clock.pass_by(GAP / 2)
    read.gathering.read_on()
    read.come(every=0.003, count=1)
    assert not read.line.is_reading()
    read.clock.pass_by(GAP / 2)
    assert not read.line.is_reading()
    read.read()  # what was in the process already
    assert read.line.pauses == 2
    read.clock.pass_by(GAP / 2)
    assert read.line.is_reading()


# Which messages can wait, for the client

WAITS, DIRECT, QUEUED, ANSWERS = 1, 2, 3, 4


class Heard:
    """A client as it is when it is connected, and what a server tells it: text of the wire, at once or in parts."""

    def __init__(self) -> None:
        self.line = Line()
        self.clock = Clock()
        client: Any = Client(lambda kind, subject: None)
        self.client = client
        self.client._gathering = Gathering(self.clock)
        self.client._transport = SimpleNamespace(_bare_io_writer=SimpleNamespace(transport=self.line))
        self.client._answers = ANSWERS
        self.client._direct = {WAITS: lambda *_: None, DIRECT: lambda *_: None}
        self.client.can_wait(Subscription(self.client, WAITS, "waits"))

    async def say(self, *parts: bytes) -> bool:
        """Whether the server may say more after this, twice a little apart, at once; else that is gathered."""
        for part in (*parts, *parts):
            self.clock.pass_by(GAP / 10)
            await self.client._ps.parse(part)
        return self.line.is_reading()


def message(number: int) -> bytes:
    return b"MSG a %d 2\r\nhi\r\n" % number


@pytest.fixture
async def heard() -> Heard:
    return Heard()


@pytest.mark.anyio
async def test_what_can_wait_is_gathered(heard: Heard) -> None:
    assert not await heard.say(message(WAITS))


@pytest.mark.anyio
@pytest.mark.parametrize(
    "said",
    [
        pytest.param((message(DIRECT),), id="of a mirror"),
        pytest.param((message(QUEUED),), id="with a queue, or of a subscription that has ended"),
        pytest.param((message(DIRECT) + message(WAITS),), id="before what can wait"),
        pytest.param((message(WAITS) + message(DIRECT),), id="behind what can wait"),
        pytest.param((b"PONG\r\n",), id="all that was sent is dealt with"),
        pytest.param((b"MSG a %d 4000\r\n" % DIRECT, b"x" * 2000, b"x" * 1000), id="a part of a message"),
        pytest.param((b"MSG a %d 4000\r\n" % WAITS, b"x" * 2000, b"x" * 1000), id="a part of one that can wait"),
    ],
)
async def test_what_cannot_wait_is_not(heard: Heard, said: tuple[bytes, ...]) -> None:
    assert await heard.say(*said)


@pytest.mark.anyio
async def test_whoever_waits_for_an_answer_has_it_at_once(heard: Heard) -> None:
    heard.client._resp_map["token"] = asyncio.get_running_loop().create_future()
    assert await heard.say(message(WAITS))
    heard.client._resp_map.clear()
    assert not await heard.say(message(WAITS))


@pytest.mark.anyio
async def test_whoever_waits_until_all_is_dealt_with_knows_at_once(heard: Heard) -> None:
    heard.client._pongs.append(asyncio.get_running_loop().create_future())
    assert await heard.say(message(WAITS))


@pytest.mark.anyio
async def test_a_web_socket_has_no_line_that_could_be_gathered(heard: Heard) -> None:
    heard.client._transport = SimpleNamespace()
    assert await heard.say(message(WAITS))
