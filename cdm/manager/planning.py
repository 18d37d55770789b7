"""What is to be done about each artifact, as reconciliation says, and what of it cannot be done now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from msgspec.structs import replace

from cdm.manager.agenda import Agenda
from cdm.manager.placement import Placement
from cdm.manager.policy import Policy
from cdm.manager.reconciliation import WHOLE, Plan, reconcile
from cdm.manager.releases import Job, Release, Releases
from cdm.manager.settling import Settling
from cdm.manager.standing import Fleet
from cdm.model.artifact import Artifact, NodeId, Service


class Planning:
    """Asks reconciliation, and remembers the plans that cannot be carried out whole.

    Args:
        placement: how much room the nodes have.
        releases: what instances wait for.
        agenda: when to look again.
        settling: whether nothing is placed yet.
        policy: deadlines and backoff.
        now: seconds on this node's clock.
    """

    def __init__(
        self,
        placement: Placement,
        releases: Releases,
        agenda: Agenda,
        settling: Settling,
        policy: Policy,
        now: float,
    ) -> None:
        self._placement = placement
        self._releases = releases
        self._agenda = agenda
        self._settling = settling
        self._policy = policy
        self._short: dict[Artifact, Plan] = {}
        """Plans that cannot be carried out whole: there is no room, or nodes or the end of instances are waited for."""
        self._cursor: NodeId | None = None
        self.settles_at = settling.until(now)
        """Until when nothing is placed because nodes are waited for; None: no node is."""

    def settle(self, now: float) -> Iterator[Artifact]:
        """Wait for nodes no longer than is needed; yields what was held back and is to be placed from now on."""
        if self._settling.over:
            return
        self.settles_at = self._settling.until(now)
        if self.settles_at is None:
            yield from (artifact for artifact, plan in self._short.items() if plan.held)

    def fleet(self) -> Fleet:
        """The nodes as they are now, for one decision."""
        return self._placement.fleet(settling=self.settles_at is not None)

    def is_short(self, artifact: Artifact) -> bool:
        """Whether the latest plan could not be carried out whole."""
        return artifact in self._short

    def short(self, artifact: Artifact) -> Plan:
        """What the latest plan is short of."""
        return self._short.get(artifact, WHOLE)

    def waiting_for_nodes(self) -> Iterator[Artifact]:
        """The artifacts whose plans another node, or the end of one, may make whole."""
        return (artifact for artifact, plan in self._short.items() if plan.unplaced or plan.waits_for)

    def forget(self, artifacts: Iterable[Artifact]) -> None:
        """These are decided on anew."""
        for artifact in artifacts:
            self._short.pop(artifact, None)

    def plan(self, job: Job, fleet: Fleet, now: float) -> Plan:
        """Decide what to do about an artifact, and remember what cannot be done."""
        artifact = job.artifact
        waiting = self._releases.waiting(job, fleet, now)
        if waiting.services:
            job = job._replace(wanted=replace(job.wanted, waits_for=tuple(map(str, waiting.services))))
            self._agenda.look_at(artifact, waiting.until)
        plan = self._reconcile(job, fleet, now)
        self._cursor = plan.cursor
        if plan.is_short:
            before = self._short.get(artifact)
            self._short[artifact] = plan if before is None else before.joined(plan)
        if plan.wake_at is not None:
            self._agenda.look_at(artifact, plan.wake_at)
        return plan

    def _reconcile(self, job: Job, fleet: Fleet, now: float) -> Plan:
        taken = self._placement.taken(job.artifact)
        return reconcile(job.artifact, job.wanted, job.group, fleet, now, self._policy, self._cursor, taken)

    def release_of(self, fleet: Fleet, now: float, service: Service, *, steps: int, goes_back: str) -> Release:
        """What follows for a service, which may be that no new instance has room beside the old ones."""
        ask = partial(self._releases.of, service, fleet, now, steps=steps, goes_back=goes_back)
        release = ask()
        if any(job.is_new and self._reconcile(job, fleet, now).unplaced for job in release.jobs):
            return ask(crowded=True)
        return release
