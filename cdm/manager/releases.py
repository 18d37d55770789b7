"""What a service's rollout, or the last one, makes of its versions: gathers the facts, and asks what follows.

`Releases` is where `cdm.manager.active` asks; what is decided is in `cdm.manager.intents` and `cdm.manager.rollouts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from cdm.allocation.installed import problem_of
from cdm.manager.cluster import Cluster, Desired
from cdm.manager.dependencies import NOTHING_AWAITED, Waiting, first_healthy, told_of_circle, waiting
from cdm.manager.gates import Gates
from cdm.manager.group import Group
from cdm.manager.intents import at_rest, follow, is_reverted, is_superseded, passed_over, withheld, would_begin
from cdm.manager.placement import Placement
from cdm.manager.ports import awaited_ports
from cdm.manager.rollouts import MOST_TURNS, Decision, decide
from cdm.manager.service import BACK, Facts, Version, governing, serving
from cdm.manager.standing import Fleet
from cdm.manager.wanted import Wanted, is_outdated, side_of, wanted_of, wanted_of_side
from cdm.manager.wishes import Wishes
from cdm.model.artifact import Artifact, Service
from cdm.model.check import CheckRun
from cdm.model.record import Rollout, RolloutPhase
from cdm.model.slice import SliceState
from cdm.model.status import RolloutStatus

_CHECKED = frozenset({RolloutPhase.ROLLING, RolloutPhase.PAUSED, RolloutPhase.SWITCHED})


class Job(NamedTuple):
    """One artifact, or its slices of one template, for reconciliation."""

    artifact: Artifact
    wanted: Wanted
    group: Group
    is_new: bool = False
    """Whether these are the side that a rollout under way leads to, or back to."""


class Release(Struct, frozen=True):
    """What follows for a service."""

    service: Service
    facts: Facts
    decision: Decision
    jobs: tuple[Job, ...]

    @property
    def record(self) -> Rollout | None:
        """What the service's record is to be."""
        return self.decision.record

    @property
    def goes_back(self) -> bool:
        """Whether its rollout is being taken back."""
        return self.record is not None and self.record.phase in BACK

    @property
    def changed(self) -> bool:
        """Whether that is another one than is stored."""
        return self.record != self.facts.record


