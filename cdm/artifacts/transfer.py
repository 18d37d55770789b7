"""Sends and fetches an artifact's bytes, a part at a time: memory use does not depend on their number."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import IO, Any

import anyio

from cdm import clock
from cdm.artifacts.sparse import SparseFile
from cdm.artifacts.threads import cleaned_up, in_thread
from cdm.errors import ArtifactDamaged, InvalidContent, Uncertain
from cdm.model.content import Content
from cdm.store.objects import Objects

Progress = Callable[[int, int], None]
"""Told how many bytes of how many were transferred."""
Check = Callable[[], Awaitable[None]]

LAG = 2.0
"""Seconds that a part may come later to another replica than what names it."""
PART_POLL_INTERVAL = 0.25
_BUFFER = 1024 * 1024


async def upload(
    objects: Objects,
    nuid: str,
    source: Path,
    content: Content,
    progress: Progress | None = None,
    tail: bytes = b"",
) -> int:
    """Store a file's bytes, and the manifest, under a new name of parts; returns how many parts there are.

    Args:
        objects: the bucket.
        nuid: name of the parts.
        source: the file.
        content: what describes it.
        progress: called after each part.
        tail: the manifest as it was stored elsewhere; empty: as this version stores it.

    Raises:
        InvalidContent: the file has other bytes than the content says.
        Uncertain: not all parts are there.
        StoreError: the store did not answer.
    """
    length, number, done = objects.part_length, 0, 0
    digest = hashlib.sha256()
    file = source.open("rb")  # not in a thread: see `download`
    try:
        while buffer := await in_thread(_read, file, digest, _BUFFER // length * length):
            for start in range(0, len(buffer), length):
                number += 1
                part = buffer[start : start + length]
                await objects.put_part(nuid, number, part)
                done += len(part)
                if progress is not None:
                    progress(done, content.size)
    finally:
        with anyio.CancelScope(shield=True):
            await cleaned_up(file.close)
    if content.tail:
        tail = tail or (content.manifest.stored if content.manifest is not None else b"")
        digest.update(tail)
    if digest.hexdigest() != content.sha256:
        raise InvalidContent(f"{source} was changed while it was pushed")
    for start in range(0, content.tail, length):  # parts of its own: whoever wants the manifest reads no others
        number += 1
        await objects.put_part(nuid, number, tail[start : start + length])
    # Were this process to stand still for long, its parts would be swept away, or one be stored twice.
    stored = await objects.count(nuid)
    if stored != number:
        raise Uncertain(f"{stored} of {number} parts are stored; push again")
    return number


async def download(
    objects: Objects, nuid: str, content: Content, into: Path, check: Check, progress: Progress | None = None
) -> bytes:
    """Write an artifact's bytes to a new file; what is there of it is left, also after errors.

    Returns the manifest, where it is at their end; it is not written to the file.

    Args:
        objects: the bucket.
        nuid: name of the parts.
        content: what they are to be.
        into: the file.
        check: called when a part is missing; raises where the parts are no longer wanted.
        progress: called after each part.

    Raises:
        ArtifactDamaged: a part is missing, or the bytes are others; the text says no more than that.
        StoreError: the store did not answer.
        OSError: the file cannot be written.
    """
    digest, buffer, tail, left = hashlib.sha256(), bytearray(), bytearray(), content.data_size
    file = SparseFile(into)  # not in a thread: one that is opened while its task is cancelled would be closed by nobody
    try:
        async for part in _parts(objects, nuid, content, check, progress):
            buffer += part[:left]
            tail += part[left:]
            left = max(left - len(part), 0)
            if len(buffer) >= _BUFFER:
                await in_thread(_take, file, digest, bytes(buffer))
                buffer.clear()
        await in_thread(_take, file, digest, bytes(buffer))
    finally:
        with anyio.CancelScope(shield=True):
            await cleaned_up(file.close)
    if content.tail and digest.hexdigest() != content.data:
        raise ArtifactDamaged("its bytes are not those that were pushed")
    digest.update(tail)
    _compare(digest, content)
    return bytes(tail)


async def manifest_at_end(objects: Objects, nuid: str, content: Content, check: Check) -> bytes:
    """The manifest at the end of the stored bytes, which are not compared. Errors are those of `download`."""
    found = await objects.last_part(nuid)
    if found is not None and len(found) == content.tail:
        return found
    end = bytearray()  # it is longer than a part of whoever pushed it
    async for part in _parts(objects, nuid, content, check, None):
        end = (end + part)[-content.tail :]
    return bytes(end)


async def verify(
    objects: Objects, nuid: str, parts: int, content: Content, check: Check, progress: Progress | None = None
) -> bytes:
    """Read what is stored and compare it with the content; ``parts`` is how many there are to be.

    Returns the manifest, where it is at the end.

    The other arguments, and errors, are those of `download`.
    """
    if await objects.count(nuid) != parts:
        await check()
        raise ArtifactDamaged("a part of it is missing")
    digest, left, tail = hashlib.sha256(), content.data_size, bytearray()
    async for part in _parts(objects, nuid, content, check, progress):
        digest.update(part)
        tail += part[left:]
        left = max(left - len(part), 0)
    _compare(digest, content)
    return bytes(tail)


async def _parts(
    objects: Objects, nuid: str, content: Content, check: Check, progress: Progress | None
) -> AsyncIterator[bytes]:
    done = after = 0
    while done < content.size:
        part, after = await _part(objects, nuid, after, check)
        done += len(part)
        yield part
        if progress is not None:
            progress(min(done, content.size), content.size)
    if done != content.size:
        raise ArtifactDamaged("its bytes are not those that were pushed")


async def _part(objects: Objects, nuid: str, after: int, check: Check) -> tuple[bytes, int]:
    """The next part behind a sequence of the stream, and its own sequence."""
    deadline = clock.now() + LAG
    while (found := await objects.part(nuid, after)) is None:
        await check()
        if clock.now() >= deadline:
            raise ArtifactDamaged("a part of it is missing")
        await anyio.sleep(PART_POLL_INTERVAL)
    return found


def _compare(digest: Any, content: Content) -> None:
    if digest.hexdigest() != content.sha256:
        raise ArtifactDamaged("its bytes are not those that were pushed")


def _take(file: SparseFile, digest: Any, data: bytes) -> None:
    digest.update(data)
    file.write(data)


def _read(file: IO[bytes], digest: Any, length: int) -> bytes:
    data = file.read(length)
    digest.update(data)
    return data
