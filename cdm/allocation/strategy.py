"""Strategies: the order among nodes that fit, and that are equal by spread and preferences.

A strategy is a small pure thing. It knows nothing of rules, balance or time: it says what makes one node better than
another. Where it sees no difference, the node with the fewest instances of the artifact comes first, then the one with
the fewest slices, then the next in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import floor, isnan
from typing import Protocol, TypeVar

from cdm.allocation.site import Site
from cdm.errors import CdmError, UsageError
from cdm.log import Log
from cdm.model.artifact import Artifact
from cdm.model.rules import ROUND_ROBIN

log = Log("cdm.strategies")

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


def strategy_named(name: str) -> AllocationStrategy:
    """The strategy of this name; one of the user's own is made once, and what it says is checked.

    Raises:
        UsageError: none is installed, or it cannot be made.
    """
    found = SHIPPED.get(name) or _installed(name)
    if isinstance(found, str):
        raise UsageError(found)
    return found


def problem_of(name: str) -> str:
    """What keeps decisions of this process from going by the strategy of this name, for people; empty: nothing.

    Of one that failed that is told for as long as the process lives: it is made once, and will fail again.
    """
    found = SHIPPED.get(name) or _installed(name)
    if isinstance(found, str):
        return f"{found}; round-robin instead"
    failed = _told.get(name)
    return f"strategy {name!r} failed, and it was round-robin instead: {failed}" if failed else ""


@cache
def _installed(name: str) -> AllocationStrategy | str:
    """A user's own strategy, or what is wrong; looked for once, for that reads what is installed."""
    from importlib.metadata import entry_points  # noqa: PLC0415  # takes 20 ms, which others need not wait for

    found = {each.name: each for each in entry_points(group=GROUP)}
    if name not in found:
        known = ", ".join(sorted({*found, *SHIPPED}))
        return f"there is no strategy {name!r} (installed: {known})"
    try:
        return Checked(name, found[name].load()())
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a user's own does
        return f"strategy {name!r} cannot be made: {type(error).__name__}: {error}"


class Checked:
    """A user's own strategy, which must not be able to break a leader.

    Raises:
        StrategyFailed: it raised, or said what is no rank. The decision is then made as `RoundRobin` would.
    """

    def __init__(self, name: str, made: AllocationStrategy) -> None:
        self.name = name
        self._made = made

    def rank(self, artifact: Artifact, site: Site, count: int) -> Rank:
        """What the strategy says, if it can be compared."""
        try:
            found = self._made.rank(artifact, site, count)
            numbers = found if isinstance(found, tuple) else (found,)
            # A whole number may be too large to be compared with others as a float.
            if all(isinstance(each, int | float) and not isnan(each) for each in numbers):
                return found
            said = str(found)[:100]
        except (Exception, SystemExit) as error:
            raise StrategyFailed(f"{type(error).__name__}: {error}") from error
        raise StrategyFailed(f"{said!r} is no number, and no tuple of numbers")


class StrategyFailed(CdmError):
    """A strategy raised, or said what cannot be compared."""


Said = TypeVar("Said")


def by_strategy(strategy: AllocationStrategy, decide: Callable[[AllocationStrategy], Said]) -> Said:
    """Decide with a strategy; where it fails, with `RoundRobin`, which is logged once for each reason."""
    if strategy is EVEN:
        return decide(strategy)
    try:
        return decide(strategy)
    except (StrategyFailed, TypeError) as error:  # ranks of two kinds do not compare
        if _told.get(strategy.name) != str(error):
            _told[strategy.name] = str(error)
            log.warning("strategy failed; round-robin instead", strategy=strategy.name, reason=str(error))
        return decide(EVEN)


_told: dict[str, str] = {}
"""What was logged last of each strategy."""
