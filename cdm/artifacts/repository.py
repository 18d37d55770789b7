"""Artifacts in the object store: pushed, fetched whole or not at all, listed and removed.

How the bucket is read and written is in `cdm.store.objects`.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import anyio
import msgspec

from cdm.artifacts.kept import UNFINISHED, Kept, KeptContent, KeptName, digest_of
from cdm.artifacts.named import named_contents
from cdm.artifacts.stored import Pushed, StoredArtifact, UnreadableArtifact, missing, stored_under
from cdm.artifacts.transfer import Progress, download, manifest_at_end, upload, verify
from cdm.errors import (
    AccessDenied,
    ArtifactDamaged,
    Conflict,
    ContentMissing,
    InvalidContent,
    InvalidKey,
    InvalidManifest,
    RequestRefused,
    StoreError,
)
from cdm.log import Log
from cdm.model.artifact import Artifact
from cdm.model.content import METADATA, Content
from cdm.model.keys import ARTIFACTS, decode_artifact, encode_artifact
from cdm.model.manifest import Manifest
from cdm.store.connection import Connection
from cdm.store.objects import CHUNK, Found, ObjectInfo, Objects

log = Log("cdm.store")

_AT_ONCE = 16


class Artifacts:
    """The artifacts' bucket."""

    def __init__(self, connection: Connection) -> None:
        self._objects = Objects(connection, ARTIFACTS.name)
        self.name = self._objects.name
        self._kept = Kept(self._objects, partial(named_contents, connection), self._purge)

    async def ensure(self, *, create: bool, replicas: int = 1, change_replicas: bool = False) -> bool:
        """Make sure that the bucket is there. Arguments, result and errors as those of `Bucket.ensure`."""
        return await self._objects.ensure(create=create, replicas=replicas, change_replicas=change_replicas)

    # Reading

    async def describe(self, artifact: Artifact, digest: str | None = None) -> StoredArtifact:
        """What is known of an artifact, or of one of its contents: another one may have been pushed over it.

        Args:
            artifact: its name.
            digest: SHA-256 of the content, in hexadecimal; None: the one that has the name at present.

        Raises:
            ArtifactMissing: there is none of this name.
            ContentMissing: there is no such content of it, or not any more.
            InvalidContent: there is one that cdm did not push, or whose manifest is invalid to this version.
            BucketMissing: nothing was ever pushed.
            StoreError: the store did not answer.
        """
        name = encode_artifact(artifact)
        found = await self._objects.find(name)
        if digest is None:
            return stored_under(artifact, self.name, found)
        while digest_of(found) != digest:
            # It is kept before another one takes its place, and no longer once it has its place again.
            kept, before = await self._kept.find(name, digest), found
            if kept.live is not None:
                return stored_under(artifact, self.name, kept)
            found = await self._objects.find(name)
            if found.revision == before.revision:
                raise ContentMissing(
                    f"content {digest[:12]} of {artifact} is not in bucket {self.name} any more: "
                    f"{'another was pushed over it' if found.live else 'it was removed'}"
                )
        return stored_under(artifact, self.name, found)

    async def manifest(self, stored: StoredArtifact | KeptContent) -> Manifest:
        """How an artifact is run. Without having read all of its bytes: that a node runs it so is not certain.

        Raises:
            InvalidContent: it cannot be read, or is no manifest to this version.
            StoreError: the store did not answer.
        """
        content = stored.content
        if content.manifest is not None:
            return content.manifest

        async def gone() -> None:
            raise InvalidContent(f"{stored.artifact} was replaced or removed while it was read")

        try:
            return Manifest.restore(await manifest_at_end(self._objects, stored.nuid, content, gone))
        except (ArtifactDamaged, InvalidManifest) as error:
            raise InvalidContent(f"manifest of {stored.artifact}: {error}") from None

    async def read(self, stored: StoredArtifact, progress: Progress | None = None) -> bytes:
        """Read all bytes of an artifact and compare them with its digest; returns the manifest as `fetch` does.

        Errors are those of `fetch`.
        """
        with self._explained(stored):
            return await verify(
                self._objects, stored.nuid, stored.parts, stored.content, partial(self._check_current, stored), progress
            )

    async def kept(self) -> list[KeptContent]:
        """Contents that were pushed over, and that slices or rollouts still name. Errors as those of `describe`."""
        return await self._kept.listing()

    async def listing(self) -> list[StoredArtifact | UnreadableArtifact]:
        """All that the bucket holds, by name. Errors as those of `describe`."""
        found: dict[str, StoredArtifact | UnreadableArtifact] = {}
        for name, at in (await self._everything()).items():
            try:
                if at.live is not None:
                    found[name] = stored_under(decode_artifact(name), self.name, at)
            except (InvalidContent, InvalidKey) as error:
                found[name] = UnreadableArtifact(name, str(error))
        return [found[name] for name in sorted(found)]

    async def _everything(self) -> dict[str, Found]:
        """What is under all names but those of contents that are kept."""
        names = [name for name in await self._objects.names() if KeptName.read(name) is None]
        found: dict[str, Found] = {}
        failed: list[StoreError] = []
        limit = anyio.CapacityLimiter(_AT_ONCE)

        async def look(name: str) -> None:
            async with limit:
                try:
                    found[name] = await self._objects.find(name)
                except StoreError as error:
                    failed.append(error)
                    tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(look, name)
        if failed:
            raise failed[0]
        return found

    async def fetch(self, stored: StoredArtifact, into: Path, progress: Progress | None = None) -> bytes:
        """Write an artifact's bytes to a new file. Memory use does not depend on their number.

        Returns the manifest as it is stored at their end, which is not written there; empty: it is not at their end.

        Raises:
            Conflict: it was replaced or removed meanwhile; `describe` tells what is there now.
            ArtifactDamaged: the bytes are not those that were pushed.
            StoreError: the store did not answer.
            OSError: the file cannot be written. What is there of it is left, also after other errors.
        """
        with self._explained(stored):
            return await download(
                self._objects, stored.nuid, stored.content, into, partial(self._check_current, stored), progress
            )

    @contextmanager
    def _explained(self, stored: StoredArtifact) -> Iterator[None]:
        try:
            yield
        except ArtifactDamaged as error:
            raise ArtifactDamaged(
                f"{stored.artifact} in bucket {self.name} is damaged: {error}; "
                f"push it again: cdm artifact push {stored.artifact} PATH"
            ) from None

    async def _check_current(self, stored: StoredArtifact) -> None:
        name = encode_artifact(stored.artifact)
        # In this order: a content is kept before another one takes its place.
        for now in (await self._objects.find(name), await self._kept.find(name, stored.content.sha256)):
            if now.live is not None and now.live.nuid == stored.nuid:
                return
        raise Conflict(f"{stored.artifact} was replaced or removed while it was read")

    # Writing

    async def push(
        self,
        artifact: Artifact,
        source: Path,
        content: Content,
        *,
        force: bool = False,
        progress: Progress | None = None,
        tail: bytes = b"",
    ) -> Pushed:
        """Store an artifact. Until all of it is there, and after any failure, whatever was there before stays.

        Where the same is there already, what is stored is read and compared, and stored anew where it is damaged;
        signatures that it lacks are added.
        Another content that was there is kept for as long as something names it (`cdm.artifacts.kept`).

        Args:
            artifact: its name.
            source: a file with its bytes.
            content: what describes them.
            force: replace another content, or another manifest, of that name; write also what is there already.
            progress: called after each part.
            tail: the manifest at the end of the bytes, where it is to be the very one that was stored elsewhere.

        Raises:
            Conflict: another content, or another manifest, has that name. Nothing was changed.
            Uncertain: no answer came to the last message; the same push again clears it up.
            BucketMissing: there is no bucket.
            StoreError: the store did not answer.
        """
        name = encode_artifact(artifact)
        before = await self._objects.find(name)
        damaged = ""
        while not force and (same := self._same(artifact, before, content)) is not None:
            try:
                await verify(
                    self._objects, same.nuid, same.parts, same.content, partial(self._check_current, same), progress
                )
                return await self._signed(same, content)
            except ArtifactDamaged as error:
                log.warning("artifact is damaged in the store; storing it anew", artifact=str(artifact), why=str(error))
                damaged = same.nuid
                break
            except Conflict:
                before = await self._objects.find(name)
        await self._sweep()
        nuid, named, kept, old = secrets.token_hex(11), False, False, before.live
        info = self._info(name, nuid, content)
        try:
            info.chunks = await upload(self._objects, nuid, source, content, progress, tail)
            while True:
                try:
                    kept = digest_of(before) != content.sha256 and await self._kept.keep(name, before)
                    named = True  # from here on it may be, whatever is heard of it
                    await self._objects.put(info, before.revision)
                    break
                except (AccessDenied, RequestRefused):
                    named = False
                    raise
                except Conflict:
                    before = await self._objects.find(name)
                    named, old = False, before.live
                    now = None if force else self._same(artifact, before, content)
                    if now is not None and now.nuid != damaged:
                        return await self._signed(now, content)
        finally:
            if not named:
                await self._purge(nuid)
        if old is not None and not kept:
            await self._purge(old.nuid)
        await self._kept.sweep()
        if old is None:
            return Pushed.STORED
        return Pushed.REPAIRED if damaged and old.nuid == damaged else Pushed.REPLACED

    def _same(self, artifact: Artifact, found: Found, content: Content) -> StoredArtifact | None:
        """The artifact, where this very content is there; raises `Conflict` where another is."""
        if found.live is None:
            return None
        try:
            stored = stored_under(artifact, self.name, found)
        except InvalidContent as error:
            raise Conflict(f"{artifact} is there already, and cannot be read ({error}); --force replaces it") from None
        there, asked = stored.content.bare, content.bare
        if there == asked:
            return stored
        same = (there.form, there.file, there.data_sha256) == (asked.form, asked.file, asked.data_sha256)
        if same and not there.tail and there.manifest == content.manifest:
            if not content.signatures:
                return stored  # pushed by an earlier version; it stays what it is
            raise Conflict(f"{artifact} is stored as earlier versions did, which cannot be signed; replace it: --force")
        what = "another manifest" if same else "other content"
        raise Conflict(f"{artifact} is already stored with {what}; push a new version, or replace it: --force")

    async def _signed(self, stored: StoredArtifact, content: Content) -> Pushed:
        """What a push of the same comes to: signatures that are not stored yet are added."""
        if content.signatures.items() <= stored.content.signatures.items():
            return Pushed.UNCHANGED
        await self.sign(stored, content.signatures)
        return Pushed.SIGNED

    async def sign(self, stored: StoredArtifact, signatures: Mapping[str, str]) -> None:
        """Add signatures to an artifact.

        Raises:
            Conflict: it was replaced or removed, or signed by somebody else at the same time.
            StoreError: the store did not answer.
        """
        found = await self._objects.find(stored.name)
        if found.live is None or found.revision != stored.revision:
            raise Conflict(f"{stored.artifact} was replaced or removed at the same time; try again")
        content = msgspec.structs.replace(stored.content, signatures={**stored.content.signatures, **signatures})
        metadata = {**(found.live.metadata or {}), METADATA: content.record}
        await self._objects.put(msgspec.structs.replace(found.live, metadata=metadata), found.revision)

    async def remove(self, artifact: Artifact, *, force: bool = False) -> bool:
        """Remove an artifact. Returns whether its content is kept for what names it.

        Args:
            artifact: its name.
            force: whatever names it, keep neither its content, nor those that were kept before.

        Raises:
            ArtifactMissing: there is none of this name.
            Conflict: it was replaced at the same time.
            StoreError: the store did not answer.
        """
        name, kept = encode_artifact(artifact), False
        found = await self._objects.find(name)
        if found.live is None:
            if force and await self._kept.remove(name):
                return False
            raise missing(artifact, self.name)
        gone = ObjectInfo(name=name, bucket=self.name, nuid=found.live.nuid, deleted=True)
        while True:
            try:
                kept = not force and await self._kept.keep(name, found)
                await self._objects.put(gone, found.revision)
            except Conflict:
                now = await self._objects.find(name)
                if now.revision == found.revision:
                    continue  # somebody else is keeping it, too
                if now.live is not None:
                    raise Conflict(f"{artifact} was replaced at the same time") from None
                kept = not force  # somebody else removed it, and may keep it
            break
        if not kept:
            await self._purge(found.live.nuid)
        if force:
            await self._kept.remove(name)
        await self._kept.sweep()
        return kept and (await self._kept.find(name, digest_of(found) or "")).live is not None

    def _info(self, name: str, nuid: str, content: Content) -> ObjectInfo:
        return ObjectInfo(
            name=name,
            bucket=self.name,
            nuid=nuid,
            size=content.size,
            digest="SHA-256=" + base64.urlsafe_b64encode(bytes.fromhex(content.sha256)).decode(),
            mtime=datetime.now(UTC).isoformat(),
            metadata={METADATA: content.record},
            options={"max_chunk_size": CHUNK},
        )

    async def _purge(self, nuid: str) -> None:
        """Remove parts that nothing names. Never raises: what stays is swept away later."""
        if not nuid:
            return
        with anyio.CancelScope(shield=True):
            try:
                await self._objects.purge(nuid)
            except StoreError as error:
                log.debug("parts not removed", bucket=self.name, reason=str(error))

    async def _sweep(self) -> None:
        """Remove the parts of pushes that were killed. Never raises."""
        try:
            # In this order: the parts of a push that ends in between are named by then.
            parts = await self._objects.parts()
            if not parts:
                return
            # In this order, too: a content is kept before another one takes its place.
            named = {found.live.nuid for found in (await self._everything()).values() if found.live}
            named |= await self._kept.parts()
            for nuid in parts:
                if nuid not in named and await self._objects.idle(nuid) >= UNFINISHED:
                    log.info("parts of an unfinished push removed", bucket=self.name, parts=nuid)
                    await self._purge(nuid)
        except StoreError as error:
            log.debug("bucket not swept", bucket=self.name, reason=str(error))
