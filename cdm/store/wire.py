"""How a bucket's messages look on the wire: the headers that carry expectations, TTLs and removals."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from cdm.dispatch.messages import Cause

MARKER_TTL = 900
"""Seconds that the markers of keys that cdm deletes, and where the server marks them, of expired keys, are kept."""

EXPECT = "Nats-Expected-Last-Subject-Sequence"
EXPECT_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
OPERATION = "KV-Operation"
MARKER = "Nats-Marker-Reason"
TTL = "Nats-TTL"
ROLLUP = "Nats-Rollup"

WRITER = "Cdm-By"
"""In which a command says who typed it: declared, not proven."""
OWNER = "Cdm-Owner"
"""Says who looks after a blueprint: what `cdm apply --owner NAME --prune` may remove."""

SILENT = 5_000_000_000
"""Nanoseconds after which a replica counts as cut off; replicas of a stream hear of each other every second."""

FOLLOWER = "copies"
"""Name of the consumer by which a copy follows its bucket, and what it delivers to begins with ``cdm.copies``."""
BUCKETS_API = "$JS.cdm.API"
"""Where other accounts have the JetStream API of the buckets' account, as far as they may use it.

Clients of KV buckets put to this prefix, followed by the key's subject, where a bucket is a copy.
"""
COPIES_API = f"$JS.{FOLLOWER}.API"
"""Where the buckets' account has the JetStream API of the account of copies, as far as it may use it."""

DELETE = {OPERATION: "DEL", TTL: str(MARKER_TTL)}
"""Headers of a delete."""

_FIRST = b"NATS/1.0"
"""How a header block begins."""
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


def told_in(block: bytes) -> dict[str, str]:
    """The same, with what a server that answers itself says in the first line: ``Status``, and ``Description``.

    Where it says nothing there, these are not in what is returned: headers of a stored message, which anybody may have
    given such names, are no answer of the server.
    """
    status, _, why = block[len(_FIRST) : block.find(b"\r\n")].decode("utf-8", "replace").strip().partition(" ")
    found = headers_of(block)
    for name in ("Status", "Description"):
        found.pop(name, None)
    if status.isdecimal():
        found["Status"] = status
        if why:
            found["Description"] = why
    return found


matters = re.compile(rb"\n(?:Nats-TTL|KV-Operation|Nats-Marker|Cdm-By)").search
"""Whether any header in a block changes what its message says. One search takes a third of four look-ups' time."""


def is_removal(headers: Mapping[str, str]) -> bool:
    """Whether a message with these headers ends its key instead of giving it a value."""
    return MARKER in headers or headers.get(OPERATION) in ("DEL", "PURGE")


def cause_of(headers: Mapping[str, str]) -> Cause | None:
    """How a message with these headers ended its key; None: it gave it a value."""
    if not is_removal(headers):
        return None
    return Cause.EXPIRED if headers.get(MARKER) == "MaxAge" else Cause.DELETED


def delivery_of(reply: bytes) -> tuple[bytes, int, int, int, bytes] | None:
    """What a consumer's delivery says of itself in its reply subject; None: it is not a consumer's.

    These are the consumer's name, the message's sequence in the stream, the number of the delivery, when the message
    was stored in nanoseconds since 1970, and how many messages wait behind it.
    """
    tokens = reply.split(b".")
    # $JS.ACK[.<domain>.<account>].<stream>.<consumer>.<deliveries>.<sequence>.<number>.<time>.<pending>[.<token>]
    base = 2 if len(tokens) == 9 else 4
    try:
        return tokens[base + 1], int(tokens[base + 3]), int(tokens[base + 4]), int(tokens[base + 5]), tokens[base + 6]
    except (LookupError, ValueError):
        return None


class StreamState(Struct, frozen=True):
    """A bucket's stream at one moment."""

    created: str
    last: int
    """Its last sequence."""
    clock: float
    """The server's time, in seconds since 1970."""
    lacks: str = ""
    """Names of settings that cdm needs and the stream does not have."""
    first: int = 0
    """Sequence of the oldest message that it holds; 0: it never held one."""
    keys: int = 0
    """How many keys it holds messages of, markers included."""
    replicas: int = 1
    """On how many servers it is kept."""
    rolls_up: bool = False
    """Whether it takes roll-ups, and marks what expires, for managers of an earlier version."""
    alone: bool = False
    """Whether its server is in no cluster, and the one that this client is connected to: then nothing of it is lost
    without the connection. Behind a leaf node it is."""
    consumers: int = 0
    """How many consumers it has; 0: that is not known."""


def is_leaders(info: Mapping[str, Any]) -> bool:
    """Whether an answer of ``STREAM.INFO`` is that of the stream's leader, who has heard of most replicas of late.

    Where a server knows of no leader, as one that has just come back, it answers itself, with what it holds, which may
    be old; and a leader that is cut off from its peers goes on answering for some time. A listing from there would lack
    what was written since, and blueprints that are only unknown there would count as deleted.
    """
    cluster = info.get("cluster") or {}
    replicas = cluster.get("replicas") or []
    leader = cluster.get("leader")
    if replicas and (not leader or any(each.get("name") == leader for each in replicas)):
        return False  # the leader itself tells of its peers only
    # No time at all since a replica was heard of means that it never was.
    heard = len([each for each in replicas if not each.get("offline") and 0 < each.get("active", 0) < SILENT])
    return 2 * (1 + heard) > 1 + len(replicas)


def seconds(timestamp: str) -> float:
    """A server's timestamp in seconds since 1970."""
    # The server writes nanoseconds; Python 3.11 reads at most six digits.
    head, dot, fraction = timestamp.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{head}+00:00").timestamp() + (float(f"0.{fraction}") if dot else 0.0)
