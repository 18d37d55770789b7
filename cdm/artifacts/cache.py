"""A node's artifacts on its disk: each content once, verified, and never half of one.

A content is downloaded and unpacked under a temporary name in the same folder, brought to the disk, and renamed to its
digest. So what has a digest for its name is whole, whatever happens to the process or the machine. What somebody
removes from the folder is downloaded again when it is needed.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
from anyio import from_thread, to_thread
from msgspec import Struct

from cdm.artifacts.entry import completed
from cdm.artifacts.repository import Artifacts, StoredArtifact
from cdm.artifacts.tree import Tree, scan
from cdm.artifacts.unpacking import sync, unpack
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
"""Downloads of an artifact that is replaced, or removed from the folder, each time while it is downloaded."""
_TEMPORARY = "tmp-"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Fetched(Struct, frozen=True):
    """An artifact on this node."""

    folder: Path
    """Its files, shared by all slices of the same content: not to be written to."""
    manifest: Manifest
    """How to run it; its entry is never empty."""
    digest: str
    """The content's name here, for `Cache.hold` and `Cache.release`."""


class _Kept:
    """A content that is in the cache."""

    def __init__(self, tree: Tree, used: int) -> None:
        self.tree = tree
        self.used = used


class _Download:
    """A content on its way."""

    def __init__(self, stored: StoredArtifact) -> None:
        content = stored.content
        self.artifact = stored.artifact
        self.size = content.unpacked + (content.size if content.form is Form.TREE else 0)
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
        self.max_bytes = max_bytes
        self._kept: dict[str, _Kept] = {}
        self._holds = Counter[str]()
        """Not in `_Kept`: what is held may have been removed from the folder, and be downloaded again."""
        self._running: dict[str, _Download] = {}
        self._clock = 0
        self._started = False
        self._starting = anyio.Lock()

    @property
    def size(self) -> int:
        """Bytes of all files in the cache."""
        return sum(kept.tree.size for kept in self._kept.values())

    async def start(self) -> None:
        """Take over what is in the folder, and remove what a crash left half done. `get` calls it where nobody has.

        Raises:
            OSError: the folder cannot be used.
        """
        async with self._starting:
            if not self._started:
                found = await to_thread.run_sync(_survey, self.folder)
                for name, tree in found:
                    self._kept[name] = _Kept(tree, self._tick())
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

    async def get(self, artifact: Artifact) -> Fetched:
        """An artifact that is ready to be run, downloaded where its content is not there yet.

        Raises:
            SliceFailed: says why not, and what to do; fatal where an operator has to do it.
        """
        try:
            await self.start()
            problem = ""
            for _ in range(ATTEMPTS):
                try:
                    stored = await self.artifacts.describe(artifact)
                    return await self._fetched(stored)
                except (Conflict, FileNotFoundError) as error:
                    problem = str(error)
                    log.info("downloading anew", artifact=str(artifact), reason=problem)
            raise SliceFailed(f"{ATTEMPTS} downloads of {artifact} came to nothing: {problem}")
        except (ArtifactMissing, BucketMissing, InvalidContent, InvalidManifest) as error:
            raise SliceFailed(str(error), fatal=True) from error
        except StoreError as error:
            raise SliceFailed(f"cannot fetch {artifact}: {error}") from error
        except OSError as error:
            raise SliceFailed(f"cannot keep {artifact} in {self.folder}: {error}") from error

    async def _fetched(self, stored: StoredArtifact) -> Fetched:
        digest, artifact = stored.content.identity, stored.artifact
        kept = await self._present(stored, digest)
        kept.used = self._tick()
        folder = self.folder / digest
        try:
            manifest = completed(stored.content.manifest, kept.tree)
        except InvalidManifest as error:
            raise InvalidManifest(
                f"manifest of {artifact}: {error}; push it again with another: "
                f"cdm artifact push --force --manifest FILE {artifact} PATH"
            ) from None
        self.hold(digest)  # against the downloads of others, until the caller can
        try:
            await to_thread.run_sync(_prepare, folder, manifest, kept.tree)
        except FileNotFoundError:
            # Somebody removed it. Those who hold it have what comes in its place.
            if self._kept.get(digest) is kept:
                del self._kept[digest]
            raise
        finally:
            self.release(digest)
        return Fetched(folder, manifest, digest)

    async def _present(self, stored: StoredArtifact, digest: str) -> _Kept:
        while (kept := self._kept.get(digest)) is None:
            running = self._running.get(digest)
            if running is None:
                await self._download(stored, digest)
                continue
            await running.over.wait()
            # Where it was cancelled with its slice, or was another artifact's, the next that waits downloads it.
            if running.failed is not None and running.artifact == stored.artifact:
                raise running.failed
        return kept

    async def _download(self, stored: StoredArtifact, digest: str) -> None:
        content, artifact = stored.content, stored.artifact
        running = self._running[digest] = _Download(stored)
        temporary = self.folder / f"{_TEMPORARY}{secrets.token_hex(8)}"
        try:
            await self._make_room(stored, running.size)
            await to_thread.run_sync(partial(temporary.mkdir, parents=True))
            await self.artifacts.fetch(stored, temporary / "packed")
            try:
                tree = await to_thread.run_sync(_unpack, temporary, content)
            except InvalidContent as error:
                raise InvalidContent(
                    f"{artifact} cannot be unpacked: {error}; push it again: cdm artifact push --force {artifact} PATH"
                ) from None
            await to_thread.run_sync(_install, temporary, self.folder / digest)
            running.size = 0
            self._kept[digest] = _Kept(tree, self._tick())
            log.info("artifact fetched", artifact=str(artifact), sha256=stored.content.sha256[:12], bytes=tree.size)
        except (CdmError, OSError) as error:
            running.failed = error
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(_discard, temporary)
            del self._running[digest]
            running.over.set()

    async def _make_room(self, stored: StoredArtifact, needed: int) -> None:
        if needed > self.max_bytes:
            raise SliceFailed(
                f"{stored.artifact} needs {needed:,} bytes, and this node's cache has {self.max_bytes:,}; enlarge it",
                fatal=True,
            )
        excess = self.size + sum(running.size for running in self._running.values()) - self.max_bytes
        idle = sorted((kept.used, digest) for digest, kept in self._kept.items() if digest not in self._holds)
        doomed = []
        try:
            for _, digest in idle:
                if excess <= 0:
                    break
                folder = self.folder / f"{_TEMPORARY}{secrets.token_hex(8)}"
                with suppress(FileNotFoundError):  # somebody removed it
                    # At once, and all of it at once: its name is free, and what a crash leaves of it is no content.
                    (self.folder / digest).rename(folder)
                    doomed.append(folder)
                excess -= self._kept.pop(digest).tree.size
                log.info("artifact removed from the cache", digest=digest)
        finally:
            for folder in doomed:
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(_discard, folder)
        if excess > 0:
            raise SliceFailed(
                f"no room for {stored.artifact} ({needed:,} bytes): other slices hold this node's cache; enlarge it"
            )

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


# In threads


def _survey(folder: Path) -> list[tuple[str, Tree]]:
    """Contents of the folder, the one that was not asked for longest first."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for path in folder.iterdir():
        if path.name.startswith(_TEMPORARY):
            _discard(path)
        elif _DIGEST.fullmatch(path.name):
            found.append((path.stat().st_mtime_ns, path.name))
    return [(name, scan(folder / name)) for _, name in sorted(found)]


def _unpack(temporary: Path, content: Content) -> Tree:
    return unpack(temporary / "packed", content, temporary / "content", from_thread.check_cancelled)


def _install(temporary: Path, target: Path) -> None:
    with suppress(FileNotFoundError):  # there may be something left of a content that somebody removed
        target.rename(temporary / "before")
    (temporary / "content").rename(target)
    sync(target.parent)


def _prepare(folder: Path, manifest: Manifest, tree: Tree) -> None:
    os.utime(folder)
    entry = tree.resolve(manifest.entry)
    if entry in tree.files:
        program = folder / entry
        mode = program.stat().st_mode & 0o777
        wanted = mode | (mode & 0o444) >> 2  # whoever reads it may run it
        if mode != wanted:
            program.chmod(wanted)


def _discard(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
