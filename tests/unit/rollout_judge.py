"""A judge of rollouts that knows the contract (what blueprints say, and the record's fields) and nothing of the code.

It is shown every order before it is written, together with what the manager's mirrors show at that moment.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cdm.manager.group import SlicePut
from cdm.manager.outbox import Order
from cdm.manager.topology import Registered
from cdm.model.artifact import Artifact, NodeId, Service
from cdm.model.blueprint import Blueprint
from cdm.model.keys import SliceKey
from cdm.model.node import Schedule
from cdm.model.record import Rollout, RolloutPhase
from cdm.model.rollout import RolloutKind
from cdm.model.template import template_of
from tests.unit.support import S
from tests.unit.world import World

P = RolloutPhase
UNDER_WAY = frozenset({P.ROLLING, P.PAUSED, P.SWITCHED, P.REVERTING, P.FAILED})
FORWARD = frozenset({P.ROLLING, P.PAUSED, P.SWITCHED})
LEGAL: dict[P, frozenset[P]] = {
    P.ROLLING: frozenset({*FORWARD, P.COMPLETE, P.REVERTING, P.REVERTED, P.FAILED}),
    P.PAUSED: frozenset({*FORWARD, P.COMPLETE, P.REVERTING, P.REVERTED, P.FAILED}),
    P.SWITCHED: frozenset({*FORWARD, P.COMPLETE, P.REVERTING, P.REVERTED, P.FAILED}),
    P.COMPLETE: frozenset({P.COMPLETE, P.REVERTING, P.REVERTED}),
    P.REVERTING: frozenset({P.REVERTING, P.REVERTED}),
    P.REVERTED: frozenset({P.REVERTED}),
    P.FAILED: frozenset({P.FAILED, P.REVERTING, P.REVERTED, P.COMPLETE}),
}
"""What may follow in the record of one and the same rollout. Several steps may be taken at once."""


def percent(bound: int | str, instances: int, *, up: bool) -> int:
    """What a number or a percentage of the instances comes to."""
    if isinstance(bound, int):
        return bound
    share = int(bound[:-1]) * instances
    return -(-share // 100) if up else share // 100


class Governing(NamedTuple):
    """What holds for a rollout under way."""

    blueprint: Blueprint
    names: frozenset[str]
    """Versions that it is about."""


class JudgedWorld(World):
    """A world in which every order is judged."""

    def _on_order(self) -> None:
        super()._on_order()
        judge(self, self.outbox.orders[-1])


def judge(world: World, order: Order) -> None:
    """Judge an order against what the mirrors show."""
    for service in {each.service for each in (order.artifact, *order.also)}:
        put = world.manager.cluster.rollouts.get(service)
        before = put.value if put else None
        after = order.records.get(service, before)
        _judge_phase(before, after)
        _judge_loads(service, after, order)
        record = after if after is not None and after.phase in UNDER_WAY else before
        if record is not None and record.phase in UNDER_WAY and (found := governing(world, service, record)):
            _judge_bounds(world, service, record, found, order, over=after is None or after.phase not in UNDER_WAY)
    _judge_group(world, order)


def _judge_group(world: World, order: Order) -> None:
    """What goes on to its next step, or ends, does so with all of its group that are under way, one step at a time."""
    for service, after in order.records.items():
        put = world.manager.cluster.rollouts.get(service)
        before = put.value if put else None
        if before is None or after is None or before.phase not in FORWARD:
            continue
        found = governing(world, service, before)
        if (group := _group(world, service, before)) is None or found is None or not found.blueprint.instances:
            continue
        if before.target.mark != after.target.mark or after.phase not in (*FORWARD, P.COMPLETE):
            continue
        if after.step == before.step and after.phase is not P.COMPLETE:
            continue
        others = [
            other
            for other, put in world.manager.cluster.rollouts.items()
            if other != service and put.value.phase in UNDER_WAY and _group(world, other, put.value) == group
        ]
        if others:
            assert after.step <= before.step + 1, f"{service} goes ahead of its group: {before} -> {after}"
        for other in others:
            theirs = order.records.get(other)
            assert after.phase is not P.COMPLETE or (theirs is not None and theirs.phase not in UNDER_WAY), (
                f"{service} ends without {other}"
            )


def _group(world: World, service: Service, record: Rollout) -> str | None:
    """The group of a rollout."""
    blueprint, _ = blueprint_of(world, service.version(record.target.version))
    return record.group if blueprint is None else blueprint.rollout.group


def brief(order: Order) -> str:
    """An order in one line."""
    return ", ".join(f"{each.state} {each.key} ({each.reason})" for each in order.commands)


def blueprint_of(world: World, artifact: Artifact) -> tuple[Blueprint | None, int]:
    """The blueprint in force, and its revision."""
    blueprint, revision, _ = world.blueprints.get(artifact, (None, 0, None))
    return blueprint, revision


def governing(world: World, service: Service, record: Rollout) -> Governing | None:
    """The blueprint of either end that was written last."""
    ends = {record.source.version, record.target.version}
    found = [blueprint_of(world, service.version(name)) for name in ends]
    valid = [(revision, blueprint) for blueprint, revision in found if blueprint is not None]
    if not valid:
        return None
    if len(valid) > 1 and record.phase in (P.REVERTING, P.REVERTED):
        # A version that was taken back and is to have 0 instances says nothing of the other one.
        new, revision = blueprint_of(world, service.version(record.target.version))
        valid = [each for each in valid if each != (revision, new)] if new and new.instances == 0 else valid
    names = ends
    if len(ends) > 1:
        names |= {*record.superseded, *record.reverted}
    return Governing(max(valid, key=lambda each: each[0])[1], frozenset(names))


def _judge_phase(before: Rollout | None, after: Rollout | None) -> None:
    if before is None or after is None:
        assert after is None or after.phase in (*FORWARD, P.COMPLETE, P.REVERTING, P.FAILED), f"began as {after}"
        return
    if (before.target.version, before.target.mark) != (after.target.version, after.target.mark):
        return
    if before.phase is P.COMPLETE and before.source.version != after.source.version:
        return  # it replaces one more version
    # What is not remembered as taken back was deleted meanwhile: written anew, it may begin.
    back = before.phase is P.REVERTED and before.target.version in before.reverted
    if before.phase in UNDER_WAY or back or before.target.revision == after.target.revision:
        assert after.phase in LEGAL[before.phase], f"{before} -> {after}"
    if before.phase in FORWARD and after.phase in FORWARD and before.target.revision == after.target.revision:
        assert after.step >= before.step, f"{before} -> {after}"


def _judge_loads(service: Service, record: Rollout | None, order: Order) -> None:
    """What was taken back is not tried again."""
    for command in order.commands if record is not None else ():
        if command.key.artifact.service != service:
            continue  # of another service of its group
        taken_back = record.reverted.get(command.key.artifact.version) if record is not None else None
        if command.state is S.LOAD and taken_back == command.template is not None and record is not None:
            assert command.template == record.source.digest, f"{command} again"


def slices_of(world: World, service: Service, names: Iterable[str]) -> dict[SliceKey, SlicePut]:
    """What the manager's mirror shows of these versions, without nodes that are dead or only known by hearsay."""
    nodes = world.topology.nodes
    hearsay = {node for node, each in nodes.items() if not isinstance(each, Registered) and each.hearsay}
    return {
        key: put
        for name in names
        for key, put in world.manager.cluster.group(service.version(name)).slices.items()
        if key.node in nodes and key.node not in hearsay
    }


