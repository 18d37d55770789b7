"""Which instances the leader would move if it were asked to put them where they are placed best. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from cdm.allocation.moving import Relocation
from cdm.manager.choosing import better_placed, named, violations
from cdm.manager.onlooker import Onlooker
from cdm.manager.situation import Situation
from cdm.manager.standing import Standing
from cdm.model.artifact import Artifact
from cdm.model.keys import SliceKey
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
    stay: Mapping[SliceKey, str] = {}
    """Slices that no node takes, though a hard rule forbids them to be where they are, and which rule."""


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
    return Balancing(artifact, named(at, moves), waits, settled, _stay(at, moves))


def _stay(at: Situation, moves: Sequence[Relocation]) -> dict[SliceKey, str]:
    """The slices that no node takes, though a hard rule forbids them to be where they are, and which."""
    moved = {move.slice for move in moves}
    off = {key.node for key in moved}
    return {
        put.key: obstacle.why
        for node, obstacle in violations(at).items()
        for put in at.standings[Standing.LIVE]
        # Where there are too many, those that are moved are those that are too many.
        if put.key.node == node and put.key not in moved and not (obstacle.of_number and node in off)
    }
