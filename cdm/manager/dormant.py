"""The state of a manager that does not lead: it has nothing to do when anything happens."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from cdm.manager.outbox import Order
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SliceKey
from cdm.model.status import Status


class Dormant:
    """Another node leads, or none does: nothing is decided here."""

    orders: Mapping[Artifact, Order] = MappingProxyType({})
    """Nothing is ordered."""

    def touch(self, artifact: Artifact, now_due: bool = False) -> None:
        """The artifact changed."""

    def seen(self, key: SliceKey, *, gone: bool = False) -> None:
        """The mirror shows the slice, or (``gone``) shows it no more."""

    def heard(self, node: NodeId) -> None:
        """A node's heart beat."""

    def reached(self, revision: int) -> None:
        """The mirror of ``slices`` has come this far."""

    def shown(self, name: str, status: Status | None) -> None:
        """The mirror shows the status, or shows it no more."""

    def wake_at(self) -> float | None:
        """Nothing will ever be due."""
        return None
