"""Gathers a picture of a cluster: asks the server, reads the buckets, and tries what this credential may do.

Nothing is written. Whether something may be written is found out by messages that no stream takes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import anyio
from msgspec.structs import replace

from cdm import clock
from cdm.dispatch.messages import Message
from cdm.doctor.picture import READ, BucketPicture, NodePicture, Peer, Picture, ServerPicture, Storage
from cdm.errors import (
    AccessDenied,
    BucketMissing,
    InvalidKey,
    NoResponders,
    StoreBusy,
    StoreError,
    Uncertain,
    Unsuitable,
    innermost,
)
from cdm.manager.cluster_view import ClusterView
from cdm.model.artifact import NodeId
from cdm.model.event import EVENTS
from cdm.model.keys import (
    ARTIFACTS,
    LAYOUTS,
    NODES,
    Layout,
    NodeKey,
    place,
)
from cdm.model.node import Registration
from cdm.model.problems import UNREADABLE
from cdm.store.bucket import Bucket, buckets
from cdm.store.configuration import lacking, outdated
from cdm.store.connection import Connection
from cdm.store.jetstream import checked
from cdm.store.revisions import revisions
from cdm.store.snapshot import snapshot
from cdm.store.wire import COPIES_API, SILENT, is_leaders, seconds
from cdm.version import VERSION

PATIENCE = 2.0
"""Seconds that the server has to answer a message that only tries something."""
LOOKS_AT_CLOCK = 3
"""How often the server's time is asked for: the quickest answer counts."""
NOBODY = "cdm-doctor"
"""A name that no key, stream or node has."""
_EXPECTED_STREAM = "Nats-Expected-Stream"
"""Header that has a stream of any other name refuse a message."""


async def gather(connection: Connection) -> Picture:
    """A picture of the cluster as it is now. What cannot be looked at is told in it.

    Raises:
        Unreachable: the connection is lost.
    """
    server = await _server(connection)
    found = Picture(VERSION, server)
    if server.problem:
        return found
    pictures = await _buckets(connection)
    may = await _abilities(connection, {each.name for each in pictures if each.missing})
    found = replace(found, server=await _with_clock(connection, server), buckets=pictures, may=may)
    return await _with_contents(connection, found)


# The server


async def _server(connection: Connection) -> ServerPicture:
    version = connection.server_version
    storage: tuple[Storage, ...] = ()
    try:
        await connection.check_server()
        storage = _storage(await connection.api("INFO"))
    except AccessDenied:
        pass  # that there is JetStream shows when the buckets are asked for
    except (Unsuitable, StoreBusy, Uncertain) as error:
        return ServerPicture(version, str(error))
    return ServerPicture(version, "", connection.known_servers, storage)


def _storage(info: Mapping[str, Any]) -> tuple[Storage, ...]:
    tiers = {"JetStream's storage": info} | {
        f"JetStream's storage for {name}": tier for name, tier in (info.get("tiers") or {}).items()
    }
    return tuple(
        Storage(what, int(tier.get("storage", 0)), int(tier["limits"]["max_storage"]))
        for what, tier in tiers.items()
        if (tier.get("limits") or {}).get("max_storage", -1) > 0
    )


async def _with_clock(connection: Connection, server: ServerPicture) -> ServerPicture:
    """The same, and by how much this machine's clock is ahead, as the quickest of some answers tells."""
    best = server
    for _ in range(LOOKS_AT_CLOCK):
        before = time.time()
        try:
            told = seconds(
                (await connection.api(f"STREAM.INFO.{Bucket(connection, NODES).stream}", timeout=PATIENCE))["ts"]
            )
        except (StoreError, KeyError):
            break
        after = time.time()
        half = (after - before) / 2
        if best.ahead is None or half < best.within:
            best = replace(server, ahead=before + half - told, within=half)
    return best


# The buckets


async def _buckets(connection: Connection) -> tuple[BucketPicture, ...]:
    found: dict[str, BucketPicture] = {}

    async def look(layout: Layout, stream: str) -> None:
        name = connection.bucket(layout.name)
        found[layout.name] = await _bucket(connection, layout, name, stream)
        if layout is not ARTIFACTS and (copy := await _copy(connection, name, stream)) is not None:
            found[f"{layout.name} for operators"] = copy

    async def look_at_events() -> None:
        name = connection.bucket(EVENTS)
        picture = await _bucket(connection, None, name, name)
        if not picture.problem:  # not everybody who reads events may look at the stream
            found[EVENTS] = picture

    async with anyio.create_task_group() as tasks:
        for bucket in buckets(connection).values():
            tasks.start_soon(look, bucket.layout, bucket.stream)
        tasks.start_soon(look, ARTIFACTS, f"OBJ_{connection.bucket(ARTIFACTS.name)}")
        tasks.start_soon(look_at_events)
    order = [*(each.name for each in (*LAYOUTS, ARTIFACTS)), EVENTS]
    return tuple(found[each] for name in order for each in (name, f"{name} for operators") if each in found)


async def _bucket(connection: Connection, layout: Layout | None, name: str, stream: str) -> BucketPicture:
    try:
        info = await connection.api_retried(f"STREAM.INFO.{stream}")
    except BucketMissing:
        return BucketPicture(name, missing=True)
    except StoreError as error:
        return BucketPicture(name, problem=str(error))
    return _of(name, info, layout if layout is not ARTIFACTS else None)


