"""Looks in the repository that several slices share: a hundred of one artifact need not ask a hundred times.

What a look shows is never older than the moment at which somebody asked for it, so one that is under way is not joined:
whoever comes meanwhile shares the next one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from cdm.artifacts.repository import Artifacts
from cdm.artifacts.stored import StoredArtifact
from cdm.errors import CdmError, afresh
from cdm.model.artifact import Artifact


class _SharedLook:
    """What is asked about one content."""

    def __init__(self) -> None:
        self.turn = anyio.Lock()
        self.asking = 0
        """How many wait for an answer."""
        self.began = 0
        """When the last look began, by the count of those who asked."""
        self.found: StoredArtifact | CdmError | None = None
        """What it came to."""


class Describer:
    """Describes artifacts, for many at a time.

    Args:
        artifacts: where they are.
    """

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts
        self._looks: dict[tuple[Artifact, str | None], _SharedLook] = {}
        self._count = 0

    async def describe(self, artifact: Artifact, digest: str | None) -> StoredArtifact:
        """As `Artifacts.describe`, as of now or later."""
        self._count += 1
        asked = self._count
        look = self._looks.setdefault((artifact, digest), _SharedLook())
        look.asking += 1
        try:
            async with look.turn:
                if look.began < asked:
                    # All who have asked so far share this one, unless it is cancelled.
                    look.began, began = 0, self._count
                    look.found = await _outcome(self._artifacts.describe, artifact, digest)
                    look.began = began
                if isinstance(look.found, CdmError):
                    raise afresh(look.found)
                assert look.found is not None
                return look.found
        finally:
            look.asking -= 1
            if not look.asking:
                del self._looks[artifact, digest]


async def _outcome(
    describe: Callable[[Artifact, str | None], Awaitable[StoredArtifact]], artifact: Artifact, digest: str | None
) -> StoredArtifact | CdmError:
    try:
        return await describe(artifact, digest)
    except CdmError as error:
        return error
