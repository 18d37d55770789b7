"""What the store says of an artifact, and what a push comes to."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from cdm.errors import ArtifactMissing, InvalidContent
from cdm.model.artifact import Artifact
from cdm.model.content import METADATA, Content
from cdm.store.objects import Found


class Pushed(StrEnum):
    """What a push came to."""

    STORED = "stored"
    REPLACED = "replaced"
    UNCHANGED = "unchanged"
    """The same content and manifest were there, whole; nothing was written."""
    SIGNED = "signed"
    """The same content and manifest were there, whole; signatures were added."""
    REPAIRED = "repaired"
    """The same content and manifest were there, but not all of the bytes; they are there again."""


class StoredArtifact(Struct, frozen=True):
    """An artifact in the store."""

    artifact: Artifact
    content: Content
    nuid: str
    """Name of its parts."""
    parts: int
    """How many there are to be."""
    revision: int
    pushed: str
    """When, by the server's clock, as RFC 3339 has it."""
    name: str
    """Of the object: another than the artifact's where this content was pushed over, and is kept."""


class UnreadableArtifact(Struct, frozen=True):
    """An object in the bucket that cdm did not push, or cannot read."""

    name: str
    problem: str


def stored_under(artifact: Artifact, bucket: str, found: Found) -> StoredArtifact:
    """What was found under an artifact's name.

    Args:
        artifact: its name.
        bucket: for people.
        found: what is there.

    Raises:
        ArtifactMissing: nothing is.
        InvalidContent: cdm did not push it, or a later version.
    """
    info = found.live
    if info is None:
        raise missing(artifact, bucket)
    raw = (info.metadata or {}).get(METADATA)
    if not raw or not info.nuid:
        raise InvalidContent(f"{artifact} was not pushed by cdm; push it: cdm artifact push --force {artifact} PATH")
    try:
        content = Content.parse(raw)
    except InvalidContent as error:
        raise InvalidContent(f"what {artifact} was pushed with is invalid: {error}") from None
    return StoredArtifact(artifact, content, info.nuid, info.chunks, found.revision, found.time, info.name)


def missing(artifact: Artifact, bucket: str) -> ArtifactMissing:
    """The error that there is no such artifact."""
    return ArtifactMissing(
        f"there is no artifact {artifact} in bucket {bucket}; push it: cdm artifact push {artifact} PATH"
    )
