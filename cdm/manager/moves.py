"""Healthy instances that are moved: off nodes that a hard rule forbids them by now, and for the sake of balance.

A move is made as a rollout would: an instance is placed where it is wanted, and once it is healthy the other one goes.
Of an artifact one instance is moved at a time, and only while all of its instances are healthy. Where the instance
cannot be placed there, or fails, the move ends, and the other one stays.

For balance there is an occasion: somebody asks for it, or a node has been up for a minute. On each occasion an artifact
has at most as many moves as it has instances, so that two services that are after each other come to rest.

All this is kept in memory alone: the next leader finds one instance too many, takes away the one that fares worst, and
looks anew.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from msgspec import Struct

from cdm.allocation.moving import HARD_RULE, Relocation
from cdm.manager.choosing import better_placed, named
from cdm.manager.situation import Situation
from cdm.manager.standing import Standing, exclusive
from cdm.manager.wanted import Move
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.rules import OnViolation, Rebalance
from cdm.model.slice import SliceState

MOST_MOVES = 20
"""Most instances that are moved at a time, of all artifacts together."""
UP_FOR = 60.0
"""Seconds that a node must have been up before instances are moved to it because it joined."""


class Occasion(Struct):
    """An artifact's moves for balance on one occasion."""

    blueprint: Blueprint
    """The one in force; another one is another occasion."""
    joins: int | None
    """How often nodes had joined; None: the blueprint asks for it."""
    left: int
    """So many moves may still be begun; 0: it is over."""


