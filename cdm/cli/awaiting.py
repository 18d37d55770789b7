"""Whether what an edit's instances wait for (`after`) can still come by itself, according to the statuses. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from cdm.cli.judging import End, Ended, Failures, elsewhere
from cdm.manager.dependencies import in_circle, waited_for
from cdm.model.artifact import Artifact, Service
from cdm.model.status import Condition, Status

DOUBT = 10.0
"""Seconds for which blueprints that need another one are waited with: it may be about to be written."""


class Awaited:
    """What is waited for, on behalf of all edits of one command.

    Args:
        statuses: what the leader says of each artifact, kept up by others.
        services: those whose news are followed; others are added once they are waited for.
        revisions: of the blueprints that the command wrote.
    """

    def __init__(
        self, statuses: Mapping[Artifact, Status], services: set[Service], revisions: Mapping[Artifact, int]
    ) -> None:
        self.ends: dict[Artifact, Ended] = {}
        """How other edits of the command ended."""
        self._statuses = statuses
        self._services = services
        self._revisions = revisions
        self._before = dict(statuses)
        self._failures: dict[Artifact, Failures] = {}
        self._doubted: dict[Artifact, tuple[str, float]] = {}
        """What needs another blueprint: what is told of that, and since when."""

    def judged(self, artifact: Artifact, status: Status, now: float) -> Ended | None:
        """That the artifact's instances wait for what does not come unless somebody changes something; None: it may."""
        doubt = status.reason if status.condition is Condition.DEGRADED and in_circle(status.reason) else ""
        for service in waited_for(status.reason):
            if (found := self._hopeless(service, {service})) is not None:
                culprit, why = found
                return Ended(End.FAILED, f"waiting for {service}, which does not come up: {why}", culprit)
            if not self._wanted(service) and not self._coming(service):
                doubt = f"waiting for {service}, of which no blueprint wants an instance"
        if not doubt:
            self._doubted.pop(artifact, None)
            return None
        told, since = self._doubted.setdefault(artifact, (doubt, now))
        if told != doubt:
            told, since = self._doubted[artifact] = doubt, now
        return Ended(End.FAILED, doubt) if now >= since + DOUBT else None

    def forget(self) -> None:
        """What was doubted is doubted anew: nobody could tell meanwhile."""
        self._doubted.clear()

    def due(self, artifact: Artifact) -> float:
        """When it is to be judged again although nothing is new, in seconds on this process's clock; inf: never."""
        return self._doubted[artifact][1] + DOUBT if artifact in self._doubted else inf

    def _wanted(self, service: Service) -> dict[Artifact, Status]:
        """The versions of a service of which instances are wanted, or would be if their blueprint were valid."""
        self._services.add(service)
        return {
            artifact: status
            for artifact, status in self._statuses.items()
            if artifact.service == service
            and (status.desired or status.condition is Condition.INVALID)
            and status.condition is not Condition.SUPERSEDED
            and not (status.condition is Condition.REVERTED and elsewhere(status.rollout or None))
        }

    def _coming(self, service: Service) -> bool:
        """Whether the command wrote a blueprint of the service that the leader has yet to take up, or to judge."""
        return any(each.service == service and each not in self.ends for each in self._revisions)

    def _hopeless(self, service: Service, seen: set[Service]) -> tuple[Artifact, str] | None:
        """Which version does not come up, and why, where none does; None: one may."""
        found = None
        for artifact, status in self._wanted(service).items():
            why = self._stuck(artifact, status, seen)
            if why is None:
                return None
            found = found or why
        return found

    def _stuck(self, artifact: Artifact, status: Status, seen: set[Service]) -> tuple[Artifact, str] | None:
        ended = self.ends.get(artifact)
        if ended is not None and ended.end in (End.FAILED, End.REFUSED):
            return ended.culprit or artifact, ended.reason
        if status.observed_revision < self._revisions.get(artifact, 0):
            return None
        if artifact not in self._failures:
            self._failures[artifact] = Failures(self._before.get(artifact))
        decided = self._failures[artifact].decided(status)
        if (status.condition is Condition.DEGRADED and decided) or (
            status.condition is Condition.INVALID and not status.in_force_revision
        ):
            return artifact, status.reason
        for service in waited_for(status.reason):
            if service not in seen and (found := self._hopeless(service, {*seen, service})) is not None:
                return found
        return None
