"""The store as it looks on the wire: somebody with nothing but a NATS client, and nothing of cdm."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
import anyio.abc
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.harness.servers import NatsServer, raw_client
from tests.harness.waiting import bounded, eventually

EXPECT = "Nats-Expected-Last-Subject-Sequence"
EXPECT_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
ANSWER = 10.0
"""Seconds within which a server that is not lost answers, however slow the machine is."""
CONFLICT = 10071
"""The server's code for: another write was faster."""


class Record(NamedTuple):
    """One message of a bucket's stream."""

    sequence: int
    key: str
    data: bytes
    headers: dict[str, str]

    @property
    def gone(self) -> bool:
        """Whether this is a marker of a delete or an expiry."""
        return "KV-Operation" in self.headers or "Nats-Marker-Reason" in self.headers

    @property
    def value(self) -> dict[str, Any]:
        """The decoded value; empty where it is none."""
        try:
            value = json.loads(self.data)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


class Rejection(Exception):
    """The server refused something that a test sent."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class Raw:
    """Somebody with nothing but a NATS client: a user, an agent, a vandal. Made by `raw`."""

    def __init__(self, client: Client, prefix: str = "", keys: str = ">") -> None:
        self.client = client
        self.prefix = prefix
        self.keys = keys
        """The only keys that it may read, as a pattern."""
        self._heard: dict[str, list[Record]] = {}
        """What was told of each bucket that is recorded."""

    def bucket(self, name: str) -> str:
        """A bucket's full name."""
        return f"{self.prefix}_{name}" if self.prefix else name

    async def api(self, call: str, body: Mapping[str, Any] | None = None, timeout: float = ANSWER) -> Any:
        """Call the JetStream API."""
        payload = json.dumps(body).encode() if body is not None else b""
        answer = json.loads((await self.client.request(f"$JS.API.{call}", payload, timeout=timeout)).data)
        if error := answer.get("error"):
            raise Rejection(error.get("err_code", 0), error.get("description", ""))
        return answer

    async def put(
        self, bucket: str, key: str, value: object, headers: dict[str, str] | None = None, timeout: float = ANSWER
    ) -> int:
        """Put a key once; ``value`` is sent as it is where it is bytes, as JSON otherwise."""
        payload = value if isinstance(value, bytes) else json.dumps(value).encode()
        subject = f"$KV.{self.bucket(bucket)}.{key}"
        answer = json.loads((await self.client.request(subject, payload, timeout=timeout, headers=headers)).data)
        if error := answer.get("error"):
            raise Rejection(error.get("err_code", 0), error.get("description", ""))
        return int(answer["seq"])

    async def delete(self, bucket: str, key: str, timeout: float = ANSWER) -> int:
        """Delete a key as ``nats kv del`` does."""
        return await self.put(bucket, key, b"", {"KV-Operation": "DEL"}, timeout)

    async def stubborn(self, bucket: str, key: str, value: object, headers: dict[str, str] | None = None) -> int:
        """Put a key, again and again until it is acknowledged; it is stored once."""
        once = {"Nats-Msg-Id": secrets.token_hex(8), **(headers or {})}
        with bounded(30):
            while True:
                try:
                    return await self.put(bucket, key, value, once, timeout=1)
                except (nats.errors.Error, OSError, Rejection):
                    await anyio.sleep(0.05)

    async def records(self, bucket: str, deliver: str = "last_per_subject") -> list[Record]:
        """The bucket's messages, read with a consumer of its own; ``deliver``: ``all`` or ``last_per_subject``."""
        name = f"cdm-{secrets.token_hex(6)}"
        inbox = self._inbox(name)
        start = len(f"$KV.{self.bucket(bucket)}.")
        found: list[Record] = []
        pending = 1
        progress = anyio.Event()

        async def take(message: Msg) -> None:
            nonlocal pending
            if message.reply.startswith("$JS.ACK"):
                tokens = message.reply.split(".")
                found.append(Record(int(tokens[5]), message.subject[start:], message.data, dict(message.headers or {})))
                pending = int(tokens[8])
                progress.set()

        subscription = await self.client.subscribe(inbox, cb=take)
        try:
            pending, delivered = await self._create(bucket, name, inbox, deliver)
            if pending == 0 and delivered == 0:
                return []
            silent = 0
            while pending:
                with anyio.move_on_after(0.1) as silence:
                    await progress.wait()
                silent = silent + 1 if silence.cancelled_caught else 0
                progress = anyio.Event()
                # The last ones may have been overwritten: then no message tells that it is the last.
                if silent and await self._progress(bucket, name) == (0, len(found)):
                    break
                if silent == 100:
                    raise Rejection(0, "the list broke off: its consumer was lost")
            await self._remove(bucket, name)
        finally:
            await subscription.unsubscribe()
        return found

    # Its consumers

    def _inbox(self, name: str) -> str:
        return self.client.new_inbox()

    async def _create(self, bucket: str, name: str, inbox: str, deliver: str) -> tuple[int, int]:
        stream = f"KV_{self.bucket(bucket)}"
        config = {"name": name, "deliver_subject": inbox, "ack_policy": "none", "deliver_policy": deliver}
        config["filter_subject"] = f"$KV.{self.bucket(bucket)}.{self.keys}"
        body = {"stream_name": stream, "config": {**config, "mem_storage": True, "num_replicas": 1}}
        info = await self.api(f"CONSUMER.CREATE.{stream}.{name}.{config['filter_subject']}", body)
        return info["num_pending"], info["delivered"]["consumer_seq"]

    async def _progress(self, bucket: str, name: str) -> tuple[int, int]:
        info = await self.api(f"CONSUMER.INFO.KV_{self.bucket(bucket)}.{name}")
        return info["num_pending"], info["delivered"]["consumer_seq"]

    async def _remove(self, bucket: str, name: str) -> None:
        await self.api(f"CONSUMER.DELETE.KV_{self.bucket(bucket)}.{name}")

    async def contents(self, bucket: str) -> dict[str, Record]:
        """The bucket's living keys."""
        return {record.key: record for record in await self.records(bucket) if not record.gone}

    async def registrations(self) -> dict[str, Record]:
        """The nodes that are registered; neither intents nor what is remembered of nodes."""
        return {key: record for key, record in (await self.contents("nodes")).items() if "." not in key}

    async def slices(self) -> dict[str, str]:
        """State by slice key."""
        found = await self.contents("slices")
        return {key: record.value.get("state", "?") for key, record in found.items() if not key.startswith("_")}

    async def status(self, artifact: str) -> dict[str, Any]:
        """What the leader says of a blueprint; empty where it says nothing."""
        record = (await self.contents("status")).get(artifact)
        return record.value if record else {}

    async def lease(self) -> dict[str, Any]:
        """Who leads; empty where nobody does."""
        try:
            record = (await self.contents("slices")).get("_leader")
        except Rejection:
            return {}
        return record.value if record else {}

    async def overhear(self, subject: str) -> list[Msg]:
        """All that is sent to this subject from now on gathers in what this returns."""
        heard: list[Msg] = []

        async def take(message: Msg) -> None:
            heard.append(message)

        await self.client.subscribe(subject, cb=take)
        await self.client.flush()
        return heard

    async def consumers(self, bucket: str) -> int:
        """How many consumers the bucket's stream has."""
        info = await self.api(f"STREAM.INFO.KV_{self.bucket(bucket)}")
        return int(info["state"]["consumer_count"])

    async def record(self, bucket: str = "slices", *, before: bool = False) -> None:
        """Make the bucket, and have the server tell of each message as it is stored (see `recorded`).

        The bucket itself cannot keep more: with a history the server lifts TTLs to that of its markers. And who reads
        it, as a stream that has it as its source does, misses what is overwritten before it is read.
        """
        subjects = f"$KV.{self.bucket(bucket)}.>"
        heard = self._heard[bucket] = []
        start = len(subjects) - 1

        async def take(message: Msg) -> None:
            headers = dict(message.headers or {})
            name = headers["Nats-Subject"][start:]
            heard.append(Record(int(headers["Nats-Sequence"]), name, message.data, headers))

        told = f"RECORD.{self.bucket(bucket)}.>"
        await self.client.subscribe(told, cb=take)
        await self.client.flush()
        await self.make(bucket, before=before, republish={"src": subjects, "dest": told})

    async def make(self, bucket: str, *, before: bool = False, **more: Any) -> None:
        """Make a bucket as cdm does, or as it did before: it takes roll-ups, and marks what expired."""
        stream = f"KV_{self.bucket(bucket)}"
        config = {
            "name": stream,
            "subjects": [f"$KV.{self.bucket(bucket)}.>"],
            "max_msgs_per_subject": 10 if bucket == "blueprints" else 1,
            "storage": "file",
            "discard": "new",
            "allow_rollup_hdrs": before or bucket == "blueprints",
            "deny_delete": True,
            "allow_direct": True,
            "allow_msg_ttl": True,
            "allow_atomic": True,
            **more,
        }
        if config["allow_rollup_hdrs"]:
            config["subject_delete_marker_ttl"] = 900 * 10**9
        await self.api(f"STREAM.CREATE.{stream}", config)

    async def takes_roll_ups(self, bucket: str) -> bool:
        """Whether whoever may write a key of a bucket can have others removed."""
        return bool((await self.api(f"STREAM.INFO.KV_{self.bucket(bucket)}"))["config"].get("allow_rollup_hdrs"))

    async def recorded(self, bucket: str = "slices") -> list[Record]:
        """Everything that was stored in the bucket since `record`, in its order.

        Of what was stored while this client was not connected it is what the bucket still holds.
        """
        last = (await self.api(f"STREAM.INFO.KV_{self.bucket(bucket)}"))["state"]["last_seq"]
        heard = self._heard[bucket]
        await eventually(lambda: heard and heard[-1].sequence >= last, what="all is recorded")
        held = [record for record in await self.records(bucket, "all") if record.sequence < last]
        return sorted({record.sequence: record for record in (*held, *heard)}.values())


