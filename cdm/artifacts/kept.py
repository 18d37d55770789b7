"""Contents that were pushed over, or whose artifact was removed, for as long as something names them.

Slices that run, and the record of a rollout, name the content that they are of (`cdm.artifacts.named`): an instance
that is started anew, or a revert, has to have that one, whatever was pushed since. So before another content takes an
artifact's name, the old one's description is written a second time, under ``{artifact}/{digest}``. That is no
artifact's name, and to every client of object stores it is one more object, which it can read. The parts stay what they
are: both descriptions name them, until there is only this one.

The steps of a push over another content, each of which may be the last one that a process takes:

1. The new parts are stored. (What is left of them alone is swept away once it is old.)
2. The old description is written under its second name. (Where the artifact still has those parts, there is nothing to
   be kept: such a description is removed once it is old.)
3. The new description takes the artifact's name, by compare-and-set. (Had another push done so before, it begins
   again with 2.)
4. What nothing names is removed: its description by compare-and-set, then its parts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

from msgspec.structs import replace

from cdm.errors import Conflict, InvalidContent, InvalidKey, StoreError
from cdm.log import Log
from cdm.model.artifact import Artifact
from cdm.model.content import METADATA, Content, digest_in, is_digest
from cdm.model.keys import decode_artifact
from cdm.store.objects import Found, ObjectInfo, Objects
from cdm.store.wire import MARKER_TTL

log = Log("cdm.store")

UNFINISHED = 3600.0
"""Seconds after which what a push has begun, and not finished, counts as given up."""


class KeptName(NamedTuple):
    """The name under which a content is kept."""

    artifact: str
    """The artifact's name in the bucket."""
    digest: str

    def __str__(self) -> str:
        return f"{self.artifact}/{self.digest}"

    @classmethod
    def read(cls, name: str) -> KeptName | None:
        """Read it; None: it is another name."""
        artifact, _, digest = name.rpartition("/")
        return cls(artifact, digest) if artifact.count("/") == 2 and is_digest(digest) else None


class KeptContent(NamedTuple):
    """A content that is kept."""

    artifact: Artifact
    content: Content
    nuid: str
    """Name of its parts."""
    since: str
    """When it was pushed over, by the server's clock, as RFC 3339 has it."""


def digest_of(found: Found) -> str | None:
    """The digest of the content that is described; None: none is, or cdm did not push it."""
    record = (found.live.metadata or {}).get(METADATA) if found.live is not None else None
    return digest_in(record) if record else None


class Kept:
    """The contents that are kept in a bucket.

    Args:
        objects: the bucket.
        named: tells which contents are named; raises `StoreError` where that cannot be told.
        purge: removes parts that nothing names; never raises.
    """

    def __init__(
        self,
        objects: Objects,
        named: Callable[[], Awaitable[frozenset[str]]],
        purge: Callable[[str], Awaitable[None]],
    ) -> None:
        self._objects = objects
        self._named = named
        self._purge = purge

    async def find(self, artifact: str, digest: str) -> Found:
        """What is kept under this name, and none but this very content."""
        found = await self._objects.find(str(KeptName(artifact, digest)))
        return found if digest_of(found) == digest else Found(found.revision)

    async def keep(self, artifact: str, found: Found) -> bool:
        """Keep what an artifact has at present, which another content is to replace. Returns whether it can be kept.

        Raises:
            Conflict: it does not have that any more, or somebody else is keeping it, too.
        """
        digest = digest_of(found)
        if digest is None or found.live is None or not found.live.nuid:
            return False
        name = str(KeptName(artifact, digest))
        before = await self._objects.find(name)
        # In this order: who was overtaken since must not put what is gone in the place of what was kept meanwhile.
        if (await self._objects.find(artifact)).revision != found.revision:
            raise Conflict(f"{artifact} was replaced or removed at the same time")
        await self._objects.put(replace(found.live, name=name), before.revision)
        if before.live is not None and before.live.nuid != found.live.nuid:
            await self._purge(before.live.nuid)
        return True

    async def listing(self) -> list[KeptContent]:
        """All that is kept, by name."""
        kept: list[KeptContent] = []
        for name in await self._names():
            found = await self._objects.find(str(name))
            if found.live is not None:
                with suppress(InvalidContent, InvalidKey):  # another version's
                    content = Content.parse((found.live.metadata or {}).get(METADATA, ""))
                    kept.append(KeptContent(decode_artifact(name.artifact), content, found.live.nuid, found.time))
        return kept

    async def sweep(self) -> None:
        """Remove what nothing names. Never raises: what stays is swept away later."""
        try:
            # In this order: what is named is read when it is known what there is.
            there = {name: await self._objects.find(str(name)) for name in await self._names()}
            living = {name: found for name, found in there.items() if found.live is not None}
            named = await self._named() if living else frozenset()
            for name, found in living.items():
                await self._judge(name, found, named)
            for name in there.keys() - living.keys():
                # Whoever follows the bucket has heard by then that it is gone, or lists it anyway.
                if await self._objects.age(there[name]) >= MARKER_TTL:
                    await self._objects.forget(str(name), there[name].revision)
        except StoreError as error:
            log.warning("contents that were pushed over are kept", bucket=self._objects.name, reason=str(error))

    async def parts(self) -> set[str]:
        """Names of the parts of all that is kept."""
        found = [await self._objects.find(str(name)) for name in await self._names()]
        return {each.live.nuid for each in found if each.live is not None}

    async def remove(self, artifact: str) -> bool:
        """Keep nothing of an artifact any more, whatever names it. Returns whether anything was kept."""
        removed = False
        for name in await self._names():
            while name.artifact == artifact and (found := await self._objects.find(str(name))).live is not None:
                removed = True
                with suppress(Conflict):  # somebody else is doing something about it: look again
                    await self._remove(name, found, found.live.nuid)
        return removed

    async def _judge(self, name: KeptName, found: Found, named: frozenset[str]) -> None:
        # Read after what is kept: parts that the artifact does not have by now it will never have again.
        now = await self._objects.find(name.artifact)
        parts = found.live.nuid if found.live is not None else ""
        if now.live is not None and now.live.nuid == parts:
            if await self._objects.age(found) < UNFINISHED:
                return  # a push is between its steps
            parts = ""
        elif name.digest in named and digest_of(now) != name.digest:
            return
        try:
            await self._remove(name, found, parts)
        except Conflict as error:
            log.debug("content is kept", content=str(name), reason=str(error))

    async def _remove(self, name: KeptName, found: Found, parts: str) -> None:
        gone = ObjectInfo(name=str(name), bucket=self._objects.name, nuid=parts, deleted=True)
        await self._objects.put(gone, found.revision)
        log.info("content that was pushed over is removed", content=str(name))
        await self._purge(parts)

    async def _names(self) -> list[KeptName]:
        names = map(KeptName.read, await self._objects.names())
        return sorted(name for name in names if name is not None)
