"""Reads and writes what operators want of nodes, and knows the nodes that they may mean."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from cdm.cli.known import nearest
from cdm.cli.writing import PAUSE, TRIES, typist
from cdm.dispatch.messages import Message
from cdm.errors import EditRefused, NodeUnknown, StoreBusy
from cdm.manager.cluster_view import ClusterView
from cdm.model.artifact import NodeId
from cdm.model.keys import NODES, IntentKey, SeenKey, encode
from cdm.model.node import DRAINS, Intent, Registration, Seen
from cdm.store.batch import MAX_BATCH, Write
from cdm.store.bucket import Bucket, buckets
from cdm.store.connection import Connection
from cdm.store.revisions import revisions
from cdm.store.wire import DELETE, WRITER, dump


class KnownNodes(Struct, frozen=True):
    """The nodes that there are, and that there were."""

    registered: Mapping[NodeId, Registration]
    seen: Mapping[NodeId, Seen]
    intents: Mapping[NodeId, Intent]
    """One that cannot be read counts as cordon."""

    def intent(self, node: NodeId) -> Intent | None:
        """What is wanted of a node; None: nothing, nor is anything stored."""
        return self.intents.get(node)

    @property
    def hosting(self) -> list[NodeId]:
        """Those that run slices."""
        return sorted(node for node, each in self.registered.items() if each.hosts)

    def check(self, names: Iterable[NodeId]) -> None:
        """Raise `NodeUnknown` for a node that is neither registered nor remembered, nor has an intent."""
        known = {*self.registered, *self.seen, *self.intents}
        for name in names:
            if name not in known:
                raise NodeUnknown(f"there is no node {name}{nearest(name, known)}; `cdm nodes` lists them")

    def without(self, feature: str) -> str:
        """Which registered manager does not know a feature, and its version; empty: all do."""
        old = [
            f"{node} (cdm {each.version})"
            for node, each in sorted(self.registered.items())
            if each.leads and each.version and feature not in each.features
        ]
        return f"{old[0]}{f' and {len(old) - 1} more' if len(old) > 1 else ''}" if old else ""


def known_nodes(messages: Iterable[Message]) -> KnownNodes:
    """The nodes in a look at the bucket."""
    view = ClusterView.of(messages)
    return KnownNodes(
        {node: put.value for node, put in view.nodes.items()},
        {node: put.value for node, put in view.seen.items()},
        {node: view.intent(node) for node in view.intents},
    )


async def intent_writers(connection: Connection, *, there: bool) -> dict[NodeId, str]:
    """Who wrote the intents that there are, as declared; ``there``: whether there are any, else nobody is asked."""
    if not there:
        return {}
    found: dict[NodeId, str] = {}
    for each in await revisions(buckets(connection)["nodes"], "*.intent"):
        try:
            key = NODES.decode(each.name)
        except ValueError:
            continue
        if isinstance(key, IntentKey):
            found[key.node] = each.by
    return found


def understood(known: KnownNodes, intent: Intent) -> tuple[Intent, str]:
    """What is written of an intent so that every manager understands it, and what is said of that.

    Raises:
        EditRefused: what it asks for a registered manager does not know.
    """
    old = known.without(DRAINS)
    if not old or intent == Intent(intent.schedule):
        return intent, ""
    if intent.deadline is not None or intent.force:
        raise EditRefused(f"manager {old} does not know deadlines of drains; upgrade managers first, or give none")
    return Intent(intent.schedule), f"the reason is not stored: manager {old} would not understand it"


async def put_intents(connection: Connection, intents: Mapping[NodeId, Intent | None]) -> None:
    """Have intents stored, or removed (None): all or none of those that fit into a batch, so that all are heard of at
    once, and nothing is moved to a node of which the next one tells that it is to be emptied.

    Raises:
        StoreError: they are not stored, or nobody knows.
    """
    bucket, by = buckets(connection)["nodes"], {WRITER: typist()}
    await _write(
        bucket,
        [
            Write(encode(IntentKey(node)), b"" if intent is None else dump(intent), by if intent else {**DELETE, **by})
            for node, intent in intents.items()
        ],
    )


async def remove_nodes(connection: Connection, nodes: Iterable[NodeId], known: KnownNodes) -> None:
    """Remove all that is remembered of nodes, and what is wanted of them. Errors as in `put_intents`."""
    headers = {**DELETE, WRITER: typist()}
    # Removing an intent that is not there would be told as one more event.
    keys = [key for node in nodes for key in (SeenKey(node), *([IntentKey(node)] if node in known.intents else []))]
    await _write(buckets(connection)["nodes"], [Write(encode(key), b"", headers) for key in keys])


async def _write(bucket: Bucket, writes: Sequence[Write]) -> None:
    for some in (writes[each : each + MAX_BATCH] for each in range(0, len(writes), MAX_BATCH)):
        for last in range(TRIES - 1, -1, -1):
            try:
                await bucket.batch([*some])
                break
            except StoreBusy:
                if not last:
                    raise
            await asyncio.sleep(random.uniform(PAUSE / 4, PAUSE))
