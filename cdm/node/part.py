"""What a node is put together from: parts, one for each side of its role, on one connection and one router.

A part says what it mirrors, what it receives, and what it does meanwhile; `cdm.node.node` wires the parts of a role
and runs them.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import anyio
from msgspec import Struct

from cdm import clock
from cdm.artifacts.repository import Artifacts
from cdm.dispatch.messages import Message
from cdm.errors import AccessDenied, BucketMissing, StoreError, Unsuitable
from cdm.log import Log
from cdm.manager.reconciliation import Policy
from cdm.model.artifact import NodeId
from cdm.model.node import PROCESS, Role
from cdm.store.backpressure import Backpressure
from cdm.store.bucket import Bucket, buckets
from cdm.store.connection import Access, Connection
from cdm.store.watch import RELIST_INTERVAL, Watch

log = Log("cdm.node")

T = TypeVar("T")

BUCKET_PATIENCE = 60.0
"""Seconds that a starting node waits for JetStream to make its buckets (a cluster may be electing)."""
WHOLE = ">"
"""All keys of a bucket."""


class NodeSettings(Struct, frozen=True):
    """Everything that can be chosen for a node. Times in seconds."""

    node: NodeId
    access: Access = Access()
    role: Role = Role.ALL
    prefix: str = ""
    create: bool = True
    """Create buckets that are missing."""
    replicas: int = 1
    """Replicas of buckets that it creates."""
    labels: dict[str, str] = {}
    capacity: int | None = None
    runtime: str = PROCESS
    folder: Path | None = None
    """Where the node keeps artifacts and what its slices write; None: where such things are kept on this machine."""
    cache_bytes: int = 10 * 2**30
    """Most bytes of artifacts that are kept while no slice uses them."""
    lease_ttl: float = 10.0
    node_ttl: float = 10.0
    reconcile_interval: float = 30.0
    relist_interval: float = RELIST_INTERVAL
    policy: Policy = Policy()


class Ground:
    """What the parts of one node stand on, and share.

    Args:
        settings: the node's.
        connection: the node's.
        route: gives a message to the receivers of all parts.
    """

    def __init__(self, settings: NodeSettings, connection: Connection, route: Callable[[Message], None]) -> None:
        self.settings = settings
        self.connection = connection
        self.route = route
        self.incarnation = secrets.token_hex(8)
        self.buckets: dict[str, Bucket] = buckets(connection)
        self.watches: dict[str, Watch] = {}
        """The mirrors of all parts, by bucket; there once the parts are made."""
        self.backpressure = Backpressure()
        """On the mirror of ``slices``."""


class Part(Protocol):
    """One side of a node. Everything but ``work`` is called by the node, from one task."""

    @property
    def mirrors(self) -> Mapping[str, str]:
        """The buckets that it needs mirrored, and which of their keys: `WHOLE`, or a pattern as NATS has them."""

    @property
    def receivers(self) -> tuple[object, ...]:
        """Objects for the router, in the order in which they are to receive."""

    @property
    def sends(self) -> tuple[Any, ...]:
        """Every message that its receivers wait for, as receivers annotate them."""

    @property
    def work(self) -> tuple[Callable[[], Coroutine[Any, Any, object]], ...]:
        """What runs for as long as the node does."""

    async def prepare(self) -> None:
        """See to it that what it needs on the server is there; before anything else."""

    async def recreate(self, bucket: Bucket) -> None:
        """A bucket is gone while the node runs."""

    def heard(self, at: float) -> None:
        """NATS took a heartbeat of this node that was sent at this time, in seconds on `cdm.clock`."""

    def wake(self) -> None:
        """The connection came or went: something may be due."""

    def reset(self, reason: str) -> None:
        """The stream of ``slices`` is another one than before."""

    async def resign(self) -> None:
        """The node stops: begin nothing new. The node is still registered."""

    async def give_back(self) -> None:
        """The node stops, and is registered no more. Called only while there is a connection."""

    async def close(self) -> None:
        """The node is at its end, whatever ended it. Cancelled: without grace for what still runs."""


async def patiently(work: Callable[[], Awaitable[T]], what: str, patience: float = math.inf) -> T:
    """Do it once JetStream is up: a cluster may be electing, or too few of its servers run yet.

    Args:
        work: what to do.
        what: what it is for, as it is logged.
        patience: seconds after which its error is raised.

    Raises:
        StoreError: one that waiting does not mend, at once; any other when ``patience`` is over.
    """
    deadline = clock.now() + patience
    while True:
        try:
            return await work()
        except StoreError as error:
            if clock.now() >= deadline or isinstance(error, (Unsuitable, BucketMissing, AccessDenied)):
                raise
            log.info("waiting for JetStream", what=what, reason=str(error))
        await anyio.sleep(0.5)


async def ensure(bucket: Bucket | Artifacts, *, create: bool, replicas: int, change_replicas: bool = False) -> bool:
    """`Bucket.ensure`, patient with a JetStream that is still coming up."""
    return await patiently(
        partial(bucket.ensure, create=create, replicas=replicas, change_replicas=change_replicas),
        f"bucket {bucket.name}",
        BUCKET_PATIENCE,
    )
