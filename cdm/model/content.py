"""The record that is stored beside an artifact's bytes."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum, unique
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cdm.errors import InvalidContent
from cdm.model.manifest import MAX_STORED, Manifest
from cdm.model.problems import UNREADABLE

METADATA = "cdm"
"""Where an object's metadata has the record of its content."""
_SHA256 = r"[0-9a-f]{64}"


@unique
class Form(StrEnum):
    """What the stored bytes are."""

    FILE = "file"
    """One file, as it is."""
    TREE = "tree"
    """Files and folders, as a tar archive, compressed with gzip or not."""


class Content(Struct, frozen=True, omit_defaults=True):
    """What was pushed. Unknown fields are ignored, except for the manifest's, which are refused.

    The manifest is the end of what is stored, so that the digest covers it, and whoever may list objects need not see
    it. Earlier versions stored it here.

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
    manifest: Manifest | None = None
    """None: it was not read from the stored bytes so far."""
    mode: int = 0
    """Permission bits of a file."""
    tail: int = 0
    """Bytes of the manifest at the end of what is stored; 0: it is in this record."""
    data: str = ""
    """Digest of what is stored before the manifest, in hexadecimal, where that is at its end."""
    signatures: dict[str, str] = {}
    """By public key (`cdm.artifacts.signing`)."""

    def __post_init__(self) -> None:
        digests = (("sha256", self.sha256), *((("data", self.data),) if self.tail else ()))
        for field, digest in digests:
            if not is_digest(digest):
                raise InvalidContent(f"{field}: {digest[:80]!r} is not a SHA-256 digest")
        for field, number in (("size", self.size), ("unpacked", self.unpacked)):
            if number < 0:
                raise InvalidContent(f"{field}: {number} is negative")
        if not 0 <= self.tail <= min(self.size, MAX_STORED):
            raise InvalidContent(f"tail: {self.tail} is no number of bytes that a manifest has")
        if not self.tail and self.manifest is None:
            raise InvalidContent("manifest: is required")
        if self.form is Form.FILE and problem_with_name(self.file):
            raise InvalidContent(f"file: {self.file[:80]!r} {problem_with_name(self.file)}")

    @property
    def identity(self) -> str:
        """A digest of everything that differs on a node: contents of the same identity are kept there once.

        For a tree it is that of the stored bytes; for a file its name and permissions count as well.
        """
        if self.form is Form.TREE:
            return self.sha256
        return hashlib.sha256(f"{self.sha256} {self.mode:o} {self.file}".encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def data_size(self) -> int:
        """Bytes that are stored before the manifest."""
        return self.size - self.tail

    @property
    def data_sha256(self) -> str:
        """Digest of these bytes."""
        return self.data if self.tail else self.sha256

    @property
    def bare(self) -> Content:
        """The same without what may be another in two pushes of the same.

        That are signatures, a manifest at its end, permissions of a lone file, which nodes make executable, and what a
        folder or an archive was called.
        """
        file = self.file if self.form is Form.FILE else ""
        return replace(self, signatures={}, manifest=None if self.tail else self.manifest, mode=0, file=file)

    @property
    def record(self) -> str:
        """What is stored beside the bytes, in JSON."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        fields.pop("manifest", None)
        if self.manifest is not None and not self.tail:
            fields["manifest"] = msgspec.Raw(self.manifest.stored)
        return msgspec.json.encode(fields).decode()

    @classmethod
    def parse(cls, raw: str | bytes) -> Content:
        """Read JSON; raises `InvalidContent`."""
        try:
            found = msgspec.json.decode(raw, type=cls)
        except UNREADABLE as error:
            raise InvalidContent(str(error)) from None
        return replace(found, manifest=None) if found.tail else found


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
    return re.fullmatch(_SHA256, text) is not None


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
