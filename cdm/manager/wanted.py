"""What reconciliation is to make of an artifact's slices: how many, and started with what. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from cdm.manager.cluster import Desired
from cdm.manager.group import Group
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import MIN_HEALTHY, Blueprint, Overrides
from cdm.model.keys import SliceKey
from cdm.model.record import Side
from cdm.model.rules import GIVES_SECRETS, NO_RULES, Needs, Rules


class Move(NamedTuple):
    """An instance that is to be elsewhere."""

    key: SliceKey
    reason: str
    to: NodeId
    """Where the one that replaces it is placed, and nowhere else."""
    goes_first: bool = False
    """It must not run twice: it is gone before the other one is placed."""


class Wanted(Struct, frozen=True):
    """What is wanted of one artifact, or of one template of it."""

    instances: int | None = 0
    """None: nobody knows, since no blueprint was ever valid."""
    revision: int = 0
    """Of the blueprint that says so; 0: none does."""
    overrides: Overrides | None = None
    template: str | None = None
    """Its digest."""
    content: str | None = None
    """Digest of the artifact's content, where it is known."""
    drain_delay: float | None = None
    """Seconds for which an instance that is taken away in good order goes on serving; None: nobody said, or it is
    not known any more."""
    min_healthy: float = MIN_HEALTHY
    """Seconds after which an ACTIVE instance counts as healthy."""
    grows: bool = True
    """Whether instances that are missing are placed, and those that are LOADED are activated."""
    rules: Rules = NO_RULES
    """Where they go."""
    nodes: frozenset[NodeId] | None = None
    """Where one instance is wanted each, and no other; None: wherever the rules let them be."""
    beside: frozenset[Artifact] = frozenset()
    """Of a rollout under way: its versions, whose instances count together for the most that a node has."""
    moving: Move | None = None
    """Which instance is to be moved."""
    held: frozenset[SliceKey] = frozenset()
    """LOADED slices that are not to be activated yet: another one has their port."""
    waits_for: tuple[str, ...] = ()
    """Services that are to have a healthy instance before anything more is activated, and have none."""
    outlives: tuple[str, ...] = ()
    """Services that need this one, and are to stop before it does."""


NOTHING_WANTED = Wanted()
"""What is wanted of an artifact without a blueprint."""


def wanted_of(desired: Desired | None, content: str | None = None, *, drain_delay: float | None = None) -> Wanted:
    """What a blueprint wants.

    Args:
        desired: what is known of it; None: there is none.
        content: digest of the artifact's content; None: not known.
        drain_delay: what it said of that before it was deleted; None: not known.
    """
    if desired is None:
        return NOTHING_WANTED if drain_delay is None else Wanted(drain_delay=drain_delay)
    blueprint = desired.blueprint
    if blueprint is None:
        return Wanted(desired.instances)
    return Wanted(
        blueprint.instances,
        desired.in_force,
        blueprint.overrides,
        desired.template.digest,
        content,
        blueprint.drain_delay,
        blueprint.min_healthy,
        True,
        rules_of(blueprint),
        desired.nodes,
    )


def rules_of(blueprint: Blueprint) -> Rules:
    """Where the instances of a blueprint go, all told."""
    if blueprint.rules is NO_RULES and blueprint.overrides is None and not blueprint.each:
        return NO_RULES  # as of most blueprints
    rules = _with_secrets(blueprint.rules, blueprint.overrides)
    return replace(rules, max_per_node=1) if blueprint.each else rules


def side_of(version: str, desired: Desired | None, content: str | None) -> Side | None:
    """What a blueprint says an instance is to be; None: none that is valid says so."""
    if desired is None or desired.blueprint is None:
        return None
    template = desired.template
    return Side(version, desired.in_force, template, content, template.digest)


def wanted_of_side(
    wanted: Wanted, side: Side, instances: int, *, grows: bool = True, beside: Collection[Artifact] = ()
) -> Wanted:
    """The same blueprint's wishes for instances of another template or version."""
    overrides = side.template.overrides
    return Wanted(
        instances,
        side.revision,
        None if overrides == Overrides() else overrides,
        side.digest,
        side.content,
        wanted.drain_delay,
        wanted.min_healthy,
        grows=grows,
        rules=_with_secrets(_with_needs(wanted.rules, side.template.needs), overrides),
        nodes=wanted.nodes,
        beside=frozenset(beside),
    )


def _with_needs(rules: Rules, needs: Needs | None) -> Rules:
    """The same rules for instances that reserve something else."""
    if rules.needs == needs:
        return rules
    changed = replace(rules, needs=needs)
    return NO_RULES if changed == NO_RULES else changed


def _with_secrets(rules: Rules, overrides: Overrides | None) -> Rules:
    """The same rules for instances that are given these variables: secrets only where the node gives them."""
    needed = overrides is not None and overrides.has_secrets
    if needed is (GIVES_SECRETS in rules.require):
        return rules
    require = tuple(each for each in rules.require if each != GIVES_SECRETS)
    changed = replace(rules, require=(*require, GIVES_SECRETS) if needed else require)
    return NO_RULES if changed == NO_RULES else changed


def is_other(template: str | None, content: str | None, wanted: Wanted) -> bool:
    """Whether what was started with these (digests) is known to be something else than is wanted."""
    if template not in (None, wanted.template):
        return True
    return content is not None and wanted.content is not None and content != wanted.content


def is_outdated(group: Group, wanted: Wanted) -> bool:
    """Whether any slice is known to have been started with something else."""
    if not group.builds:
        return False  # there are none: nothing is gone through
    return any(is_other(template, content, wanted) for template, content in group.builds)
