"""What an election asks for, one thing at a time; `cdm.leader.leadership` carries it out."""

from __future__ import annotations

from msgspec import Struct

from cdm.leader.records import Tenure


class Wait(Struct, frozen=True):
    """Nothing, until a fact comes in or this time comes (None: until a fact comes in)."""

    until: float | None


class Read(Struct, frozen=True):
    """Read the lease and the fence."""


class TakeOver(Struct, frozen=True, kw_only=True):
    """Write lease and fence in one atomic batch, each by compare-and-set on the given revision.

    Where the server takes no batch, the fence comes first, and the lease is written under it: whoever writes a fence
    after that has the lease refused. So nobody holds the lease without the fence, and who holds the fence alone does
    not lead.
    """

    term: int
    lease_revision: int
    fence_revision: int


class Renew(Struct, frozen=True):
    """Write the lease again by compare-and-set, before the deadline."""

    tenure: Tenure
    deadline: float


class Probe(Struct, frozen=True):
    """Ask the leader of this term whether it is there."""

    term: int


class StepDown(Struct, frozen=True):
    """Leadership is over."""

    term: int
    reason: str


Action = Wait | Read | TakeOver | Renew | Probe | StepDown
