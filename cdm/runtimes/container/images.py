"""Brings images to the engine, out of artifacts, and removes those whose artifacts the node's cache has no more.

An artifact is an image where its content is an unpacked archive of it, as `docker save` and `podman save` write it. The
engine is given it under a name of this node's, by the digest of the content, so that it is found again. Each node of an
engine has names of its own, also where the image is the same: the engine keeps an image while any name is left, so no
node can take it from another one. Names that the archive has for it are left out of what the engine is sent, so they
stay what they were on this machine.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from cdm.errors import SliceFailed
from cdm.log import Log
from cdm.model.manifest import IMAGE_LISTS
from cdm.runtimes.container.engine import Engine, EngineFailed

log = Log("cdm.container")

REGISTRY = "cdm.local/"
"""What names of cdm's images begin with. Their tag is the name of the artifact's folder in the cache."""
SHARED = "artifact"
"""The repository that all nodes of earlier versions have in common."""
_NAMING = ("org.opencontainers.image.ref.name", "io.containerd.image.name")
"""Annotations that name an image."""
_UNREADABLE = "does not match any of the supported image formats"
"""What Podman says of no image: with HTTP's status of what may go well the next time."""
_PIECE = 1024 * 1024
_BLOCK = 512
_BROKEN = re.compile(
    r"invalid (?:manifest|diffID|image JSON|character)|unexpected (?:EOF|end of JSON|commit digest)"
    r"|json: cannot unmarshal|docker-import-\S*: no such file|evalSymlinksInScope|cannot load \S+ image on"
    r"|archive/tar: |gzip: |flate: corrupt|data is corrupt|magic number mismatch|bzip2 data invalid"
    r"|content digest \S+: not found|wrong diff id|mismatched image rootfs"
)
"""What Docker says of archives that nothing can be made of. Of a full disk it tells with the same status of success."""
_LOADED = re.compile(r"Loaded image(?:\(s\)| ID)?: (\S+)")


class Images:
    """The images of one node's slices.

    Args:
        engine: where they are to be.
        owner: the node's repository: nobody else's on this engine.
    """

    def __init__(self, engine: Engine, owner: str) -> None:
        self._engine = engine
        self._repository = f"{REGISTRY}{owner}"
        self._turn = anyio.Lock()
        self._cache: Path | None = None
        """Where the node's artifacts are; None: it is not known yet."""

    async def has(self, folder: Path) -> str:
        """Have the image of an artifact at the engine; returns its name there.

        Raises:
            SliceFailed: it is none, or the engine does not take it.
        """
        self._cache = folder.parent
        name = f"{self._repository}:{folder.name}"
        async with self._turn:  # images are large: one after the other
            if not await self._is_there(name) and not await self._named_as_others(folder.name):
                await self._load(folder)
        return name

    async def prune(self, used: Collection[Path]) -> None:
        """Remove the images whose artifacts are neither used nor in the cache any more."""
        if self._cache is not None:
            await self._remove({each.name for each in used}, self._cache)

    async def leave(self) -> None:
        """Remove all of this node's: it is to leave nothing."""
        await self._remove(set(), None)

    async def _remove(self, but: Collection[str], cache: Path | None) -> None:
        """Take back this node's names, and those of earlier versions, of images that no container has.

        Args:
            but: tags that stay.
            cache: what is in it stays as well; None: whatever there is.
        """
        ours = (self._repository, f"{REGISTRY}{SHARED}")
        try:
            names = await self._names()
        except EngineFailed as error:
            log.debug("images are not removed", reason=str(error))
            return
        for name in names:
            repository, _, tag = name.rpartition(":")
            if repository not in ours or tag in but or (cache is not None and (cache / tag).exists()):
                continue
            try:
                await self._engine.ask("DELETE", f"/images/{name}")
                log.info("an image is removed", image=name)
            except EngineFailed as error:  # a container may use it still: the next time
                log.debug("an image is not removed", image=name, reason=str(error))

    async def _names(self) -> list[str]:
        """Names of cdm's images, also those of other nodes."""
        found = await self._engine.ask("GET", "/images/json")
        return [name for each in found for name in each["RepoTags"] or () if name.startswith(REGISTRY)]

    async def _named_as_others(self, tag: str) -> bool:
        """Give what another node of this engine has of the same content a name of this one's; False: none has it."""
        for name in await self._names():
            if name.endswith(f":{tag}"):
                with suppress(EngineFailed):  # it was removed just now
                    await self._name(name, tag)
                    return True
        return False

    async def _name(self, image: str, tag: str) -> None:
        await self._engine.ask("POST", f"/images/{image}/tag", repo=self._repository, tag=tag)

    async def _load(self, folder: Path) -> None:
        lists = await anyio.to_thread.run_sync(_nameless, folder)
        loaded = ""
        try:
            async with self._engine.stream("POST", "/images/load", _archive(folder, lists), {"quiet": 1}) as parts:
                told = b"".join([part async for part in parts]).decode(errors="replace")
        except EngineFailed as error:
            if _UNREADABLE not in str(error):
                raise
            raise SliceFailed(f"the container engine does not take the image: {error}", fatal=True) from None
        for line in told.splitlines():
            answer = msgspec.json.decode(line) if line.startswith("{") else {}
            if problem := answer.get("error"):
                broken = _BROKEN.search(problem) is not None
                raise SliceFailed(f"the container engine does not take the image: {problem}", fatal=broken)
            if found := _LOADED.search(answer.get("stream", "")):
                loaded = found[1]
        if not loaded:
            raise SliceFailed(f"the container engine does not tell which image it has taken: {told[:300]!r}")
        with anyio.CancelScope(shield=True):  # it takes no time
            await self._name(loaded, folder.name)

    async def _is_there(self, name: str) -> bool:
        try:
            await self._engine.ask("GET", f"/images/{name}/json")
        except EngineFailed as error:
            if error.is_missing:
                return False
            raise
        return True


