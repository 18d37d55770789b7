"""Buckets as streams: their configuration, reading one key, and compare-and-set writes, single and in batches."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from msgspec import Struct

from cdm.errors import AccessDenied, BatchRefused, BucketMissing, NoResponders, RequestRefused, StoreBusy, Unsuitable
from cdm.log import Log
from cdm.model.keys import LAYOUTS, Key, Layout, encode
from cdm.store.batch import Batch, Write, prepared, problem_with
from cdm.store.configuration import created, crowded, lacking, outdated
from cdm.store.connection import Connection
from cdm.store.jetstream import NAME_IN_USE, acknowledged, no_message, of_leader
from cdm.store.wire import (
    DELETE,
    EXPECT,
    TTL,
    StreamState,
    headers_of,
    is_removal,
    seconds,
    ttl_header,
)

log = Log("cdm.store")


class Stored(Struct, frozen=True):
    """What a bucket holds under a key. ``payload`` is None for a delete or expiry marker."""

    payload: bytes | None
    revision: int
    at: float
    """When it was stored, by the server's clock, in seconds since 1970."""


class Bucket:
    """One KV bucket, used through its stream."""

    def __init__(self, connection: Connection, layout: Layout) -> None:
        self.connection = connection
        self.layout = layout
        self.name = connection.bucket(layout.name)
        self.stream = f"KV_{self.name}"
        self._subjects = f"$KV.{self.name}."
        self._written = connection.key_prefix + self._subjects
        """What the subjects begin with at which keys are written."""

    @property
    def all_subjects(self) -> str:
        """The subjects of all keys."""
        return self._subjects + ">"

    def subject(self, name: str) -> str:
        """The subject of a key string."""
        return self._subjects + name

    async def state(self) -> StreamState:
        """Ask the server about the stream.

        Raises:
            StoreBusy: whoever answers may not lead the stream (any more): what it holds may be old.
        """
        sent = of_leader(await self.connection.api_retried(f"STREAM.INFO.{self.stream}"), self.name)
        state, cluster = sent["state"], sent.get("cluster") or {}
        return StreamState(
            sent["created"],
            state["last_seq"],
            seconds(sent["ts"]),
            ", ".join(self._lacking(sent["config"])),
            state["first_seq"],
            state.get("num_subjects", 0),
            sent["config"].get("num_replicas", 1),
            bool(outdated(self.layout, sent["config"])),
            alone=not cluster.get("name") and cluster.get("leader") == self.connection.server_name,
            consumers=state.get("consumer_count", 0),
        )

    async def newest(self) -> int:
        """Sequence of the newest message that the stream's leader still has; 0: it has none."""
        try:
            answer = await self.connection.api(f"STREAM.MSG.GET.{self.stream}", {"last_by_subj": self.all_subjects})
        except RequestRefused as error:
            if no_message(error):
                return 0
            raise
        return int(answer["message"]["seq"])

    async def subjects(self, pattern: str) -> set[str]:
        """The subjects that match a pattern, as the stream's leader has them. Errors as in `state`."""
        found: set[str] = set()
        while True:
            question = {"subjects_filter": pattern, "offset": len(found)}
            answer = of_leader(await self.connection.api(f"STREAM.INFO.{self.stream}", question), self.name)
            page = answer["state"].get("subjects") or ()
            found.update(page)
            if not page or len(found) >= answer.get("total", 0):  # a server tells 100,000 at once
                return found

    async def read(self, key: Key, timeout: float | None = None) -> Stored | None:
        """What the stream's leader holds under the key; None where nothing was written, or all trace of it expired."""
        return await self._read(encode(key), timeout)

    async def _read(self, name: str, timeout: float | None) -> Stored | None:
        try:
            answer = await self.connection.api(
                f"STREAM.MSG.GET.{self.stream}", {"last_by_subj": self.subject(name)}, timeout=timeout
            )
        except RequestRefused as error:
            if no_message(error):
                return None
            raise
        message = answer["message"]
        payload = (
            None
            if is_removal(headers_of(base64.b64decode(message.get("hdrs", ""))))
            else base64.b64decode(message.get("data", ""))
        )
        return Stored(payload, message["seq"], seconds(message["time"]))

    async def revision_of(self, name: str) -> int:
        """Revision of the value that the stream's leader holds under a key string; 0: it holds none.

        Errors as in `read`.
        """
        stored = await self._read(name, None)
        return 0 if stored is None or stored.payload is None else stored.revision

    async def read_near(self, key: Key, timeout: float | None = None) -> Stored | None:
        """What any replica holds under the key; it may be behind the stream's leader, never ahead of it.

        Its permission can be given for single keys, unlike that of `read`.
        """
        subject = self.subject(encode(key))
        try:
            payload, headers = await self.connection.ask(
                self.connection.api_subject(f"DIRECT.GET.{self.stream}.{subject}"), timeout=timeout
            )
        except NoResponders:
            raise StoreBusy(f"bucket {self.name} does not answer; run `cdm init` if it was never created") from None
        if status := headers.get("Status"):
            if status == "404":
                return None
            raise RequestRefused(headers.get("Description", "no reason given"), int(status))
        value, stored_at = None if is_removal(headers) else payload, seconds(headers["Nats-Time-Stamp"])
        return Stored(value, int(headers["Nats-Sequence"]), stored_at)

    async def put(
        self,
        key: Key,
        payload: bytes,
        *,
        expect: int | None = None,
        ttl: float | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """Write one key and return its new revision.

        Args:
            key: the key.
            payload: its value's bytes.
            expect: the revision that the key must have now (0: never written); None: any.
            ttl: seconds after which the server removes the value; None: never.
            timeout: seconds to wait for the answer.
            headers: to be stored with it.

        Raises:
            Conflict: the key has another revision.
            StoreBusy: the server cannot write at present; nothing was stored.
            Uncertain: no answer came; the value may be stored.
        """
        sent = dict(headers or {})
        if expect is not None:
            sent[EXPECT] = str(expect)
        if ttl is not None:
            sent[TTL] = ttl_header(ttl)
        return await self._publish(encode(key), payload, sent, timeout)

    async def delete(
        self,
        key: Key,
        *,
        expect: int | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        marked_for: float | None = None,
    ) -> int:
        """Delete one key; arguments and errors as in `put`.

        Its marker is kept for so many seconds, or as long as others are.
        """
        sent = {**(headers or {}), **DELETE}
        if marked_for is not None:
            sent[TTL] = ttl_header(marked_for)
        if expect is not None:
            sent[EXPECT] = str(expect)
        return await self._publish(encode(key), b"", sent, timeout)

    async def batch(self, writes: list[Write], timeout: float | None = None) -> int:
        """Write all or nothing; returns the last message's revision. Errors as in `prepare`, `stage` and `put`."""
        batch = self.prepare(writes)
        with self.connection.refusals({self._written + write.name for write in writes}):
            await self.stage(batch)
            return await self.commit(batch, timeout)

    async def write_all(self, writes: list[Write]) -> None:
        """Write all at once or, where the server takes no batch, one after the other. Errors as in `batch`."""
        try:
            await self.batch(writes)
        except BatchRefused as error:
            log.debug("written one by one", bucket=self.name, reason=str(error))
            for write in writes:
                await self.batch([write])

    def prepare(self, writes: Sequence[Write]) -> Batch:
        """Encode a batch for `stage` and `commit`. Raises `ValueError`: there are no writes, or too many."""
        return prepared(writes, self._written, self.connection.max_payload)

    def problem_with(self, write: Write) -> str:
        """Why the server would end the connection over a message instead of storing it; empty: it would store it."""
        return problem_with(write, self.connection.max_payload)

    async def stage(self, batch: Batch) -> None:
        """Send all of a batch but its last message; the server keeps them until that comes.

        Raises:
            RequestRefused: nothing was sent, because the server would end the connection over it.
        """
        if batch.problem:
            raise RequestRefused(batch.problem)
        if batch.frames:
            await self.connection.send_frames(batch.frames)

    async def commit(
        self, batch: Batch, timeout: float | None = None, meanwhile: Callable[[], Awaitable[None]] | None = None
    ) -> int:
        """Send a batch's last message, and wait for the answer about all of it; returns the last revision.

        ``meanwhile`` is called when the message is on its way. Errors as in `put`.
        """
        last = batch.last
        return await self._publish(last.name, last.payload, dict(last.headers), timeout, meanwhile)

    async def _publish(
        self,
        name: str,
        payload: bytes,
        headers: dict[str, str],
        timeout: float | None,
        meanwhile: Callable[[], Awaitable[None]] | None = None,
    ) -> int:
        try:
            answer = await self.connection.request(self._written + name, payload, headers or None, timeout, meanwhile)
        except NoResponders:
            # JetStream is not up, or the bucket is gone: either way nothing was stored.
            raise StoreBusy(f"bucket {self.name} does not answer") from None
        return acknowledged(answer)[0]

    async def change_over(self) -> bool:
        """Take from an existing bucket what only managers of an earlier version need of it.

        Returns whether there was any. Errors as in `ensure`.
        """
        config = (await self._info())["config"]
        changes = outdated(self.layout, config)
        await self._change(config, changes)
        return bool(changes)

    async def ensure(self, *, create: bool, replicas: int = 1, change_replicas: bool = False) -> bool:
        """Create the bucket, or adapt it to what its layout needs. Returns whether it was created.

        Args:
            create: create it where it is missing.
            replicas: how many replicas a new bucket gets.
            change_replicas: also give an existing bucket that number of replicas.

        Raises:
            BucketMissing: it does not exist and ``create`` is false.
            StoreBusy: it is being created by another process, or its stream has no leader at present.
            Unsuitable: it exists, and cannot be adapted.
        """
        try:
            info = await self._info()
        except BucketMissing:
            if not create:
                raise BucketMissing(f"bucket {self.name} does not exist; run `cdm init` first") from None
            config = created(self.layout, self.stream, self.all_subjects, replicas)
            try:
                await self.connection.api(f"STREAM.CREATE.{self.stream}", config | await self._crowded(config))
            except RequestRefused as error:
                if error.code != NAME_IN_USE:
                    raise
                info = await self._info_of_new()  # another node was faster, or the answer to this one was lost
            else:
                log.info("bucket created", bucket=self.name, replicas=replicas)
                return True
        await self._adapt(info["config"], replicas if change_replicas else None)
        return False

    async def _info(self) -> Any:
        return of_leader(await self.connection.api(f"STREAM.INFO.{self.stream}"), self.name)

    async def _info_of_new(self) -> Any:
        try:
            return await self._info()
        except BucketMissing:
            # Its name is in use: a cluster knows of it before the servers that are to hold it do.
            raise StoreBusy(f"bucket {self.name} is being created") from None

    def _lacking(self, config: dict[str, Any]) -> dict[str, Any]:
        """What must be changed of the stream."""
        return lacking(self.layout, config)

    async def _adapt(self, config: dict[str, Any], replicas: int | None) -> None:
        missing = self._lacking(config)
        if replicas is not None and config.get("num_replicas") != replicas:
            missing["num_replicas"] = replicas
        await self._change(config, missing)
        if crowd := await self._crowded(config):
            with suppress(RequestRefused, AccessDenied):
                await self.connection.api(f"STREAM.UPDATE.{self.stream}", {**config, **missing, **crowd})
                log.info("bucket adapted", bucket=self.name, changed=", ".join(crowd))

    async def _crowded(self, config: dict[str, Any]) -> dict[str, Any]:
        """What lets the stream have enough consumers; nothing where the account has a limit of its own."""
        crowd = crowded(self.layout, config)
        return crowd if crowd and await self.connection.consumers_unlimited() else {}

    async def _change(self, config: dict[str, Any], changes: dict[str, Any]) -> None:
        if not changes:
            return
        wanted = ", ".join(changes)
        try:
            await self.connection.api(f"STREAM.UPDATE.{self.stream}", {**config, **changes})
        except RequestRefused as error:
            raise Unsuitable(f"bucket {self.name} needs another {wanted} and cannot be changed: {error}") from None
        log.warning("bucket adapted", bucket=self.name, changed=wanted)


def buckets(connection: Connection) -> dict[str, Bucket]:
    """All buckets of the protocol, by their names without prefix."""
    return {layout.name: Bucket(connection, layout) for layout in LAYOUTS}
