"""The record that is stored beside an artifact's bytes."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum, unique

import msgspec
from msgspec import Struct

from cdm.errors import InvalidContent
from cdm.model.manifest import Manifest
from cdm.model.problems import UNREADABLE

METADATA = "cdm"
"""Where an object's metadata has the record of its content."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@unique
class Form(StrEnum):
    """What the stored bytes are."""

    FILE = "file"
    """One file, as it is."""
    TREE = "tree"
    """Files and folders, as a tar archive, compressed with gzip or not."""


class Content(Struct, frozen=True):
    """What was pushed. Unknown fields are ignored, except for the manifest's, which are refused.

    Raises:
        InvalidContent: names the field and what is wrong with it.
    """

    form: Form
    file: str
    """Name of the file or folder that was pushed; a file has this name on the nodes, too."""
    sha256: str
    """Digest of the stored bytes, in hexadecimal."""
    size: int
    """Bytes that are stored."""
    unpacked: int
    """Bytes of all files on a node."""
    manifest: Manifest
    mode: int = 0
    """Permission bits of a file."""

    def __post_init__(self) -> None:
        if not is_digest(self.sha256):
            raise InvalidContent(f"sha256: {self.sha256[:80]!r} is not a SHA-256 digest")
        for field, number in (("size", self.size), ("unpacked", self.unpacked)):
            if number < 0:
                raise InvalidContent(f"{field}: {number} is negative")
        if self.form is Form.FILE and problem_with_name(self.file):
            raise InvalidContent(f"file: {self.file[:80]!r} {problem_with_name(self.file)}")

    @property
    def identity(self) -> str:
        """A digest of everything that differs on a node: contents of the same identity are kept there once.

        For a tree it is the archive's digest; for a file its name and permissions count as well.
        """
        if self.form is Form.TREE:
            return self.sha256
        return hashlib.sha256(f"{self.sha256} {self.mode:o} {self.file}".encode("utf-8", "surrogateescape")).hexdigest()

    @classmethod
    def parse(cls, raw: str | bytes) -> Content:
        """Read JSON; raises `InvalidContent`."""
        try:
            return msgspec.json.decode(raw, type=cls)
        except UNREADABLE as error:
            raise InvalidContent(str(error)) from None


class _Digest(Struct, frozen=True):
    """Of a content's record no more than its digest: another version of cdm may have written it."""

    sha256: str


def digest_in(record: str | bytes) -> str | None:
    """The digest of the content that is recorded; None: the text is no record of one. Judges nothing else of it."""
    try:
        found = msgspec.json.decode(record, type=_Digest).sha256
    except UNREADABLE:
        return None
    return found if is_digest(found) else None


class _Object(Struct, frozen=True):
    """Of an object's description what is read here."""

    deleted: bool = False
    metadata: dict[str, str] | None = None


class Description(Struct, frozen=True):
    """What an object store says of an artifact, as far as managers need it."""

    content: str | None
    """Digest of its content, in hexadecimal; None: it was removed, or was not pushed by cdm."""

    @classmethod
    def parse(cls, raw: str | bytes) -> Description:
        """Read an object's description, in JSON; raises what msgspec does."""
        found = msgspec.json.decode(raw, type=_Object)
        record = "" if found.deleted else (found.metadata or {}).get(METADATA, "")
        return cls(digest_in(record))


def is_digest(text: str) -> bool:
    """Whether this is a SHA-256 digest in hexadecimal."""
    return _SHA256.fullmatch(text) is not None


def problem_with_name(name: str) -> str:
    """What is wrong with the name of a file or folder; empty: nothing."""
    if not name or name in (".", ".."):
        return "is not a name"
    if "/" in name or "\0" in name:
        return "holds a character that no file name may have"
    try:
        length = len(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return "cannot be written in UTF-8"
    return "is longer than 255 bytes" if length > 255 else ""
