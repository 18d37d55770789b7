"""Copies of the buckets in an account of their own: operators read there, and nowhere else.

Whoever may make a consumer of a stream says to which subject of the stream's account it delivers, and the server does
not ask whether he may publish there. So operators are kept out of the account of the buckets. An account without users
has a copy of each bucket, under the bucket's name: a stream that mirrors it. What operators put goes to the bucket.

The server copies by a consumer that is made here, and not by one that it makes itself: its own account would need the
right to make consumers, and with it everybody in it. (Consumers made beforehand: nats-server 2.14, API level 4.)
"""

from __future__ import annotations

import json
from typing import Any

from cdm.errors import AccessDenied, BucketMissing, NoResponders, RequestRefused, Unsuitable
from cdm.log import Log
from cdm.store.bucket import Bucket
from cdm.store.jetstream import checked
from cdm.store.wire import BUCKETS_API, COPIES_API, FOLLOWER

log = Log("cdm.store")

IN_FLIGHT = 1000
"""Messages that are under way to a copy at most."""

_OF_THE_BUCKET = "cdm.bucket.created"


class Copy:
    """The copy of one bucket.

    Args:
        bucket: the bucket, on a connection of its own account.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._connection = bucket.connection
        self._deliver = self._connection.subject("cdm", FOLLOWER)

    async def ensure(self) -> bool | None:
        """Make the copy, or make it anew where it is of a bucket that is no longer there.

        Returns:
            Whether it was made; None: there is no account of copies that this user may make streams in.

        Raises:
            Unsuitable: the server is too old.
            StoreError: another error of an answer, or that there was none.
        """
        stream = self._bucket.stream
        try:
            found = (await self._copies_api(f"STREAM.INFO.{stream}"))["config"]
        except (NoResponders, AccessDenied):
            return None
        except BucketMissing:
            found = None
        source = await self._connection.api_retried(f"STREAM.INFO.{stream}")
        await self._ensure_consumer()
        wanted = self._config(source)
        if found is None:
            await self._copies_api(f"STREAM.CREATE.{stream}", wanted)
            return True
        if found.get("metadata", {}).get(_OF_THE_BUCKET) != source["created"]:
            # It would go on with the numbers of the new bucket, and keep the keys of the old one.
            await self._copies_api(f"STREAM.DELETE.{stream}")
            await self._copies_api(f"STREAM.CREATE.{stream}", wanted)
            log.warning("copy made anew: its bucket was", bucket=self._bucket.name)
            return True
        if found["num_replicas"] != wanted["num_replicas"]:
            await self._copies_api(f"STREAM.UPDATE.{stream}", {**found, "num_replicas": wanted["num_replicas"]})
        return False

    async def _ensure_consumer(self) -> None:
        """Made twice with one configuration, it is one."""
        config = {
            "name": FOLLOWER,
            "durable_name": FOLLOWER,
            "description": "copies this bucket into the account of the operators",
            "deliver_subject": f"{self._deliver}.{self._bucket.layout.name}",
            "deliver_policy": "all",
            "ack_policy": "flow_control",
            "flow_control": True,
            "idle_heartbeat": 10**9,  # the server takes no other
            "max_ack_pending": IN_FLIGHT,
        }
        call = f"CONSUMER.CREATE.{self._bucket.stream}.{FOLLOWER}"
        body = {"stream_name": self._bucket.stream, "config": config}
        try:
            await self._connection.api_retried(call, body)
        except RequestRefused as error:
            raise Unsuitable(
                f"the NATS server cannot copy {self._bucket.name} for operators; it must be 2.14 or later ({error})"
            ) from None

    def _config(self, source: Any) -> dict[str, Any]:
        return {
            "name": self._bucket.stream,
            "description": f"copy of bucket {self._bucket.name}, for operators",
            "max_msgs_per_subject": source["config"]["max_msgs_per_subject"],
            "storage": "file",
            "num_replicas": source["config"]["num_replicas"],
            "discard": "new",
            "allow_direct": True,
            "allow_msg_ttl": True,
            "deny_delete": True,
            "metadata": {_OF_THE_BUCKET: source["created"]},
            "mirror": {
                "name": self._bucket.stream,
                "external": {"api": BUCKETS_API, "deliver": self._deliver},
                "consumer": {"name": FOLLOWER, "deliver_subject": f"{self._deliver}.{self._bucket.layout.name}"},
            },
        }

    async def _copies_api(self, call: str, body: dict[str, Any] | None = None) -> Any:
        payload = json.dumps(body).encode() if body else b""
        return checked(await self._connection.request(f"{COPIES_API}.{call}", payload))
