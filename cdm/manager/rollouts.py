"""Decides how a service goes from one template or version to another: its record, and what each side is to have. Pure.

`decide` is asked whenever something about the service changes. Its answer depends only on the record, the blueprints,
the slices, the clock, and what an outage kept the leader from hearing, so any leader goes on where another left off:

1. what users wrote since changes the record (`cdm.manager.intents`): a rollout begins, is aborted, or leads elsewhere;
2. what the instances do takes it to its next stage, or back;
3. what follows from the record for each side is worked out by `cdm.manager.shares`.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from msgspec.structs import replace

from cdm.manager.gates import Gate
from cdm.manager.health import SideHealth, judge
from cdm.manager.ports import told_of_ports
from cdm.manager.progress import Course, Progress
from cdm.manager.service import Facts, revert
from cdm.manager.stages import Stage, StageKind
from cdm.model.record import ALL_NEW, Rollout, RolloutPhase, Weights
from cdm.model.rollout import RolloutKind

MOST_TURNS = 300
"""More stages than a blueprint may have: they may all be over at once."""


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
    stuck: bool = False
    """Whether it goes back to instances that do not come up."""

    @property
    def ends_next(self) -> bool:
        """Whether the end is what follows its stage."""
        return self.record is not None and self.record.step + 1 >= self.stages


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
        case = Progress(facts, record)
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
        turn.stuck,
    )


class _Turn(NamedTuple):
    """What the next record is, if another."""

    record: Rollout | None = None
    why: str = ""
    until: float = inf
    forward: bool = False
    """Whether it is a step that services of one group take together."""
    stuck: bool = False
    """Whether it goes back to instances that do not come up."""


def _turn(case: Progress) -> _Turn:
    """Whether the rollout goes on, back, or stays."""
    record = case.record
    if record.phase is RolloutPhase.REVERTING:
        return _back(case)
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


def _back(case: Progress) -> _Turn:
    """Whether what goes back is there."""
    record = case.record
    gone = not (case.new.live or case.others.live or case.new.lingering or case.others.lingering)
    # What has failed of the old ones is tried again, as it is without a rollout.
    if gone and (case.stable.live + case.sides.stable.failed >= case.instances or case.facts.crowded):
        return _Turn(_in_phase(case, RolloutPhase.REVERTED), record.reason)
    if record.weights is None and case.new.active and case.stable.healthy >= case.new.active:
        # The old ones can take what the new ones got, which need not serve until they are stopped.
        return _Turn(replace(record, weights=Weights(100, 0)), record.reason)
    if case.settings.kind is RolloutKind.ROLLING and record.weights is not None and not case.stable.active:
        return _Turn(replace(record, weights=None), record.reason)  # the old ones are lost: whatever serves is to serve
    why = f"going back to {record.source.version}: {record.reason}"
    if case.stable.healthy < case.instances:
        why += f"; {case.stable.healthy} of {case.instances} old instances healthy{_no_room(case, 'old', 'new')}"
        verdict = judge(case.stable, SideHealth(), case.min_healthy, case.facts.now, side="old")
        stuck = verdict.gate is Gate.FAIL
        if stuck:
            why += f"; {verdict.reason}"
        return _Turn(why=why, until=inf if verdict.until is None else verdict.until, stuck=stuck)
    return _Turn(why=why)


def _by_hand(case: Progress) -> _Turn | None:
    """What comes of the operator's stopping it, or letting it go on; None: nothing."""
    paused = case.record.phase is RolloutPhase.PAUSED
    if case.settings.paused:
        why = f"paused by hand; cdm rollout resume {case.facts.service} goes on"
        return _Turn(None if paused else _in_phase(case, RolloutPhase.PAUSED), why)
    if paused and not case.stage.waits:
        return _Turn(_in_phase(case, _phase_of(case.stage)))
    return None


def _in_phase(case: Progress, phase: RolloutPhase) -> Rollout:
    return replace(case.record, phase=phase, since=case.facts.now + case.facts.epoch)


def _phase_of(stage: Stage) -> RolloutPhase:
    if stage.waits:
        return RolloutPhase.PAUSED
    return RolloutPhase.SWITCHED if stage.kind is StageKind.SWITCH else RolloutPhase.ROLLING


def _passed(case: Progress) -> _Turn:
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
        # In an outage no instance can tell that it is healthy: after it the time begins anew.
        began = max(case.since, case.new.last_healthy, case.facts.fleet.connected_since)
        until = began + case.settings.deadline_seconds
        if until <= now and not stage.waits:
            held = _no_room(case, "new", "old").replace("; ", ": ", 1)
            why = f"no instance became healthy for {case.settings.deadline_seconds:g} s{held}"
            return _Turn(_failed(case, why), why)
        why = "the pause is over; " if stage.waits else ""
        why += f"{case.new.healthy} of {case.goal} new instances healthy{_no_room(case, 'new', 'old')}"
        return _Turn(why=why, until=until if not stage.waits else inf)
    if stage.kind is StageKind.SHARE:
        too_many = case.others.live + max(case.stable.live - case.kept, 0)
        if too_many:
            return _Turn(why=f"{too_many} old instances still to go")
    return _Turn()


def _no_room(case: Progress, one: str, others: str) -> str:
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
        # One that is about to start and waits, for a port that is not free yet, says so itself.
        return next((f"; on {node}: {reason}" for node, reason in case.told_by_coming), "")
    if case.leaving:
        return "; there is room once what is being stopped has gone"
    if lacking := case.held_back:
        they = "1 has no place, and counts" if lacking == 1 else f"{lacking} have no place, and count"
        return f"; {they} as unavailable, so that no other one goes: make room, or raise max_unavailable"
    if not (case.stable.live if one == "new" else case.new.live) + case.others.live:
        return "; no node takes another one"
    return f"; no room for {'an' if one == 'old' else 'a'} {one} one beside the {others} ones"


def _told_of_ports(case: Progress, holders: str) -> str:
    needs = ", and blue-green needs a node without one for each new instance" if case.beside else ""
    return told_of_ports(case.ports, holders) + needs


def _next(case: Progress) -> _Turn:
    """The stage is over: the next one, or the end."""
    record = case.record
    step = min(record.step, len(case.stages) - 1) + 1
    if step >= len(case.stages):
        return _Turn(_complete(case), forward=True)
    stage = case.stages[step]
    return _Turn(replace(_in_phase(case, _phase_of(stage)), step=step, weights=stage.weights), forward=True)


def _complete(case: Progress) -> Rollout:
    return replace(_in_phase(case, RolloutPhase.COMPLETE), step=len(case.stages), weights=ALL_NEW)


def _failed(case: Progress, reason: str) -> Rollout:
    if case.settings.auto_revert:
        return revert(case.record, reason, case.facts.now + case.facts.epoch)
    return replace(_in_phase(case, RolloutPhase.FAILED), reason=reason)
