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
    total = sum(share.health.live + share.health.lingering for share in shares)
    room = max(bounds.most - total, 0)
    spare_healthy = max(sum(share.health.healthy for share in shares) - bounds.fewest, 0)
    spare_active = max(sum(share.health.active for share in shares) - bounds.fewest, 0)
    found: list[int] = []
    for goal, health in shares:
        surplus = health.live - goal
        if surplus <= 0:
            grown = min(room, -surplus)
            room -= grown
            found.append(health.live + grown)
            continue
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
