"""The descriptions in a bucket of the object store, to be followed as the keys of any other bucket are."""

from __future__ import annotations

from typing import Any

from cdm.model.keys import ARTIFACTS
from cdm.store.bucket import Bucket
from cdm.store.connection import Connection
from cdm.store.objects import Objects


class Descriptions(Bucket):
    """What describes the artifacts, for `Watch`; whoever reads and writes objects does so with `Objects`.

    The stream holds the objects' parts as well. A watch sees nothing of them but that numbers are missing.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, ARTIFACTS)
        self._objects = Objects(connection, ARTIFACTS.name)
        self.stream = self._objects.stream
        self._subjects = self._objects.descriptions

    async def ensure(self, *, create: bool, replicas: int = 1, change_replicas: bool = False) -> bool:
        """As `Bucket.ensure`."""
        return await self._objects.ensure(create=create, replicas=replicas, change_replicas=change_replicas)

    def _lacking(self, config: dict[str, Any]) -> dict[str, Any]:
        return {}  # what it is followed for every stream has
