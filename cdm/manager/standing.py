"""How a slice stands, judged by its state and its node alone: the first half of a decision. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from enum import StrEnum, unique
from math import inf

from msgspec import Struct

from cdm.allocation.evenly import Ranking
from cdm.allocation.sites import Sites
from cdm.manager.group import Group, SlicePut
from cdm.manager.policy import Policy
from cdm.model.artifact import Artifact, NodeId, Service
from cdm.model.keys import SliceKey
from cdm.model.node import HEARING_PACE
from cdm.model.slice import SliceState

MAY_RUN = frozenset(
    {
        SliceState.ACTIVATE,  # the node may have begun, and its report be on its way
        SliceState.ACTIVATING,
        SliceState.ACTIVE,
        SliceState.DEACTIVATE,
        SliceState.DEACTIVATING,
        SliceState.UNLOAD,
        SliceState.UNLOADING,
    }
)
"""States in which something of the slice may run on its node."""

CATCH_UP = 10.0
"""Seconds that a node has, once it can be heard, for telling what its slices did while it could not: only from then on
does its silence about one say anything. More where there are so many nodes that they hear one after the other."""

NEVER_RAN = frozenset({SliceState.LOAD, SliceState.LOADING, SliceState.LOADED})
"""States of slices that were never told to run."""


class LiveNode(Struct, frozen=True):
    """A node that is not dead, as reconciliation sees it."""

    node: NodeId
    open: bool
    """Takes new slices."""
    draining: bool
    """Is to be emptied."""
    capacity: int | None = None
    """Most slices that it takes; None: no limit."""
    registered: bool = True
    """False: it is missing, and may come back."""
    forced: bool = False
    """Is to be emptied at once, be there replacements or not."""
    since: float = -inf
    """When it was heard first, in seconds on this node's clock, of what was heard without a gap."""


class Fleet(Struct, frozen=True):
    """The nodes at the time of a decision."""

    nodes: Mapping[NodeId, LiveNode]
    """Every node that is not dead."""
    total: Callable[[NodeId], int]
    """How many slices of all artifacts are on a node, commanded ones included."""
    lost: Mapping[NodeId, float] = {}
    """Nodes that died without a word, and when they were last heard, in seconds on this node's clock."""
    ranking: Ranking | None = None
    """The open nodes that have room, in order; None: they are put in order where that is needed."""
    settling: bool = False
    """Nothing is placed yet: nodes are waited for."""
    sites: Callable[[], Sites] = Sites
    """The nodes as rules see them."""
    of_service: Callable[[Service], Mapping[NodeId, int]] = lambda _: {}
    """How many instances of a service are on each node, or are about to be."""
    leaving: Callable[[Service], Mapping[NodeId, int]] = lambda _: {}
    """How many instances of a service are being stopped on each node, and may still serve."""
    others_of: Callable[[Iterable[Artifact], Container[SliceKey]], Iterable[NodeId]] = lambda _artifacts, _own: ()
    """The nodes of all slices of artifacts but these, whatever their state, each as often as it has some."""

    promised: Callable[[Container[SliceKey]], int] = lambda _own: 0
    """How many places are meant for what is being stopped on draining nodes, since it must not run twice, but for
    these slices."""

    connected_since: float = -inf
    """Since when this node has had a connection, in seconds on its clock; inf: it has none, and hears nobody."""

    def silent_from(self, node: LiveNode) -> float:
        """From when on it says something that a node is silent about a slice; inf: it does not before it is back."""
        catch_up = max(CATCH_UP, 2 * HEARING_PACE * len(self.nodes))
        return max(node.since, self.connected_since) + catch_up if node.registered else inf

    def has_room(self) -> bool:
        """Whether any node takes one more slice now."""
        return not self.settling and any(
            node.open and (node.capacity is None or self.total(name) < node.capacity)
            for name, node in self.nodes.items()
        )


@unique
class Standing(StrEnum):
    """What a slice means for its artifact. Every slice has exactly one."""

    LIVE = "live"
    """It counts towards the wanted instances, and may stay."""
    AWAITED = "awaited"
    """Its node is missing, and may come back: it is not replaced yet, and nothing else is removed for it."""
    DRAINING = "draining"
    """It serves until its replacement is healthy: its node is to be emptied."""
    EVACUATED = "evacuated"
    """It goes before another one comes: it must not run twice, and there is a place for its replacement; or it has
    failed on a node that is to be emptied; or its node is to be empty by now, be there a replacement or not."""
    MISPLACED = "misplaced"
    """One is wanted on each of certain nodes, and this is on none of them, or beside another: it goes."""
    MOVING = "moving"
    """It serves until its replacement is healthy: it is better placed elsewhere."""
    STUCK = "stuck"
    """It missed its deadline on the way up: it is unloaded, and replaced."""
    FAILED = "failed"
    """It failed, and is tried again when that is due."""
    UNLOAD_FAILED = "unload failed"
    """It failed while it was being unloaded, and is unloaded again when that is due."""
    LEAVING = "leaving"
    """It is being unloaded; one that must not run twice is waited for, however long that takes."""
    UNANSWERED = "unanswered"
    """Its node does not answer UNLOAD. The node gives up what is not its own when it looks at its keys again."""
    UNHEARD = "unheard"
    """Its node is lost; it must not run twice, and may still run there."""
    GONE = "gone"
    """Its node is dead, and nothing of it can still run."""

    # The members are keys of dictionaries on the hot path, where Enum's own hash costs a Python call.
    __hash__ = str.__hash__


