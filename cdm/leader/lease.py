"""Reads and writes the lease and the fence."""

from __future__ import annotations

import msgspec

from cdm.errors import Conflict, StoreError
from cdm.leader.actions import TakeOver
from cdm.leader.records import NO_FENCE, Held, Records, StoredFence, Tenure, Vacant
from cdm.log import Log
from cdm.model.artifact import NodeId
from cdm.model.keys import FENCE, LEASE, encode
from cdm.model.node import Fence, Lease
from cdm.model.problems import UNREADABLE
from cdm.store.batch import Write
from cdm.store.bucket import Bucket, Stored
from cdm.store.wire import EXPECT, TTL, dump, ttl_header

log = Log("cdm.lease")

PATIENCE = 2.0
"""Seconds to wait for an answer."""
UNREADABLE_HOLDER = Lease(NodeId("?"), 0)
"""Stands for the holder of a lease that cannot be read: nobody answers for it, so it is taken over."""


class LeaseStore:
    """The lease and the fence in ``slices``, as one process reads and writes them.

    Args:
        slices: the bucket.
        node: this node.
        incarnation: nonce of this process.
        ttl: the lease's, in seconds.
    """

    def __init__(self, slices: Bucket, node: NodeId, incarnation: str, ttl: float) -> None:
        self._slices = slices
        self._node = node
        self._incarnation = incarnation
        self._ttl = ttl

    async def read(self, timeout: float = PATIENCE) -> Records:
        """Read both; ``timeout`` is for each. Raises `StoreError`."""
        # The fence first: a take-over in between shows a newer lease, and the next compare-and-set tells.
        fence = await self.read_fence(timeout)
        return Records(_lease_of(await self._slices.read(LEASE, timeout=timeout)), fence)

    async def read_fence(self, timeout: float = PATIENCE) -> StoredFence:
        """Read the fence alone. Raises `StoreError`."""
        return _fence_of(await self._slices.read(FENCE, timeout=timeout))

    async def take_over(self, attempt: TakeOver) -> int:
        """Write both or neither; returns the fence's revision. Errors as in `Bucket.put`."""
        lease = Write(
            encode(LEASE),
            dump(self._lease(attempt.term)),
            {EXPECT: str(attempt.lease_revision), TTL: ttl_header(self._ttl)},
        )
        fence = Write(encode(FENCE), self._fence(attempt.term), {EXPECT: str(attempt.fence_revision)})
        return await self._slices.batch([lease, fence], timeout=PATIENCE)

    async def renew(self, tenure: Tenure, timeout: float) -> int:
        """Write the lease anew; returns its revision. Errors as in `Bucket.put`."""
        return await self._slices.put(
            LEASE,
            dump(self._lease(tenure.term)),
            expect=tenure.lease_revision,
            ttl=self._ttl,
            timeout=timeout,
        )

    async def renew_fence(self, tenure: Tenure, timeout: float) -> int:
        """Write the fence anew; returns its revision. Errors as in `Bucket.put`."""
        return await self._slices.put(FENCE, self._fence(tenure.term), expect=tenure.fence_revision, timeout=timeout)

    async def give_back(self, tenure: Tenure) -> None:
        """Delete the lease, if it is this process's, so that a successor need not wait for its end; never raises."""
        try:
            try:
                await self._slices.delete(LEASE, expect=tenure.lease_revision, timeout=PATIENCE)
            except Conflict:
                # A renewal was on its way: delete what it wrote, if it is still ours.
                records = await self.read()
                if records.lease.holder != self._lease(tenure.term):
                    return
                await self._slices.delete(LEASE, expect=records.lease.revision, timeout=PATIENCE)
        except StoreError as error:
            log.warning("lease not given back; it expires", term=tenure.term, reason=str(error))
        else:
            log.info("lease given back", term=tenure.term)

    def _lease(self, term: int) -> Lease:
        return Lease(self._node, term, self._incarnation)

    def _fence(self, term: int) -> bytes:
        return dump(Fence(term, self._node, self._incarnation))


def _lease_of(stored: Stored | None) -> Vacant | Held:
    if stored is None:
        return Vacant(0)
    if stored.payload is None:
        return Vacant(stored.revision)
    try:
        return Held(msgspec.json.decode(stored.payload, type=Lease), stored.revision)
    except UNREADABLE as error:
        log.error("unreadable lease", reason=str(error))
        return Held(UNREADABLE_HOLDER, stored.revision)


def _fence_of(stored: Stored | None) -> StoredFence:
    if stored is None:
        return NO_FENCE
    if stored.payload is not None:
        try:
            fence = msgspec.json.decode(stored.payload, type=Fence)
        except UNREADABLE as error:
            log.error("unreadable fence", reason=str(error))
        else:
            return StoredFence(revision=stored.revision, term=fence.term, incarnation=fence.incarnation)
    return StoredFence(revision=stored.revision, term=0)
