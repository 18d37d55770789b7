"""Whom a spread that waits waits for: domains that have a share to come, and no node that takes it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cdm.allocation.balances import balance_of
from cdm.allocation.case import Case
from cdm.allocation.shares import Balance
from cdm.allocation.sites import Domain, holds
from cdm.allocation.verdict import Verdict
from cdm.model.artifact import NodeId

SHOWN = 3
"""Most domains, and most nodes of each, that are told."""


def awaited(case: Case, found: Iterable[Verdict]) -> list[str]:
    """``1 is kept for zone b, whose nodes are gone (n3, n4): …``, for each domain that others wait for.

    Args:
        case: the facts.
        found: what the rules say of each node.
    """
    fits = {each.node for each in found if each.fits}
    told: list[str] = []
    for spread in case.rules.spread:
        if spread.anyway:
            continue
        balance = balance_of(case, spread, None)
        for domain in sorted(balance.counts, key=lambda each: (each is None, each or "")):
            kept, nodes = _kept(balance, domain), _in_domain(case, spread.by, domain)
            if kept and fits.isdisjoint(nodes):
                told.append(f"{kept:,} {'is' if kept == 1 else 'are'} kept for {_for(case, balance, domain, nodes)}")
    return told[:SHOWN] + ([f"and so for {len(told) - SHOWN:,} more"] if len(told) > SHOWN else [])


def _kept(balance: Balance, domain: Domain) -> int:
    """How many instances the domain may have beside those that it has."""
    count, share = balance.counts[domain], balance.share.get(domain, 0)
    one_more = domain in balance.tied and balance.seats > 0 and count <= share
    return max(share - count, 0) + one_more


def _in_domain(case: Case, by: str, domain: Domain) -> list[NodeId]:
    require = case.rules.require
    return [each.node for each in case.sites if each.labels.get(by) == domain and holds(require, each.labels)]


def _for(case: Case, balance: Balance, domain: Domain, nodes: Sequence[NodeId]) -> str:
    """Which domain that is, and what to do so that it is waited for no more."""
    by = balance.spread.by
    name = f"nodes without {by}" if domain is None else f"{by} {domain}"
    if nodes:
        return f"{name}, where no node takes any now: {_names(nodes)}"
    gone = case.sites.gone_in(case.rules.require, by, domain)
    todo = ["take it out of weights"] if domain in balance.spread.weights else []
    if not gone:
        return f"{name}, where there is no node; to give that up {todo[0]}" if todo else name
    todo.insert(0, f"cdm node forget {' '.join(gone) if len(gone) <= SHOWN else 'NODE…'}")
    return f"{name}, where all are gone: {_names(gone)}; to give that up {' and '.join(todo)}"


def _names(nodes: Sequence[NodeId]) -> str:
    more = f" and {len(nodes) - SHOWN:,} more" if len(nodes) > SHOWN else ""
    return ", ".join(nodes[:SHOWN]) + more
