"""Artifacts in the object store: one bucket, read and written as any client of object stores does.

The client library has an object store too, and it is not used. Its ``get`` waits for ever where a part is missing (an
artifact that is replaced while a node downloads it) and queues what is not yet written, up to 128 MB. Its ``put`` lets
the last of two pushes win and leaves the parts of the other, or of one that was cancelled, in the store for good. Here
a part is asked for when the one before it was written, and an object's record is written by compare-and-set.

What is on the wire is the object store's: parts under ``$O.{bucket}.C.{nuid}``, then the record that names them under
``$O.{bucket}.M.{name in base64}``. Who sees a record sees all its parts, or the record is about to be replaced.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import anyio
import msgspec
from anyio import to_thread
from msgspec import Struct

from cdm import clock
from cdm.errors import (
    AccessDenied,
    ArtifactMissing,
    BucketMissing,
    Busy,
    Conflict,
    Damaged,
    InvalidContent,
    InvalidKey,
    NoResponders,
    Refused,
    StoreError,
    Uncertain,
    Unreachable,
    Unsuitable,
)
from cdm.log import Log
from cdm.model.artifact import Artifact
from cdm.model.content import Content
from cdm.model.keys import decode_artifact, encode_artifact
from cdm.store.bucket import EXPECT, ROLLUP
from cdm.store.connection import Connection, checked, no_message

log = Log("cdm.store")

NAME = "artifacts"
CHUNK = 128 * 1024
"""Bytes of a part, as other clients have it; less where the server takes no such messages."""
PATIENCE = 15.0
"""Seconds without progress after which a transfer is given up; NATS may elect a stream leader for 9 s."""
RETRY_PAUSE = 0.25
ORPHANED = 3600.0
"""Seconds after which the parts of a push that was never finished are removed."""
LAG = 2.0
"""Seconds that a part may come later to another replica than its record did."""
_NUID = re.compile(r"[A-Za-z0-9_-]+")
_BUFFER = 1024 * 1024
_MESSAGE_ID = "Nats-Msg-Id"
_RECORD = "cdm"
_AT_ONCE = 16
_AGAIN = (Unreachable, Uncertain, Busy, NoResponders)

Progress = Callable[[int, int], None]
"""Told how many bytes of how many were transferred."""

T = TypeVar("T")


class Pushed(StrEnum):
    """What a push came to."""

    STORED = "stored"
    REPLACED = "replaced"
    UNCHANGED = "unchanged"
    """The same content and manifest were there; nothing was written."""


class StoredArtifact(Struct, frozen=True):
    """An artifact in the store."""

    artifact: Artifact
    content: Content
    nuid: str
    """Name of its parts."""
    revision: int
    pushed: str
    """When, by the server's clock, as RFC 3339 has it."""


class UnreadableArtifact(Struct, frozen=True):
    """An object in the bucket that is no artifact of cdm's."""

    name: str
    problem: str


class _Info(Struct):
    """An object's record, as far as it is used here, as all clients write it."""

    name: str
    bucket: str
    nuid: str = ""
    size: int = 0
    chunks: int = 0
    digest: str = ""
    mtime: str = ""
    deleted: bool = False
    metadata: dict[str, str] | None = None
    options: dict[str, Any] | None = None


class _Found(Struct, frozen=True):
    """What is under a name: revision 0 where nothing ever was."""

    revision: int
    info: _Info | None = None
    time: str = ""

    @property
    def live(self) -> _Info | None:
        """The record of an object that is there."""
        return None if self.info is None or self.info.deleted else self.info


