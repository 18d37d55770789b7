"""What an artifact consists of: the record that is stored beside its bytes."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum, unique

import msgspec
from msgspec import Struct

from cdm.errors import InvalidContent
from cdm.model.manifest import Manifest
from cdm.model.problems import UNREADABLE

_SHA256 = re.compile(r"[0-9a-f]{64}")


@unique
class Form(StrEnum):
    """What the stored bytes are."""

    FILE = "file"
    """One file, as it is."""
    TREE = "tree"
    """Files and folders: a tar archive, compressed with gzip or not."""


class Content(Struct, frozen=True):
    """What was pushed. Fields that this version does not know are ignored; the manifest's own are not.

    Raises:
        InvalidContent: names the field and what is wrong with it.
    """

    form: Form
    file: str
    """Name of the file or folder that was pushed; of a file also its name on the nodes."""
    sha256: str
    """Digest of the stored bytes, in hexadecimal."""
    size: int
    """How many bytes are stored."""
    unpacked: int
    """How many bytes the files have on a node."""
    manifest: Manifest
    mode: int = 0
    """Permission bits of a file."""

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.sha256):
            raise InvalidContent(f"sha256: {self.sha256[:80]!r} is no digest")
        for field, number in (("size", self.size), ("unpacked", self.unpacked)):
            if number < 0:
                raise InvalidContent(f"{field}: {number} is less than nothing")
        if self.form is Form.FILE and problem_with_name(self.file):
            raise InvalidContent(f"file: {self.file[:80]!r} {problem_with_name(self.file)}")

    @property
    def identity(self) -> str:
        """A digest of all that shows on a node: contents of the same identity are kept there once.

        Of a tree it is that of its archive. Of a file also name and permissions count.
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


def problem_with_name(name: str) -> str:
    """What is wrong with the name of a file or folder; empty: nothing."""
    if not name or name in (".", ".."):
        return "is no name"
    if "/" in name or "\0" in name:
        return "holds a character that no name may have"
    try:
        length = len(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return "cannot be written in UTF-8"
    return "is longer than 255 bytes" if length > 255 else ""
