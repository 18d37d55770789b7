"""How a bucket's messages look on the wire: the headers that carry expectations, TTLs and removals."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec
from msgspec import Struct

MARKER_TTL = 900
"""Seconds that the markers of expired keys, and of keys that cdm deletes, are kept."""

EXPECT = "Nats-Expected-Last-Subject-Sequence"
EXPECT_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
OPERATION = "KV-Operation"
MARKER = "Nats-Marker-Reason"
TTL = "Nats-TTL"
ROLLUP = "Nats-Rollup"

DELETE = {OPERATION: "DEL", TTL: str(MARKER_TTL)}
"""Headers of a delete."""

_encoder = msgspec.json.Encoder()


def dump(value: Struct) -> bytes:
    """A value's bytes in a bucket."""
    return _encoder.encode(value)


def ttl_header(seconds: float) -> str:
    """A TTL as the server reads it; it accepts nothing below a second."""
    return f"{max(round(seconds * 1000), 1000)}ms"


def headers_of(block: bytes) -> dict[str, str]:
    """Parse a header block: ``NATS/1.0``, then one ``name: value`` a line."""
    pairs = (line.partition(":") for line in block.decode("utf-8", "replace").split("\r\n")[1:])
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def is_removal(headers: Mapping[str, str]) -> bool:
    """Whether a message with these headers ends its key instead of giving it a value."""
    return MARKER in headers or headers.get(OPERATION) in ("DEL", "PURGE")


def seconds(timestamp: str) -> float:
    """A server's timestamp in seconds since 1970."""
    # The server writes nanoseconds; Python 3.11 reads at most six digits.
    head, dot, fraction = timestamp.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{head}+00:00").timestamp() + (float(f"0.{fraction}") if dot else 0.0)
