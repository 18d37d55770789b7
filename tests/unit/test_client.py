"""What the client makes of what a server says, however it comes in pieces."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import nats.aio.client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import BadSubjectError, ConnectionClosedError, Error, MaxPayloadError, NoRespondersError, ProtocolError

import cdm
from cdm.errors import NoResponders, RequestRefused, StoreError, Uncertain, Unreachable
from cdm.store.client import Client
from cdm.store.parsing import MessageParser
from cdm.store.translating import translated

pytestmark = pytest.mark.anyio


class Taken(NamedTuple):
    """A message as it was handed over."""

    sid: int
    subject: bytes
    reply: bytes
    payload: bytes
    headers: bytes

    @property
    def wire(self) -> bytes:
        words = [self.subject, b"%d" % self.sid, *([self.reply] if self.reply else [])]
        if self.headers:
            words += [b"%d" % len(self.headers)]
        line = b" ".join([b"HMSG" if self.headers else b"MSG", *words, b"%d" % len(self.headers + self.payload)])
        return line + b"\r\n" + self.headers + self.payload + b"\r\n"


class Listener:
    """Stands where a client would, and notes what the parser tells it."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.reads = 0
        self.whole: list[int] = []
        """How much was read each time that no part of a message was left."""

    def heard(self) -> None:
        self.reads += 1

    def taken(self, size: int) -> None:
        self.whole.append(size)

    async def take(self, *message: Any) -> None:
        self.told.append(Taken(*message))

    async def tell(self, error: Exception) -> None:
        raise error

    async def _process_ping(self) -> None:
        self.told.append("ping")

    async def _process_pong(self) -> None:
        self.told.append("pong")

    async def _process_err(self, text: str) -> None:
        self.told.append(text)


async def parsed(*pieces: bytes) -> list[Any]:
    listener = Listener()
    parser = MessageParser(listener)
    for piece in pieces:
        await parser.parse(piece)
    assert not parser.buf, "everything was whole"
    return listener.told


TOKENS = st.binary(min_size=1, max_size=12).map(lambda raw: raw.translate(None, b" \t\r\n") or b"x")
MESSAGES = st.builds(
    Taken,
    st.integers(1, 10**6),
    TOKENS,
    st.one_of(st.just(b""), TOKENS, st.integers(0, 99).map(lambda number: b"%d" % number)),
    st.binary(max_size=40),
    st.one_of(
        st.just(b""), st.just(b"NATS/1.0\r\n\r\n"), st.binary(max_size=20).map(lambda raw: b"NATS/1.0\r\n" + raw)
    ),
)
OTHERS = st.sampled_from(
    [("ping", b"PING\r\n"), ("pong", b"PONG\r\n"), ("'oops'", b"-ERR 'Oops'\r\n"), (None, b"+OK\r\n")]
)


@given(st.lists(st.one_of(MESSAGES, OTHERS), max_size=8), st.lists(st.integers(0, 400), max_size=6))
async def test_messages_are_whole_however_they_come(said: list[Any], cuts: list[int]) -> None:
    wire = b"".join(each.wire if isinstance(each, Taken) else each[1] for each in said)
    places = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    pieces = [wire[start:end] for start, end in itertools.pairwise(places)]
    expected = [each if isinstance(each, Taken) else each[0] for each in said]
    assert await parsed(*pieces) == [each for each in expected if each is not None]


@pytest.mark.parametrize("space", [b"\x0b", b"\x0c", b"\x1c", b"\x85", b"\xa0"])
async def test_only_what_the_server_takes_for_space_ends_a_subject(space: bytes) -> None:
    message = Taken(7, b"a.x" + space + b"y", b"r" + space, b"1", b"")
    assert await parsed(message.wire) == [message]


@pytest.mark.parametrize("line", [b"MSG a\r\n", b"MSG a b 1\r\n", b"HMSG a 1 2\r\n", b"MSG a 1 x\r\n", b"WHAT\r\n"])
async def test_what_no_server_says_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        await parsed(line)


async def test_a_long_message_is_put_together_once() -> None:
    message = Taken(1, b"a", b"", b"x" * 100_000, b"")
    wire = message.wire
    assert await parsed(*(wire[at : at + 1_000] for at in range(0, len(wire), 1_000))) == [message]


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0\r\nNats-Sequence: 7\r\nNats-Subject: $KV.a.b\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0 404 Message Not Found\r\n\r\n",
        b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1016\r\nNats-Last-Stream: 1024\r\n\r\n",
        b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\nNats-Last-Sequence: 3\r\n\r\n",
        b"NATS/1.0\r\nName:  \xc3\xa9: \xff \r\nNoColon\r\n\r\n",
        b"NATS/1.0\r\n\r\n",
        b"",
    ],
)
async def test_headers_are_read_as_upstream_does(block: bytes) -> None:
    client = Client(lambda kind, subject: None)
    theirs = await nats.aio.client.Client._process_headers(client, block)
    assert await client._process_headers(block) == theirs


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0\r\nStatus: 404\r\nDescription: no\r\nNats-Sequence: 7\r\n\r\n",
        b"NATS/1.0\r\nStatus: what you like\r\nNats-Sequence: 7\r\n\r\n",
    ],
)
async def test_a_header_of_a_stored_message_is_no_answer_of_the_server(block: bytes) -> None:
    assert await Client(lambda kind, subject: None)._process_headers(block) == {"Nats-Sequence": "7"}


async def test_the_client_uses_it() -> None:
    assert isinstance(Client(lambda kind, subject: None)._ps, MessageParser)


def test_no_other_file_touches_private_names() -> None:
    """The linter forbids them (SLF001) wherever nothing tells it not to."""
    sources = Path(cdm.__file__).parent
    told = {path.relative_to(sources).as_posix() for path in sources.rglob("*.py") if "SLF001" in path.read_text()}
    assert not told, "cdm/store/client.py has its exception in pyproject.toml"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (NoRespondersError(), NoResponders),
        (TimeoutError(), Uncertain),
        (ConnectionClosedError(), Unreachable),
        (ConnectionRefusedError("refused"), Unreachable),
        (Error("nats: whatever a server says"), Unreachable),
        (MaxPayloadError(), RequestRefused),
        (BadSubjectError(), RequestRefused),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else type(each).__name__,
)
def test_what_no_connection_would_send_is_no_matter_of_the_connection(
    theirs: Exception, ours: type[StoreError]
) -> None:
    with pytest.raises(StoreError) as told, translated():
        raise theirs
    assert type(told.value) is ours


async def test_the_client_is_told_when_no_part_of_a_message_is_left() -> None:
    listener = Listener()
    parser = MessageParser(listener)
    for piece in (b"MSG a 1 2\r\nhi\r\nMSG a", b" 1 2\r\nh", b"i\r\n", b"PING\r\n"):
        await parser.parse(piece)
    assert listener.whole == [3, 6]
