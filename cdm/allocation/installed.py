"""Strategies of users: found by name, checked, and bounded, so that none can break a leader or hold it up.

A decision with one is made in a thread of its own. Where the strategy is at it for too long, the decision is made
without it; the thread ends as soon as the strategy answers, if ever, without having touched anything more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import inf, isnan
from threading import Thread
from time import perf_counter
from typing import TypeVar

from cdm.allocation.site import Site
from cdm.allocation.strategy import EVEN, GROUP, SHIPPED, AllocationStrategy, Rank
from cdm.errors import CdmError, UsageError
from cdm.log import Log
from cdm.model.artifact import Artifact

log = Log("cdm.strategies")

LIMIT = 1.0
"""Seconds that a user's strategy may take for one decision, in all."""
SLOW = 0.1
"""Seconds after which it is logged that it takes long."""
PAUSE = 60.0
"""Seconds for which one that took too long is not asked; and between two lines about one that is slow."""
_LOOK = 0.05
"""Seconds between two looks at how long it has taken."""

Said = TypeVar("Said")


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
        self._late: Thread | None = None
        """A decision that nobody waits for any more, and that may still be at it."""
        self._again_at = 0.0
        self._told_until = 0.0

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

    def decide(self, decide: Callable[[AllocationStrategy], Said]) -> Said:
        """Decide with it, in bounded time.

        Raises:
            StrategyFailed: it took too long, or does not answer since an earlier decision.
        """
        if (self._late is not None and self._late.is_alive()) or perf_counter() < self._again_at:
            raise StrategyFailed(_TOO_LONG)
        asking = _Asking(self)
        said: list[Said] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                said.append(decide(asking))
            except BaseException as error:  # noqa: BLE001  # it is raised where the decision is wanted
                errors.append(error)

        thread = Thread(target=run, name=f"strategy {self.name}", daemon=True)
        thread.start()
        thread.join(_LOOK)
        while thread.is_alive() and asking.spent <= LIMIT:
            thread.join(_LOOK)
        if thread.is_alive():
            asking.in_vain = True
            while thread.is_alive() and not asking.inside:
                thread.join(_LOOK)  # it has not come back to the strategy yet, where it ends
            self._late, self._again_at = thread, perf_counter() + PAUSE
            raise StrategyFailed(_TOO_LONG)
        self._tell_of(asking)
        if errors:
            raise errors[0]
        return said[0]

    def _tell_of(self, asking: _Asking) -> None:
        now = perf_counter()
        if asking.spent > SLOW and now >= self._told_until:
            self._told_until = now + PAUSE
            log.warning("strategy takes long", strategy=self.name, seconds=round(asking.spent, 3), asked=asking.asked)


class _Asking:
    """A user's strategy during one decision: how long it takes is measured, and it may be given up."""

    def __init__(self, checked: Checked) -> None:
        self.name = checked.name
        self.asked = 0
        self.in_vain = False
        """Whether nobody waits for the decision any more: it ends when the strategy is asked next, or answers."""
        self._rank = checked.rank
        self._spent = 0.0
        self._since = inf
        """Since when it has been at an answer; inf: it is not."""

    @property
    def inside(self) -> bool:
        """Whether it is at an answer."""
        return self._since != inf

    @property
    def spent(self) -> float:
        """Seconds that it has taken until now."""
        since = self._since
        return self._spent + (perf_counter() - since if since != inf else 0.0)

    def rank(self, artifact: Artifact, site: Site, count: int) -> Rank:
        """What the strategy says."""
        if self.in_vain:
            raise StrategyFailed(_TOO_LONG)
        self._since = since = perf_counter()
        try:
            found = self._rank(artifact, site, count)
        finally:
            self._spent += perf_counter() - since
            self._since = inf
            self.asked += 1
        if self.in_vain:
            raise StrategyFailed(_TOO_LONG)
        return found


_TOO_LONG = f"it took more than {LIMIT:g} s for one decision, and is asked again after {PAUSE:g} s at the earliest"


class StrategyFailed(CdmError):
    """A strategy raised, took too long, or said what cannot be compared."""


def by_strategy(strategy: AllocationStrategy, decide: Callable[[AllocationStrategy], Said]) -> Said:
    """Decide with a strategy; where it fails, with `RoundRobin`, which is logged once for each reason."""
    if strategy is EVEN:
        return decide(strategy)
    try:
        return strategy.decide(decide) if isinstance(strategy, Checked) else decide(strategy)
    except (StrategyFailed, TypeError) as error:  # ranks of two kinds do not compare
        if _told.get(strategy.name) != str(error):
            _told[strategy.name] = str(error)
            log.warning("strategy failed; round-robin instead", strategy=strategy.name, reason=str(error))
        return decide(EVEN)


_told: dict[str, str] = {}
"""What was logged last of each strategy."""
