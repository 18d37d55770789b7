"""A node's artifacts on its disk: each content is kept once, verified and complete.

A content is downloaded and unpacked under a temporary name in the same folder, and renamed to its digest. So what has
a digest for its name is whole, whatever happens to the process. Beside it lies its seal (`cdm.artifacts.seal`), which
tells before each use whether it still is: what somebody altered in the folder or removed from it, or a power cut left
half written, is never run, and downloaded again when it is needed.
"""

from __future__ import annotations

import errno
import resource
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
from msgspec import Struct
from msgspec.structs import replace

from cdm.artifacts.describing import Describer
from cdm.artifacts.entry import completed
from cdm.artifacts.folder import (
    TEMPORARY,
    check,
    discard,
    free_bytes,
    install,
    make_runnable,
    seal_of,
    survey,
    unpack_into,
)
from cdm.artifacts.repository import Artifacts
from cdm.artifacts.seal import Altered, Seal
from cdm.artifacts.signing import Signed
from cdm.artifacts.stored import StoredArtifact
from cdm.artifacts.threads import cleaned_up, in_thread
from cdm.errors import (
    ArtifactMissing,
    BucketMissing,
    CdmError,
    Conflict,
    InvalidContent,
    InvalidManifest,
    SliceFailed,
    StoreError,
)
from cdm.log import Log
from cdm.model.artifact import Artifact
from cdm.model.content import Content, Form
from cdm.model.manifest import Manifest

log = Log("cdm.cache")

MAX_BYTES = 10 * 1024**3
"""Bytes that a cache may have unless it is told otherwise."""
ATTEMPTS = 5
"""Downloads of an artifact that is replaced, or altered in the folder, each time while it is downloaded."""


class Fetched(Struct, frozen=True):
    """An artifact on this node."""

    folder: Path
    """Its files, shared by all slices of the same content: not to be written to."""
    manifest: Manifest
    """How to run it; its entry is never empty."""
    digest: str
    """The content's name here, for `Cache.hold` and `Cache.release`."""
    content: str
    """The content's digest in the store."""
    signed: Signed
    """What of it is signed, and by whom."""


class _Kept:
    """A content that is in the cache."""

    def __init__(self, size: int, seal: Seal | None, used: int) -> None:
        self.size = size
        self.seal = seal
        """None: it is not, or not any more, what was unpacked. It takes room until it is replaced or removed."""
        self.used = used
        self.checking = anyio.Lock()
        self.checked = 0
        """When the last check began that found it whole."""
        self.entry: str | None = None
        """What was made to be run then."""
        self.manifest: Manifest | None = None
        """How it is run, as its seal tells, once that was read: all slices of it share that."""


class _Download:
    """A content on its way."""

    def __init__(self, stored: StoredArtifact) -> None:
        content = stored.content
        self.artifact = stored.artifact
        self.size = content.unpacked + (content.data_size if content.form is Form.TREE else 0)
        """Bytes that it takes at most: archive and files."""
        self.over = anyio.Event()
        self.failed: CdmError | OSError | None = None


