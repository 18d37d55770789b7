"""Atomic batches: several writes to one bucket, of which the server stores all or none."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from msgspec import Struct

MAX_BATCH = 1000
"""Most messages in an atomic batch."""
HEADERS = 512
"""Bytes that a message's headers take at most."""
LONGEST_KEY = 3_500
"""Bytes of a key for which there is room in a line of the protocol, which has 4,096."""


_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Write(Struct, frozen=True, gc=False):
    """One message of a batch. ``headers`` carry what it expects of its key, its TTL, or that it is a delete."""

    name: str
    """The key's string."""
    payload: bytes
    headers: Mapping[str, str] = _NO_HEADERS


class Batch(Struct, frozen=True):
    """An atomic batch, ready to be sent once. Made by `prepared`.

    One of a single message is that message, and no batch to the server: it needs none of the room for them.
    """

    frames: bytes
    """All messages but the last, as commands of the client."""
    last: Write
    problem: str
    """Why it cannot be sent; empty: it can."""


def prepared(writes: Sequence[Write], subjects: str, max_payload: int) -> Batch:
    """Encode a batch.

    Args:
        writes: one message for each key, in order; at least one, at most `MAX_BATCH`.
        subjects: what the subjects of the bucket's keys begin with.
        max_payload: longest message that the server accepts, in bytes.

    Raises:
        ValueError: there are no writes, or too many.
    """
    if not 0 < len(writes) <= MAX_BATCH:
        raise ValueError(f"a batch holds 1 to {MAX_BATCH:,} messages, not {len(writes):,}")
    identity = secrets.token_hex(11)
    *others, last = writes
    frames: list[bytes] = []
    problem = next(filter(None, (problem_with(write, max_payload) for write in writes)), "")
    for position, write in enumerate(others, 1):
        # The client takes three times as long for each.
        headers = write.headers
        own = "".join([f"{name}: {value}\r\n" for name, value in headers.items()]) if headers else ""
        block = f"NATS/1.0\r\n{own}Nats-Batch-Id: {identity}\r\nNats-Batch-Sequence: {position}\r\n\r\n"
        length = len(block) if block.isascii() else len(block.encode())
        size = length + len(write.payload)
        frames += (f"HPUB {subjects}{write.name} {length} {size}\r\n{block}".encode(), write.payload, b"\r\n")
    if not frames:
        return Batch(b"", last, problem)
    headers = {
        **last.headers,
        "Nats-Batch-Id": identity,
        "Nats-Batch-Sequence": str(len(writes)),
        "Nats-Batch-Commit": "1",
    }
    return Batch(b"".join(frames), Write(last.name, last.payload, headers), problem)


def problem_with(write: Write, max_payload: int) -> str:
    """Why the server would end the connection over a message instead of storing it; empty: it would store it."""
    name, size = write.name, len(write.payload) + HEADERS
    length = len(name) if name.isascii() else len(name.encode())
    if length > LONGEST_KEY:
        return f"key {name[:40]!r}… is {length:,} bytes long, more than the {LONGEST_KEY:,} that fit"
    if size > max_payload:
        return f"the value of {name!r} is {size:,} bytes long, more than the {max_payload:,} that NATS accepts"
    return ""
