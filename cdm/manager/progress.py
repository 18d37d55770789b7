"""How far a rollout is: its sides as they stand, what its stage asks for, and how many of each follow. Pure."""

from __future__ import annotations

from typing import NamedTuple

from cdm.manager.gates import Gate, GateVerdict
from cdm.manager.group import Group
from cdm.manager.health import SideHealth, health_of
from cdm.manager.service import Facts, governing, is_new, of_side, series_of
from cdm.manager.shares import Bounds, Share, targets
from cdm.manager.stages import Stage, StageKind, new_instances, stages_of
from cdm.model.artifact import Artifact
from cdm.model.keys import SliceKey
from cdm.model.record import Rollout, RolloutPhase, Side
from cdm.model.rollout import RolloutSettings
from cdm.model.slice import SliceState


class Course(NamedTuple):
    """What follows for one side: how many instances of it there are to be now."""

    artifact: Artifact
    side: Side
    group: Group
    instances: int
    grows: bool = True
    """False: what is there of it may only become less."""


class Sides(NamedTuple):
    """The slices of a rollout, sorted."""

    new: Group
    stable: Group
    others: tuple[tuple[Artifact, Group], ...]
    """Of templates and versions that are neither."""


def _sorted(facts: Facts, record: Rollout) -> Sides:
    service, source, target = facts.service, record.source, record.target

    def slices(name: str) -> Group:
        version = facts.versions.get(name)
        return version.group if version is not None else Group()

    new = slices(target.version).only(lambda put: is_new(put, target))
    stable = slices(source.version).only(lambda put: put.key not in new.slices and of_side(put, source))
    taken = {*new.slices, *stable.slices}
    names = {source.version, target.version}
    if source.version != target.version:
        names.update(record.superseded, record.reverted)
    others = ((service.version(name), slices(name).only(lambda put: put.key not in taken)) for name in sorted(names))
    return Sides(new, stable, tuple((artifact, rest) for artifact, rest in others if rest.slices))