def is_registered(world: World, node: NodeId) -> bool:
    """Whether the node is there, as far as the manager knows."""
    presence = world.topology.nodes.get(node)
    return isinstance(presence, Registered) and presence.registration.hosts


def drains(world: World, node: NodeId) -> bool:
    """Whether the node is to be emptied."""
    return is_registered(world, node) and world.topology.schedule(node) is Schedule.DRAIN


def healthy(world: World, put: SlicePut, min_healthy: float) -> bool:
    """Whether an instance is healthy, as far as the manager's mirror shows it."""
    return put.value.state is S.ACTIVE and is_registered(world, put.key.node) and put.at + min_healthy <= world.now


def has_room(world: World, order: Order) -> bool:
    """Whether a node takes one more slice once the order, and all before it, are carried out."""
    keys = {key for group in world.manager.cluster.groups.values() for key in group.slices}
    for each in (*world.outbox.orders, order):
        keys.update(command.key for command in each.commands if command.state is S.LOAD)
    for node, presence in world.topology.nodes.items():
        if is_registered(world, node) and world.topology.schedule(node) is Schedule.NORMAL:
            assert isinstance(presence, Registered)
            capacity = presence.registration.capacity
            if capacity is None or sum(key.node == node for key in keys) < capacity:
                return True
    return False


def _exclusive(record: Rollout) -> bool:
    return any(side.template.overrides.stop_after is not None for side in (record.source, record.target))


