"""Decides how a service goes from one template or version to another: its record, and what each side is to have. Pure.

`decide` is asked whenever something about the service changes. Its answer depends only on the record, the blueprints,
the slices and the clock, so any leader gives the same and goes on where another left off:

1. what users wrote since changes the record (`cdm.manager.intents`): a rollout begins, is aborted, or leads elsewhere;
2. what the instances do takes it to its next stage, or back;
3. what follows from the record for each side is worked out by `cdm.manager.shares`.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from msgspec.structs import replace

from cdm.manager.gates import Gate, GateVerdict
from cdm.manager.group import Group
from cdm.manager.health import SideHealth, health_of, judge
from cdm.manager.ports import told_of_ports
from cdm.manager.service import Facts, governing, is_new, of_side, revert, series_of
from cdm.manager.shares import Bounds, Share, targets
from cdm.manager.stages import Stage, StageKind, new_instances, stages_of
from cdm.model.artifact import Artifact
from cdm.model.record import ALL_NEW, Rollout, RolloutPhase, Side
from cdm.model.rollout import RolloutSettings
from cdm.model.slice import SliceState

MOST_TURNS = 300
"""More stages than a blueprint may have: they may all be over at once."""


class Course(NamedTuple):
    """What follows for one side: how many instances of it there are to be now."""

    artifact: Artifact
    side: Side
    group: Group
    instances: int
    grows: bool = True
    """False: what is there of it may only become less."""


class Decision(NamedTuple):
    """What to do about a service."""

    record: Rollout | None
    """What its record is to be; None: there is to be none."""
    courses: tuple[Course, ...] = ()
    """The sides; none: each version is on its own."""
    why: str = ""
    """What it waits for, for people."""
    wake_at: float = inf
    """When to decide again although nothing happens, in seconds on this node's clock."""
    held: bool = False
    """Whether it could go on to its next stage, and was not to: the other services of its group are waited for."""
    kind: str = ""
    stages: int = 0
    new: SideHealth = SideHealth()
    series: str = ""
    """What its checks are to be about (`series_of`)."""

    @property
    def ends_next(self) -> bool:
        """Whether the end is what follows its stage."""
        return self.record is not None and self.record.step + 1 >= self.stages


class _Sides(NamedTuple):
    """The slices of a rollout, sorted."""

    new: Group
    stable: Group
    others: tuple[tuple[Artifact, Group], ...]
    """Of templates and versions that are neither."""


def _sort(facts: Facts, record: Rollout) -> _Sides:
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
    return _Sides(new, stable, tuple((artifact, rest) for artifact, rest in others if rest.slices))


class _Case:
    """One decision about a rollout under way: the facts, and what is counted from them."""

    def __init__(self, facts: Facts, record: Rollout) -> None:
        self.facts, self.record = facts, record
        desired = governing(facts, record)
        blueprint = desired.blueprint if desired else None
        self.instances = blueprint.instances if blueprint else 0
        self.settings = blueprint.rollout if blueprint else RolloutSettings()
        self.min_healthy = blueprint.min_healthy if blueprint else 0.0
        self.stages = stages_of(self.settings)
        self.sides = sides = _sort(facts, record)
        self.new = self._health(sides.new)
        self.stable = self._health(sides.stable)
        self.others = self._health(*(group for _, group in sides.others))
        coming = sides.stable if record.phase is RolloutPhase.REVERTING else sides.new
        self.ports = {key: port for key, port in facts.ports.items() if key in coming.slices}
        """Ports that new instances (old ones, where it goes back) wait for."""
        self.since = record.since - facts.epoch
        """When the stage began, in seconds on this node's clock."""

    def _health(self, *groups: Group) -> SideHealth:
        puts = [put for group in groups for put in group.slices.values()]
        facts = self.facts
        return health_of(puts, self.min_healthy, facts.fleet, facts.now, one_by_one=self.exclusive)

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
        """Whether no instance can come up beside the others, but one could in the place of another."""
        tight = self.exclusive or self.facts.crowded or bool(self.ports) or self.settings.surge(self.instances) == 0
        return tight and not self.facts.stuck and self.finds_room()

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


