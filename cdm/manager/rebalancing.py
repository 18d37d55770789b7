"""Which instances the leader would move if it were asked to put them where they are placed best. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from cdm.allocation.moving import HARD_RULE, Relocation
from cdm.manager.choosing import better_placed, violations
from cdm.manager.onlooker import Onlooker
from cdm.manager.standing import Standing
from cdm.model.artifact import Artifact
from cdm.model.slice import SliceState

MOST_SHOWN = 10_000
"""Most moves of one artifact that are worked out."""


class Balancing(Struct, frozen=True):
    """What there is to be moved of one artifact."""

    artifact: Artifact
    moves: Sequence[Relocation] = ()
    waits: str = ""
    """Why nothing of it is moved for now; empty: nothing keeps the leader from it."""
    settled: bool = True
    """Whether its blueprint is one to be edited: no rollout is under way, and none is refused."""


def balancing(look: Onlooker, artifact: Artifact) -> Balancing:
    """What there is to be moved of an artifact, as it stands."""
    found = look.lookup(artifact)
    at = found.at
    record = look.cluster.rollouts.get(artifact.service)
    waits = ""
    rolling = record is not None and record.value.phase.under_way
    if rolling:
        waits = "a rollout of its service is under way"
    elif len(at.standings[Standing.LIVE]) != at.wanted.instances or not all(
        put.value.state is SliceState.ACTIVE for put in at.group.slices.values()
    ):
        waits = "not all of its instances are ACTIVE"
    settled = not rolling and found.desired is not None and found.desired.problem is None
    moves = better_placed(at, MOST_SHOWN) if at.wanted.nodes is None else []
    forbidden = violations(at) if any(move.why == HARD_RULE for move in moves) else {}
    named = [
        move._replace(why=f"{HARD_RULE}: {forbidden[move.slice.node]}")
        if move.why == HARD_RULE and move.slice.node in forbidden
        else move
        for move in moves
    ]
    return Balancing(artifact, named, waits, settled)