class Progress:
    """How far a rollout under way is: the facts, what is counted from them, and what each side is to have.

    Args:
        facts: what is known of the service.
        record: of its rollout.
    """

    def __init__(self, facts: Facts, record: Rollout) -> None:
        self.facts, self.record = facts, record
        desired = governing(facts, record)
        blueprint = desired.blueprint if desired else None
        self.instances = blueprint.instances if blueprint else 0
        self.settings = blueprint.rollout if blueprint else RolloutSettings()
        self.min_healthy = blueprint.min_healthy if blueprint else 0.0
        self.stages = stages_of(self.settings)
        self.sides = sides = _sorted(facts, record)
        self.new = self._health(sides.new)
        self.stable = self._health(sides.stable)
        self.others = self._health(*(group for _, group in sides.others))
        coming = sides.stable if record.phase is RolloutPhase.REVERTING else sides.new
        self.ports = {key: port for key, port in facts.ports.items() if key in coming.slices}
        """Ports that new instances (old ones, where it goes back) wait for."""
        puts = (put for _, put in sorted(coming.slices.items()) if put.value.state is SliceState.ACTIVATING)
        self.told_by_coming = [(put.key.node, put.value.reason) for put in puts if put.value.reason]
        """What instances that are being activated say of themselves, and their nodes."""
        self.since = record.since - facts.epoch
        """When the stage began, in seconds on this node's clock."""

    def _health(self, *groups: Group) -> SideHealth:
        puts = [put for group in groups for put in group.slices.values()]
        facts = self.facts

        def why(key: SliceKey) -> str:
            return next((told for group in groups if (told := group.why_ended(key))), "")

        health = health_of(puts, self.min_healthy, facts.fleet, facts.now, why, one_by_one=self.exclusive)
        if health.troubled and not health.reason:  # those that failed are tried again just now
            health = health._replace(reason=next((group.why_failed for group in groups if group.why_failed), ""))
        # Where no node takes another one, what is on those that are being emptied stays: nothing replaces it.
        return health if not health.draining or facts.fleet.has_room() else health._replace(draining=0)

    @property
    def series(self) -> str:
        """What the checks are to be about now."""
        return series_of(self.record, ready=self.new.healthy >= self.goal)

    @property
    def checks(self) -> GateVerdict:
        """What the blueprint's checks say of this step; each step has its own answers."""
        if self.settings.checks and self.facts.checked != self.series:
            return GateVerdict(Gate.HOLD, "checks: no result yet")
        return self.facts.checks

    @property
    def stage(self) -> Stage:
        """The stage that it is in; steps that were taken out of the blueprint since count as passed."""
        return self.stages[min(self.record.step, len(self.stages) - 1)]

    @property
    def goal(self) -> int:
        """How many new instances the stage asks for."""
        return new_instances(self.stage, self.instances)

    @property
    def kept(self) -> int:
        """How many old instances the stage leaves.

        What has a single instance keeps it beside the new one until that is the only one wanted.
        """
        left = self.instances - self.goal
        alone = left == 0 < self.goal and self.stage.weight < 100
        beside = self.settings.surge(self.instances) > 0 and not (self.exclusive or self.facts.crowded)
        return 1 if alone and beside else left

    @property
    def serves_nothing(self) -> bool:
        """Whether the old version serves nothing although the stage leaves instances of it."""
        return self.stable.active == 0 and (self.beside or self.kept > 0)

    @property
    def exclusive(self) -> bool:
        """Whether old or new instances must not run twice: then none comes up beside another."""
        sides = (self.record.source, self.record.target)
        return any(side.template.overrides.stop_after is not None for side in sides)

    @property
    def crowded(self) -> bool:
        """Whether no instance can come up beside the others, but one could in the place of another.

        The place of what is being stopped is free soon: until then no other one goes for that.
        """
        full = self.facts.crowded and not self.leaving
        tight = self.exclusive or full or bool(self.ports) or self.settings.surge(self.instances) == 0
        return tight and not self.facts.stuck and self.finds_room()

    @property
    def leaving(self) -> bool:
        """Whether any instance of the service is being stopped."""
        return any(version.group.leaving for version in self.facts.versions.values())

    @property
    def held_back(self) -> int:
        """How many instances have no place, where no other one goes because of them; 0: that is not so."""
        sides = (self.stable, self.new, self.others)
        lacking = self.instances - sum(side.live for side in sides)
        healthy = sum(side.healthy for side in sides)
        return lacking if lacking > 0 and healthy <= self.bounds().fewest else 0

    def finds_room(self) -> bool:
        """Whether a node has room, or an instance that goes leaves its place, or its port, to one that is to come."""
        sides, nodes = self.sides, self.facts.fleet.nodes
        coming, going = sides.new, [sides.stable, *(group for _, group in sides.others)]
        if self.record.phase is RolloutPhase.REVERTING:
            coming, going[0] = going[0], coming
        waiting = {key.node for key, put in coming.slices.items() if put.value.state is not SliceState.ACTIVE}
        places = {key.node for group in going for key in group.slices}
        given = any(node in waiting or (node in nodes and nodes[node].open) for node in places)
        return given or self.facts.fleet.has_room()

    def bounds(self) -> Bounds:
        """What holds for all sides together."""
        instances, settings = self.instances, self.settings
        unavailable = settings.unavailable(instances)
        if unavailable is None:
            unavailable = 1 if self.crowded else 0
        surge = 0 if self.exclusive else settings.surge(instances)
        if self.beside and not self.exclusive:
            surge = max(surge, instances)
        return Bounds(instances + surge, instances - unavailable)

    @property
    def beside(self) -> bool:
        """Whether all new and all old instances are to be there."""
        return (
            self.record.phase is not RolloutPhase.REVERTING
            and self.stage.weights is not None
            and (self.stage.kind in (StageKind.BESIDE, StageKind.SWITCH) or self.stage.weights.target == 0)
        )

    def courses(self) -> tuple[Course, ...]:
        """What each side is to have now."""
        service, record, instances = self.facts.service, self.record, self.instances
        if record.phase is RolloutPhase.REVERTING:
            new, stable = 0, instances
        elif self.beside:
            new, stable = instances, instances
        else:
            new, stable = self.goal, self.kept
        # Each of the others is a side of its own: else what serves of one could give way to what does not of another.
        others = [Share(0, self._health(group)) for _, group in self.sides.others]
        shares = [*others, Share(stable, self.stable), Share(new, self.new)]
        if self.stopped:
            # Nothing goes and nothing comes, but what is lost, or is on a node that is being emptied, is made up for.
            *rest, old, fresh = (share.health.live - share.health.draining for share in shares)
            lost = max(instances - sum(rest) - old - fresh, 0)
            filled = min(lost, max(stable - old, 0))
            counts = [*rest, old + filled, fresh + lost - filled]
        else:
            counts = targets(shares, self.bounds())
        found: list[Course] = []
        for (artifact, group), stays in zip(self.sides.others, counts, strict=False):
            found.append(Course(artifact, record.source, group, stays, grows=False))
        source, target = record.source, record.target
        found.append(Course(service.version(source.version), source, self.sides.stable, counts[-2]))
        # What is taken back is not started again, not even for an instance that has to leave its node meanwhile.
        forward = record.phase is not RolloutPhase.REVERTING
        found.append(Course(service.version(target.version), target, self.sides.new, counts[-1], grows=forward))
        return tuple(found)

    @property
    def stopped(self) -> bool:
        """Whether the operator's hand stops it, or it failed and stays."""
        if self.record.phase is RolloutPhase.FAILED:
            return True
        return self.record.phase is not RolloutPhase.REVERTING and self.settings.paused
