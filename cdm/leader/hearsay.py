"""What the mirrors tell the election: of lease and fence, as the bucket has them, and of who takes part."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet

from cdm import clock
from cdm.dispatch.messages import (
    Cause,
    NodeDied,
    NodeJoined,
    NodeLeft,
    NodeMissing,
    ValuePut,
    ValueRejected,
    ValueRemove,
)
from cdm.dispatch.router import receiver
from cdm.leader.election import Election
from cdm.leader.lease import UNREADABLE_HOLDER
from cdm.leader.records import NO_FENCE, Held, StoredFence, Vacant
from cdm.log import Log
from cdm.model.artifact import NodeId
from cdm.model.keys import FenceKey, LeaseKey
from cdm.model.node import Fence, Lease
from cdm.wakeup import Wakeup

log = Log("cdm.lease")


class Hearsay:
    """Hands it on. Each message is late by what the mirror is behind; the election knows what that is worth.

    Args:
        election: the facts, and what follows from them.
        news: set where something may have to be done about it.
        candidates: the nodes that take part in elections.
    """

    def __init__(self, election: Election, news: Wakeup, candidates: Callable[[], AbstractSet[NodeId]]) -> None:
        self._election = election
        self._news = news
        self._candidates = candidates

    @receiver
    def on_lease(self, put: ValuePut[LeaseKey, Lease]) -> None:
        """Somebody took or renewed the lease."""
        self._watched(Held(put.value, put.revision))

    @receiver
    def on_lease_gone(self, remove: ValueRemove[LeaseKey, Lease]) -> None:
        """The lease expired or was given back."""
        if remove.cause is Cause.DELETED:
            self._watched(Vacant(remove.revision))
        else:
            self._election.lease_expired(remove.revision, clock.now())
            self._news.set()

    @receiver
    def on_lease_rejected(self, rejected: ValueRejected[LeaseKey, Lease]) -> None:
        """Somebody overwrote the lease with what cannot be read."""
        log.error("unreadable lease", reason=rejected.reason)
        self._watched(Held(UNREADABLE_HOLDER, rejected.revision))

    @receiver
    def on_fence(self, put: ValuePut[FenceKey, Fence]) -> None:
        """A new term began, or a leader wrote its fence anew."""
        fence = StoredFence(revision=put.revision, term=put.value.term, incarnation=put.value.incarnation)
        self._election.watched_fence(fence, clock.now())
        self._news.set()

    @receiver
    def on_fence_lost(self, message: ValueRemove[FenceKey, Fence] | ValueRejected[FenceKey, Fence]) -> None:
        """The fence was deleted or overwritten: the term that it guarded is over."""
        log.error("the fence was tampered with", key=str(message.key))
        rejected = isinstance(message, ValueRejected)
        fence = StoredFence(revision=message.revision, term=0) if rejected else NO_FENCE
        self._election.watched_fence(fence, clock.now())
        self._news.set()

    @receiver
    def on_nodes(self, change: NodeJoined | NodeLeft | NodeDied | NodeMissing) -> None:
        """Other nodes than before take part."""
        self._election.candidates = self._candidates()

    def _watched(self, lease: Held | Vacant) -> None:
        before = self._election.leader
        self._election.watched_lease(lease, clock.now())
        if self._election.leader != before or isinstance(lease, Vacant):
            self._news.set()
