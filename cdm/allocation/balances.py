"""The balances of a case: of each spread, its domains and what is in them."""

from __future__ import annotations

from collections.abc import Iterable

from cdm.allocation.case import Case
from cdm.allocation.shares import Balance
from cdm.allocation.site import Site
from cdm.allocation.sites import Domain
from cdm.model.rules import OTHERS, Spread


def balances_of(case: Case, room: Iterable[tuple[Site, int]] | None) -> list[Balance]:
    """How the instances of a case are spread, by each of its rules.

    Args:
        case: the facts.
        room: the nodes that take some, and how many; None: instances are to go.
    """
    if not case.rules.spread:
        return []
    rooms = list(room or ())
    return [balance_of(case, spread, rooms) for spread in case.rules.spread]


def balance_of(case: Case, spread: Spread, room: Iterable[tuple[Site, int]] | None) -> Balance:
    """How the instances of a case are spread, by one of its rules.

    Args:
        case: the facts.
        spread: the rule.
        room: the nodes that take some, and how many; None: every domain has room for its share.
    """
    domains = domains_of(case, spread)
    counts = dict.fromkeys(domains, 0)
    for node, mine in case.mine.items():
        domain = case.sites.labels(node).get(spread.by)
        counts[domain] = counts.get(domain, 0) + mine
    most: dict[Domain, int] | None = None
    if room is not None:
        most = dict(counts)
        for site, free in room:
            most[site.labels.get(spread.by)] += free
    weights = {domain: spread.weight(domain) if domain in domains else 0.0 for domain in counts}
    balance = Balance(spread, case.wanted, weights, counts, most)
    if spread.anyway and not case.runs_elsewhere:
        for node in case.shun:
            domain = case.sites.labels(node).get(spread.by)
            if domain in counts:
                counts[domain] += 1
    return balance


def domains_of(case: Case, spread: Spread) -> set[Domain]:
    """All domains of a spread: those that nodes were seen in that fulfil the conditions, and those that it names."""
    seen = case.sites.domains(case.rules.require, spread.by)
    return {*seen, *(each for each in spread.weights if each != OTHERS)}
