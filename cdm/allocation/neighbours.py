"""Services that instances are to be near to, or apart from: where they are, and what that says of a node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cdm.allocation.case import Case
from cdm.allocation.site import Site
from cdm.model.artifact import NodeId
from cdm.model.rules import Neighbour

WISH = 100
"""What a neighbour that is only wished for weighs beside preferences: as much as the strongest of them."""


class Vicinity(NamedTuple):
    """A service that is to be near or apart, and where it is."""

    rule: Neighbour
    near: bool
    values: dict[str, int]
    """The values of the label on its nodes, and how many instances there are."""
    own: bool
    """It is the service itself, so that each instance that is placed changes the values."""
    leaving: Mapping[str, int] = {}
    """The same of instances that are being stopped, where an instance that is to come must be apart from them."""

    def kept(self, site: Site, without: Site | None = None) -> bool:
        """Whether an instance on the node is, or would be, where the rule wants it.

        Args:
            site: the node.
            without: where the instance is now, if it is counted: it is no neighbour of its own.
        """
        value = site.labels.get(self.rule.by)
        itself = without.labels.get(self.rule.by) if self.own and without is not None else None
        others = 0 if value is None else self.values.get(value, 0) - (value == itself)
        if not self.near:
            return others <= 0 and (without is not None or not self.awaits(site))
        # The first of those that are to be near each other may be anywhere.
        alone = self.own and value is not None and sum(self.values.values()) == (itself is not None)
        return others > 0 or alone

    def awaits(self, site: Site) -> bool:
        """Whether there are instances near the node that are being stopped, and that nothing may come beside."""
        return bool(self.leaving) and self.leaving.get(site.labels.get(self.rule.by, ""), 0) > 0


class Neighbours:
    """The neighbours of a case.

    Args:
        case: the facts.
    """

    def __init__(self, case: Case) -> None:
        self.hard: list[Vicinity] = []
        self.soft: list[Vicinity] = []
        rules = case.rules
        if rules.near or rules.apart:
            for near, each in [*((True, each) for each in rules.near), *((False, each) for each in rules.apart)]:
                (self.hard if each.hard else self.soft).append(_side(case, each, near=near))
        self.moving = any(side.own for side in (*self.hard, *self.soft))
        """Whether placing an instance changes where the next one may go."""

    def allow(self, site: Site, without: Site | None = None) -> bool:
        """Whether the hard ones let an instance run there; ``without``: where it is now."""
        return not self.hard or all(side.kept(site, without) for side in self.hard)

    def wishes(self, site: Site, without: Site | None = None) -> int:
        """What those that are wished for add to the sum of the preferences; ``without``: where the instance is now."""
        return WISH * sum(side.kept(site, without) for side in self.soft) if self.soft else 0

    def placed(self, site: Site) -> bool:
        """An instance is placed there; returns whether that makes some other node look better than before."""
        better = False
        for side in (*self.hard, *self.soft):
            value = site.labels.get(side.rule.by)
            if side.own and value is not None:
                better = better or (side.near and value not in side.values)
                side.values[value] = side.values.get(value, 0) + 1
        return better

    def left(self, site: Site) -> None:
        """An instance is there no more."""
        for side in (*self.hard, *self.soft):
            value = site.labels.get(side.rule.by)
            if side.own and value is not None and side.values.get(value):
                side.values[value] -= 1


def _side(case: Case, rule: Neighbour, *, near: bool) -> Vicinity:
    own = rule.service == str(case.artifact.service)
    counts = dict(case.of_service.get(rule.service, {}))
    if own:
        counts.update((node, max(count, counts.get(node, 0))) for node, count in case.mine.items())
    leaving = {} if near or not rule.hard else case.leaving.get(rule.service, {})
    return Vicinity(rule, near, _by_value(case, rule, counts), own, _by_value(case, rule, leaving))


def _by_value(case: Case, rule: Neighbour, counts: Mapping[NodeId, int]) -> dict[str, int]:
    values: dict[str, int] = {}
    for node, count in counts.items():
        value = case.sites.labels(node).get(rule.by)
        if count and value is not None:
            values[value] = values.get(value, 0) + count
    return values
