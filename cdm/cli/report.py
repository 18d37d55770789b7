"""The cluster as one document, which ``cdm status`` shows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from msgspec import Struct

from cdm.cli.emptying import Emptied, GoneNode
from cdm.manager.endings import kind_of
from cdm.model.artifact import NodeId
from cdm.model.node import Schedule
from cdm.model.record import RolloutPhase
from cdm.model.slice import SliceState
from cdm.model.status import Condition, RolloutStatus

VERSION = 1
"""Version of the document: another one is no longer read by what reads this one. Fields may be added in any."""
_OVER = (RolloutPhase.COMPLETE, RolloutPhase.REVERTED)


class NodeReport(Struct, frozen=True):
    """One registered node."""

    node: NodeId
    role: str
    schedule: Schedule
    runtime: str
    capacity: int | None
    labels: dict[str, str]
    version: str
    started: str
    slices: int
    heard: float
    """Seconds since its registration was last written."""
    cpu: float | None = None
    """Cores that slices may reserve; None: not given."""
    memory: int | None = None
    """Bytes of memory that slices may reserve; None: not given."""
    load: float | None = None
    reserved_cpu: float = 0.0
    """Cores that its slices reserve."""
    reserved_memory: int = 0
    """Bytes that its slices reserve."""
    leaving: bool = False
    """Whether it is about to stop, and waits for its slices to be moved elsewhere."""
    ttl: float | None = None
    """Seconds after which it is given up unless it is heard; None: not given."""
    auto: bool = False
    """Whether its role changes: it was started with the role ``auto``, and ``role`` is the one that it has now."""


class BlueprintReport(Struct, frozen=True):
    """One blueprint: what is desired, what is there, and what the leader says of it."""

    artifact: str
    condition: str
    reason: str
    desired: int
    active: int
    pending: int
    failed: int
    observed_revision: int
    in_force_revision: int
    up_to_date: int | None = None
    """Live instances of the wanted template; None: no leader says."""
    healthy: int | None = None
    outdated: int | None = None
    violations: int = 0
    """Live instances on nodes that a hard rule forbids by now."""
    rollout: RolloutStatus | None = None
    """The rollout that it takes part in, or the last one."""
    restarts: int = 0
    """Starts of its instances' programs since they were loaded, less one each."""
    written: str = ""
    """When its newest revision was stored, RFC 3339."""
    taken_up: bool = True
    """Whether the leader has read that revision."""

    @property
    def told_rollout(self) -> RolloutStatus | None:
        """A rollout that is under way, or failed and stays; told of once, by the version that takes over."""
        rollout, (_, _, version) = self.rollout, self.artifact.rpartition(":")
        if rollout is None or rollout.target != version or rollout.phase in _OVER:
            return None
        return rollout

    @property
    def replaced(self) -> bool:
        """Whether another version serves in its place."""
        return self.condition == Condition.SUPERSEDED or (self.condition == Condition.REVERTED and not self.desired)

    @property
    def past(self) -> bool:
        """Whether there is nothing more to tell of it: it was replaced, and has neither instances nor a rollout."""
        rollout = self.rollout
        told = rollout is not None and (self.condition == Condition.REVERTED or rollout.phase not in _OVER)
        return self.replaced and not (self.active or self.pending or self.failed or told)


class SliceReport(Struct, frozen=True):
    """One slice."""

    key: str
    node: NodeId
    artifact: str
    ordinal: int
    state: str
    term: int
    port: int | None
    reason: str | None
    failures: int
    restarts: int
    """Starts of its program since it was loaded, less one."""
    since: str = ""
    """When its state was written, RFC 3339."""

    @property
    def troubled(self) -> bool:
        """Whether something is wrong with it, or it has a warning."""
        return self.state == SliceState.FAILED or self.reason is not None


class Concern(Struct, frozen=True):
    """Something that is not well."""

    kind: str
    """What it is about: ``leader``, ``blueprint``, ``node``, ``slice``, or ``key`` (one that cannot be read)."""
    name: str
    """Which one; empty: there is only one."""
    what: str
    """What it is, in a word or two: a blueprint's condition, for example."""
    reason: str
    """Why; empty: that says it all."""


class Trouble(NamedTuple):
    """Slices of one artifact that have reasons of the same kind to be in the same state."""

    state: str
    reason: str
    slices: list[SliceReport]


class ClusterReport(Struct, frozen=True, kw_only=True):
    """The whole cluster, or a part of it."""

    version: int = VERSION
    """Of this document's form."""
    leader: NodeId | None
    term: int
    well: bool = True
    """Whether nothing is in trouble."""
    troubles: list[Concern] = []
    """All that is not well."""
    blueprints: list[BlueprintReport]
    nodes: list[NodeReport]
    slices: list[SliceReport]
    draining: list[Emptied] = []
    """The nodes that are being drained, and what is left there."""
    gone: list[GoneNode] = []
    """Nodes that are gone, and not forgotten."""
    notes: list[str]
    """Keys and values that cannot be read, and why; intents for nodes that are not registered; old buckets."""

    @property
    def healthy(self) -> bool:
        """Whether somebody leads."""
        return self.leader is not None


def troubled_slices(slices: Iterable[SliceReport]) -> dict[str, list[Trouble]]:
    """What is wrong with slices, by artifact, what concerns most of them first."""
    found: dict[str, dict[tuple[str, tuple[str, str]], Trouble]] = {}
    for each in slices:
        if each.troubled:
            reason = each.reason or "no reason given"
            alike = found.setdefault(each.artifact, {})
            alike.setdefault((each.state, kind_of(reason)), Trouble(each.state, reason, [])).slices.append(each)
    return {
        artifact: sorted(alike.values(), key=lambda trouble: -len(trouble.slices)) for artifact, alike in found.items()
    }
