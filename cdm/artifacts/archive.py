"""Archives read member by member, each checked before anything is made of it.

Archives come from anybody. What is taken from them is decided here and in `cdm.artifacts.tree`, and not by tarfile,
whose filters have been got round before, and are missing in early releases of Python 3.11.
"""

from __future__ import annotations

import gzip
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cdm.artifacts.tree import Tree
from cdm.errors import InvalidContent

_PIECE = 1024 * 1024
_OVERHEAD = 1024 * 1024
"""Bytes that an archive may have between two members: long names, and padding."""
_BROKEN = (
    *(tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, struct.error),
    *(ValueError, LookupError, OverflowError, RecursionError),
)
"""What the readers of archives raise for what is not one."""


class _Rationed:
    """Bytes of an archive, no more of them than were allowed: a long name must not take all memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.left = 0

    def read(self, size: int) -> bytes:
        piece = self._file.read(size)
        self.left -= len(piece)
        if self.left < 0:
            raise InvalidContent("holds more between two files than any archive needs")
        return piece


_HeaderError = tarfile.HeaderError


class _Strict(tarfile.TarInfo):
    """A header that cannot be read is an error; tarfile takes it for the archive's end, and loses what follows."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(tarfile)
        except _HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise InvalidContent(f"is a broken archive: {error}") from None


Member = tuple[str, tarfile.TarInfo, IO[bytes] | None]


def members(path: Path, tree: Tree) -> Iterator[Member]:
    """An archive's members, checked and added to the tree: path, description, and the bytes of a file.

    To be read within `explained`, which makes `InvalidContent` of whatever is wrong with the archive.
    """
    with path.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.open(raw) if compressed else raw as plain:
            ration = _Rationed(plain)  # type: ignore[arg-type]  # both can read
            ration.left = _OVERHEAD
            with tarfile.open(fileobj=ration, mode="r|", tarinfo=_Strict, encoding="utf-8") as archive:  # type: ignore[call-overload]
                while (member := archive.next()) is not None:
                    archive.members.clear()  # it would keep them all
                    name = clean(member.name)
                    if not name:
                        continue
                    _admit(member, name, tree)
                    ration.left = member.size + _OVERHEAD
                    yield name, member, archive.extractfile(member) if member.isreg() else None
            while ration.read(_PIECE):  # to its end, where gzip has its checksum
                pass


def clean(path: str) -> str:
    """A member's path without parts that say nothing; an absolute path stays one."""
    return "/".join(part for part in path.split("/") if part not in ("", ".")) if not path.startswith("/") else path


def _admit(member: tarfile.TarInfo, name: str, tree: Tree) -> None:
    if member.isdir():
        tree.add_folder(name)
    elif member.issym():
        tree.add_link(name, member.linkname)
    elif member.islnk():
        if clean(member.linkname) not in tree.files:
            raise InvalidContent(f"{name!r} is a link to {member.linkname!r}, which is not a file before it")
        tree.add_file(name)
    elif member.issparse():
        raise InvalidContent(f"{name!r} is kept in a way of GNU tar's own; pack it without --sparse, it stays sparse")
    elif member.isreg():
        tree.add_file(name, member.size)
    else:
        raise InvalidContent(f"{name!r} is not a plain file, folder or link")


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Whatever the readers of archives raise, as `InvalidContent`."""
    try:
        yield
    except InvalidContent as error:
        raise InvalidContent(f"{what}: {error}") from None
    except _BROKEN as error:
        raise InvalidContent(f"{what} is not a tar archive, or is broken: {error}") from None