class Cache:
    """Artifacts of one node in a folder that no other process uses.

    Args:
        folder: where; made when it is not there.
        artifacts: where they come from.
        max_bytes: how many bytes of files there may be. Contents that nobody holds make room for others, the one that
            was not asked for longest first.
    """

    def __init__(self, folder: Path, artifacts: Artifacts, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.artifacts = artifacts
        self._describer = Describer(artifacts)
        self.max_bytes = max_bytes
        self._kept: dict[str, _Kept] = {}
        self._holds = Counter[str]()
        """Not in `_Kept`: what is held may have been removed from the folder, and be downloaded again."""
        self._getting = Counter[str]()
        """Holds of calls of `get` that are under way."""
        self._running: dict[str, _Download] = {}
        self._clock = 0
        """Counts what happens; what is later has a higher number."""
        self._started = False
        self._starting = anyio.Lock()

    @property
    def size(self) -> int:
        """Bytes of all files in the cache."""
        return sum(kept.size for kept in self._kept.values())

    async def start(self) -> None:
        """Take over what is in the folder, and remove what a crash left half done. `get` calls it where nobody has.

        Raises:
            OSError: the folder cannot be used.
        """
        async with self._starting:
            if not self._started:
                found = await in_thread(survey, self.folder)
                for name, size, seal in found:
                    self._kept[name] = _Kept(size, seal, self._tick())
                self._started = True

    def hold(self, digest: str) -> None:
        """Keep a content until it is released as often as it was held. To be called at once after `get`."""
        self._holds[digest] += 1

    def release(self, digest: str) -> None:
        """Take back one `hold`; what is not held stays until its room is needed."""
        if digest not in self._holds:
            raise ValueError(f"{digest} is not held")
        self._holds[digest] -= 1
        if not self._holds[digest]:
            del self._holds[digest]

    async def get(
        self, artifact: Artifact, content: str | None = None, sized: Callable[[int], Awaitable[object]] | None = None
    ) -> Fetched:
        """An artifact that is ready to be run, downloaded where its content is not there yet.

        Args:
            artifact: its name.
            content: digest of the content that it is to be; None: the one that it has at present.
            sized: awaited before that begins, with the bytes that may have to be read and written for it.

        Raises:
            SliceFailed: says why not, and what to do; fatal where an operator has to do it.
        """
        problem = needs = ""
        try:
            await self.start()
            for _ in range(ATTEMPTS):
                try:
                    stored = await self._describer.describe(artifact, content)
                    needs = _needs(stored.content)
                    if sized is not None:
                        await sized(stored.content.size + stored.content.unpacked)
                    return await self._fetched(stored)
                except (Conflict, FileNotFoundError) as error:
                    problem = str(error)
                    log.info("downloading anew", artifact=str(artifact), reason=problem)
                except Altered as error:
                    problem = f"altered on the disk: {error}"
                    log.warning("altered on the disk; downloading anew", artifact=str(artifact), reason=str(error))
            raise SliceFailed(f"{ATTEMPTS} downloads of {artifact} came to nothing: {problem}")
        except (ArtifactMissing, BucketMissing, InvalidContent, InvalidManifest) as error:
            raise SliceFailed(str(error), fatal=True) from error
        except StoreError as error:
            raise SliceFailed(f"cannot fetch {artifact}: {error}") from error
        except OSError as error:
            told = f"cannot keep {artifact} in {self.folder}: {error}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT) and needs:
                told += f"; it needs {needs}"
            elif error.errno in (errno.EMFILE, errno.ENFILE):
                told += (
                    f"; this node may have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,} open files, see ulimit -n"
                )
            raise SliceFailed(told) from error

    async def signed(self, artifact: Artifact, fetched: Fetched) -> Signed:
        """What is signed of what was fetched, and by whom by now. Errors are those of `Artifacts.describe`."""
        content = (await self.artifacts.describe(artifact, fetched.content)).content
        return replace(fetched.signed, signatures=content.signatures if content.tail else {})

    async def _fetched(self, stored: StoredArtifact) -> Fetched:
        digest, artifact = stored.content.identity, stored.artifact
        kept, seal = await self._present(stored, digest)
        asked = kept.used = self._tick()
        folder = self.folder / digest
        try:
            if (told := stored.content.manifest) is not None:
                manifest = completed(told, seal.tree)
            else:
                manifest = kept.manifest = kept.manifest or completed(Manifest.restore(seal.manifest), seal.tree)
        except InvalidManifest as error:
            raise InvalidManifest(
                f"manifest of {artifact}: {error}; push it again with another: "
                f"cdm artifact push --force --manifest FILE {artifact} PATH"
            ) from None
        others: list[str] = []
        self.hold(digest)  # against the downloads of others, until the caller can
        self._getting[digest] += 1
        try:
            async with kept.checking:
                if kept.checked < asked or kept.entry != manifest.entry:  # nobody else had it checked meanwhile
                    began = self._tick()
                    # What slices wrote to the folder, although it is shared, is left while there are any.
                    alone = self._holds[digest] == self._getting[digest]
                    others = await in_thread(_made_ready, folder, manifest, seal, alone)
                    kept.checked, kept.entry = began, manifest.entry
        except (Altered, FileNotFoundError):
            # Those who hold it have what comes in its place.
            kept.seal = None
            raise
        finally:
            self._getting[digest] -= 1
            self.release(digest)
        if others:
            log.warning("removed what is not the artifact's", artifact=str(artifact), files=", ".join(others[:5]))
        return Fetched(
            folder, manifest, digest, stored.content.sha256, Signed.of(artifact, stored.content, seal.manifest)
        )

    async def _present(self, stored: StoredArtifact, digest: str) -> tuple[_Kept, Seal]:
        while True:
            kept = self._kept.get(digest)
            if kept is not None and kept.seal is not None:
                return kept, kept.seal
            running = self._running.get(digest)
            if running is None:
                await self._download(stored, digest)
                continue
            await running.over.wait()
            # Where it was cancelled with its slice, or was another artifact's, the next that waits downloads it.
            if running.failed is not None and running.artifact == stored.artifact:
                raise running.failed

    async def _download(self, stored: StoredArtifact, digest: str) -> None:
        content, artifact = stored.content, stored.artifact
        running = self._running[digest] = _Download(stored)
        temporary = self.folder / f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            await self._make_room(stored, running.size)
            await in_thread(partial(temporary.mkdir, parents=True))
            manifest = await self.artifacts.fetch(stored, temporary / "packed")
            try:
                seal = await in_thread(unpack_into, temporary, content, manifest)
            except InvalidContent as error:
                raise InvalidContent(
                    f"{artifact} cannot be unpacked: {error}; push it again: cdm artifact push --force {artifact} PATH"
                ) from None
            await in_thread(install, temporary, self.folder / digest)
            running.size = 0
            size = seal.tree.size
            self._kept[digest] = _Kept(size, seal, self._tick())
            log.info("artifact fetched", artifact=str(artifact), sha256=stored.content.sha256[:12], bytes=size)
        except (CdmError, OSError) as error:
            running.failed = error
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await cleaned_up(discard, temporary)
            del self._running[digest]
            running.over.set()

    async def _make_room(self, stored: StoredArtifact, needed: int) -> None:
        artifact, needs = stored.artifact, _needs(stored.content)
        if needed > self.max_bytes:
            raise SliceFailed(
                f"{artifact} needs {needs}, and this node's cache may have {self.max_bytes:,}; enlarge it", fatal=True
            )
        # Up to the first await nothing else runs: what is worked out here holds when it is acted on.
        free = free_bytes(self.folder)
        replaced = stored.content.identity  # what is there of it is no more once this is installed
        others = {digest: kept for digest, kept in self._kept.items() if digest != replaced}
        idle = sorted((kept.used, digest) for digest, kept in others.items() if digest not in self._holds)
        evictable = sum(others[digest].size for _, digest in idle)
        excess = sum(kept.size for kept in others.values()) - self.max_bytes
        excess += sum(running.size for running in self._running.values())
        if excess > evictable:
            raise SliceFailed(
                f"no room for {artifact}, which needs {needs}: other slices hold this node's cache; enlarge it"
            )
        if needed - free > evictable:
            raise SliceFailed(
                f"no room on the disk for {artifact}, which needs {needs}: {self.folder} has {free:,} left"
            )
        excess = max(excess, needed - free)
        doomed = []
        try:
            for _, digest in idle:
                if excess <= 0:
                    break
                folder = self.folder / f"{TEMPORARY}{secrets.token_hex(8)}"
                with suppress(FileNotFoundError):  # somebody removed it
                    # At once, and all of it at once: its name is free, and what a crash leaves of it is no content.
                    (self.folder / digest).rename(folder)
                    doomed.append(folder)
                seal_of(self.folder, digest).unlink(missing_ok=True)
                excess -= self._kept.pop(digest).size
                log.info("artifact removed from the cache", digest=digest)
        finally:
            for folder in doomed:
                with anyio.CancelScope(shield=True):
                    await cleaned_up(discard, folder)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _made_ready(folder: Path, manifest: Manifest, seal: Seal, alone: bool) -> list[str]:
    others = check(folder, seal, alone)
    make_runnable(folder, manifest, seal)
    return others


def _needs(content: Content) -> str:
    """What a content takes while it is fetched."""
    if content.form is Form.FILE:
        return f"{content.data_size:,} bytes"
    total = content.data_size + content.unpacked
    return f"{total:,} bytes ({content.data_size:,} for the archive and {content.unpacked:,} for what it unpacks to)"