class Releases:
    """Asks about services.

    Args:
        cluster: blueprints, slices and records.
        placement: which slices count.
        wishes: what blueprints come to.
        gates: what the checks of rollouts say.
        epoch: the server's clock less this node's, in seconds.
        term: the leadership's number.
    """

    def __init__(
        self,
        cluster: Cluster,
        placement: Placement,
        wishes: Wishes,
        gates: Gates,
        epoch: Callable[[], float],
        term: int,
    ) -> None:
        self._cluster = cluster
        self._placement = placement
        self._wishes = wishes
        self._gates = gates
        self._epoch = epoch
        self._term = term

    def concern(self, artifact: Artifact, wanted: Wanted, group: Group) -> bool:
        """Whether a rollout, or what the last one left, has a say in what becomes of the artifact."""
        cluster = self._cluster
        if (cluster.rollouts or cluster.successors) and (
            (service := artifact.service) in cluster.rollouts or service in cluster.successors
        ):
            return True
        return wanted.revision > 0 and is_outdated(group, wanted)

    def group_of(self, service: Service) -> tuple[Service, ...]:
        """The services whose rollouts advance together with this one's, itself included."""
        name = self._group_name(service)
        if name is None:
            return (service,)
        return tuple(sorted({service, *(each for each in self._under_way() if self._group_name(each) == name)}))

    def _under_way(self) -> Iterator[Service]:
        for service, put in self._cluster.rollouts.items():
            if put.value.phase.under_way:
                yield service

    def _group_name(self, service: Service) -> str | None:
        """The ``rollout.group`` of the blueprint that a service's rollout leads to, or that it had before it went."""
        put = self._cluster.rollouts.get(service)
        if put is None or not put.value.phase.under_way:
            return None
        desired = self._cluster.desired.get(service.version(put.value.target.version))
        blueprint = desired.blueprint if desired is not None else None
        return put.value.group if blueprint is None else blueprint.rollout.group

    def of(
        self,
        service: Service,
        fleet: Fleet,
        now: float,
        *,
        steps: int = MOST_TURNS,
        crowded: bool = False,
        stuck: bool = False,
        goes_back: str = "",
    ) -> Release:
        """What follows for a service now.

        Args:
            service: which one.
            fleet: the nodes.
            now: seconds on this node's clock.
            steps: by how many stages it may go on.
            crowded: whether it turned out that no new instance can be placed beside the old ones.
            stuck: whether none of these would leave its place to a new one.
            goes_back: why it goes back, since another service of its group does; empty: none does.
        """
        facts = replace(self._facts(service, fleet, now, crowded), stuck=stuck, goes_back=goes_back)
        decision = decide(facts, follow(facts), steps=steps)
        return Release(service, facts, decision, tuple(self._jobs(facts, decision)))

    def _facts(self, service: Service, fleet: Fleet, now: float, crowded: bool) -> Facts:
        cluster, placement = self._cluster, self._placement
        versions: dict[str, Version] = {}
        put = cluster.rollouts.get(service)
        record = put.value if put is not None else None
        # What was gone back to is wanted although it has no blueprint, and no slices at this moment.
        ends = {service.version(record.source.version)} if record is not None else set()
        for artifact in sorted(cluster.versions_of(service) | ends):
            desired = self._wishes.desired(artifact)
            group = placement.counted(cluster.group(artifact), with_exclusive=True)
            wanted = side_of(artifact.version, desired, cluster.contents.get(artifact))
            versions[artifact.version] = Version(artifact, desired, wanted, group)
        ports = awaited_ports(put for version in versions.values() for put in version.group.slices.values())
        return Facts(
            service,
            record,
            versions,
            fleet,
            now,
            self._epoch(),
            self._term,
            self._wishes.no_rollouts(),
            crowded,
            ports,
            self._gates.judge(service, now),
            self._gates.series(service),
        )

    def check(self, release: Release) -> None:
        """Have the checks made that this step of the rollout asks for, and no others."""
        record, facts = release.record, release.facts
        desired = governing(facts, record) if record is not None and record.phase in _CHECKED else None
        if record is None or desired is None or desired.blueprint is None or not desired.blueprint.rollout.checks:
            self._gates.end(release.service)
            return
        puts = (put for job in release.jobs if job.is_new for put in job.group.slices.values())
        # One that just came up may not be warm yet: what it answers says nothing of the release.
        warm = facts.now - desired.blueprint.min_healthy
        values = (put.value for put in puts if put.value.state is SliceState.ACTIVE and put.at <= warm)
        instances = sorted((each.address, each.port) for each in values if each.address and each.port)
        run = CheckRun(
            desired.blueprint.rollout.checks,
            release.decision.series,
            record.target.version,
            record.source.version,
            str(record.phase),
            record.step,
            tuple(instances),
        )
        self._gates.begin(release.service, run)

    def waiting(self, job: Job, fleet: Fleet, now: float) -> Waiting:
        """What the instances wait for that are to be activated next."""
        after = self._cluster.dependencies.of(job.artifact)
        if not after or not job.group.counts[SliceState.LOADED]:
            return NOTHING_AWAITED
        return waiting(after, lambda service: self._serves_from(service, fleet), now)

    def _serves_from(self, service: Service, fleet: Fleet) -> float:
        """When the service had, or has, its first healthy instance."""
        return min(
            (
                first_healthy(self._cluster.group(each).slices.values(), self._wishes.wanted(each).min_healthy, fleet)
                for each in self._cluster.versions_of(service)
            ),
            default=inf,
        )

    def told(self, release: Release | None, artifact: Artifact, desired: Desired) -> Told:
        """What to tell of a version; None: no rollout has a say."""
        told = told_of(release, artifact, desired) if release is not None else UNTOLD
        if desired.blueprint is not None and (problem := problem_of(desired.blueprint.rules.strategy)):
            told = told.noting(problem)
        if not self._cluster.dependencies.of(artifact):
            return told
        circle = self._cluster.dependencies.circle(artifact.service, self._is_wanted)
        return told._replace(circle=told_of_circle(circle))

    def _is_wanted(self, artifact: Artifact) -> bool:
        desired, put = self._wishes.desired(artifact), self._cluster.rollouts.get(artifact.service)
        if desired is None or not desired.instances:
            return False
        return put is None or not is_superseded(put.value, artifact.version, desired.in_force)

    def _jobs(self, facts: Facts, decision: Decision) -> Iterator[Job]:
        """What reconciliation is to look at, version by version, or side by side."""
        record, aside = decision.record, set()
        desired = governing(facts, record) if record is not None else None
        if decision.courses and record is not None:
            base, back = wanted_of(desired), record.phase is RolloutPhase.REVERTING
            together = {course.artifact for course in decision.courses}
            for course in decision.courses:
                wanted = wanted_of_side(base, course.side, course.instances, grows=course.grows, beside=together)
                wanted = replace(wanted, held=frozenset(facts.ports))
                is_new = course.grows and course.side is (record.source if back else record.target)
                yield Job(course.artifact, wanted, course.group, is_new)
                aside.add(course.artifact.version)
            aside.update(_ends(record))
        for name, version in facts.versions.items():
            if name in aside:
                continue
            wanted = self._wishes.wanted(version.artifact)
            side, instances = at_rest(facts, record, version)
            count = wanted.instances if instances is None else instances
            if side is not None:
                wanted = wanted_of_side(wanted, side, count or 0)
            elif instances is not None:
                wanted = replace(wanted, instances=instances)
            if record is not None and desired is not None and not count and name in _ends(record):
                # What goes of it is on its way since the rollout, for as long as the blueprint of that says.
                wanted = replace(wanted, drain_delay=wanted_of(desired).drain_delay)
            yield Job(version.artifact, wanted, version.group)


