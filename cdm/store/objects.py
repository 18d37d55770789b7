"""One bucket of the object store, read and written as any client of object stores does.

The client library has an object store too, and it is not used. Its ``get`` waits for ever where a part is missing (an
artifact that is replaced while a node downloads it) and queues what is not yet written, up to 128 MB. Its ``put`` lets
the last of two pushes win and leaves the parts of the other, or of one that was cancelled, in the store for good. Here
a part is asked for when the one before it was written, and what describes an object is written by compare-and-set.

What is on the wire is the object store's: parts under ``$O.{bucket}.C.{nuid}``, then the object's description, which
names them, under ``$O.{bucket}.M.{name in base64}``. Whoever sees a description sees all its parts, or it is just being
replaced.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import msgspec
from msgspec import Struct

from cdm import clock
from cdm.errors import (
    BucketMissing,
    Conflict,
    NoResponders,
    RequestRefused,
    StoreBusy,
    Uncertain,
    Unreachable,
    Unsuitable,
)
from cdm.log import Log
from cdm.model.problems import UNREADABLE
from cdm.store.connection import Connection
from cdm.store.jetstream import checked, no_message, of_leader
from cdm.store.wire import EXPECT, OPERATION, ROLLUP, seconds

log = Log("cdm.store")

CHUNK = 128 * 1024
"""Bytes of a part, as other clients have it; less where the server takes no such messages."""
PATIENCE = 15.0
"""Seconds without an answer after which a call is given up; NATS may elect a stream leader for 9 s."""
CALL_RETRY_PAUSE = 0.25
"""Seconds between two tries of a call."""
_NUID = re.compile(r"[A-Za-z0-9_-]+")
_MESSAGE_ID = "Nats-Msg-Id"
_TRANSIENT = (Unreachable, Uncertain, StoreBusy, NoResponders)

T = TypeVar("T")


class ObjectInfo(Struct):
    """What describes an object, as all clients write it, as far as it is used here."""

    name: str
    bucket: str
    nuid: str = ""
    """Name of its parts."""
    size: int = 0
    chunks: int = 0
    digest: str = ""
    mtime: str = ""
    deleted: bool = False
    metadata: dict[str, str] | None = None
    options: dict[str, Any] | None = None


class Found(Struct, frozen=True):
    """What is under a name: revision 0 where nothing ever was."""

    revision: int
    info: ObjectInfo | None = None
    time: str = ""
    """When it was stored, by the server's clock, as RFC 3339 has it."""

    @property
    def live(self) -> ObjectInfo | None:
        """The description of an object that is there; None: there is none, or it was deleted."""
        return None if self.info is None or self.info.deleted else self.info


