"""Carries out what `cdm.leader.election` decides: reads, take-overs, renewals, probes, a new leader's read barrier."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet

import anyio
import anyio.abc
import msgspec

from cdm import clock
from cdm.dispatch.messages import (
    LeaderChange,
    Message,
    NodeDied,
    NodeJoined,
    NodeLeft,
    NodeMissing,
    ValuePut,
    ValueRejected,
    ValueRemove,
)
from cdm.dispatch.router import receiver
from cdm.errors import AccessDenied, Conflict, NoResponders, StoreBusy, StoreError, Uncertain
from cdm.leader.election import Election, Held, Look, Probe, Renew, Seen, StepDown, TakeOver, Tenure, Vacant, Wait
from cdm.log import Log
from cdm.model.artifact import NodeId
from cdm.model.keys import FENCE, LEASE, FenceKey, LeaseKey, encode
from cdm.model.node import Fence, Lease
from cdm.model.problems import UNREADABLE
from cdm.store.batch import Write
from cdm.store.bucket import Bucket, Stored
from cdm.store.responder import Identity, Voice
from cdm.store.wire import EXPECT, TTL, dump, ttl_header
from cdm.wakeup import Wakeup

log = Log("cdm.lease")

PROBE_TIMEOUT = 0.15
"""Seconds that a leader has to answer a probe. Silence beyond it proves nothing."""
LOOK_TIMEOUT = 2.0
RETRY_PAUSE = 0.1
REFUSAL_PAUSE = 1.0
COMPLAINT_INTERVAL = 30.0
RESIGNED = "this node stops"


class Leadership:
    """One process's part in the election.

    Args:
        slices: the bucket with lease and fence.
        election: the facts, and what follows from them.
        barrier: waits until all mirrors are complete as of now.
        route: takes `LeaderChange`.
        drained: waits until no write of this leader is in flight.
        on_fence_lost: called when the fence is found gone: the stream was purged, or worse.
        candidates: the nodes that take part in elections.
    """

    def __init__(
        self,
        slices: Bucket,
        election: Election,
        *,
        barrier: Callable[[], Awaitable[None]],
        route: Callable[[Message], None],
        drained: Callable[[], Awaitable[None]],
        on_fence_lost: Callable[[], None],
        candidates: Callable[[], AbstractSet[NodeId]],
    ) -> None:
        self._slices = slices
        self._connection = slices.connection
        self._election = election
        self._barrier = barrier
        self._route = route
        self._drained = drained
        self._on_fence_lost = on_fence_lost
        self._candidates = candidates
        self._signal = Wakeup()
        self._told: tuple[NodeId | None, int] = (None, 0)
        self._leading = False
        self._began = 0
        self._looked = False
        self._gone = 0
        self._complained_at = float("-inf")
        self._activation: anyio.CancelScope | None = None
        self._voice: Voice | None = None
        self._resigned = anyio.Event()
        self._connection.listen(self._on_connection)
        if self._connection.up_since is not None:
            election.connected(self._connection.up_since)

    # Facts come in

    def wake(self) -> None:
        """Something that the election knows of has changed."""
        self._signal.set()

    def reset(self, reason: str) -> None:
        """The stream of ``slices`` is another one than before."""
        self._election.reset(reason)
        self._signal.set()

    def _on_connection(self, up: bool) -> None:
        if up:
            self._election.connected(clock.now())
        else:
            self._election.disconnected()
        self._signal.set()

    @receiver
    def on_lease(self, put: ValuePut[LeaseKey, Lease]) -> None:
        """Somebody took or renewed the lease."""
        self._watched(Held(put.value, put.revision))

    @receiver
    def on_lease_gone(self, remove: ValueRemove[LeaseKey, Lease]) -> None:
        """The lease expired or was given back."""
        self._watched(Vacant(remove.revision))

    @receiver
    def on_lease_rejected(self, rejected: ValueRejected[LeaseKey, Lease]) -> None:
        """Somebody wrote nonsense over the lease: nobody answers for it, so it is taken over."""
        log.error("unreadable lease", reason=rejected.reason)
        self._watched(Held(_nobody(), rejected.revision))

    @receiver
    def on_fence(self, put: ValuePut[FenceKey, Fence]) -> None:
        """A new term began."""
        self._election.watched_fence(put.revision, put.value.term)
        self._signal.set()

    @receiver
    def on_fence_lost(self, message: ValueRemove[FenceKey, Fence] | ValueRejected[FenceKey, Fence]) -> None:
        """The fence was deleted or overwritten: the term that it guarded is over."""
        log.error("the fence was tampered with", key=str(message.key))
        self._election.watched_fence(0 if isinstance(message, ValueRemove) else message.revision, 0)
        self._signal.set()

    @receiver
    def on_nodes(self, change: NodeJoined | NodeLeft | NodeDied | NodeMissing) -> None:
        """Others than before take part."""
        self._election.candidates = self._candidates()

    def _watched(self, lease: Held | Vacant) -> None:
        before = self._election.leader
        self._election.watched_lease(lease, clock.now())
        if self._election.leader != before or isinstance(lease, Vacant):
            self._signal.set()

    # Actions go out

    async def run(self) -> None:
        """Take part in the election until cancelled or, after `resign`, until the lease is given back.

        Raises:
            AccessDenied: this user may not take part.
        """
        async with anyio.create_task_group() as tasks:
            while not self._resigned.is_set():
                await self._step()
                await self._match_tenure(tasks)
            tasks.cancel_scope.cancel()

    async def resign(self) -> None:
        """Be no candidate any more; where this process leads, stop writing and say so. The lease is kept for now."""
        self._election.withdraw()
        if self._election.tenure is not None:
            self._deactivate(RESIGNED)
            await self._drained()
        self._signal.set()

    async def give_back(self) -> None:
        """Delete the lease, if it is this process's, so that a successor need not wait; then leave the election."""
        tenure = self._election.tenure
        if tenure is not None:
            try:
                await self._slices.delete(LEASE, expect=tenure.lease, timeout=LOOK_TIMEOUT)
                log.info("lease given back", term=tenure.term)
            except Conflict:
                await self._give_back_renewed(tenure)
            except StoreError as error:
                log.warning("lease not given back; it expires", term=tenure.term, reason=str(error))
            self._election.stepped_down()
        await self._drop_voice()
        self._resigned.set()
        self._signal.set()

    async def _give_back_renewed(self, tenure: Tenure) -> None:
        # A renewal was on its way: delete what it wrote, if it is still ours.
        try:
            seen = await self._read()
            if isinstance(seen.lease, Held) and seen.fence == tenure.fence:
                await self._slices.delete(LEASE, expect=seen.lease.revision, timeout=LOOK_TIMEOUT)
        except StoreError as error:
            log.warning("lease not given back; it expires", term=tenure.term, reason=str(error))

    async def _step(self) -> None:
        self._tell_leader()
        match self._election.next(clock.now()):
            case Wait(until):
                with anyio.move_on_after(None if until is None else max(until - clock.now(), 0)):
                    await self._signal.wait()
            case Look():
                await self._look()
            case TakeOver() as take_over:
                await self._take_over(take_over)
            case Renew(tenure, deadline):
                await self._renew(tenure, deadline)
            case Probe(term):
                await self._probe(term)
            case StepDown(_, reason):
                self._deactivate(reason)
                self._election.stepped_down()

    async def _look(self) -> None:
        self._election.looks()
        try:
            seen = await self._read()
        except StoreError as error:
            self._refuse_to_start(error, started=self._looked)
            self._complain("lease not read", error)
            await anyio.sleep(RETRY_PAUSE)
            return
        self._looked = True
        if self._election.seen(seen, clock.now()):
            log.error("the fence is gone: everything is listed anew", highest_term=self._election.highest_term)
            self._on_fence_lost()

    def _refuse_to_start(self, error: StoreError, *, started: bool) -> None:
        """A permission that was missing from the beginning ends the process; one that was taken away may come back."""
        if isinstance(error, AccessDenied) and not started:
            raise error

    def _complain(self, what: str, error: StoreError) -> None:
        """Say it, but not every time: such a state may last."""
        if clock.now() >= self._complained_at + COMPLAINT_INTERVAL:
            self._complained_at = clock.now()
            log.warning(what, reason=str(error))

    async def _read(self) -> Seen:
        # The fence first: a take-over in between shows a newer lease, and the next compare-and-set tells.
        fence = await self._slices.read(FENCE, timeout=self._patience())
        lease = await self._slices.read(LEASE, timeout=self._patience())
        term = 0
        if fence is not None and fence.payload is not None:
            try:
                term = msgspec.json.decode(fence.payload, type=Fence).term
            except UNREADABLE as error:
                log.error("unreadable fence", reason=str(error))
        return Seen(_lease_of(lease), fence.revision if fence else 0, term)

    def _patience(self) -> float:
        """How long a read may take: a leader must not wait beyond its own deadline."""
        tenure, timing = self._election.tenure, self._election.timing
        if tenure is None:
            return LOOK_TIMEOUT
        return min(LOOK_TIMEOUT, max(tenure.renewed + timing.ttl - timing.margin - clock.now(), 0.01))

    async def _take_over(self, action: TakeOver) -> None:
        election = self._election
        try:
            await self._raise_voice(action.term)
        except StoreError as error:
            self._refuse_to_start(error, started=self._began > 0)
            log.debug("no take-over", reason=str(error))
            election.refused()
            await anyio.sleep(RETRY_PAUSE)
            return
        sent = clock.now()
        try:
            lease = Lease(election.node, action.term, election.incarnation)
            revision = await self._slices.batch(
                [
                    Write(
                        encode(LEASE),
                        dump(lease),
                        {EXPECT: str(action.lease), TTL: ttl_header(election.timing.ttl)},
                    ),
                    Write(encode(FENCE), dump(Fence(action.term, election.node)), {EXPECT: str(action.fence)}),
                ],
                timeout=LOOK_TIMEOUT,
            )
        except Conflict:
            election.refused()
        except StoreBusy:
            election.refused()
            await anyio.sleep(0.01)
        except Uncertain:
            election.uncertain(sent, action)
        except StoreError as error:
            self._refuse_to_start(error, started=self._began > 0)
            self._complain("nobody leads, and the take-over is refused", error)
            election.refused()
            await anyio.sleep(REFUSAL_PAUSE)
        else:
            election.won(action, revision, sent)
            log.info("leading", term=action.term)

    async def _match_tenure(self, tasks: anyio.abc.TaskGroup) -> None:
        """Begin a tenure that was won just now, or be silent where there is none."""
        tenure = self._election.tenure
        if tenure is not None:
            if self._began != tenure.term:
                self._began = tenure.term
                self._activation = anyio.CancelScope()
                tasks.start_soon(self._activate, tenure, self._activation)
        elif self._voice is not None and not self._election.in_doubt:
            await self._drop_voice()

    async def _activate(self, tenure: Tenure, scope: anyio.CancelScope) -> None:
        """Wait for the read barrier, then tell the manager."""
        with scope:
            while True:
                try:
                    await self._barrier()
                    break
                except StoreError as error:
                    log.warning("read barrier waits", reason=str(error))
                    await anyio.sleep(RETRY_PAUSE)
            if self._election.tenure is not None and self._election.tenure.term == tenure.term:
                self._leading = True
                self._told = (self._election.node, tenure.term)
                self._route(LeaderChange(self._election.node, tenure.term, local_node_is_leader=True))

    async def _renew(self, tenure: Tenure, deadline: float) -> None:
        election = self._election
        sent = clock.now()
        lease = Lease(election.node, tenure.term, election.incarnation)
        try:
            revision = await self._slices.put(
                LEASE,
                dump(lease),
                expect=tenure.lease,
                ttl=election.timing.ttl,
                timeout=max(min(election.timing.renew_every, deadline - sent), 0.01),
            )
        except (Conflict, StoreBusy):
            election.refused()
        except StoreError as error:
            log.warning("lease not renewed; trying again", reason=str(error))
            election.uncertain(sent)
            if not isinstance(error, Uncertain):
                await anyio.sleep(RETRY_PAUSE)
        else:
            election.renewed(revision, sent)

    async def _probe(self, term: int) -> None:
        election = self._election
        try:
            await self._connection.request(self._connection.subject("cdm", "leader", term), timeout=PROBE_TIMEOUT)
        except NoResponders:
            now = clock.now()
            take_over = election.confirmed(now)
            if take_over is not None:
                say = log.debug if self._gone == term else log.warning
                say("the leader is gone", term=term)
                self._gone = term
                await self._take_over(take_over)
            else:
                election.nobody(term, now)
        except StoreError:
            election.unanswered(clock.now())
        else:
            election.answered(clock.now())

    async def _raise_voice(self, term: int) -> None:
        """Answer for this term from before it begins, or followers would take its leader for dead."""
        await self._drop_voice()
        identity = Identity(self._election.node, self._election.incarnation)
        self._voice = await Voice.raised(self._connection, self._connection.subject("cdm", "leader", term), identity)

    async def _drop_voice(self) -> None:
        if self._voice is not None:
            await self._voice.drop()
            self._voice = None

    def _deactivate(self, reason: str) -> None:
        if self._activation is not None:
            self._activation.cancel()
            self._activation = None
        tenure = self._election.tenure
        say = log.info if reason == RESIGNED else log.warning
        say("leadership is over", term=tenure.term if tenure else None, reason=reason)
        if self._leading:
            self._leading = False
            self._told = (None, self._election.highest_term)
            self._route(LeaderChange(None, self._election.highest_term, local_node_is_leader=False))

    def _tell_leader(self) -> None:
        """Tell of other nodes' leadership; this node's own is told once its barrier is behind it."""
        if self._election.tenure is not None:
            return
        lease = self._election.leader
        told = (lease.node, lease.term) if lease else (None, self._election.highest_term)
        if told != self._told:
            self._told = told
            if lease and lease.node != self._election.node:
                log.info("leader", leader=lease.node, term=lease.term)
            self._route(LeaderChange(lease.node if lease else None, told[1], local_node_is_leader=False))


def _nobody() -> Lease:
    """Stands for a lease that cannot be read: nobody answers for it."""
    return Lease(NodeId("?"), 0)


def _lease_of(stored: Stored | None) -> Vacant | Held:
    if stored is None:
        return Vacant(0)
    if stored.payload is None:
        return Vacant(stored.revision)
    try:
        return Held(msgspec.json.decode(stored.payload, type=Lease), stored.revision)
    except UNREADABLE as error:
        log.error("unreadable lease", reason=str(error))
        return Held(_nobody(), stored.revision)
