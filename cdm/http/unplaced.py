"""What keeps instances from being placed, in one word of a few: what a status says in a sentence. Pure.

The sentence names labels, services and numbers, of which there may be any number; a time series for each would be of
no use, and cost much.
"""

from __future__ import annotations

import re
from typing import NamedTuple

REASONS = (
    *(
        "capacity",
        "cordoned",
        "cpu",
        "draining",
        "label",
        "max_per_node",
        "memory",
        "missing",
        "neighbours",
        "no_nodes",
    ),
    *("secrets", "settling", "spread", "trust", "other"),
)
"""All reasons that there are."""
_CANNOT = re.compile(
    r"\b(\d+) of \d+ instances cannot be placed(?:, and \d+ cannot be moved)?(?::(?P<why>.*))?", re.DOTALL
)
_NOT_YET = re.compile(r"\b(\d+) of \d+ instances not placed yet")
_FIRST = re.compile(r"nodes? takes? it: [\d,]+ (?P<first>.*)", re.DOTALL)
_WORDS = (
    ("full (cpu ", "cpu"),
    ("too small (cpu ", "cpu"),
    ("not telling its cpu", "cpu"),
    ("full (memory ", "memory"),
    ("too small (memory ", "memory"),
    ("not telling its memory", "memory"),
    ("full", "capacity"),
    ("taking none", "capacity"),
    ("draining", "draining"),
    ("missing", "missing"),
    ("cordoned", "cordoned"),
    ("with as many as may be", "max_per_node"),
    ("giving no secrets", "secrets"),
    ("running only what is signed", "trust"),
    ("not near ", "neighbours"),
    ("beside ", "neighbours"),
    ("with", "label"),
)
"""How what `cdm.allocation.verdict` says of most nodes begins, and what that is."""


class Unplaced(NamedTuple):
    """Instances that are wanted, and for which there is no place."""

    instances: int
    reason: str
    """One of `REASONS`."""


def unplaced(reason: str) -> Unplaced:
    """What the reason of a status says of instances that cannot be placed."""
    if found := _CANNOT.search(reason):
        return Unplaced(int(found[1]), _why(found["why"] or ""))
    if found := _NOT_YET.search(reason):
        return Unplaced(int(found[1]), "settling")
    return Unplaced(0, "other")


def _why(why: str) -> str:
    if "there is no node" in why:
        return "no_nodes"
    if not (found := _FIRST.search(why)):
        return "other"
    first = found["first"]
    for begins, word in _WORDS:
        if first.startswith(begins):
            return word
    if re.match(r"in a \S+ that has its share", first):
        return "spread"
    return "label" if re.match(r"\S+ is ", first) else "other"