class Objects:
    """The bucket. What finds no connection or no answer is tried again for `PATIENCE` seconds.

    Errors of all calls: `BucketMissing`, and any other `StoreError` where the store did not answer.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self.name = connection.bucket(name)
        self.stream = f"OBJ_{self.name}"
        self._parts = f"$O.{self.name}.C."
        self._infos = f"$O.{self.name}.M."

    @property
    def descriptions(self) -> str:
        """What the subjects of all descriptions begin with."""
        return self._infos

    async def ensure(self, *, create: bool, replicas: int = 1, change_replicas: bool = False) -> bool:
        """Make sure that the bucket is there. Arguments, result and errors as those of `Bucket.ensure`."""
        try:
            config = (await self._retried(self._info))["config"]
        except BucketMissing:
            if not create:
                raise
            await self._api("STREAM.CREATE", self._config(replicas))
            log.info("bucket created", bucket=self.name, replicas=replicas)
            return True
        changed: dict[str, Any] = {} if config.get("allow_direct") else {"allow_direct": True}
        if change_replicas and config.get("num_replicas") != replicas:
            changed["num_replicas"] = replicas
        if changed:
            try:
                await self._api("STREAM.UPDATE", {**config, **changed})
            except RequestRefused as error:
                wanted = ", ".join(changed)
                raise Unsuitable(f"bucket {self.name} needs another {wanted}, and cannot be changed: {error}") from None
            log.warning("bucket adapted", bucket=self.name, changed=", ".join(changed))
        return False

    def _config(self, replicas: int) -> dict[str, Any]:
        return {
            "name": self.stream,
            "subjects": [f"{self._parts}>", f"{self._infos}>"],
            "storage": "file",
            "compression": "s2",  # folders come uncompressed
            "num_replicas": replicas,
            "discard": "new",
            "allow_rollup_hdrs": True,
            "allow_direct": True,
            "duplicate_window": 120 * 10**9,
        }

    # Descriptions

    async def names(self) -> list[str]:
        """Names under which there is, or was, an object."""
        return [_plain(subject[len(self._infos) :]) for subject in await self._subjects(f"{self._infos}>")]

    async def find(self, name: str) -> Found:
        """What the stream's leader holds under a name."""
        try:
            answer = await self._retried(partial(self._api, "STREAM.MSG.GET", {"last_by_subj": self._subject(name)}))
        except RequestRefused as error:
            if no_message(error):
                return Found(0)
            raise
        message = answer["message"]
        try:
            info = msgspec.json.decode(base64.b64decode(message.get("data", "")), type=ObjectInfo)
        except UNREADABLE:
            info = ObjectInfo(name=name, bucket=self.name)  # it is there, and cannot be read
        if not _NUID.fullmatch(info.nuid):
            info.nuid = ""  # it would name the parts of others
        return Found(message["seq"], info, message.get("time", ""))

    async def put(self, info: ObjectInfo, expect: int) -> None:
        """Describe an object, in place of the description with this revision.

        Raises:
            Conflict: another one is there. This one never was.
            Uncertain: no answer came. This one may be there, or may have been replaced since.
        """
        headers = {ROLLUP: "sub", EXPECT: str(expect)}
        if info.deleted:
            headers[OPERATION] = "DEL"  # what follows the descriptions need not read them to know
        lost = False

        async def publish() -> None:
            nonlocal lost
            try:
                await self._publish(self._subject(info.name), msgspec.json.encode(info), headers)
            except Uncertain:
                lost = True
                raise

        try:
            await self._retried(publish)
        except Conflict:
            if not lost:
                raise
            there = (await self.find(info.name)).info
            if there is None or (there.nuid, there.deleted) != (info.nuid, info.deleted):
                raise Uncertain(f"no answer about {info.name} came, and by now it is another one; try again") from None

    async def forget(self, name: str, revision: int) -> None:
        """Remove what is under a name without a trace, up to this revision; what is newer stays."""
        await self._api("STREAM.PURGE", {"filter": self._subject(name), "seq": revision + 1})

    async def age(self, found: Found) -> float:
        """Seconds since it was stored, by the server's clock."""
        return await self._since(found.time)

    # Parts

    @property
    def part_length(self) -> int:
        """Bytes of a part."""
        return min(CHUNK, self.connection.max_payload - 1024)

    async def put_part(self, nuid: str, number: int, data: bytes) -> None:
        """Store a part; numbers count from 1."""
        # By its number the server knows a part that comes again because the answer was lost.
        headers = {_MESSAGE_ID: f"{nuid}-{number}"}
        await self._retried(partial(self._publish, self._parts + nuid, data, headers))

    async def part(self, nuid: str, after: int) -> tuple[bytes, int] | None:
        """The next part behind a sequence of the stream, and its own sequence; None: none is there."""
        return await self._part(json.dumps({"next_by_subj": self._parts + nuid, "seq": after + 1}).encode())

    async def _part(self, request: bytes) -> tuple[bytes, int] | None:
        payload, headers = await self._retried(
            partial(self.connection.ask, self.connection.api_subject(f"DIRECT.GET.{self.stream}"), request)
        )
        match headers.get("Status"):
            case None | "":
                return payload, int(headers["Nats-Sequence"])
            case "404":
                return None
            case status:
                raise RequestRefused(headers.get("Description", "no reason given"), int(status))

    async def last_part(self, nuid: str) -> bytes | None:
        """The last part of this name; None: there is none."""
        request = json.dumps({"last_by_subj": self._parts + nuid}).encode()
        found = await self._part(request)
        return None if found is None else found[0]

    async def parts(self) -> dict[str, int]:
        """How many parts there are, by their name."""
        return {subject[len(self._parts) :]: n for subject, n in (await self._subjects(f"{self._parts}>")).items()}

    async def count(self, nuid: str) -> int:
        """How many parts of this name there are."""
        return (await self._subjects(self._parts + nuid)).get(self._parts + nuid, 0)

    async def idle(self, nuid: str) -> float:
        """Seconds since the last part of this name came, by the server's clock."""
        last = (await self._api("STREAM.MSG.GET", {"last_by_subj": self._parts + nuid}))["message"]
        return await self._since(last["time"])

    async def purge(self, nuid: str) -> None:
        """Remove all parts of this name."""
        await self._api("STREAM.PURGE", {"filter": self._parts + nuid})

    # Talk

    async def _since(self, time: str) -> float:
        return seconds((await self._info())["ts"]) - seconds(time)

    def _subject(self, name: str) -> str:
        return self._infos + base64.urlsafe_b64encode(name.encode()).decode()

    async def _subjects(self, pattern: str) -> dict[str, int]:
        """Subjects of the stream that match, and how many messages each has."""
        found: dict[str, int] = {}
        while True:
            page = await self._retried(partial(self._info, {"subjects_filter": pattern, "offset": len(found)}))
            subjects = page["state"].get("subjects") or {}
            found |= subjects
            if not subjects or len(found) >= page.get("total", 0):
                return found

    async def _publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        try:
            checked(await self.connection.request(subject, payload, headers))
        except NoResponders:
            raise StoreBusy(f"bucket {self.name} does not answer") from None

    async def _api(self, call: str, body: dict[str, Any] | None = None) -> Any:
        try:
            return await self.connection.api(f"{call}.{self.stream}", body)
        except BucketMissing:
            raise BucketMissing(
                f"bucket {self.name} does not exist; run `cdm init` first (is --prefix right?)"
            ) from None

    async def _info(self, body: dict[str, Any] | None = None) -> Any:
        return of_leader(await self._api("STREAM.INFO", body), self.name)

    async def _retried(self, call: Callable[[], Awaitable[T]]) -> T:
        """Try again what found no connection or no answer, for a while. What is called must be safe to repeat."""
        # stamina was tried: 10 ms more of import, a clock that stands still with the machine, a warning at each retry.
        deadline = clock.now() + PATIENCE
        while True:
            try:
                return await call()
            except _TRANSIENT:
                if clock.now() >= deadline:
                    raise
            await anyio.sleep(CALL_RETRY_PAUSE)


def _plain(token: str) -> str:
    """The name that a description's subject stands for."""
    try:
        return base64.urlsafe_b64decode(token).decode()
    except ValueError:
        return token
