"""What the keeper notes of each run for the next process of the node, so that it can go on with it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cdm.errors import InvalidKey, InvalidManifest
from cdm.model.keys import SLICES, SliceKey, encode
from cdm.model.manifest import Manifest
from cdm.model.secret import SecretRef
from cdm.runtimes import Work
from cdm.runtimes.process.restart import Again

LONGEST = 32 * 1024
"""Bytes of a note: what makes it longer is left out, and such a slice is started anew."""


class NotedWork(Struct, frozen=True):
    """What a run was started with, as far as another start would differ by it."""

    folder: str
    manifest: msgspec.Raw
    """As it is stored."""
    stop_after: float | None
    secrets: dict[str, SecretRef]
    cores: float

    @classmethod
    def of(cls, work: Work) -> NotedWork:
        """That of what is to run."""
        manifest = msgspec.Raw(work.manifest.stored)
        return cls(str(work.folder), manifest, work.stop_after, dict(work.secrets), work.cores)

    def fits(self, work: Work) -> bool:
        """Whether another start would be the same."""
        if (self.folder, self.stop_after, self.cores) != (str(work.folder), work.stop_after, work.cores):
            return False
        try:  # another version may have noted it: what it did not know yet is as it was
            return self.secrets == work.secrets and Manifest.restore(bytes(self.manifest)) == work.manifest
        except InvalidManifest:
            return False


class RunNote(Struct, frozen=True, omit_defaults=True):
    """All that is noted of one run."""

    key: str
    """The slice's, as in the bucket."""
    begun: float
    """When it was started, in seconds on `cdm.clock`."""
    work: NotedWork | None = None
    """None: it is too much to be noted."""
    port: int | None = None
    ready: float | None = None
    """Since when it was ready, on the same clock; None: it was not."""
    failures: int = 0
    delay: float = 0.0
    """What was decided when it was started again: see `Again`."""

    @property
    def slice(self) -> SliceKey:
        """The slice's key. Raises `InvalidKey`."""
        key = SLICES.decode(self.key)
        if not isinstance(key, SliceKey):
            raise InvalidKey(self.key)
        return key

    @property
    def before(self) -> Again | None:
        """What was decided when it ended before; None: it did not."""
        return Again(self.delay, self.failures) if self.failures else None

    def write(self) -> bytes:
        """Encode it."""
        text = msgspec.json.encode(self)
        return text if len(text) <= LONGEST else msgspec.json.encode(replace(self, work=None))

    @classmethod
    def first(cls, work: Work, begun: float, port: int | None) -> RunNote:
        """That of a run that begins."""
        return cls(encode(work.key), begun, NotedWork.of(work), port)

    @classmethod
    def read(cls, text: bytes) -> RunNote | None:
        """None: it cannot be read, so it is not known what the run is."""
        try:
            found = msgspec.json.decode(text, type=cls)
            found.slice  # noqa: B018  # which is read, too
            return found
        except (msgspec.DecodeError, InvalidKey):
            return None

    def fits(self, work: Work) -> bool:
        """Whether this is what the run would be started with now."""
        return self.work is not None and self.work.fits(work)


def folder_of(note: RunNote | None) -> Path | None:
    """The folder of the artifact that a run uses, as far as that is known."""
    return Path(note.work.folder) if note is not None and note.work is not None else None


def manifest_of(note: RunNote | None) -> Manifest | None:
    """What a run was started with; None: it is not known."""
    if note is not None and note.work is not None:
        with suppress(InvalidManifest):
            return Manifest.restore(bytes(note.work.manifest))
    return None
