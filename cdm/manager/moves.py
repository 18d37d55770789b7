"""Healthy instances that are moved: off nodes that a hard rule forbids them by now, and for the sake of balance.

A move is made as a rollout would: an instance is placed where the rules want one, and once it is healthy the other one
goes. Of an artifact one instance is moved at a time, and only while all of its instances are healthy. That is kept in
memory alone: the next leader finds one instance too many, takes away the one that fares worst, and looks anew.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from cdm.allocation.moving import HARD_RULE
from cdm.manager.choosing import better_placed
from cdm.manager.situation import Situation
from cdm.manager.standing import Standing
from cdm.manager.wanted import Move
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.rules import OnViolation, Rebalance
from cdm.model.slice import SliceState

MOST_MOVES = 20
"""Most instances that are moved at a time, of all artifacts together."""
UP_FOR = 60.0
"""Seconds that a node must have been up before instances are moved to it because it joined."""
LOOKED_AT = 5
"""So many of the instances that are better placed elsewhere are looked at for one that may be moved now."""


class Moves:
    """The moves of one leadership.

    Args:
        up_since: since when a node has been registered, in seconds on this node's clock.
        touch: called with an artifact whose turn to move instances it may be.
    """

    def __init__(self, up_since: Callable[[NodeId], float], touch: Callable[[Artifact], None]) -> None:
        self._up_since = up_since
        self._touch = touch
        self._under_way: dict[Artifact, Move] = {}
        self._queue: dict[Artifact, None] = {}
        self._balanced: dict[Artifact, str] = {}
        """What was asked for by ``rebalanced``, and is done."""

    def wants(self, artifact: Artifact, blueprint: Blueprint | None, done: str | None) -> bool:
        """Whether any instance may have to be moved.

        Args:
            artifact: which one.
            blueprint: in force.
            done: the rebalancing that was asked for last and is known to be done.
        """
        if artifact in self._under_way:
            return True
        return blueprint is not None and (
            blueprint.on_violation is OnViolation.MOVE
            or blueprint.rebalance is Rebalance.ON_JOIN
            or self._is_asked_for(artifact, blueprint, done)
        )

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
        move = self._under_way.get(artifact)
        if move is not None:
            if any(put.key == move.key for put in at.standings[Standing.LIVE]):
                return move, inf
            self.end(artifact)
        if (healthy_at := _healthy_at(at)) > at.now:
            return None, healthy_at
        move, again_at = self._found(at, blueprint, done)
        if move is None:
            if again_at == inf and blueprint.rebalanced is not None:
                self._balanced[artifact] = blueprint.rebalanced
            return None, again_at
        if len(self._under_way) >= MOST_MOVES:
            self._queue[artifact] = None
            return None, inf
        self._under_way[artifact] = move
        return move, inf

    def forget(self, artifact: Artifact) -> None:
        """Nothing is to be moved of the artifact, and nothing was asked for."""
        if self._under_way or self._balanced:
            self.end(artifact)
            self._balanced.pop(artifact, None)

    def end(self, artifact: Artifact) -> None:
        """The artifact's move is over, or cannot be made: it is another one's turn."""
        if self._under_way.pop(artifact, None) is not None and self._queue:
            waiting = next(iter(self._queue))
            del self._queue[waiting]
            self._touch(waiting)

    def _found(self, at: Situation, blueprint: Blueprint, done: str | None) -> tuple[Move | None, float]:
        asked = self._is_asked_for(at.artifact, blueprint, done)
        balances = asked or blueprint.rebalance is Rebalance.ON_JOIN
        again_at = inf
        for each in better_placed(at, LOOKED_AT):
            forbidden = each.why == HARD_RULE
            if (forbidden and not asked and blueprint.on_violation is OnViolation.STAY) or not (forbidden or balances):
                continue
            up_at = -inf if asked or forbidden else self._up_since(each.to) + UP_FOR
            if up_at <= at.now:
                return Move(each.slice, f"moved off {each.slice.node}, for {each.why}"), inf
            again_at = min(again_at, up_at)
        return None, again_at


def _healthy_at(at: Situation) -> float:
    """When all instances that are wanted are healthy, and no others are there; inf: not by waiting alone."""
    others = any(puts for standing, puts in at.standings.items() if standing is not Standing.LIVE)
    live = at.standings[Standing.LIVE]
    if others or not live or len(live) != at.wanted.instances:
        return inf
    if any(put.value.state is not SliceState.ACTIVE for put in live):
        return inf
    return max(put.at for put in live) + at.wanted.min_healthy