class Artifacts:
    """The artifacts' bucket."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.name = connection.bucket(NAME)
        self.stream = f"OBJ_{self.name}"

    # The bucket

    async def ensure(self, *, create: bool, replicas: int = 1, change_replicas: bool = False) -> bool:
        """See to it that the bucket is there. Arguments, result and errors as those of `Bucket.ensure`."""
        try:
            config = (await self._api("STREAM.INFO"))["config"]
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
            except Refused as error:
                wanted = ", ".join(changed)
                raise Unsuitable(f"bucket {self.name} needs another {wanted}, and cannot be changed: {error}") from None
            log.warning("bucket adapted", bucket=self.name, changed=", ".join(changed))
        return False

    def _config(self, replicas: int) -> dict[str, Any]:
        return {
            "name": self.stream,
            "subjects": [f"$O.{self.name}.C.>", f"$O.{self.name}.M.>"],
            "storage": "file",
            "compression": "s2",  # folders come uncompressed
            "num_replicas": replicas,
            "discard": "new",
            "allow_rollup_hdrs": True,
            "allow_direct": True,
            "duplicate_window": 120 * 10**9,
        }

    # Reading

    async def describe(self, artifact: Artifact) -> StoredArtifact:
        """What is known of an artifact.

        Raises:
            ArtifactMissing: there is none of this name.
            InvalidContent: there is one that cdm did not push, or whose manifest this version cannot obey.
            BucketMissing: nothing was ever pushed.
            StoreError: the store did not answer.
        """
        found = await self._insist(partial(self._find, encode_artifact(artifact)))
        return self._stored(artifact, found)

    async def listing(self) -> list[StoredArtifact | UnreadableArtifact]:
        """All that the bucket holds, by name. Errors as those of `describe`."""
        found: dict[str, StoredArtifact | UnreadableArtifact] = {}
        for name, at in (await self._everything()).items():
            try:
                if at.live is not None:
                    found[name] = self._stored(decode_artifact(name), at)
            except (InvalidContent, InvalidKey) as error:
                found[name] = UnreadableArtifact(name, str(error))
        return [found[name] for name in sorted(found)]

    async def _everything(self) -> dict[str, _Found]:
        start = len(f"$O.{self.name}.M.")
        names = [_plain(subject[start:]) for subject in await self._subjects(f"$O.{self.name}.M.>")]
        found: dict[str, _Found] = {}
        failed: list[StoreError] = []
        limit = anyio.CapacityLimiter(_AT_ONCE)

        async def look(name: str) -> None:
            async with limit:
                try:
                    found[name] = await self._insist(partial(self._find, name))
                except StoreError as error:
                    failed.append(error)
                    tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(look, name)
        if failed:
            raise failed[0]
        return found

    async def fetch(self, stored: StoredArtifact, into: Path, progress: Progress | None = None) -> None:
        """Write an artifact's bytes to a new file. Memory use does not depend on their number.

        Raises:
            Conflict: it was replaced or removed meanwhile; `describe` tells what is there now.
            Damaged: the bytes are not those that were pushed.
            StoreError: the store did not answer.
            OSError: the file cannot be written. What is there of it is left, also after other errors.
        """
        content, digest, done = stored.content, hashlib.sha256(), 0
        subject = f"$O.{self.name}.C.{stored.nuid}"
        file = _open(into, "xb")
        try:
            buffer, after = bytearray(), 0
            while done < content.size:
                part, after = await self._part(stored, subject, after)
                done += len(part)
                buffer += part
                if len(buffer) >= _BUFFER or done >= content.size:
                    await to_thread.run_sync(_take, file, digest, bytes(buffer))
                    buffer.clear()
                if progress is not None:
                    progress(min(done, content.size), content.size)
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(file.close)
        if done != content.size or digest.hexdigest() != content.sha256:
            raise self._damaged(stored, "its bytes are not those that were pushed")

    async def _part(self, stored: StoredArtifact, subject: str, after: int) -> tuple[bytes, int]:
        """The next part behind a sequence of the stream, and its own sequence."""
        request = json.dumps({"next_by_subj": subject, "seq": after + 1}).encode()
        deadline = clock.now() + LAG
        while True:
            payload, headers = await self._insist(
                partial(self.connection.ask, f"$JS.API.DIRECT.GET.{self.stream}", request)
            )
            status = headers.get("Status")
            if not status:
                return payload, int(headers["Nats-Sequence"])
            if status != "404":
                raise Refused(headers.get("Description", "no reason given"), int(status))
            now = await self._insist(partial(self._find, encode_artifact(stored.artifact)))
            if now.live is None or now.live.nuid != stored.nuid:
                raise Conflict(f"{stored.artifact} was replaced or removed while it was downloaded")
            if clock.now() >= deadline:
                raise self._damaged(stored, "a part of it is missing")
            await anyio.sleep(RETRY_PAUSE)

    def _damaged(self, stored: StoredArtifact, problem: str) -> Damaged:
        return Damaged(
            f"{stored.artifact} in bucket {self.name} is damaged: {problem}; "
            f"push it again: cdm artifact push --force {stored.artifact} PATH"
        )

    # Writing

    async def push(
        self,
        artifact: Artifact,
        source: Path,
        content: Content,
        *,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Pushed:
        """Store an artifact. Until all of it is there, and after any failure, whatever was there before stays.

        Args:
            artifact: its name.
            source: a file with its bytes.
            content: their record.
            force: replace another content, or another manifest, of that name; write also what is there already.
            progress: called after each part.

        Raises:
            Conflict: another content, or another manifest, has that name. Nothing was changed.
            Uncertain: no answer came to the last message; the same push again clears it up.
            BucketMissing: there is no bucket.
            StoreError: the store did not answer.
        """
        name = encode_artifact(artifact)
        before = await self._insist(partial(self._find, name))
        if not force and self._is_same(artifact, before, content):
            return Pushed.UNCHANGED
        await self._sweep()
        nuid, named, old = secrets.token_hex(11), False, before.live
        info = self._record(name, nuid, content)
        try:
            info.chunks = await self._send(source, nuid, content, progress)
            while True:
                named = True  # from here on it may be, whatever is heard of it
                try:
                    await self._insist(partial(self._name, info, before.revision))
                    break
                except (AccessDenied, Refused):
                    named = False
                    raise
                except Conflict:
                    before = await self._insist(partial(self._find, name))
                    if before.live is not None and before.live.nuid == nuid:
                        break  # an answer was lost
                    named, old = False, before.live
                    if not force and self._is_same(artifact, before, content):
                        return Pushed.UNCHANGED
        finally:
            if not named:
                await self._purge(nuid)
        if old is None:
            return Pushed.STORED
        await self._purge(old.nuid)
        return Pushed.REPLACED

    def _is_same(self, artifact: Artifact, found: _Found, content: Content) -> bool:
        """Whether this very content is there; raises `Conflict` where another is."""
        if found.live is None:
            return False
        try:
            there = self._stored(artifact, found).content
        except InvalidContent as error:
            raise Conflict(f"{artifact} is there already, and cannot be read ({error}); --force replaces it") from None
        if there == content:
            return True
        what = "manifest" if msgspec.structs.replace(there, manifest=content.manifest) == content else "content"
        raise Conflict(f"{artifact} is there already with another {what}; push a new version, or replace it: --force")

    async def _send(self, source: Path, nuid: str, content: Content, progress: Progress | None) -> int:
        subject, number, done = f"$O.{self.name}.C.{nuid}", 0, 0
        length = min(CHUNK, self.connection.max_payload - 1024)
        digest = hashlib.sha256()
        file = _open(source, "rb")
        try:
            while True:
                buffer = await to_thread.run_sync(_read, file, digest, _BUFFER // length * length)
                if not buffer:
                    break
                for start in range(0, len(buffer), length):
                    number += 1
                    # By its number the server knows a part that comes again because the answer was lost.
                    headers = {_MESSAGE_ID: f"{nuid}-{number}"}
                    part = buffer[start : start + length]
                    await self._insist(partial(self._publish, subject, part, headers))
                    done += len(part)
                    if progress is not None:
                        progress(done, content.size)
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(file.close)
        if digest.hexdigest() != content.sha256:
            raise InvalidContent(f"{source} was changed while it was pushed")
        # Were this process to stand still for long, its parts would be swept away, or one be stored twice.
        stored = (await self._subjects(subject)).get(subject, 0)
        if stored != number:
            raise Uncertain(f"{stored} of {number} parts are stored; push again")
        return number

    async def remove(self, artifact: Artifact) -> None:
        """Remove an artifact.

        Raises:
            ArtifactMissing: there is none of this name.
            Conflict: it was replaced at the same time.
            StoreError: the store did not answer.
        """
        name = encode_artifact(artifact)
        found = await self._insist(partial(self._find, name))
        if found.live is None:
            raise self._missing(artifact)
        gone = _Info(name=name, bucket=self.name, nuid=found.live.nuid, deleted=True)
        try:
            await self._insist(partial(self._name, gone, found.revision))
        except Conflict:
            now = await self._insist(partial(self._find, name))
            if now.live is not None:
                raise Conflict(f"{artifact} was replaced at the same time") from None
        await self._purge(found.live.nuid)

    def _record(self, name: str, nuid: str, content: Content) -> _Info:
        return _Info(
            name=name,
            bucket=self.name,
            nuid=nuid,
            size=content.size,
            digest="SHA-256=" + base64.urlsafe_b64encode(bytes.fromhex(content.sha256)).decode(),
            mtime=datetime.now(UTC).isoformat(),
            metadata={_RECORD: msgspec.json.encode(content).decode()},
            options={"max_chunk_size": CHUNK},
        )

    async def _name(self, info: _Info, expect: int) -> None:
        headers = {ROLLUP: "sub", EXPECT: str(expect)}
        await self._publish(self._subject(info.name), msgspec.json.encode(info), headers)

    async def _publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        try:
            checked(await self.connection.request(subject, payload, headers))
        except NoResponders:
            raise Busy(f"bucket {self.name} does not answer") from None

    async def _purge(self, nuid: str) -> None:
        """Remove parts that no record names. Never raises: what stays is swept away later."""
        if not nuid:
            return
        with anyio.CancelScope(shield=True):
            try:
                await self._api("STREAM.PURGE", {"filter": f"$O.{self.name}.C.{nuid}"})
            except StoreError as error:
                log.debug("parts not removed", bucket=self.name, reason=str(error))

    async def _sweep(self) -> None:
        """Remove the parts of pushes that were killed. Never raises."""
        try:
            # In this order: the parts of a push that ends in between have a record by then.
            parts = await self._subjects(f"$O.{self.name}.C.>")
            named = {found.live.nuid for found in (await self._everything()).values() if found.live} if parts else set()
            for subject in parts:
                nuid = subject.rpartition(".")[2]
                if nuid not in named and await self._age(subject) >= ORPHANED:
                    log.info("parts of an unfinished push removed", bucket=self.name, parts=nuid)
                    await self._purge(nuid)
        except StoreError as error:
            log.debug("bucket not swept", bucket=self.name, reason=str(error))

    # Talk

    def _subject(self, name: str) -> str:
        return f"$O.{self.name}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    async def _find(self, name: str) -> _Found:
        """What the stream's leader holds under a name."""
        try:
            message = (await self._api("STREAM.MSG.GET", {"last_by_subj": self._subject(name)}))["message"]
        except Refused as error:
            if no_message(error):
                return _Found(0)
            raise
        try:
            info = msgspec.json.decode(base64.b64decode(message.get("data", "")), type=_Info)
        except (ValueError, RecursionError):
            info = _Info(name=name, bucket=self.name)  # it is there, and says nothing
        if not _NUID.fullmatch(info.nuid):
            info.nuid = ""  # it would name the parts of others
        return _Found(message["seq"], info, message.get("time", ""))

    def _stored(self, artifact: Artifact, found: _Found) -> StoredArtifact:
        info = found.live
        if info is None:
            raise self._missing(artifact)
        raw = (info.metadata or {}).get(_RECORD)
        if not raw or not info.nuid:
            raise InvalidContent(
                f"{artifact} was not pushed by cdm; push it: cdm artifact push --force {artifact} PATH"
            )
        try:
            content = Content.parse(raw)
        except InvalidContent as error:
            raise InvalidContent(f"what {artifact} was pushed with cannot be obeyed: {error}") from None
        return StoredArtifact(artifact, content, info.nuid, found.revision, found.time)

    def _missing(self, artifact: Artifact) -> ArtifactMissing:
        return ArtifactMissing(
            f"there is no artifact {artifact} in bucket {self.name}; push it: cdm artifact push {artifact} PATH"
        )

    async def _subjects(self, pattern: str) -> dict[str, int]:
        """Subjects of the stream that match, and how many messages each has."""
        found: dict[str, int] = {}
        while True:
            page = await self._insist(
                partial(self._api, "STREAM.INFO", {"subjects_filter": pattern, "offset": len(found)})
            )
            subjects = page["state"].get("subjects") or {}
            found |= subjects
            if not subjects or len(found) >= page.get("total", 0):
                return found

    async def _age(self, subject: str) -> float:
        """Seconds since the last part came, by the server's clock."""
        last = (await self._api("STREAM.MSG.GET", {"last_by_subj": subject}))["message"]
        now = await self._api("STREAM.INFO")
        return (_time(now["ts"]) - _time(last["time"])).total_seconds()

    async def _api(self, call: str, body: dict[str, Any] | None = None) -> Any:
        try:
            return await self.connection.api(f"{call}.{self.stream}", body)
        except BucketMissing:
            raise BucketMissing(
                f"bucket {self.name} does not exist; run `cdm init` first (is --prefix right?)"
            ) from None

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Try again what found no connection or no answer, for a while. What is called must be safe to repeat."""
        deadline = clock.now() + PATIENCE
        while True:
            try:
                return await call()
            except _AGAIN:
                if clock.now() >= deadline:
                    raise
            await anyio.sleep(RETRY_PAUSE)


def _open(path: Path, mode: str) -> IO[bytes]:
    # Not in a thread: a file that is opened while its task is cancelled would be closed by nobody.
    return path.open(mode)


def _take(file: IO[bytes], digest: Any, data: bytes) -> None:
    digest.update(data)
    file.write(data)


def _read(file: IO[bytes], digest: Any, length: int) -> bytes:
    data = file.read(length)
    digest.update(data)
    return data


def _plain(token: str) -> str:
    """The name behind a record's subject."""
    try:
        return base64.urlsafe_b64decode(token).decode()
    except ValueError:
        return token


def _time(timestamp: str) -> datetime:
    # The server writes nanoseconds; Python 3.11 reads six digits.
    return datetime.fromisoformat(timestamp.rstrip("Z").partition(".")[0] + "+00:00")
