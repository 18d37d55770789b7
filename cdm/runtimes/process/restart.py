"""Decides whether a program that ended is started again on this node, and when. Pure."""

from __future__ import annotations

from typing import NamedTuple

from cdm.model.manifest import Restart, RestartPolicy


class Again(NamedTuple):
    """Start it again."""

    delay: float
    """Seconds from now."""
    failures: int
    """How many starts in a row count as failed, the one that just ended included."""


class GiveUp(NamedTuple):
    """Report the slice as failed."""

    why: str


def decide(restart: Restart, before: Again | None, uptime: float, *, clean: bool) -> Again | GiveUp:
    """What to do about a program that ended by itself, or was stopped because its liveness check failed.

    A program that was up for ``restart.stable`` begins the count anew, and is started again at once.

    Args:
        restart: the manifest's.
        before: what was decided when it ended before; None: it did not.
        uptime: for how many seconds it was ready.
        clean: whether its exit status was 0.
    """
    if restart.policy is RestartPolicy.NEVER:
        return GiveUp("not started again on this node (restart.policy never)")
    if restart.policy is RestartPolicy.ON_FAILURE and clean:
        return GiveUp("not started again on this node (restart.policy on-failure)")
    stable = uptime >= restart.stable
    failures = 0 if stable or before is None else before.failures
    if failures >= restart.attempts:
        times = "once" if failures == 1 else f"{failures} times"
        return GiveUp(
            f"it was started again {times}" if failures else "not started again on this node (restart.attempts 0)"
        )
    if stable:
        delay = 0.0
    elif before is None or not before.delay:
        delay = restart.backoff
    else:
        delay = 2 * before.delay
    return Again(min(delay, restart.longest), failures + 1)