def _ends(record: Rollout) -> tuple[str, str]:
    return record.source.version, record.target.version


class Told(NamedTuple):
    """What the status of one version says of rollouts."""

    rollout: RolloutStatus | None = None
    superseded: str = ""
    """Why it wants no instances of its own; empty: it does."""
    reverted: str = ""
    """Why it was taken back; empty: it was not."""
    progressing: str = ""
    """What the rollout is waiting for; empty: none is under way."""
    failed: str = ""
    """Why its rollout stays as it is; empty: it does not."""
    instances: int | None = None
    """How many are wanted, where that is not what its blueprint says."""
    note: str = ""
    """What else is to be known of it, where nothing is wrong; empty: nothing."""
    circle: str = ""
    """Which services wait for each other, this one among them; empty: none do."""

    def noting(self, what: str) -> Told:
        """The same, where something else is to be known."""
        if self.progressing:
            return self._replace(progressing=f"{self.progressing}; {what}")
        return self._replace(note=f"{self.note}; {what}" if self.note else what)


UNTOLD = Told()
"""Where no rollout has a say."""


def told_of(release: Release, artifact: Artifact, desired: Desired) -> Told:
    """What to tell of a version."""
    record, decision, facts = release.record, release.decision, release.facts
    name = artifact.version
    if record is None:
        return _told_before(facts, None, name, None)
    wanted = facts.versions[name].wanted if name in facts.versions else None
    rollout = _rollout_status(record, decision, governing(facts, record))
    ends = _ends(record)
    if is_superseded(record, name, desired.in_force):
        by = record.source.version if record.phase in BACK else record.target.version
        return Told(rollout if name in ends else None, superseded=f"replaced by {by}", instances=0)
    if record.phase.under_way and name in ends:
        if record.phase is RolloutPhase.FAILED:
            return Told(rollout, failed=f"rollout failed: {record.reason}")
        return Told(rollout, progressing=decision.why or "rolling out")
    if wanted is not None and is_reverted(record, wanted):
        why = record.reason if name == record.target.version else record.reasons.get(name, "it was taken back before")
        told = Told(rollout if name in ends else None, reverted=why, instances=0)
        if serving(record).version != name:
            return told
        told = told._replace(instances=None)
    else:
        told = _told_before(facts, record, name, rollout if name in ends else None)
    last = governing(facts, record)
    back = record.phase is RolloutPhase.REVERTED and record.source.version == name
    if told.instances is None and back and last is not None and last.instances != desired.instances:
        note = f"as many instances as the blueprint of {record.target.version} says, which was written last"
        told = told._replace(instances=last.instances, note=note)
    return told


def _told_before(facts: Facts, record: Rollout | None, name: str, rollout: RolloutStatus | None) -> Told:
    """What to tell of a rollout that has not begun."""
    if facts.waits_for and would_begin(facts, facts.record, name):
        return Told(progressing=facts.waits_for)
    version = facts.versions.get(name)
    if version is None:
        return Told(rollout)
    if held := withheld(facts, record, version):
        if facts.waits_for:
            return Told(progressing=facts.waits_for)
        return Told(rollout, reverted="aborted before it began", instances=None if held.serves is not None else 0)
    return Told(rollout, note=passed_over(facts, record, version))


def _rollout_status(record: Rollout, decision: Decision, desired: Desired | None) -> RolloutStatus:
    wanted = desired.instances if desired is not None and desired.instances else 0
    kind = decision.kind or (str(desired.blueprint.rollout.kind) if desired and desired.blueprint else "rolling")
    under_way, back = record.phase.under_way, record.phase in BACK
    share = 100.0 if record.phase is RolloutPhase.COMPLETE else 0.0
    if under_way and wanted:
        share = min(100.0 * decision.new.healthy / wanted, 100.0)
    return RolloutStatus(
        phase=str(record.phase),
        kind=kind,
        source=record.source.version,
        target=record.target.version,
        step=min(record.step + 1, decision.stages) if under_way and not back else 0,
        steps=decision.stages if under_way and not back else 0,
        since=round(record.since, 3),
        why=decision.why if under_way else record.reason,
        share=round(share, 1),
        stuck=decision.stuck,
    )