class Tenant(Raw):
    """A node in an account of its own, with nothing but a NATS client: managers make its consumers."""

    def __init__(self, client: Client, node: str) -> None:
        super().__init__(client, keys=f"{node}.>")
        self._subject = f"cdm.watch.{node}"

    async def ask(self, **question: object) -> Any:
        """Ask a manager."""
        payload = json.dumps({"reader": "agent", **question}).encode()
        answer = json.loads((await self.client.request(self._subject, payload, timeout=ANSWER)).data)
        if error := answer.get("error"):
            raise Rejection(0, error)
        return answer

    def _inbox(self, name: str) -> str:
        return f"{self._subject}.{name}"

    async def _create(self, bucket: str, name: str, inbox: str, deliver: str) -> tuple[int, int]:
        progress = (await self.ask(what="create", token=name))["progress"]
        return progress["pending"], progress["delivered"]

    async def _progress(self, bucket: str, name: str) -> tuple[int, int]:
        progress = (await self.ask(what="progress"))["progress"]
        return progress["pending"], progress["delivered"]

    async def _remove(self, bucket: str, name: str) -> None:
        await self.ask(what="delete")


@asynccontextmanager
async def raw(server: NatsServer | Sequence[NatsServer], prefix: str = "") -> AsyncIterator[Raw]:
    """Somebody with nothing but a NATS client."""
    servers = [server] if isinstance(server, NatsServer) else server
    async with raw_client(*(one.url for one in servers)) as client:
        yield Raw(client, prefix)


def on_nodes(slices: Mapping[str, str], state: Callable[[str], bool] = lambda state: True) -> Counter[str]:
    """How many slices, in states that count, each node has."""
    return Counter(key.partition(".")[0] for key, value in slices.items() if state(value))


def artifact_of(key: str) -> str:
    """The artifact's path of a slice key."""
    return "/".join(key.partition(".")[2].split("/")[:3])


async def runs_exactly(user: Raw, wanted: Mapping[str, int]) -> bool:
    """Whether each artifact has so many slices, and no other has any, and all of them are ACTIVE."""
    found = await user.slices()
    return set(found.values()) <= {"ACTIVE"} and Counter(map(artifact_of, found)) == Counter(wanted)


async def patiently(look: Callable[[], Awaitable[bool]]) -> bool:
    """A look that a server which just went does not end."""
    try:
        return await look()
    except (Rejection, nats.errors.Error, OSError, TimeoutError):
        return False
