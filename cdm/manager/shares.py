"""How many instances each side of a rollout is to have now, within the bounds of the rollout. Pure.

Each side has a goal. Sides below theirs grow while there is room for more instances in all; sides above theirs shrink
while enough healthy ones remain. Both are decided from what is there, so it does not matter what happened before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cdm.manager.health import SideHealth


class Share(NamedTuple):
    """One side: what it is to have in the end, and what it has."""

    goal: int
    health: SideHealth


class Bounds(NamedTuple):
    """Of all sides together."""

    most: int
    """Most live instances."""
    fewest: int
    """Fewest healthy instances, as far as there are so many now."""


def targets(shares: Sequence[Share], bounds: Bounds) -> list[int]:
    """How many live instances each side is to have now.

    Args:
        shares: the sides; earlier ones shrink first, and grow first.
        bounds: of all of them.
    """
    grown, lost = _grown(shares, bounds.most)
    # What is on a node that is being emptied is not relied on, where it goes before anything replaces it.
    spare_healthy = max(sum(share.health.healthy for share in shares) - lost - bounds.fewest, 0)
    spare_active = max(sum(share.health.active for share in shares) - lost - bounds.fewest, 0)
    found: list[int] = []
    for (goal, health), count in zip(shares, grown, strict=True):
        if count is not None:
            found.append(count)
            continue
        surplus = health.live - goal
        # Those that do not serve go first, then those that have not served for long, then the healthy ones.
        idle = min(surplus, health.live - health.active)
        young = min(surplus - idle, health.active - health.healthy, spare_active)
        healthy = min(surplus - idle - young, health.healthy, spare_healthy, spare_active - young)
        if young < min(surplus - idle, health.active - health.healthy):
            healthy = 0  # reconciliation removes the young ones before it removes healthy ones
        spare_active -= young + healthy
        spare_healthy -= healthy
        found.append(health.live - idle - young - healthy)
    return found


def _grown(shares: Sequence[Share], most: int) -> tuple[list[int | None], int]:
    """How many each side that is not above its goal is to have; and how many instances that leave are not replaced.

    What is on nodes that are being emptied serves on top of all others until it is replaced. It does not count beside
    its replacements: each of these would be taken for one more that is to be replaced.
    """
    grows = [health.live <= goal for goal, health in shares]
    room = most - sum(
        health.live + health.lingering - (health.draining if growing else 0)
        for (_, health), growing in zip(shares, grows, strict=True)
    )
    found: list[int | None] = []
    lost = 0
    for (goal, health), growing in zip(shares, grows, strict=True):
        staying = health.live - health.draining
        more = min(max(room, 0), goal - staying)
        if growing:
            room -= more
            lost += max(health.draining - more, 0)
        found.append(staying + more if growing else None)
    return found, lost
