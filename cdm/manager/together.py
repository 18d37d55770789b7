"""What follows for services of one group: their rollouts go to each next step together, and back together. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec.structs import replace

from cdm.manager.releases import Release
from cdm.model.artifact import Service


class Asking(Protocol):
    """Asks what follows for a service."""

    def __call__(self, service: Service, *, may_advance: bool, goes_back: str) -> Release:
        """Arguments as those of `Releases.of`."""


def together(services: Sequence[Service], ask: Asking) -> list[Release]:
    """What follows for services whose rollouts advance together, and go back together."""
    if len(services) == 1:
        return [ask(services[0], may_advance=True, goes_back="")]
    releases = [ask(each, may_advance=False, goes_back="") for each in services]
    if back := next((each for each in releases if each.goes_back), None):
        reason = f"{back.service} of its group goes back: {back.record.reason if back.record else ''}"
        return [each if each.goes_back else ask(each.service, may_advance=False, goes_back=reason) for each in releases]
    if all(each.decision.held or not each.decision.courses for each in releases):
        return [ask(each, may_advance=True, goes_back="") for each in services]
    return [_told_of_group(each, releases) for each in releases]


def _told_of_group(release: Release, group: Sequence[Release]) -> Release:
    """The same, saying of a service that could go on for whom of its group it waits."""
    decision = release.decision
    if not decision.held:
        return release
    awaited = [each.service for each in group if each.decision.courses and not each.decision.held]
    more = f" (and {len(awaited) - 1} more)" if len(awaited) > 1 else ""
    return replace(release, decision=decision._replace(why=f"waiting for {awaited[0]} of its group{more}"))
