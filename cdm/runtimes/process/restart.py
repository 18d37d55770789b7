"""Whether a program that ended is started again here, and when. Pure: tested on invented times."""

from __future__ import annotations

from typing import NamedTuple

from cdm.model.manifest import Restart, RestartPolicy


class Again(NamedTuple):
    """Start it again."""

    delay: float
    """Seconds from now."""
    failures: int
    """Starts in a row that count as failed, this one included."""


class GiveUp(NamedTuple):
    """Report it."""

    why: str


def decide(restart: Restart, failures: int, uptime: float, *, clean: bool) -> Again | GiveUp:
    """What to do about a program that ended by itself, or was stopped because it was not alive.

    Args:
        restart: the manifest's.
        failures: starts in a row that have failed before.
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
            f"it was started again {times}" if failures else "it is to be started only once (restart.attempts 0)"
        )
    # 2.0**failures would overflow for the most attempts that can be asked for.
    return Again(min(restart.backoff * 2.0 ** min(failures, 64), restart.longest), failures + 1)