class Moves:
    """The moves of one leadership.

    Args:
        up_since: since when a node has been registered, in seconds on this node's clock; inf: it is not there.
        touch: called with an artifact whose turn to move instances it may be.
    """

    def __init__(self, up_since: Callable[[NodeId], float], touch: Callable[[Artifact], None]) -> None:
        self._up_since = up_since
        self._touch = touch
        self._under_way: dict[Artifact, Move] = {}
        self._queue: dict[Artifact, None] = {}
        self._occasions: dict[Artifact, Occasion] = {}
        self.stuck: set[Artifact] = set()
        """Artifacts whose instances may be moved off nodes that a hard rule forbids them, where no other takes one."""
        self._balanced: dict[Artifact, str] = {}
        """What was asked for by ``rebalanced``, and is done."""
        self._young: dict[NodeId, float] = {}
        """Nodes that joined, or changed, and when they will have been up for long enough."""
        self._joins = 0
        """How often some have been."""

    def node_changed(self, node: NodeId) -> None:
        """A node joined, left, or is another one than before: it may be better than it was."""
        since = self._up_since(node)
        if since == inf:
            self._young.pop(node, None)
        else:
            self._young[node] = since + UP_FOR

    def under_way(self, artifact: Artifact) -> bool:
        """Whether an instance of it is being moved."""
        return artifact in self._under_way

    def wants(
        self, artifact: Artifact, blueprint: Blueprint, done: str | None, now: float, forbidden: Callable[[], bool]
    ) -> bool:
        """Whether any instance may have to be moved; cheap, where nothing happened that is a reason to.

        Args:
            artifact: which one.
            blueprint: in force.
            done: the rebalancing that was asked for last and is known to be done.
            now: seconds on this node's clock.
            forbidden: whether any instance is where a hard rule forbids it.
        """
        on_join = blueprint.rebalance is Rebalance.ON_JOIN
        if on_join:
            self._grow_up(now)
        if artifact in self._under_way or self._is_asked_for(artifact, blueprint, done):
            return True
        if on_join and self._on_occasion(artifact, blueprint, self._joins, 1).left > 0:
            return True
        if blueprint.on_violation is OnViolation.MOVE and forbidden():
            return True
        self.stuck.discard(artifact)
        return False

    @property
    def grown_at(self) -> float:
        """When the next node will have been up for long enough; inf: by waiting none will."""
        return min(self._young.values(), default=inf)

    def done(self, artifact: Artifact, blueprint: Blueprint, known: str | None) -> str | None:
        """The rebalancing that was asked for last and is done; None: none.

        Args:
            artifact: which one.
            blueprint: in force.
            known: the one that the status tells of.
        """
        asked = blueprint.rebalanced
        if asked is None:
            return None
        return asked if self._balanced.get(artifact) == asked else known

    def _is_asked_for(self, artifact: Artifact, blueprint: Blueprint, done: str | None) -> bool:
        asked = blueprint.rebalanced
        return asked is not None and asked not in (done, self._balanced.get(artifact))

    def next(self, at: Situation, blueprint: Blueprint, done: str | None) -> tuple[Move | None, float]:
        """What is to be moved, and when to look again although nothing happens.

        Args:
            at: the facts of the artifact.
            blueprint: in force.
            done: as for `wants`.
        """
        artifact = at.artifact
        self.stuck.discard(artifact)
        move = self._under_way.get(artifact)
        if move is not None:
            if _goes_on(at, move):
                return move, inf
            self.end(artifact)
        if (healthy_at := _healthy_at(at)) > at.now:
            return None, healthy_at
        asked = self._is_asked_for(artifact, blueprint, done)
        occasion = None
        if asked or blueprint.rebalance is Rebalance.ON_JOIN:
            instances = at.wanted.instances or 0
            occasion = self._on_occasion(artifact, blueprint, None if asked else self._joins, instances)
        found = self._found(at, blueprint, occasion)
        if found is None:
            if asked or blueprint.on_violation is OnViolation.MOVE:
                self.stuck.add(artifact)
            if occasion is not None:
                self._occasions[artifact] = occasion
                occasion.left = 0
            if asked and blueprint.rebalanced is not None:
                self._balanced[artifact] = blueprint.rebalanced
            return None, inf
        if len(self._under_way) >= MOST_MOVES:
            self._queue[artifact] = None
            return None, inf
        if occasion is not None and (found.why != HARD_RULE or blueprint.on_violation is OnViolation.STAY):
            self._occasions[artifact] = occasion
            occasion.left -= 1
        first = exclusive(at.group.slices[found.slice])
        move = Move(found.slice, f"moved off {found.slice.node}, for {named(at, [found])[0].why}", found.to, first)
        self._under_way[artifact] = move
        return move, inf

    def forget(self, artifact: Artifact) -> None:
        """Nothing is to be moved of the artifact, and nothing was asked for."""
        if self._under_way or self._balanced or self._occasions or self.stuck:
            self.end(artifact)
            self.stuck.discard(artifact)
            self._balanced.pop(artifact, None)
            self._occasions.pop(artifact, None)

    def end(self, artifact: Artifact) -> None:
        """The artifact's move is over, or cannot be made: it is another one's turn."""
        if self._under_way.pop(artifact, None) is not None and self._queue:
            waiting = next(iter(self._queue))
            del self._queue[waiting]
            self._touch(waiting)

    def _grow_up(self, now: float) -> None:
        """Count the nodes that have been up for long enough by now."""
        for node in [node for node, at in self._young.items() if at <= now]:
            del self._young[node]
            self._joins += 1

    def _on_occasion(self, artifact: Artifact, blueprint: Blueprint, joins: int | None, instances: int) -> Occasion:
        """What is left of the moves for balance: as many as there are instances, where the occasion is a new one."""
        known = self._occasions.get(artifact)
        if known is not None and known.blueprint is blueprint and known.joins == joins:
            return known
        return Occasion(blueprint, joins, instances)

    def _found(self, at: Situation, blueprint: Blueprint, occasion: Occasion | None) -> Relocation | None:
        """The move that is wanted most of those that may be made."""
        may_balance = occasion is not None and occasion.left > 0
        asked = may_balance and occasion is not None and occasion.joins is None
        off_forbidden = asked or blueprint.on_violation is OnViolation.MOVE
        if not (may_balance or off_forbidden):
            return None
        found = better_placed(at, 1, off_forbidden=off_forbidden)
        if found and found[0].why != HARD_RULE:
            if not may_balance:
                return None
            if self._young and not asked:
                found = better_placed(at, 1, off_forbidden=off_forbidden, avoid=self._young)
        return found[0] if found else None


def _goes_on(at: Situation, move: Move) -> bool:
    """Whether a move that was begun is neither over nor in vain."""
    standings = at.standings
    if standings[Standing.FAILED] or standings[Standing.STUCK] or at.wanted.instances is None:
        return False
    more = len(standings[Standing.LIVE]) + len(standings[Standing.AWAITED]) - at.wanted.instances
    if any(put.key == move.key for put in standings[Standing.LIVE]):
        return more > 0  # the other one is there
    # One that must not run twice goes first, and it is yet to be placed elsewhere.
    return move.goes_first and more < 0


def _healthy_at(at: Situation) -> float:
    """When all instances that are wanted are healthy, and no others are there; inf: not by waiting alone."""
    others = any(puts for standing, puts in at.standings.items() if standing is not Standing.LIVE)
    live = at.standings[Standing.LIVE]
    if others or not live or len(live) != at.wanted.instances:
        return inf
    if any(put.value.state is not SliceState.ACTIVE for put in live):
        return inf
    return max(put.at for put in live) + at.wanted.min_healthy
