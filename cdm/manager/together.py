"""What follows for services of one group: their rollouts go to each next step together, and end and go back together.

One that has fewer steps than another waits with its end for the other's: else it could not go back with it any more.
Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec.structs import replace

from cdm.manager.releases import Release
from cdm.manager.rollouts import MOST_TURNS
from cdm.model.artifact import Service


class Asking(Protocol):
    """Asks what follows for a service."""

    def __call__(self, service: Service, *, steps: int, goes_back: str) -> Release:
        """Arguments as those of `Releases.of`."""


def together(services: Sequence[Service], ask: Asking) -> list[Release]:
    """What follows for services whose rollouts advance together, and go back together."""
    if len(services) == 1:
        return [ask(services[0], steps=MOST_TURNS, goes_back="")]
    releases = [ask(each, steps=0, goes_back="") for each in services]
    if back := next((each for each in releases if each.goes_back), None):
        reason = f"{back.service} of its group goes back: {back.record.reason if back.record else ''}"
        return [each if each.goes_back else ask(each.service, steps=0, goes_back=reason) for each in releases]
    under_way = [each for each in releases if each.decision.courses]
    if busy := [each.service for each in under_way if not each.decision.held]:
        return [_waiting(each, busy) for each in releases]
    ahead = [each.service for each in under_way if not each.decision.ends_next]
    go_on = ahead or services
    return [
        ask(each.service, steps=1, goes_back="") if each.service in go_on else _waiting(each, ahead)
        for each in releases
    ]


def _waiting(release: Release, awaited: Sequence[Service]) -> Release:
    """The same, saying of a service that could go on for whom of its group it waits."""
    decision = release.decision
    if not decision.held:
        return release
    more = f" (and {len(awaited) - 1} more)" if len(awaited) > 1 else ""
    return replace(release, decision=decision._replace(why=f"waiting for {awaited[0]} of its group{more}"))
