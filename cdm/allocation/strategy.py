"""Strategies: the order among nodes that fit, and that are equal by spread and preferences.

A strategy is a small pure thing. It knows nothing of rules, balance or time: it says what makes one node better than
another. Where it sees no difference, the node with the fewest instances of the artifact comes first, then the one with
the fewest slices, then the next in turn.
"""

from __future__ import annotations

from math import floor
from typing import Protocol

from cdm.allocation.site import Site
from cdm.model.artifact import Artifact
from cdm.model.rules import ROUND_ROBIN

GROUP = "cdm.strategies"
"""The entry points that name strategies: each is a class, or a function without arguments, that makes one."""
LOAD_STEPS = 4
"""Steps of load between an idle node and one that has as much to do as it can; within a step nodes are equal."""
COST = "cost"
"""The label that `Cheapest` goes by: a number."""

Rank = float | tuple[float, ...]
"""Where a node stands; the lowest comes first. One strategy's ranks are all of one kind."""


class AllocationStrategy(Protocol):
    """What a strategy is."""

    @property
    def name(self) -> str:
        """What blueprints call it."""
        ...

    def rank(self, artifact: Artifact, site: Site, count: int) -> Rank:
        """Where a node stands that fits; the lowest comes first.

        Asked once for every node of a decision, and again for a node after each instance that it was given. When
        instances are to go, the one with the highest rank gives first.

        Args:
            artifact: what is placed.
            site: the node, as it was before the decision.
            count: instances of the artifact that it has, or was just given.
        """
        ...


class RoundRobin:
    """The same number of instances on every node."""

    name = ROUND_ROBIN

    def rank(self, artifact: Artifact, site: Site, count: int) -> Rank:
        """Fewest instances first."""
        return count


class Pack:
    """Fills one node before the next, so that others stay free."""

    name = "pack"

    def rank(self, artifact: Artifact, site: Site, count: int) -> Rank:
        """The fullest first: by what is scarcest on it, then by its slices, then by instances."""
        full = [0.0]
        if site.capacity:
            full.append(site.total / site.capacity)
        if site.cpu:
            full.append(site.cpu_reserved / site.cpu)
        if site.memory:
            full.append(site.memory_reserved / site.memory)
        return -max(full), -site.total, -count


class LeastLoaded:
    """The idlest node first, by the load that nodes tell of."""

    name = "least-loaded"

    def rank(self, artifact: Artifact, site: Site, count: int) -> Rank:
        """A step of load weighs as much as an instance, so that one decision does not put all on one node."""
        return count + (floor(site.load * LOAD_STEPS) if site.load is not None else LOAD_STEPS)


class Cheapest:
    """The cheapest node first, by its label ``cost``."""

    name = "cheapest"

    def rank(self, artifact: Artifact, site: Site, count: int) -> Rank:
        """Nodes without a cost, or with one that is no number, come last."""
        try:
            cost = float(site.labels.get(COST, "inf"))
        except ValueError:
            return float("inf")
        return cost if cost == cost else float("inf")  # noqa: PLR0124  # not a number


EVEN = RoundRobin()
SHIPPED: dict[str, AllocationStrategy] = {each.name: each for each in (EVEN, Pack(), LeastLoaded(), Cheapest())}