def decide(facts: Facts, record: Rollout | None, *, steps: int = MOST_TURNS) -> Decision:
    """Decide about a service.

    Args:
        facts: what is known.
        record: what users' edits have made of the record (`cdm.manager.intents.follow`).
        steps: by how many stages it may go on; 0 asks only whether it could (`Decision.held`).
    """
    if record is None or not record.phase.under_way:
        return Decision(record, why=facts.waits_for)
    held = False
    why, until = "", inf
    for _ in range(MOST_TURNS):
        case = _Case(facts, record)
        turn = _turn(case)
        why, until = turn.why, turn.until
        if turn.record is None or turn.record == record:
            break
        if turn.forward:
            if steps == 0:
                held = True
                break
            steps -= 1
        record = replace(turn.record, term=facts.term)
        if not record.phase.under_way:
            return Decision(record, why=why, new=case.new, kind=case.settings.kind, stages=len(case.stages))
    return Decision(
        record,
        case.courses(),
        why,
        min(until, case.new.next_healthy, case.stable.next_healthy, case.others.next_healthy),
        held,
        str(case.settings.kind),
        len(case.stages),
        case.new,
        case.series,
    )


class _Turn(NamedTuple):
    """What the next record is, if another."""

    record: Rollout | None = None
    why: str = ""
    until: float = inf
    forward: bool = False
    """Whether it is a step that services of one group take together."""


def _turn(case: _Case) -> _Turn:
    """Whether the rollout goes on, back, or stays."""
    record = case.record
    if record.phase is RolloutPhase.REVERTING:
        gone = not (case.new.live or case.others.live or case.new.lingering or case.others.lingering)
        # What has failed of the old ones is tried again, as it is without a rollout.
        if gone and (case.stable.live + case.sides.stable.failed >= case.instances or case.facts.crowded):
            return _Turn(_in_phase(case, RolloutPhase.REVERTED), record.reason)
        why = f"going back to {record.source.version}: {record.reason}"
        if case.stable.healthy < case.instances:
            why += f"; {case.stable.healthy} of {case.instances} instances healthy{_no_room(case, 'old', 'new')}"
            verdict = judge(case.stable, SideHealth(), case.min_healthy, case.facts.now, side="old")
            if verdict.gate is Gate.FAIL:
                why += f"; {verdict.reason}"
            return _Turn(why=why, until=inf if verdict.until is None else verdict.until)
        return _Turn(why=why)
    if record.phase is RolloutPhase.FAILED:
        return _Turn(why=record.reason)
    if case.instances == 0 and not (case.new.live or case.stable.live or case.others.live):
        return _Turn(_complete(case))
    if case.facts.goes_back:
        back = revert(record, case.facts.goes_back, case.facts.now + case.facts.epoch)
        return _Turn(back, case.facts.goes_back)
    # Where none are wanted, none can fail.
    verdicts = (judge(case.new, case.stable, case.min_healthy, case.facts.now), case.checks) if case.instances else ()
    if failed := next((each for each in verdicts if each.gate is Gate.FAIL), None):
        return _Turn(_failed(case, failed.reason), failed.reason)
    turn = _by_hand(case) or _passed(case)
    if turn.record is None:
        held = next((each for each in verdicts if each.gate is Gate.HOLD), None)
        if not turn.why:
            turn = _Turn(why=held.reason) if held else _next(case)
        turn = turn._replace(until=min((turn.until, *(each.until for each in verdicts if each.until is not None))))
    return turn


def _by_hand(case: _Case) -> _Turn | None:
    """What comes of the operator's stopping it, or letting it go on; None: nothing."""
    paused = case.record.phase is RolloutPhase.PAUSED
    if case.settings.paused:
        why = f"paused by hand; cdm rollout resume {case.facts.service} goes on"
        return _Turn(None if paused else _in_phase(case, RolloutPhase.PAUSED), why)
    if paused and not case.stage.waits:
        return _Turn(_in_phase(case, _phase_of(case.stage)))
    return None


