"""A node that died is given up: its registration and the keys of its slices are taken back in its place."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import NamedTuple

from cdm.errors import Conflict, InvalidKey, NoResponders, StoreBusy, StoreError, Uncertain
from cdm.log import Log
from cdm.model.artifact import NodeId
from cdm.model.keys import Key, NodeKey, encode_node
from cdm.node.registration import ask
from cdm.store.bucket import Bucket, buckets
from cdm.store.connection import Connection
from cdm.store.responder import identity_of

log = Log("cdm.node")

ATTEMPTS = 3
"""How often something is read and deleted anew that was written meanwhile."""


class TakenBack(NamedTuple):
    """What was taken back."""

    registration: bool
    """Whether it was; else there was none, or one that none of these processes made."""
    keys: int | None
    """How many keys of slices were; None: these credentials may not look, and the leader removes them."""


async def take_back(connection: Connection, node: NodeId, incarnations: Collection[str]) -> TakenBack:
    """Take back what processes of a node wrote that are dead, as they would have done by themselves.

    Others' is left alone: a registration that none of these processes made, and with it all keys.

    Args:
        connection: with the node's own credentials, or an operator's.
        node: the node; nothing of it runs any more.
        incarnations: of the processes.

    Raises:
        StoreError: it could not be done, and what is left expires.
    """
    there = buckets(connection)
    # Looked at before: keys of a process that registers in between, elsewhere, are its own.
    keys: Mapping[Key, int] | None = None
    try:
        keys = await _keys(there["slices"], node)
    except StoreError as error:
        log.debug("the keys of the node's slices are not shown", reason=str(error))
    if not await _deregister(there["nodes"], node, incarnations):
        return TakenBack(registration=False, keys=0)
    # Where somebody leads, that removes these keys too, since the node has left.
    try:
        return TakenBack(registration=True, keys=None if keys is None else await _remove(there["slices"], keys))
    except StoreError as error:
        log.debug("the leader removes the keys of the node's slices", reason=str(error))
        return TakenBack(registration=True, keys=None)


async def _deregister(nodes: Bucket, node: NodeId, incarnations: Collection[str]) -> bool:
    key, deleted = NodeKey(node), False
    for _ in range(ATTEMPTS):
        stored = await nodes.read_near(key)
        if stored is None or stored.payload is None or identity_of(stored.payload).incarnation not in incarnations:
            return deleted
        try:
            answer = await ask(nodes.connection, node)
        except NoResponders:
            pass
        else:
            raise Conflict(f"a process answers as node {node} elsewhere (incarnation {answer.incarnation})")
        try:
            await nodes.delete(key, expect=stored.revision)
            return True
        except Conflict:
            pass  # a replica that is behind told of it
        except Uncertain:
            deleted = True  # it may be
    raise StoreBusy(f"the registration of node {node} was written again and again meanwhile")


async def _keys(slices: Bucket, node: NodeId) -> dict[Key, int]:
    """The keys of a node's slices and their revisions; those that do not parse are left out."""
    found: dict[Key, int] = {}
    before = slices.subject("")
    for subject in await slices.subjects(slices.subject(f"{encode_node(node)}.>")):
        with suppress(InvalidKey):
            stored = await slices.read(key := slices.layout.decode(subject.removeprefix(before)))
            if stored is not None and stored.payload is not None:
                found[key] = stored.revision
    return found


async def _remove(slices: Bucket, keys: Mapping[Key, int]) -> int:
    removed = 0
    for key, revision in keys.items():
        with suppress(Conflict):  # the leader was faster, or another process of the node has it now
            await slices.delete(key, expect=revision)
            removed += 1
    return removed
