"""Where one process stands in an election.

::

    Following ──take-over stored──────────────> Leading ──fenced, lease lost, too late──> Deposed
        │  ^                                       ^                                         │
        │  └──────not stored, or somebody else's───┤                                         │
        └──take-over not answered──> Undecided ────┘ found stored                            │
        ^                                                                                    │
        └───────────────────────────────────stepped down─────────────────────────────────────┘
"""

from __future__ import annotations

from msgspec import Struct

from cdm.leader.actions import TakeOver
from cdm.leader.records import Tenure


class Following(Struct, frozen=True):
    """Somebody else leads, or nobody."""


class Undecided(Struct, frozen=True):
    """A take-over was sent and not answered: this process may lead."""

    attempt: TakeOver
    sent: float


class Leading(Struct, frozen=True):
    """This process leads, unless its lease is too old."""

    tenure: Tenure
    renew_at: float


class Deposed(Struct, frozen=True):
    """This process led, leads no more, and has yet to step down."""

    tenure: Tenure
    reason: str