async def _copy(connection: Connection, name: str, stream: str) -> BucketPicture | None:
    """The copy that operators read, where there is one and this credential may see it."""
    try:
        answer = await connection.request(f"{COPIES_API}.STREAM.INFO.{stream}", timeout=PATIENCE)
        return _of(f"{name} for operators", checked(answer), None)
    except StoreError:
        return None


def _of(name: str, info: Mapping[str, Any], layout: Layout | None) -> BucketPicture:
    config, mirror = info["config"], info.get("mirror")
    silent = None
    if mirror and mirror.get("active", -1) >= 0:
        silent = mirror["active"] / 1e9
    return BucketPicture(
        name,
        led=is_leaders(info),
        lacking=lacking(layout, config) if layout else {},
        rolls_up=layout is not None and bool(outdated(layout, config)),
        replicas=int(config.get("num_replicas", 1)),
        peers=tuple(
            Peer(
                str(each.get("name", "?")),
                int(each.get("lag", 0)),
                bool(each.get("offline")) or not 0 < each.get("active", 0) < SILENT,
            )
            for each in (info.get("cluster") or {}).get("replicas") or ()
        ),
        lag=int(mirror.get("lag", 0)) if mirror else None,
        silent=silent,
    )


# What may be done


async def _abilities(connection: Connection, missing: Iterable[str]) -> dict[str, bool | None]:
    """Whether the server takes messages at which subjects: each is one that comes to nothing."""
    gone = set(missing)
    elsewhere, keys = {_EXPECTED_STREAM: NOBODY}, f"{connection.key_prefix}$KV."
    tried = {
        "write blueprints": ("blueprints", f"{keys}{connection.bucket('blueprints')}.{NOBODY}"),
        "cordon and drain nodes": ("nodes", f"{keys}{connection.bucket('nodes')}.{NOBODY}.intent"),
        "push artifacts": (ARTIFACTS.name, f"$O.{connection.bucket(ARTIFACTS.name)}.M.{NOBODY}"),
        "manage (write slices)": ("slices", f"{keys}{connection.bucket('slices')}.{NOBODY}"),
    }
    found: dict[str, bool | None] = dict.fromkeys((*tried, "read logs", "change buckets"))

    async def attempt(what: str, subject: str, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        found[what] = await _may(connection, subject, body, headers)

    async with anyio.create_task_group() as tasks:
        for what, (bucket, subject) in tried.items():
            if connection.bucket(bucket) not in gone:
                tasks.start_soon(attempt, what, subject, b"", elsewhere)
        tasks.start_soon(attempt, "read logs", connection.subject("cdm", "logs", NOBODY))
        stream = Bucket(connection, NODES).stream
        # A configuration of another stream.
        change = connection.api_subject(f"STREAM.UPDATE.{stream}")
        tasks.start_soon(attempt, "change buckets", change, b'{"name": "%b"}' % NOBODY.encode())
    return found


async def _may(connection: Connection, subject: str, body: bytes, headers: dict[str, str] | None) -> bool | None:
    try:
        await connection.request(subject, body, headers, PATIENCE)
    except AccessDenied:
        return False
    except NoResponders:
        return True  # the server took it, and nobody is there
    except StoreError:
        return None
    return True


# What is in the buckets


async def _with_contents(connection: Connection, picture: Picture) -> Picture:
    messages: list[Message] = []
    ahead: dict[NodeId, float] = {}
    problem, readable, now = "", None, clock.now()
    try:
        messages, now, readable = await snapshot(connection), clock.now(), True
    except* StoreError as group:
        cause = innermost(group)
        problem, readable = str(cause), False if isinstance(cause, AccessDenied) else None
    with suppress(StoreError):  # of their clocks alone nothing is known then
        ahead = await _ahead(connection)
    read = _reading(picture, messages, ahead, now)
    unreadable = tuple((connection.bucket(bucket), key, reason) for bucket, key, reason in read.unreadable)
    may = {READ: readable, **picture.may}
    return replace(read, may=may, unreadable=unreadable, unseen=problem)


async def _ahead(connection: Connection) -> dict[NodeId, float]:
    """By how many seconds the clock of each node was ahead of the server's, when its registration was stored."""
    found: dict[NodeId, float] = {}
    for each in await revisions(buckets(connection)["nodes"]):
        with suppress(InvalidKey, *UNREADABLE):
            key = NODES.decode(each.name)
            if isinstance(key, NodeKey) and each.payload is not None:
                vitals = Registration.parse(each.payload).vitals
                if vitals is not None and vitals.clock is not None:
                    found[key.node] = vitals.clock - each.at
    return found


def _reading(picture: Picture, messages: Iterable[Message], ahead: Mapping[NodeId, float], now: float) -> Picture:
    view = ClusterView.of(messages)
    unreadable = [(*place(which), reason) for which, reason in view.unreadable.items()]
    for put in filter(None, view.intents.values()):
        unreadable.extend(
            (*place(put.key), f"{field} has no effect: there is no such field") for field in put.value.unknown
        )
    return replace(
        picture,
        nodes={
            node: NodePicture(put.value, max(now - put.at, 0.0), ahead.get(node)) for node, put in view.nodes.items()
        },
        seen={node: put.value for node, put in view.seen.items()},
        intents={node: view.intent(node) for node in view.intents},
        slices={node: len(keys) for node, keys in view.cluster.on_node.items()},
        lease=view.lease,
        unreadable=tuple(unreadable),
    )