def _nameless(folder: Path) -> dict[str, bytes]:
    """The lists of an archive without names for its image. Raises `SliceFailed`: it has none, or several images."""
    found: dict[str, bytes] = {}
    for name in IMAGE_LISTS:
        try:
            listed = msgspec.json.decode((folder / name).read_bytes())
            images: list[dict[str, Any]] = listed if name == IMAGE_LISTS[0] else listed["manifests"]
            for each in images:
                if "RepoTags" in each:
                    each["RepoTags"] = []
                for annotation in _NAMING:
                    (each.get("annotations") or {}).pop(annotation, None)
        except FileNotFoundError:
            continue
        except (OSError, msgspec.DecodeError, AttributeError, KeyError, TypeError) as error:
            raise SliceFailed(f"the container image's {name} cannot be read: {error}", fatal=True) from None
        if name == IMAGE_LISTS[0] and len(images) != 1:
            raise SliceFailed(f"the artifact has {len(images)} container images, and must have one", fatal=True)
        found[name] = msgspec.json.encode(listed)
    if not found:
        raise SliceFailed(
            f"the artifact is no container image: it has neither {' nor '.join(IMAGE_LISTS)};"
            " push what `docker save` writes",
            fatal=True,
        )
    return found


async def _archive(folder: Path, instead: Mapping[str, bytes]) -> AsyncIterator[bytes]:
    """A tar archive of a folder, bit by bit; ``instead``: of files of the folder, by name."""
    pieces = _pieces(folder, instead)
    while piece := await anyio.to_thread.run_sync(next, pieces, b""):
        yield piece


def _pieces(folder: Path, instead: Mapping[str, bytes]) -> Iterator[bytes]:
    for path in sorted(folder.rglob("*")):
        content = instead.get(path.relative_to(folder).as_posix())
        member = tarfile.TarInfo(path.relative_to(folder).as_posix())
        member.mode = 0o644
        if path.is_symlink():
            member.type, member.linkname = tarfile.SYMTYPE, os.readlink(path)  # noqa: PTH115
        elif path.is_dir():
            member.type, member.mode = tarfile.DIRTYPE, 0o755
        else:
            member.size = path.stat().st_size if content is None else len(content)
        yield member.tobuf()
        if member.isreg():
            with path.open("rb") if content is None else io.BytesIO(content) as file:
                while piece := file.read(_PIECE):
                    yield piece
            if rest := member.size % _BLOCK:
                yield bytes(_BLOCK - rest)
    yield bytes(2 * _BLOCK)
