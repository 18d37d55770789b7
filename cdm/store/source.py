"""Where a watch gets its consumer from: it makes one itself, or has managers make one (`cdm.store.lending`)."""

from __future__ import annotations

from typing import Any, Protocol

from msgspec import Struct

from cdm.errors import AccessDenied, NoResponders
from cdm.store.bucket import Bucket
from cdm.store.wire import StreamState

INACTIVE = 10.0
"""Seconds after which the server deletes a consumer to which nobody listens."""


class Delivered(Struct, frozen=True):
    """How far a consumer is."""

    pending: int
    """Messages that it is still to deliver."""
    delivered: int
    """Number of its last delivery."""


class ConsumerSource(Protocol):
    """Makes consumers of some keys of one bucket, and answers what has to be known of its stream.

    All of it asks the stream's leader, and raises a `StoreError` where there is no answer.
    """

    async def state(self) -> StreamState:
        """The stream; errors as of `Bucket.state`."""

    async def subjects(self) -> set[str]:
        """The subjects of the keys that there are."""

    def stored_as(self, name: str) -> str:
        """What the server, and so each delivery, calls the consumer that was asked for under this name."""

    def inbox(self, name: str) -> str:
        """Where a consumer of this name is to deliver."""

    async def create(self, name: str, inbox: str, after: int | None, heartbeat: float) -> Delivered:
        """Make a consumer; returns how far it is.

        Args:
            name: a name that is used once.
            inbox: the subject that it delivers to, from `inbox`.
            after: begin behind this sequence; None: with all that the bucket holds.
            heartbeat: seconds of silence after which it sends a heartbeat.
        """

    async def progress(self, name: str, timeout: float) -> Delivered:
        """How far the consumer of this name is."""

    async def delete(self, name: str, timeout: float) -> None:
        """Delete the consumer of this name."""


class OwnSource:
    """Consumers that this process makes itself.

    Args:
        bucket: whose messages they deliver.
        filtered: which of them, as a subject.
    """

    def __init__(self, bucket: Bucket, filtered: str) -> None:
        self._bucket = bucket
        self._filtered = filtered
        self.patience = 1.0
        """As of `cdm.store.crowd.Crowd`."""

    async def state(self) -> StreamState:
        """As `ConsumerSource.state`."""
        return await self._bucket.state()

    async def subjects(self) -> set[str]:
        """As `ConsumerSource.subjects`."""
        return await self._bucket.subjects(self._filtered)

    def stored_as(self, name: str) -> str:
        """As `ConsumerSource.stored_as`."""
        return name

    def inbox(self, name: str) -> str:
        """As `ConsumerSource.inbox`."""
        return self._bucket.connection.new_inbox()

    async def create(self, name: str, inbox: str, after: int | None, heartbeat: float) -> Delivered:
        """As `ConsumerSource.create`."""
        if after is not None:
            start: dict[str, Any] = {"deliver_policy": "by_start_sequence", "opt_start_seq": after + 1}
        else:
            # The last valid blueprint may lie behind refused ones: those buckets are listed with their history.
            start = {"deliver_policy": "all" if self._bucket.layout.history > 1 else "last_per_subject"}
        config = {
            "name": name,
            "deliver_subject": inbox,
            "filter_subject": self._filtered,
            "ack_policy": "none",
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
            "idle_heartbeat": int(heartbeat * 1e9),
            "flow_control": True,
            "inactive_threshold": int(INACTIVE * 1e9),
            **start,
        }
        # The subjects are part of the call's, so that a permission can be granted for them. Made twice, it is one.
        info = await self._bucket.connection.api_retried(
            f"CONSUMER.CREATE.{self._bucket.stream}.{name}.{self._filtered}",
            {"stream_name": self._bucket.stream, "config": config},
            self.patience,
        )
        return _progress(info)

    async def progress(self, name: str, timeout: float) -> Delivered:
        """As `ConsumerSource.progress`."""
        call = f"CONSUMER.INFO.{self._bucket.stream}.{name}"
        return _progress(await self._bucket.connection.api(call, timeout=timeout))

    async def delete(self, name: str, timeout: float) -> None:
        """As `ConsumerSource.delete`."""
        await self._bucket.connection.api(f"CONSUMER.DELETE.{self._bucket.stream}.{name}", timeout=timeout)


def _progress(info: Any) -> Delivered:
    return Delivered(info["num_pending"], info["delivered"]["consumer_seq"])


async def first_of(own: ConsumerSource, lent: ConsumerSource | None) -> tuple[ConsumerSource, StreamState]:
    """Who makes a consumer, and the stream as its leader has it; errors as of `ConsumerSource.state`.

    An account that is not the buckets' has no JetStream: nobody answers there, or nobody may be asked.
    """
    try:
        return own, await own.state()
    except (AccessDenied, NoResponders) as error:
        if lent is None:
            raise
        try:
            return lent, await lent.state()
        except AccessDenied:
            raise error from None
