"""Which instances are where a hard rule forbids them to be: looked for anew only where something of that changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

from cdm.allocation.verdict import Obstacle
from cdm.manager.choosing import violations
from cdm.manager.cluster import Cluster
from cdm.manager.placement import Placement
from cdm.manager.releases import Job
from cdm.manager.situation import Situation
from cdm.model.artifact import Artifact, NodeId, Service
from cdm.model.status import FORBIDDEN

NAMED = 3
"""Most rules that are named."""


class Forbidden(NamedTuple):
    """The live instances of an artifact that are where a hard rule forbids it."""

    number: int = 0
    rules: str = ""
    """What is so where they are: ``zone is not a``."""

    @property
    def words(self) -> str:
        """For people; empty: there is none."""
        if not self.number:
            return ""
        are = "instance is" if self.number == 1 else "instances are"
        return f"{self.number:,} {are} {FORBIDDEN}: {self.rules}"


class _Known(NamedTuple):
    mark: Hashable
    """What it comes from; with another one it may be something else."""
    found: Forbidden


class Violations:
    """What one leadership knows of them.

    Args:
        cluster: which slices there are.
        placement: the nodes.
    """

    def __init__(self, cluster: Cluster, placement: Placement) -> None:
        self._cluster = cluster
        self._placement = placement
        self._known: dict[Artifact, _Known] = {}

    def of(self, job: Job, situation: Callable[[], Situation]) -> Forbidden:
        """Which live instances are on nodes that a hard rule forbids them.

        Args:
            job: the artifact.
            situation: the facts, where it comes to that; making them costs a look at every slice.
        """
        mark = self._mark(job)
        known = self._known.get(job.artifact)
        if known is not None and mark is not None and known.mark == mark:
            return known.found
        forbidden = _forbidden(job, violations(situation()))
        self._known.pop(job.artifact, None)
        if mark is not None:
            self._known[job.artifact] = _Known(mark, forbidden)
        return forbidden

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


def _forbidden(job: Job, found: Mapping[NodeId, Obstacle]) -> Forbidden:
    rules: Counter[str] = Counter()
    for key, put in job.group.slices.items() if found else ():
        if put.value.state.live and (obstacle := found.get(key.node)) is not None:
            rules[obstacle.why] += 1
    named = sorted(rules, key=lambda rule: (-rules[rule], rule))
    more = [f"and {len(named) - NAMED} more"] if len(named) > NAMED else []
    return Forbidden(rules.total(), ", ".join(named[:NAMED] + more))
