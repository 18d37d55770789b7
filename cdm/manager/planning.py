"""What is to be done about each artifact, as reconciliation says, and what of it cannot be done now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from math import inf
from typing import NamedTuple

from msgspec.structs import replace

from cdm.manager.agenda import Agenda
from cdm.manager.choosing import leave_room, none_fits
from cdm.manager.cluster import Cluster
from cdm.manager.draining import Drains
from cdm.manager.moves import Moves
from cdm.manager.placement import Placement
from cdm.manager.plan import WHOLE, Plan
from cdm.manager.policy import Policy
from cdm.manager.reconciliation import reconcile, situation_of
from cdm.manager.releases import Job, Release, Releases
from cdm.manager.settling import Settling
from cdm.manager.situation import Situation
from cdm.manager.standing import Fleet
from cdm.manager.violations import Forbidden, Violations
from cdm.model.artifact import Artifact, NodeId, Service
from cdm.model.blueprint import Blueprint
from cdm.model.keys import encode_artifact
from cdm.model.rules import NO_RULES, Rebalance

ROOM_PAUSE = 1.0
"""Seconds after which those have their turn that wait for room: however much becomes free, that costs little."""
TOLD_FOR = 5.0
"""Seconds for which what was said of why there is no room holds, where nothing changed but that some became free."""


class _Told(NamedTuple):
    """Why there is no room, and until when that is said without another look."""

    why: str
    until: float


class Planning:
    """Asks reconciliation, and remembers the plans that cannot be carried out whole.

    Args:
        cluster: what blueprints say.
        placement: how much room the nodes have.
        moves: which instances are to be elsewhere.
        releases: what instances wait for.
        agenda: when to look again.
        settling: whether nothing is placed yet.
        drains: what is to stop before what.
        policy: deadlines and backoff.
        now: seconds on this node's clock.
    """

    def __init__(
        self,
        cluster: Cluster,
        placement: Placement,
        moves: Moves,
        releases: Releases,
        agenda: Agenda,
        settling: Settling,
        drains: Drains,
        policy: Policy,
        now: float,
    ) -> None:
        self._cluster = cluster
        self._placement = placement
        self._moves = moves
        self._releases = releases
        self._agenda = agenda
        self._settling = settling
        self._drains = drains
        self._policy = policy
        self._violations = Violations(cluster, placement)
        self._short: dict[Artifact, Plan] = {}
        """Plans that cannot be carried out whole: there is no room, or nodes or the end of instances are waited for."""
        self._cursor: NodeId | None = None
        self._for_room: set[Artifact] = set()
        """Artifacts that are looked at because some room became free."""
        self._told: dict[Artifact, _Told] = {}
        """Why what is unplaced is."""
        self.settles_at = settling.until(now)
        """Until when nothing is placed because nodes are waited for; None: no node is."""
        self.room_at = inf
        """When those have their turn that wait for room, since some became free; inf: none did."""

    def settle(self, now: float) -> Iterator[Artifact]:
        """Wait for nodes no longer than is needed; yields what was held back and is to be placed from now on."""
        if self._settling.over:
            return
        self.settles_at = self._settling.until(now)
        if self.settles_at is None:
            yield from (artifact for artifact, plan in self._short.items() if plan.held)

    @property
    def due_at(self) -> float:
        """When something follows although nothing happens, in seconds on this node's clock; inf: nothing does."""
        return self.room_at if self.settles_at is None else min(self.room_at, self.settles_at)

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

    def free(self, now: float) -> None:
        """There is room that was not there before: what waits for some has a turn, soon."""
        if self.room_at == inf and any(plan.unplaced for plan in self._short.values()):
            self.room_at = now + ROOM_PAUSE

    def waiting_for_room(self, now: float) -> Iterator[Artifact]:
        """The artifacts whose plans room may make whole that became free."""
        if self.room_at <= now:
            self.room_at = inf
            self._for_room = {artifact for artifact, plan in self._short.items() if plan.unplaced}
            yield from self._for_room

    def forget(self, artifacts: Iterable[Artifact]) -> None:
        """These are decided on anew."""
        for artifact in artifacts:
            self._short.pop(artifact, None)

    def may_move(self, job: Job, now: float) -> bool:
        """Whether any of the artifact's instances may have to be moved, although their number is right.

        None is while any is not ACTIVE. That the one is still there that is being moved, its plan shows.
        """
        artifact, group = job.artifact, job.group
        blueprint = self._blueprint(artifact) if artifact in self._cluster.ruled.artifacts else None
        if blueprint is None or (group.active < len(group.slices) and not self._moves.under_way(artifact)):
            return False
        done = self._rebalanced(artifact)
        wants = self._moves.wants(artifact, blueprint, done, now, lambda: self.forbidden(job, now).number > 0)
        if blueprint.rebalance is Rebalance.ON_JOIN:
            self._agenda.look_at(artifact, self._moves.grown_at)
        return wants

    def rebalanced(self, artifact: Artifact) -> str | None:
        """The rebalancing that the artifact's blueprint asked for last, and that is done; None: none."""
        blueprint = self._blueprint(artifact)
        known = self._rebalanced(artifact)
        return self._moves.done(artifact, blueprint, known) if blueprint is not None else None

    def forbidden(self, job: Job, now: float) -> Forbidden:
        """Which live instances are where a hard rule forbids them to be."""
        return self._violations.of(job, lambda: self._situation(job, self.fleet(), now))

    def remarks(self, job: Job, now: float) -> list[str]:
        """What else there is to know of where an artifact's instances are, for people."""
        artifact, ruled = job.artifact, self._cluster.ruled
        if artifact not in ruled.artifacts:
            return []
        found = []
        if artifact in ruled.each and not job.wanted.nodes:
            found.append(none_fits(self._situation(job, self.fleet(), now)))
        if words := self.forbidden(job, now).words:
            found.append(f"{words}, and no other node takes one" if artifact in self._moves.stuck else words)
        return found

    def _blueprint(self, artifact: Artifact) -> Blueprint | None:
        desired = self._cluster.desired.get(artifact)
        return desired.blueprint if desired is not None else None

    def _rebalanced(self, artifact: Artifact) -> str | None:
        status = self._cluster.statuses.get(encode_artifact(artifact))
        return (status.rebalanced or None) if status is not None else None

    def plan(self, job: Job, fleet: Fleet, now: float) -> Plan:
        """Decide what to do about an artifact, and remember what cannot be done."""
        artifact = job.artifact
        waiting = self._releases.waiting(job, fleet, now)
        if waiting.services:
            job = job._replace(wanted=replace(job.wanted, waits_for=tuple(map(str, waiting.services))))
            self._agenda.look_at(artifact, waiting.until)
        if outlives := self._drains.outlived(artifact, fleet, now):
            job = job._replace(wanted=replace(job.wanted, outlives=tuple(map(str, outlives))))
        job = self._with_move(job, fleet, now)
        plan = None
        if job.wanted.moving is not None:
            plan = self._reconcile(job, fleet, now, tells=False)
            if plan.unplaced:
                self._moves.end(artifact)  # what there was room for is taken
                job, plan = job._replace(wanted=replace(job.wanted, moving=None)), None
        if plan is None:
            plan = self._told_why(job, fleet, now)
        self._cursor = plan.cursor
        if plan.is_short:
            before = self._short.get(artifact)
            self._short[artifact] = plan if before is None else before.joined(plan)
        if plan.wake_at is not None:
            self._agenda.look_at(artifact, plan.wake_at)
        return plan

    def _with_move(self, job: Job, fleet: Fleet, now: float) -> Job:
        """The same with the instance that is to be moved; none is while a rollout is under way."""
        artifact = job.artifact
        if artifact not in self._cluster.ruled.artifacts:
            self._moves.forget(artifact)
            self._violations.forget(artifact)
            return job
        blueprint = self._blueprint(artifact)
        if blueprint is None or job.wanted.beside or not self.may_move(job, now):
            self._moves.end(artifact)
            return job
        move, again_at = self._moves.next(self._situation(job, fleet, now), blueprint, self._rebalanced(artifact))
        self._agenda.look_at(artifact, again_at)
        return job if move is None else job._replace(wanted=replace(job.wanted, moving=move))

    def _situation(self, job: Job, fleet: Fleet, now: float) -> Situation:
        taken = self._placement.taken(job.artifact)
        return situation_of(job.artifact, job.wanted, job.group, fleet, now, self._policy, taken)

    def _told_why(self, job: Job, fleet: Fleet, now: float) -> Plan:
        """The plan, which says why what is unplaced is; that may have been found out a moment ago."""
        artifact = job.artifact
        told = self._told.get(artifact) if artifact in self._for_room else None
        self._for_room.discard(artifact)
        if told is not None and told.until <= now:
            told = None
        plan = self._reconcile(job, fleet, now, tells=told is None)
        if not plan.unplaced:
            self._told.pop(artifact, None)
        elif told is None:
            if plan.why:
                self._told[artifact] = _Told(plan.why, now + TOLD_FOR)
        else:
            plan = replace(plan, why=told.why)
            self._agenda.look_at(artifact, told.until)
        return plan

    def _reconcile(self, job: Job, fleet: Fleet, now: float, *, tells: bool) -> Plan:
        taken = self._placement.taken(job.artifact)
        return reconcile(
            job.artifact, job.wanted, job.group, fleet, now, self._policy, self._cursor, taken, tells=tells
        )

    def release_of(self, fleet: Fleet, now: float, service: Service, *, steps: int, goes_back: str) -> Release:
        """What follows for a service, which may be that no new instance has room beside the old ones."""
        ask = partial(self._releases.of, service, fleet, now, steps=steps, goes_back=goes_back)
        release = ask()
        for job in release.jobs:
            if job.is_new and self._reconcile(job, fleet, now, tells=False).unplaced:
                return ask(crowded=True, stuck=self._is_stuck(job, release.jobs, fleet, now))
        return release

    def _is_stuck(self, job: Job, jobs: Iterable[Job], fleet: Fleet, now: float) -> bool:
        """Whether no instance that went would leave its place to a new one, as rules see it."""
        if job.wanted.rules is NO_RULES:
            return False
        others = (put for each in jobs if not each.is_new for put in each.group.slices.values() if put.value.state.live)
        return not leave_room(self._situation(job, fleet, now), others)
