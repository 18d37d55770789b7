"""Reads and writes the lease and the fence."""

from __future__ import annotations

import anyio
import msgspec

from cdm import clock
from cdm.errors import BatchRefused, Conflict, StoreBusy, StoreError
from cdm.leader.actions import TakeOver
from cdm.leader.records import NO_FENCE, Held, Records, StoredFence, Taken, Tenure, Vacant
from cdm.log import Log
from cdm.model.artifact import NodeId
from cdm.model.keys import FENCE, LEASE, encode
from cdm.model.node import Fence, Lease
from cdm.model.problems import UNREADABLE
from cdm.store.batch import Write
from cdm.store.bucket import Bucket, Stored
from cdm.store.wire import EXPECT, EXPECT_SUBJECT, TTL, dump, ttl_header

log = Log("cdm.lease")

PATIENCE = 2.0
"""Seconds to wait for an answer."""
BUSY_PAUSE = 0.01
"""Seconds after which a server is asked again that had no time."""
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

    async def take_over(self, attempt: TakeOver) -> tuple[Taken, float]:
        """Write lease and fence, both or neither; returns their revisions, and when the lease was sent.

        Where the server takes no batch, the fence comes first, and the lease is written under it.

        Raises:
            Conflict: one of them is not as expected.
            StoreBusy: the server cannot write at present.
            Uncertain: it is unknown what is stored.
        """
        sent = clock.now()
        headers = {EXPECT: str(attempt.lease_revision), TTL: ttl_header(self._ttl)}
        lease = Write(encode(LEASE), dump(self._lease(attempt.term)), headers)
        fence = Write(encode(FENCE), self._fence(attempt.term), {EXPECT: str(attempt.fence_revision)})
        try:
            last = await self._slices.batch([lease, fence], timeout=PATIENCE)
        except BatchRefused as error:
            log.debug("taking over step by step", term=attempt.term, reason=str(error))
            revision = await self._slices.put(FENCE, fence.payload, expect=attempt.fence_revision, timeout=PATIENCE)
            return await self._take_lease(lease.payload, revision)
        return Taken(last - 1, last), sent

    async def _take_lease(self, payload: bytes, fence_revision: int) -> tuple[Taken, float]:
        """Write the lease, unless somebody else wrote a fence since.

        Whoever held it was deposed by the fence, even if it was renewed since.
        """
        guard = {EXPECT: str(fence_revision), EXPECT_SUBJECT: self._slices.subject(encode(FENCE))}
        until = clock.now() + PATIENCE
        while True:
            sent = clock.now()
            try:
                revision = await self._slices.put(LEASE, payload, ttl=self._ttl, timeout=PATIENCE, headers=guard)
            except StoreBusy:
                if sent > until:
                    raise
                await anyio.sleep(BUSY_PAUSE)
            else:
                return Taken(revision, fence_revision), sent

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
