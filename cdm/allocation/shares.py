"""How many instances each domain of a spread is to have, and which domain is to get, or to give, the next one.

Shares are found by largest remainder. Where remainders are equal, any of these domains may have the instance: they
are *tied*, and there are fewer *seats* than tied domains. A domain may be `Spread.max_skew` - 1 off its share.

Of a spread that does without rather than wait, the share of a domain is never more than it has room for; what it
cannot take is shared by the others. Of one that waits, a domain that is full, empty or down keeps its share.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import NamedTuple

from cdm.allocation.sites import Domain
from cdm.model.rules import Spread

CLOSE = 1e-9
"""Remainders that differ by less are equal."""


class Shares(NamedTuple):
    """What each domain is to have."""

    whole: dict[Domain, int]
    tied: frozenset[Domain]
    """Any of these may have one more,"""
    seats: int
    """but only so many of them."""


def shares(total: int, weights: Mapping[Domain, float], most: Mapping[Domain, int] | None = None) -> Shares:
    """Share ``total`` by weight.

    Args:
        total: instances.
        weights: of all domains.
        most: what each domain can have; None: there is no limit.
    """
    whole: dict[Domain, int] = dict.fromkeys(weights, 0)
    open_ = {domain: weight for domain, weight in weights.items() if weight > 0}
    rest = total
    quotas: dict[Domain, float] = {}
    while open_ and rest > 0:
        sum_ = sum(open_.values())
        quotas = {domain: rest * weight / sum_ for domain, weight in open_.items()}
        full = [] if most is None else [domain for domain, quota in quotas.items() if quota > most[domain] + CLOSE]
        if not full:
            break
        for domain in full:
            assert most is not None
            whole[domain] = most[domain]
            rest -= most[domain]
            del open_[domain]
            del quotas[domain]
    for domain, quota in quotas.items():
        whole[domain] = floor(quota + CLOSE)
    left = rest - sum(whole[domain] for domain in quotas) if quotas else 0
    if left <= 0:
        return Shares(whole, frozenset(), 0)
    remainders = {domain: quota - whole[domain] for domain, quota in quotas.items()}
    last = sorted(remainders.values(), reverse=True)[left - 1]
    tied = [domain for domain, remainder in remainders.items() if abs(remainder - last) < CLOSE]
    for domain, remainder in remainders.items():
        if remainder >= last + CLOSE:
            whole[domain] += 1
            left -= 1
    if left == len(tied):
        for domain in tied:
            whole[domain] += 1
        return Shares(whole, frozenset(), 0)
    return Shares(whole, frozenset(tied), left)


class Balance:
    """How the instances of a version are spread over the domains of one label, while some are added or taken away.

    Args:
        spread: the rule.
        total: instances that there are to be.
        weights: of every domain.
        counts: instances in every domain; it is changed.
        most: what each domain can have, for a spread that goes on anyway; None: its share in any case.
    """

    def __init__(
        self,
        spread: Spread,
        total: int,
        weights: Mapping[Domain, float],
        counts: dict[Domain, int],
        most: Mapping[Domain, int] | None,
    ) -> None:
        self.spread = spread
        self.slack = max(spread.max_skew - 1, 0)
        self.counts = counts
        self.share, self.tied, seats = shares(total, weights, most if spread.anyway else None)
        self.seats = seats - sum(counts[each] > self.share[each] + self.slack for each in self.tied)

    def next(self, domain: Domain) -> float | None:
        """How badly the domain should not get the next one: the lowest does; None: it must not.

        Below 0 it lacks some, 0 is within the skew, above 0 it would have too many.
        """
        count, share, slack = self.counts[domain], self.share[domain], self.slack
        tied = domain in self.tied
        if count < share - slack:
            return count - share - (0.5 if tied else 0.0)
        over = count + 1 - share - slack
        if over <= 0 or (tied and self.seats > 0 and over == 1):
            return 0.0
        if not self.spread.anyway:
            return None
        return over - 0.5 if tied else float(over)

    def lacks(self, domain: Domain) -> int:
        """How many it gets before any domain gets one that does not lack some."""
        return self.share[domain] - self.slack - self.counts[domain]

    def first_to_go(self, domain: Domain) -> float:
        """How well the domain can spare one: the highest gives it."""
        count, share, slack = self.counts[domain], self.share[domain], self.slack
        tied = 0.5 if domain in self.tied else 0.0
        if count > share + slack:
            return count - share - tied
        if count - 1 >= share - slack:
            return 0.0
        return count - 1 - share - tied

    def add(self, domain: Domain) -> None:
        """It got one."""
        self.counts[domain] += 1
        if domain in self.tied and self.counts[domain] == self.share[domain] + self.slack + 1:
            self.seats -= 1

    def remove(self, domain: Domain) -> None:
        """It gave one."""
        if domain in self.tied and self.counts[domain] == self.share[domain] + self.slack + 1:
            self.seats += 1
        self.counts[domain] -= 1

    def off(self, domain: Domain) -> int:
        """How many instances more than its share, within the skew, a domain has; fewer are below 0."""
        count, share = self.counts[domain], self.share[domain]
        most = share + self.slack + (1 if domain in self.tied else 0)
        least = share - self.slack
        return count - most if count > most else min(count - least, 0)
