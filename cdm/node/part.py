"""What a node is put together from: parts, one for each side of its role, on one connection and one router.

A part says what it mirrors, what it receives, and what it does meanwhile; `cdm.node.node` wires the parts of a role
and runs them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any

from cdm.dispatch.messages import Message
from cdm.model.node import Vitals
from cdm.node.address import OwnAddress
from cdm.node.settings import NodeSettings
from cdm.store.backpressure import Backpressure
from cdm.store.bucket import Bucket, buckets
from cdm.store.connection import Connection
from cdm.store.micro import EndpointTally
from cdm.store.watch import Watch

WHOLE = ">"
"""All keys of a bucket."""
QUIET = 10.0
"""Seconds between the heartbeats of a consumer that seldom has anything to deliver. Its loss shows at once where the
connection breaks too, and else within 13 s, well before a command's deadline (60 s)."""

Work = Callable[[], Coroutine[Any, Any, object]]


class Ground:
    """What the parts of one node share.

    Args:
        settings: the node's.
        connection: the node's.
        route: gives a message to the receivers of all parts.
        incarnation: of the node's process; None: a new one.
    """

    def __init__(
        self,
        settings: NodeSettings,
        connection: Connection,
        route: Callable[[Message], None],
        incarnation: str | None = None,
    ) -> None:
        self.settings = settings
        self.connection = connection
        self.route = route
        self.incarnation = incarnation or secrets.token_hex(8)
        self.address = OwnAddress(settings.address, lambda: connection.own_address)
        """Where this node's slices are reached."""
        self.buckets: dict[str, Bucket] = buckets(connection)
        self.watches: dict[str, Watch] = {}
        """The mirrors of all parts, by bucket; there once the parts are made."""
        self.backpressure = Backpressure()
        """On the mirror of ``slices``."""
        self.describe_anew: Callable[[], None] = lambda: None
        """Has the node register at once what its parts say by now; there once the node is made."""


class Part:
    """One side of a node: it overrides what it needs. Everything but ``work`` is called by the node, from one task."""

    mirrors: Mapping[str, str] = MappingProxyType({})
    """The buckets that it needs mirrored, and which of their keys: `WHOLE`, or a pattern as NATS has them."""
    receivers: tuple[object, ...] = ()
    """Objects for the router, in the order in which they are to receive."""
    sends: tuple[Any, ...] = ()
    """Every message that its receivers wait for, as receivers annotate them."""
    features: tuple[str, ...] = ()
    """What it can do that not every node of this version can, for the registration."""
    work: tuple[Work, ...] = ()
    """What runs for as long as the node does."""

    tallies: tuple[EndpointTally, ...] = ()
    """Of the subjects at which it answers."""

    async def check(self) -> None:
        """Whether the part can do on this machine what it is for: called first of all, and makes nothing."""

    async def take_over(self) -> None:
        """Take what an earlier process of the node left on this machine: called before there is a connection, for what
        is not taken over in time ends.
        """

    async def prepare(self) -> None:
        """See to it that what the part needs is there; called once there is a connection, before anything is done."""

    async def provide(self, bucket: Bucket) -> None:
        """A bucket is missing while the node runs, or lacks settings that it needs."""

    @property
    def within(self) -> tuple[Part, ...]:
        """Parts that it has in turn, at present."""
        return ()

    @property
    def watches(self) -> Mapping[str, Watch]:
        """The mirrors of parts that it has in turn, by bucket."""
        return {}

    @property
    def routed(self) -> int:
        """How many messages it routed to parts that it has in turn."""
        return 0

    @property
    def says(self) -> Mapping[str, object]:
        """Fields of the registration that it decides, as of now."""
        return {}

    @property
    def slices(self) -> int:
        """How many slices of this node it knows of."""
        return 0

    def vitals(self, of_node: Vitals) -> Vitals:
        """How the node is, with what the part knows of it."""
        return of_node

    @property
    def figures(self) -> Mapping[str, object]:
        """What it has to do just now, for people."""
        return {}

    def heard(self, at: float) -> None:
        """NATS accepted a heartbeat of this node that was sent at this time, in seconds on `cdm.clock`."""

    def succeeds(self, until: float) -> None:
        """This process took the node's id over; NATS may have heard others that had it until then (`cdm.clock`)."""

    @property
    def leaves_doubt(self) -> bool:
        """Whether something that must not run twice may still run where an earlier process of the node began it."""
        return False

    def accepting(self, accepting: bool) -> None:
        """NATS accepts the node's heartbeats, or does not."""

    async def know_nodes(self) -> None:
        """Wait until it knows what all nodes say of themselves at the time of the call; raises a `StoreError`."""

    def wake(self) -> None:
        """The connection came or went: something may be due."""

    def reset(self, reason: str) -> None:
        """The stream of ``slices`` is another one than before."""

    async def resign(self) -> None:
        """The node stops: begin nothing new. The node is still registered."""

    async def withdraw(self) -> None:
        """The node stops, and no part begins anything any more: tell that what it did is over. The node is still
        registered. Called only while there is a connection.
        """

    async def give_back(self) -> None:
        """The node stops, and is no longer registered; or is, for the next process of it. Called only while there is a
        connection.
        """

    async def close(self) -> None:
        """The node ends, whatever the cause. Cancelled: without grace for what still runs."""

    async def detach(self) -> None:
        """The node's process ends, and what runs is to be there for the next one: instead of `close`."""
        await self.close()
