"""A slice that is left on a node that is being drained, apart from what finds out why, which takes long to import."""

from __future__ import annotations

from msgspec import Struct


class Left(Struct, frozen=True):
    """A slice that is left on a node."""

    key: str
    """As in the bucket."""
    artifact: str
    ordinal: int
    state: str
    why: str
    """Why it has not gone yet."""
