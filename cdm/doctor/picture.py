"""All that is gathered of a cluster to be judged: plain values, with the time of the look. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from cdm.model.artifact import NodeId
from cdm.model.node import Intent, Lease, Registration, Seen

READ = "read the buckets"
"""What a credential may do that sees what is stored."""


class Peer(Struct, frozen=True):
    """A server that holds a replica of a bucket, as the one that leads it sees it."""

    name: str
    lag: int = 0
    """Writes that it has yet to take."""
    lost: bool = False
    """Whether nothing was heard of it lately."""


class BucketPicture(Struct, frozen=True):
    """One bucket's stream."""

    name: str
    missing: bool = False
    problem: str = ""
    """Why it could not be looked at; empty: it could."""
    led: bool = True
    """Whether its leader answered, and most replicas are with it."""
    lacking: Mapping[str, Any] = {}
    """Settings that it needs, with the values that are needed."""
    rolls_up: bool = False
    """Whether it has settings that only managers of an earlier version need."""
    replicas: int = 1
    peers: tuple[Peer, ...] = ()
    lag: int | None = None
    """Of a copy: writes that it has yet to take; None: it is the bucket itself."""
    silent: float | None = None
    """Of a copy: seconds since its bucket was heard; None: it never was."""


class Storage(Struct, frozen=True):
    """How much of the room that JetStream allows is taken."""

    what: str
    used: int
    limit: int


class ServerPicture(Struct, frozen=True):
    """The server that this look went through."""

    version: str = ""
    problem: str = ""
    """Why it will not do; empty: it will."""
    servers: int = 1
    """How many servers it knows, itself included."""
    storage: tuple[Storage, ...] = ()
    ahead: float | None = None
    """Seconds by which this machine's clock is ahead of the server's; None: not known."""
    within: float = 0.0
    """By how many seconds that may be wrong: half the time that the answer took."""


class NodePicture(Struct, frozen=True):
    """One registered node."""

    registration: Registration
    heard: float = 0.0
    """Seconds since its registration was last written."""
    ahead: float | None = None
    """Seconds by which its clock was ahead of the server's then; None: it does not tell."""


class Picture(Struct, frozen=True):
    """A cluster at one moment. What could not be read is empty, and a bucket says so."""

    version: str
    """Of the cdm that looks."""
    server: ServerPicture = ServerPicture()
    may: Mapping[str, bool | None] = {}
    """What this credential may do: in words, whether it may; None: nobody can tell."""
    buckets: tuple[BucketPicture, ...] = ()
    nodes: Mapping[NodeId, NodePicture] = {}
    seen: Mapping[NodeId, Seen] = {}
    intents: Mapping[NodeId, Intent] = {}
    slices: Mapping[NodeId, int] = {}
    """How many keys of slices each node has."""
    lease: Lease | None = None
    unreadable: tuple[tuple[str, str, str], ...] = ()
    """Keys and values that cannot be read: bucket, key and reason."""
    unseen: str = ""
    """Why the buckets could not be listed; empty: they could, and what is not here is not there."""
