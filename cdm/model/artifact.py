"""Names of artifacts and nodes, and their rules."""

from __future__ import annotations

from functools import lru_cache
from typing import NewType

from msgspec import Struct

from cdm.errors import InvalidArtifact, InvalidNodeId

NodeId = NewType("NodeId", str)
"""A node's name, chosen by its operator; made with `node_id`."""

MAX_PART = 64
"""Longest part of an artifact, and longest node id, in characters: an escaped slice key still fits a NATS subject."""


def _complaint(text: str) -> str | None:
    if 0 < len(text) <= MAX_PART and text.isprintable() and not (":" in text or "/" in text or " " in text):
        return None
    if not text:
        return "is empty"
    if len(text) > MAX_PART:
        return f"is {len(text)} characters long; at most {MAX_PART} are allowed"
    for char in text:
        if char in ":/" or not char.isprintable() or char.isspace():
            return f"contains {char!r}; colons, slashes, white space and control characters are not allowed"
    return None


class Service(Struct, frozen=True, order=True, cache_hash=True, gc=False):
    """``group:name``: what all versions of an artifact have in common.

    Raises:
        InvalidArtifact: a part is empty, too long, or holds a character that is not allowed.
    """

    group: str
    name: str

    def __post_init__(self) -> None:
        for part, text in (("group", self.group), ("name", self.name)):
            if problem := _complaint(text):
                raise InvalidArtifact(f"service {part} {text!r} {problem}")

    @classmethod
    def parse(cls, text: str) -> Service:
        """Read ``group:name``; raises `InvalidArtifact` for anything else."""
        parts = text.split(":")
        if len(parts) != 2:
            raise InvalidArtifact(f"service {text!r} is not of the form group:name")
        return cls(*parts)

    def version(self, version: str) -> Artifact:
        """One version of it."""
        return Artifact(self.group, self.name, version)

    def __str__(self) -> str:
        return f"{self.group}:{self.name}"


class Artifact(Struct, frozen=True, order=True, cache_hash=True, gc=False):
    """``group:name:version``, for example ``org.example:slice:1.0.0``.

    Raises:
        InvalidArtifact: a part is empty, too long, or holds a character that is not allowed.
    """

    group: str
    name: str
    version: str

    def __post_init__(self) -> None:
        for part, text in (("group", self.group), ("name", self.name), ("version", self.version)):
            if problem := _complaint(text):
                raise InvalidArtifact(f"artifact {part} {text!r} {problem}")

    @classmethod
    def parse(cls, text: str) -> Artifact:
        """Read ``group:name:version``; raises `InvalidArtifact` for anything else."""
        parts = text.split(":")
        if len(parts) != 3:
            raise InvalidArtifact(f"artifact {text!r} is not of the form group:name:version")
        return cls(*parts)

    @property
    def service(self) -> Service:
        """What it is a version of."""
        return _service(self.group, self.name)

    def __str__(self) -> str:
        return f"{self.group}:{self.name}:{self.version}"


@lru_cache(maxsize=65_536)
def _service(group: str, name: str) -> Service:
    """The service; checking its parts, which are an artifact's, would take most of the time."""
    return Service(group, name)


def node_id(text: str) -> NodeId:
    """Check a node's name; raises `InvalidNodeId` saying what is wrong with it."""
    if problem := _complaint(text):
        raise InvalidNodeId(f"node id {text!r} {problem}")
    if text.startswith("_"):
        raise InvalidNodeId(f"node id {text!r} begins with an underscore; such keys are reserved")
    return NodeId(text)
