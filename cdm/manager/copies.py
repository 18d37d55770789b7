"""Copies of the blueprints that are in force (`cdm.model.last_valid`): which are due, and what that spares."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import UNSET
from msgspec.structs import replace

from cdm.errors import InvalidBlueprint
from cdm.log import Log
from cdm.manager.cluster import Cluster
from cdm.manager.outbox import Order
from cdm.model.artifact import Artifact
from cdm.model.blueprint import Blueprint
from cdm.model.keys import encode_artifact
from cdm.model.last_valid import LastValid
from cdm.model.status import Status

log = Log("cdm.manager")


class Copies:
    """Answers from the mirrors.

    A blueprint that is no more than a number is not copied: its status has that. Once there is a copy, it is kept up
    until the blueprint is gone, so that there is never any doubt which of the two is the newer one.

    Args:
        cluster: blueprints and their copies.
        unknown: which manager does not know copies yet; empty: all do. Until then statuses hold the copies.
    """

    def __init__(self, cluster: Cluster, unknown: Callable[[], str]) -> None:
        self._cluster = cluster
        self._unknown = unknown

    def is_due(self, artifact: Artifact) -> bool:
        """Whether the artifact's copy is to be written, or deleted."""
        desired, stored = self._cluster.desired.get(artifact), self._cluster.copies.get(artifact)
        if desired is None or desired.removed:
            return stored is not None and not self._unknown()
        if desired.blueprint is None:
            return False
        if stored is None:
            return not desired.blueprint.is_number and not self._unknown()
        return stored.revision != desired.in_force and not self._unknown()

    def added_to(self, order: Order) -> Order:
        """The order, with the copies of its artifacts that are due."""
        if not order.also and not self.is_due(order.artifact):
            return order
        artifacts = (order.artifact, *order.also)
        due = {artifact: self._of(artifact) for artifact in artifacts if self.is_due(artifact)}
        return replace(order, copies=due) if due else order

    def _of(self, artifact: Artifact) -> LastValid | None:
        desired = self._cluster.desired.get(artifact)
        if desired is None or desired.blueprint is None:
            return None
        return LastValid.of(desired.blueprint, desired.in_force)

    def without_copy(self, artifact: Artifact, status: Status) -> Status:
        """The status without what the artifact's copy tells."""
        stored = self._cluster.copies.get(artifact)
        if stored is None or stored.revision != status.in_force_revision or self._unknown():
            return status
        return replace(status, overrides=UNSET, min_healthy=UNSET, settings=UNSET)


def recover(cluster: Cluster) -> None:
    """Where refused blueprints have pushed the valid one out of the history, take the copy of it."""
    for artifact, desired in cluster.desired.items():
        if desired.blueprint is not None:
            continue
        try:
            found = _last_valid(cluster, artifact)
            if found is not None and cluster.removed.get(artifact, 0) < found[1] < desired.observed:
                cluster.recover_blueprint(artifact, *found)
        except InvalidBlueprint as error:
            log.warning("unusable copy of a blueprint", artifact=str(artifact), reason=str(error))


def _last_valid(cluster: Cluster, artifact: Artifact) -> tuple[Blueprint, int] | None:
    """The copy, or what the status says where it is newer: it is whole under an older manager, and for a number."""
    stored, status = cluster.copies.get(artifact), cluster.statuses.get(encode_artifact(artifact))
    if stored is not None and (status is None or status.in_force_revision <= stored.revision):
        return stored.read(), stored.revision
    return (status.blueprint, status.in_force_revision) if status is not None else None
