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


def decide(restart: Restart, failures: int, uptime: float, *, clean: bool) -> Again | GiveUp:
    """What to do about a program that ended by itself, or was stopped because its liveness check failed.

    Args:
        restart: the manifest's.
        failures: how many starts in a row failed before.
        uptime: how long it ran, in seconds.
        clean: whether its exit status was 0.
    """
    if restart.policy is RestartPolicy.NEVER:
        return GiveUp("not started again on this node (restart.policy never)")
    if restart.policy is RestartPolicy.ON_FAILURE and clean:
        return GiveUp("not started again on this node (restart.policy on-failure)")
    if uptime >= restart.stable:
        failures = 0
    if failures >= restart.attempts:
        times = "once" if failures == 1 else f"{failures} times"
        return GiveUp(
            f"it was started again {times}" if failures else "not started again on this node (restart.attempts 0)"
        )
    # 2.0**failures would overflow for the most attempts that can be asked for.
    return Again(min(restart.backoff * 2.0 ** min(failures, 64), restart.longest), failures + 1)