def _judge_bounds(
    world: World, service: Service, record: Rollout, found: Governing, order: Order, *, over: bool
) -> None:
    blueprint = found.blueprint
    wanted, settings = blueprint.instances, blueprint.rollout
    slices = slices_of(world, service, found.names)
    # A version that is in force beside those of the rollout has instances of its own.
    about = {service.version(name) for name in found.names}
    commands = [command for command in order.commands if command.key.artifact in about]
    loads = {each.key for each in commands if each.state is S.LOAD}
    unloads = {each.key for each in commands if each.state is S.UNLOAD}
    surge = 0 if _exclusive(record) else percent(settings.max_surge, wanted, up=True)
    if settings.kind is RolloutKind.BLUE_GREEN and record.phase is not P.REVERTING and not _exclusive(record):
        surge = max(surge, wanted)
    live = {key for key, put in slices.items() if put.value.state.live}
    after = (live - unloads) | loads
    if loads and not over:
        # What is on a draining node serves until its replacement does, on top of all others.
        leaving = {key for key in after if drains(world, key.node)}
        # One that is given up is replaced, also where the bounds have become narrower since.
        assert len(after) <= max(wanted + surge + len(leaving), len(live)), (
            f"{len(after)} live after {brief(order)}; {wanted} wanted, {surge} more, {len(leaving)} leaving"
        )
    well = {key for key, put in slices.items() if healthy(world, put, blueprint.min_healthy)}
    taken = {key for key in well & unloads if not drains(world, key.node)}
    if taken:
        unavailable = (
            percent(settings.max_unavailable, wanted, up=False)
            if settings.max_unavailable != "auto"
            else int(surge == 0 or not has_room(world, order))
        )
        if isinstance(settings.max_unavailable, str) and settings.max_surge in (0, "0%"):
            unavailable = max(unavailable, 1)
        # At the end of a rollout a surplus goes as it does at rest: what has just come up is as good as any other.
        since = 0.0 if over else blueprint.min_healthy
        remaining = len({key for key, put in slices.items() if healthy(world, put, since)} - unloads)
        assert remaining >= wanted - unavailable, (
            f"{len(well)} healthy, {remaining} after {brief(order)}; {wanted} wanted, {unavailable} may be unavailable"
        )


class Expected(NamedTuple):
    """What there is to be of a version at rest."""

    instances: int
    digest: str | None
    """Of the template; None: no matter which."""


def expected(world: World, service: Service, record: Rollout | None) -> dict[Artifact, Expected] | None:
    """What the blueprints and the record of a rollout that is over say; None: it is not over."""
    if record is not None and record.phase in UNDER_WAY:
        return None
    found = _kept(world, service, record)
    for artifact in world.blueprints:
        blueprint, revision = blueprint_of(world, artifact)
        if artifact.service != service or blueprint is None:
            continue
        one = _expected(world, artifact, blueprint, revision, record)
        if one is not None:
            found[artifact] = one
    return found


def _kept(world: World, service: Service, record: Rollout | None) -> dict[Artifact, Expected]:
    """What was gone back to stays, also without a blueprint of its own, while what was taken back has one."""
    if record is None or record.phase is not P.REVERTED or record.source.version == record.target.version:
        return {}
    new, _ = blueprint_of(world, service.version(record.target.version))
    if new is None or record.reverted.get(record.target.version) != template_of(new).digest:
        return {}
    return {service.version(record.source.version): Expected(new.instances, record.source.digest)}


def _expected(
    world: World, artifact: Artifact, blueprint: Blueprint, revision: int, record: Rollout | None
) -> Expected | None:
    """What a blueprint comes to; None: it is a version that was aborted before it began, which scenarios check."""
    name, digest = artifact.version, template_of(blueprint).digest
    if record is not None:
        if record.superseded.get(name) == revision:
            return Expected(0, None)
        if record.phase is P.REVERTED and record.source.version == name:
            other = governing(world, artifact.service, record)
            instances = other.blueprint.instances if other else blueprint.instances
            # Neither what was taken back nor what came with an abort takes the place of what was gone back to.
            stays = record.reverted.get(name) == digest or blueprint.rollout.abort
            return Expected(instances, record.source.digest if stays else digest)
        if record.reverted.get(name) == digest:
            return Expected(0, None)
        if blueprint.rollout.abort and record.phase is P.COMPLETE and record.target.version == name:
            # While it had no instances it may have been given another template, which no rollout brought.
            return Expected(blueprint.instances, None)
    return None if blueprint.rollout.abort else Expected(blueprint.instances, digest)
