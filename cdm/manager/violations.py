"""How many instances are where a hard rule forbids them to be: counted anew only where something of that changed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

from cdm.manager.choosing import violations
from cdm.manager.cluster import Cluster
from cdm.manager.placement import Placement
from cdm.manager.releases import Job
from cdm.manager.situation import Situation
from cdm.model.artifact import Artifact, Service


class _Known(NamedTuple):
    mark: Hashable
    """What the number comes from; with another one it may be another number."""
    number: int


class Violations:
    """The counts of one leadership.

    Args:
        cluster: which slices there are.
        placement: the nodes.
    """

    def __init__(self, cluster: Cluster, placement: Placement) -> None:
        self._cluster = cluster
        self._placement = placement
        self._known: dict[Artifact, _Known] = {}

    def count(self, job: Job, situation: Callable[[], Situation]) -> int:
        """How many live instances are on nodes that a hard rule forbids them.

        Args:
            job: the artifact.
            situation: the facts, where it comes to that; making them costs a look at every slice.
        """
        mark = self._mark(job)
        known = self._known.get(job.artifact)
        if known is not None and mark is not None and known.mark == mark:
            return known.number
        found = violations(situation())
        puts = job.group.slices.values() if found else ()
        number = sum(put.key.node in found and put.value.state.live for put in puts)
        self._known.pop(job.artifact, None)
        if mark is not None:
            self._known[job.artifact] = _Known(mark, number)
        return number

    def forget(self, artifact: Artifact) -> None:
        """It has no rules any more."""
        self._known.pop(artifact, None)

    def _mark(self, job: Job) -> Hashable:
        """All that the count depends on; None: also on the time, or on more than is kept track of."""
        group = job.group
        if group.moving or group is not self._cluster.groups.get(job.artifact):
            return None
        rules, fixed = job.wanted.rules, self._placement.sites().fixed
        near = sorted({each.service for each in (*rules.near, *rules.apart) if each.hard})
        beside = tuple(self._of_service(Service.parse(each)) for each in near)
        return group, group.comings, rules, job.wanted.nodes, fixed, beside

    def _of_service(self, service: Service) -> Hashable:
        """What changes where a service's instances come to be elsewhere."""
        cluster, placement = self._cluster, self._placement
        return tuple(
            (artifact, group, group.comings, placement.expected(artifact))
            for artifact in sorted(cluster.versions_of(service))
            for group in (cluster.group(artifact),)
        )
