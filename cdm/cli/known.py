"""The names that a cluster knows, and which of them a mistyped one may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from cdm.errors import BucketMissing, StoreError
from cdm.model.artifact import Artifact, Service
from cdm.model.keys import BlueprintKey, SliceKey
from cdm.store.connection import Connection
from cdm.store.snapshot import snapshot

PATIENCE = 5.0
"""Seconds without anything that comes after which looking for names is given up."""


async def all_artifacts(connection: Connection) -> set[Artifact]:
    """Every artifact that is stored, has a blueprint, or has a slice.

    Raises:
        StoreError: not all of that can be read; it may be in an exception group.
    """
    known: set[Artifact] = set()
    for message in await snapshot(connection, PATIENCE, ("blueprints", "slices")):
        if isinstance(key := getattr(message, "key", None), (BlueprintKey, SliceKey)):
            known.add(key.artifact)
    return known | await stored_artifacts(connection)


async def known_artifacts(connection: Connection) -> set[Artifact] | None:
    """The same; None: not all of that can be read."""
    try:
        return await all_artifacts(connection)
    except* StoreError:
        pass
    return None


async def known_services(connection: Connection) -> set[Service] | None:
    """Every service of which a version is stored, has a blueprint, or has a slice; None: not all can be read."""
    known = await known_artifacts(connection)
    return None if known is None else {each.service for each in known}


async def meant(connection: Connection, service: Service) -> str:
    """A question about the service that may have been meant instead of one of which nothing is known."""
    return nearest(str(service), await known_services(connection) or ())


async def stored_artifacts(connection: Connection) -> set[Artifact]:
    """Every artifact in the store; raises `StoreError`."""
    from cdm.artifacts.repository import Artifacts  # noqa: PLC0415  # rarely needed
    from cdm.artifacts.stored import StoredArtifact  # noqa: PLC0415  # rarely needed

    with suppress(BucketMissing):
        return {each.artifact for each in await Artifacts(connection).listing() if isinstance(each, StoredArtifact)}
    return set()


def nearest(name: str, names: Iterable[object]) -> str:
    """A question about the name that is most like this one; empty: none is."""
    from difflib import get_close_matches  # noqa: PLC0415  # rarely needed

    close = get_close_matches(name, map(str, names), 1)
    return f" (did you mean {close[0]}?)" if close else ""
