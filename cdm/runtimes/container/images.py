"""Brings images to the engine, out of artifacts, and removes those whose artifacts the node's cache has no more.

An artifact is an image where its content is an unpacked archive of it, as `docker save` and `podman save` write it. The
engine is given it under a name of cdm's, by the digest of the content, so that it is found again; names that the
archive has for it stay what they were on this machine.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from cdm.errors import SliceFailed
from cdm.log import Log
from cdm.runtimes.container.engine import Engine, EngineFailed

log = Log("cdm.container")

REPOSITORY = "cdm.local/artifact"
"""Images of artifacts, each with the name of its folder in the node's cache as its tag."""
LISTS = ("manifest.json", "index.json")
"""What one of is in every archive of images."""
_PIECE = 1024 * 1024
_BLOCK = 512
_LOADED = re.compile(r"Loaded image(?:\(s\)| ID)?: (\S+)")


class Images:
    """The images of one node's slices.

    Args:
        engine: where they are to be.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = anyio.Lock()
        self._cache: Path | None = None
        """Where the node's artifacts are; None: it is not known yet."""

    async def has(self, folder: Path) -> str:
        """Have the image of an artifact at the engine; returns its name there.

        Raises:
            SliceFailed: it is none, or the engine does not take it.
        """
        self._cache = folder.parent
        name = f"{REPOSITORY}:{folder.name}"
        async with self._turn:  # images are large: one after the other
            if await self._id_of(name) is None:
                await self._load(folder, name)
        return name

    async def prune(self, used: Collection[Path]) -> None:
        """Remove the images whose artifacts are neither used nor in the cache any more."""
        if self._cache is None:
            return
        wanted = {each.name for each in used}
        filters = msgspec.json.encode({"reference": [REPOSITORY]}).decode()
        try:
            for each in await self._engine.ask("GET", "/images/json", filters=filters):
                for name in each["RepoTags"] or ():
                    tag = name.rpartition(":")[2]
                    if name.startswith(f"{REPOSITORY}:") and tag not in wanted and not (self._cache / tag).exists():
                        await self._engine.ask("DELETE", f"/images/{name}")
                        log.info("an image is removed", image=name)
        except EngineFailed as error:  # a container may use it still: the next time
            log.debug("an image is not removed", reason=str(error))

    async def _load(self, folder: Path, name: str) -> None:
        names = await anyio.to_thread.run_sync(_names, folder)
        before = {each: await self._id_of(each) for each in names}
        loaded = ""
        async with self._engine.stream("POST", "/images/load", _archive(folder), {"quiet": 1}) as parts:
            told = b"".join([part async for part in parts]).decode(errors="replace")
        for line in told.splitlines():
            answer = msgspec.json.decode(line) if line.startswith("{") else {}
            if problem := answer.get("error"):
                raise SliceFailed(f"the container engine does not take the image: {problem}", fatal=True)
            if found := _LOADED.search(answer.get("stream", "")):
                loaded = found[1]
        if not loaded:
            raise SliceFailed(f"the container engine does not tell which image it has taken: {told[:300]!r}")
        with anyio.CancelScope(shield=True):  # it takes no time
            await self._tag(loaded, name)
            await self._restore(before, await self._id_of(name))

    async def _restore(self, before: dict[str, str | None], ours: str | None) -> None:
        """Have the names that the archive gave to its image stand for what they stood for."""
        for name, image in before.items():
            if image is None:
                await self._engine.ask("DELETE", f"/images/{name}")
            elif image != ours:
                await self._tag(image, name)

    async def _tag(self, image: str, name: str) -> None:
        repository, _, tag = name.rpartition(":")
        await self._engine.ask("POST", f"/images/{image}/tag", repo=repository, tag=tag)

    async def _id_of(self, name: str) -> str | None:
        try:
            found = await self._engine.ask("GET", f"/images/{name}/json")
        except EngineFailed as error:
            if error.is_missing:
                return None
            raise
        return str(found["Id"])


def _names(folder: Path) -> list[str]:
    """The names that the archive of an image has for it. Raises `SliceFailed`: it is none, or has several."""
    if not any((folder / each).is_file() for each in LISTS):
        raise SliceFailed(
            f"the artifact is no container image: it has neither {' nor '.join(LISTS)}; push what `docker save` writes",
            fatal=True,
        )
    try:
        listed = msgspec.json.decode((folder / LISTS[0]).read_bytes())
        if len(listed) == 1:
            return list(listed[0].get("RepoTags") or ())
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError, AttributeError, TypeError) as error:
        raise SliceFailed(f"the container image's {LISTS[0]} cannot be read: {error}", fatal=True) from None
    raise SliceFailed(f"the artifact has {len(listed)} container images, and must have one", fatal=True)


async def _archive(folder: Path) -> AsyncIterator[bytes]:
    """A tar archive of a folder, bit by bit."""
    pieces = _pieces(folder)
    while piece := await anyio.to_thread.run_sync(next, pieces, b""):
        yield piece


def _pieces(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.rglob("*")):
        member = tarfile.TarInfo(path.relative_to(folder).as_posix())
        member.mode = 0o644
        if path.is_symlink():
            member.type, member.linkname = tarfile.SYMTYPE, os.readlink(path)  # noqa: PTH115
        elif path.is_dir():
            member.type, member.mode = tarfile.DIRTYPE, 0o755
        else:
            member.size = path.stat().st_size
        yield member.tobuf()
        if member.isreg():
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    yield piece
            if rest := member.size % _BLOCK:
                yield bytes(_BLOCK - rest)
    yield bytes(2 * _BLOCK)