Standings = Mapping[Standing, list[SlicePut]]

_NONE: Standings = {standing: [] for standing in Standing}
"""How the slices of an artifact stand that has none; never changed."""

# On the hot path: before Python 3.12, looking a member up on its class takes ten times as long.
_LIVE, _ACTIVE, _FAILED = Standing.LIVE, SliceState.ACTIVE, SliceState.FAILED


def runs_unheard_for(put: SlicePut) -> float:
    """Seconds for which an exclusive slice may run though its node is not heard; 0 for slices that may run twice."""
    overrides = put.value.overrides
    return (overrides.gone_after or 0.0) if overrides is not None else 0.0


def exclusive(put: SlicePut) -> bool:
    """Whether something of the slice may run, and must not run twice."""
    return put.value.state in MAY_RUN and runs_unheard_for(put) > 0


def gone_at(put: SlicePut, fleet: Fleet) -> float:
    """When nothing of a slice can run any more on a node that is not live, in seconds on this node's clock."""
    heard = fleet.lost.get(put.key.node)
    return heard + runs_unheard_for(put) if heard is not None and exclusive(put) else -inf


def due_at(put: SlicePut, node: LiveNode, fleet: Fleet, policy: Policy) -> float:
    """When a slice has missed its deadline, in seconds on this node's clock; inf: by waiting it will not have.

    An outage may be longer than the deadline: what its node could not tell in time is not held against the slice.
    """
    deadline = policy.deadline(put)
    return inf if deadline is None else max(deadline, fleet.silent_from(node))


def standing_of(
    put: SlicePut, failed_unloading: Container[SliceKey], fleet: Fleet, policy: Policy, now: float
) -> Standing:
    """Classify one slice.

    Args:
        put: the slice.
        failed_unloading: the slices that failed while they were being unloaded.
        fleet: the nodes.
        policy: deadlines.
        now: seconds on the clock that ``put.at`` is on.
    """
    key, state = put.key, put.value.state
    node = fleet.nodes.get(key.node)
    if node is None:
        return Standing.UNHEARD if gone_at(put, fleet) > now else Standing.GONE
    if state is _FAILED:
        if key in failed_unloading:
            return Standing.UNLOAD_FAILED
        return Standing.EVACUATED if node.draining else Standing.FAILED  # nothing of it serves: it is in nobody's way
    overdue = due_at(put, node, fleet, policy) <= now
    if not state.live:
        return Standing.UNANSWERED if overdue and not exclusive(put) else Standing.LEAVING
    if overdue:
        return Standing.STUCK
    if not node.registered:
        return Standing.AWAITED
    if node.draining:
        return Standing.EVACUATED if node.forced else Standing.DRAINING
    return _LIVE


def sort(group: Group, fleet: Fleet, policy: Policy, now: float) -> Standings:
    """All slices of an artifact by how they stand; every standing has a list."""
    if not group.slices:
        return _NONE
    found: dict[Standing, list[SlicePut]] = {standing: [] for standing in Standing}
    live, nodes = found[_LIVE], fleet.nodes
    for put in group.slices.values():
        if put.value.state is _ACTIVE:  # nearly all are, and a blueprint may have one on every node
            node = nodes.get(put.key.node)
            if node is not None and node.registered and not node.draining:
                live.append(put)
                continue
        found[standing_of(put, group.failed_unloading, fleet, policy, now)].append(put)
    return found


def lingering(standings: Standings) -> list[SlicePut]:
    """Slices that are to stop, or whose node is lost, and that must not run twice and may still run."""
    return [
        put
        for standing in _TO_STOP
        for put in standings[standing]
        if put.value.state not in NEVER_RAN and runs_unheard_for(put) > 0
    ]


_TO_STOP = (
    Standing.EVACUATED,
    Standing.MISPLACED,
    Standing.STUCK,
    Standing.UNLOAD_FAILED,
    Standing.LEAVING,
    Standing.UNHEARD,
)
