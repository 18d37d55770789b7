"""What an election knows: the lease and the fence as they are stored, what a leader holds, and how long things take."""

from __future__ import annotations

from msgspec import Struct

from cdm.model.node import Lease


class Vacant(Struct, frozen=True):
    """Nobody holds the lease. ``revision`` is that of the delete or expiry marker; 0: there is no trace of it."""

    revision: int

    @property
    def holder(self) -> None:
        """Nobody."""
        return None


class Held(Struct, frozen=True):
    """Somebody holds the lease."""

    holder: Lease
    revision: int


class StoredFence(Struct, frozen=True, kw_only=True):
    """What is stored under ``_term``. A term of 0: nothing that can be read; a revision of 0: no trace of it."""

    revision: int
    term: int
    incarnation: str = ""
    """The process that wrote it, where it says so."""


NO_FENCE = StoredFence(revision=0, term=0)


class Records(Struct, frozen=True):
    """The lease and the fence, as one reading of the server showed them."""

    lease: Vacant | Held
    fence: StoredFence


class Known(Struct, frozen=True):
    """The records are these, as far as was read and heard."""

    records: Records


class Doubtful(Struct, frozen=True):
    """The records must be read before anything else; what they were, if they were ever read."""

    records: Records | None


class Reading(Struct, frozen=True):
    """A reading that has begun: what the watch brings meanwhile is newer than what it will show."""

    fence_known: bool
    fence_revision: int
    """The revision of this process's own fence at the beginning; 0: it did not lead."""


class Taken(Struct, frozen=True):
    """The revisions under which a take-over is stored."""

    lease: int
    fence: int


class Tenure(Struct, frozen=True, kw_only=True):
    """What a leader holds."""

    term: int
    lease_revision: int
    """Revision of ``_leader``, to renew from."""
    fence_revision: int
    """Revision of ``_term``, which guards every write."""
    renewed: float
    """When the last acknowledged renewal was sent, in seconds on this node's clock."""


class Timing(Struct, frozen=True):
    """Times of an election, in seconds."""

    ttl: float = 10.0
    """The lease's TTL."""
    probe_pause: float = 0.1
    """Mean pause between two probes of all followers together."""
    confirm_after: float = 0.05
    """Pause before the silence of a leader is believed."""
    acquaintance: float = 1.0
    """How long a term, and one's own connection, must be known before the term is judged."""

    @property
    def renew_every(self) -> float:
        """Pause between renewals."""
        return self.ttl / 5

    @property
    def margin(self) -> float:
        """How long before the lease can end its holder steps down."""
        return max(self.ttl / 10, 0.2)

    def deadline(self, tenure: Tenure) -> float:
        """When the holder steps down unless the lease is renewed before."""
        return tenure.renewed + self.ttl - self.margin