def _in_phase(case: _Case, phase: RolloutPhase) -> Rollout:
    return replace(case.record, phase=phase, since=case.facts.now + case.facts.epoch)


def _phase_of(stage: Stage) -> RolloutPhase:
    if stage.waits:
        return RolloutPhase.PAUSED
    return RolloutPhase.SWITCHED if stage.kind is StageKind.SWITCH else RolloutPhase.ROLLING


def _passed(case: _Case) -> _Turn:
    """Why the stage is not over; no reason: it is. Or what its deadline makes of it."""
    now, stage = case.facts.now, case.stage
    down = case.serves_nothing and case.settings.if_stable_down == "proceed"
    match stage.kind:
        case StageKind.PAUSE | StageKind.SWITCH:
            until = case.since + stage.seconds
            if until > now and not (down and stage.kind is StageKind.PAUSE):
                what = "pausing" if stage.kind is StageKind.PAUSE else "switched; keeping the old instances"
                return _Turn(why=f"{what} for {stage.seconds:g} s", until=until)
        case StageKind.APPROVAL:
            if case.settings.approved - case.record.approved < stage.approval and not down:
                return _Turn(why=f"waiting for an approval: cdm rollout approve {case.facts.service}")
    if case.new.healthy < case.goal:
        began = max(case.since, case.new.last_healthy)
        until = began + case.settings.deadline_seconds
        if until <= now and not stage.waits:
            held = f": {_told_of_ports(case, 'old')}" if case.ports else ""
            why = f"no instance became healthy for {case.settings.deadline_seconds:g} s{held}"
            return _Turn(_failed(case, why), why)
        why = f"{case.new.healthy} of {case.goal} new instances healthy{_no_room(case, 'new', 'old')}"
        return _Turn(why=why, until=until if not stage.waits else inf)
    if stage.kind is StageKind.SHARE:
        too_many = case.others.live + max(case.stable.live - case.kept, 0)
        if too_many:
            return _Turn(why=f"{too_many} old instances still to go")
    return _Turn()


def _no_room(case: _Case, one: str, others: str) -> str:
    if case.exclusive and case.beside:
        return "; with stop_after none comes up beside another, and blue-green needs that"
    if case.exclusive and case.settings.unavailable(case.instances) == 0:
        return "; max_unavailable is 0, and with stop_after none comes up beside another"
    if case.ports:
        return f"; {_told_of_ports(case, others)}"
    short = case.stable.live < case.instances if one == "old" else case.new.live < case.goal
    # Where none may come up beside another, and none goes for it, none was tried to be placed.
    waits = short and not (case.facts.fleet.settling or case.finds_room())
    if not (case.facts.crowded or waits):
        return ""
    return f"; no room for {'an' if one == 'old' else 'a'} {one} one beside the {others} ones"


def _told_of_ports(case: _Case, holders: str) -> str:
    needs = ", and blue-green needs a node without one for each new instance" if case.beside else ""
    return told_of_ports(case.ports, holders) + needs


def _next(case: _Case) -> _Turn:
    """The stage is over: the next one, or the end."""
    record = case.record
    step = min(record.step, len(case.stages) - 1) + 1
    if step >= len(case.stages):
        return _Turn(_complete(case), forward=True)
    stage = case.stages[step]
    return _Turn(replace(_in_phase(case, _phase_of(stage)), step=step, weights=stage.weights), forward=True)


def _complete(case: _Case) -> Rollout:
    return replace(_in_phase(case, RolloutPhase.COMPLETE), step=len(case.stages), weights=ALL_NEW)


def _failed(case: _Case, reason: str) -> Rollout:
    if case.settings.auto_revert:
        return revert(case.record, reason, case.facts.now + case.facts.epoch)
    return replace(_in_phase(case, RolloutPhase.FAILED), reason=reason)
