"""Carries out what `cdm.leader.election` asks for: readings, take-overs, renewals, probes, a leader's read barrier.

What mirrors tell the election is in `cdm.leader.hearsay`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet

import anyio
import anyio.abc
from msgspec import Struct

from cdm import clock
from cdm.dispatch.messages import LeaderChange, Message
from cdm.errors import AccessDenied, Conflict, NoResponders, StoreBusy, StoreError, Uncertain
from cdm.leader.actions import Probe, Read, Renew, StepDown, TakeOver, Wait
from cdm.leader.election import Election
from cdm.leader.hearsay import Hearsay
from cdm.leader.lease import PATIENCE, LeaseStore
from cdm.leader.records import Tenure
from cdm.log import Lasting, Log, Ration
from cdm.model.artifact import NodeId
from cdm.store.beacon import Beacon
from cdm.store.bucket import Bucket
from cdm.store.responder import Identity, Responder, identity_of
from cdm.wakeup import Wakeup

log = Log("cdm.lease")

PROBE_TIMEOUT = 0.15
"""Seconds that a leader has to answer a probe. Silence beyond it proves nothing."""
READ_AGAIN_AFTER = 0.1
"""Seconds after which a reading, a barrier or a renewal that the server did not take is tried again."""
BUSY_PAUSE = 0.01
"""Seconds after which a take-over is tried again that the server had no time for."""
REFUSAL_PAUSE = 1.0
"""Seconds after which a take-over is tried again that the server refused."""
COMPLAINT_INTERVAL = 30.0
"""Seconds between two lines that say the same of a state that lasts."""
RESIGNED = "this node stops"


class Activation(Struct, frozen=True):
    """A term of this node's own, from its take-over on: the scope in which the manager is made Active."""

    term: int
    scope: anyio.CancelScope


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
        self._connection = slices.connection
        self._store = LeaseStore(slices, election.node, election.incarnation, election.timing.ttl)
        self._election = election
        self._barrier = barrier
        self._route = route
        self._drained = drained
        self._on_fence_lost = on_fence_lost
        self._news = Wakeup()
        self.hearsay = Hearsay(election, self._news, candidates)
        """Receives what the mirrors tell."""
        self._told = LeaderChange(None, 0, local_node_is_leader=False)
        """What everybody was told last."""
        self._activation: Activation | None = None
        """This process's latest term."""
        self._unrenewed = Lasting(log, "lease renewed again", again=COMPLAINT_INTERVAL)
        self._voice: Responder | None = None
        self._beacon = Beacon(slices, self._on_beacon_out)
        self._may_read = False
        """Whether the records were ever read."""
        self._reported_gone = 0
        """The term whose leader was last found gone."""
        self._complaints = Ration(1, COMPLAINT_INTERVAL)
        self._resigned = anyio.Event()
        self._connection.listen(self._on_connection)
        if self._connection.up_since is not None:
            election.connected(self._connection.up_since)

    # Facts come in, beside those of `hearsay`

    def wake(self) -> None:
        """Something that the election knows of has changed."""
        self._news.set()

    def reset(self, reason: str) -> None:
        """The stream of ``slices`` is another one than before."""
        self._election.reset(reason)
        self._news.set()

    def _on_beacon_out(self) -> None:
        self._election.detector.ended(clock.now())
        self._news.set()

    def _on_connection(self, up: bool) -> None:
        if up:
            self._election.connected(clock.now())
        else:
            self._election.disconnected()
        self._news.set()

    # Actions go out

    async def run(self) -> None:
        """Take part in the election until cancelled or, after `resign`, until the lease is given back.

        Raises:
            AccessDenied: this user may not take part.
        """
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._beacon.run)
                while not self._resigned.is_set():
                    await self._step()
                    await self._match_tenure(tasks)
                tasks.cancel_scope.cancel()
        finally:
            self._connection.unlisten(self._on_connection)

    async def resign(self) -> None:
        """Be no candidate any more; where this process leads, stop writing and say so. The lease is kept for now."""
        if self._election.withdrawn:
            return
        self._election.withdraw()
        if self._election.tenure is not None:
            self._deactivate(RESIGNED)
            await self._drained()
        self._news.set()

    def stand_again(self) -> None:
        """Be a candidate again after `resign`: nobody else is left who could lead."""
        self._election.stand_again()
        self._news.set()

    async def give_back(self) -> None:
        """Give the lease back, so that a successor need not wait; then leave the election."""
        if (tenure := self._election.tenure) is not None:
            await self._store.give_back(tenure)
            self._election.stepped_down()
        await self._drop_voice()
        self._resigned.set()
        self._news.set()

    async def _step(self) -> None:
        self._tell_leader()
        tenure, lease = self._election.tenure, self._election.leader
        self._beacon.follow(tenure.term if tenure else lease.term if lease else 0, own=tenure is not None)
        match self._election.next(clock.now()):
            case Wait(until):
                with anyio.move_on_after(None if until is None else max(until - clock.now(), 0)):
                    await self._news.wait()
            case Read():
                await self._read()
            case TakeOver() as attempt:
                await self._take_over(attempt)
            case Renew(tenure, deadline):
                await self._renew(tenure, deadline)
            case Probe(term):
                await self._probe(term)
            case StepDown(_, reason):
                self._deactivate(reason)
                self._election.stepped_down()

    async def _read(self) -> None:
        election = self._election
        reading = election.reading()
        try:
            records = await self._store.read(self._patience())
        except StoreError as error:
            self._refuse_to_start(error, started=self._may_read)
            self._complain("lease not read", error)
            await anyio.sleep(READ_AGAIN_AFTER)
            return
        self._may_read = True
        if election.exhausted:
            log.error("nobody can lead: there is no term above the one that is stored", term=election.highest_term)
        if election.read(reading, records, clock.now()):
            log.error("the fence is gone: everything is listed anew", highest_term=election.highest_term)
            self._on_fence_lost()

    def _refuse_to_start(self, error: StoreError, *, started: bool) -> None:
        """A permission that was missing from the beginning ends the process; one that was taken away may come back."""
        if isinstance(error, AccessDenied) and not started:
            raise error

    def _complain(self, what: str, error: StoreError) -> None:
        """Log it, but not every time: such a state may last."""
        if self._complaints.take(clock.now()):
            log.warning(what, reason=str(error))

    def _patience(self) -> float:
        """How long a read may take: a leader must not wait beyond its own deadline."""
        tenure = self._election.tenure
        if tenure is None:
            return PATIENCE
        return min(PATIENCE, max(self._election.timing.deadline(tenure) - clock.now(), 0.01))

    async def _take_over(self, attempt: TakeOver) -> None:
        election = self._election
        started = self._activation is not None
        try:
            await self._start_responder(attempt.term)
        except StoreError as error:
            self._refuse_to_start(error, started=started)
            log.debug("no take-over", reason=str(error))
            election.doubt()
            await anyio.sleep(READ_AGAIN_AFTER)
            return
        sent = clock.now()
        try:
            taken, sent = await self._store.take_over(attempt)
        except Conflict:
            election.doubt()
        except StoreBusy:
            election.doubt()
            await anyio.sleep(BUSY_PAUSE)
        except Uncertain:
            election.take_over_unknown(attempt, sent)
        except StoreError as error:
            self._refuse_to_start(error, started=started)
            self._complain("nobody leads, and the take-over is refused", error)
            election.doubt()
            await anyio.sleep(REFUSAL_PAUSE)
        else:
            election.won(attempt, taken, sent)
            log.info("leading", term=attempt.term)

    async def _match_tenure(self, tasks: anyio.abc.TaskGroup) -> None:
        """Begin a tenure that was won just now, or be silent where there is none."""
        tenure = self._election.tenure
        if tenure is not None:
            if self._activation is None or self._activation.term != tenure.term:
                self._activation = Activation(tenure.term, anyio.CancelScope())
                tasks.start_soon(self._activate, tenure.term, self._activation.scope)
        elif self._voice is not None and not self._election.in_doubt:
            await self._drop_voice()

    async def _activate(self, term: int, scope: anyio.CancelScope) -> None:
        """Wait for the read barrier, then tell the manager. `_deactivate` cancels the scope."""
        waits = Lasting(log, "read barrier reached")
        with scope:
            while True:
                try:
                    await self._barrier()
                    break
                except StoreError as error:
                    waits.goes_on(clock.now(), "read barrier waits", reason=str(error))
                    await anyio.sleep(READ_AGAIN_AFTER)
            waits.over(clock.now())
            if self._election.tenure is not None and self._election.tenure.term == term:
                self._tell(LeaderChange(self._election.node, term, local_node_is_leader=True))

    async def _renew(self, tenure: Tenure, deadline: float) -> None:
        election = self._election
        sent = clock.now()
        timeout = max(min(election.timing.renew_every, deadline - sent), 0.01)
        try:
            revision = await self._store.renew(tenure, timeout)
        except (Conflict, StoreBusy):
            election.doubt()
        except StoreError as error:
            self._unrenewed.goes_on(clock.now(), "lease not renewed; trying again", reason=str(error))
            election.renewal_unknown(sent)
            if not isinstance(error, Uncertain):
                await anyio.sleep(READ_AGAIN_AFTER)
        else:
            election.renewed(revision, sent)
            self._unrenewed.over(clock.now())

    async def _probe(self, term: int) -> None:
        election, detector = self._election, self._election.detector
        try:
            answer = await self._connection.request(
                self._connection.subject("cdm", "leader", term), b"", None, PROBE_TIMEOUT
            )
        except NoResponders:
            now = clock.now()
            if (attempt := election.confirmed(now)) is None:
                detector.no_responders(term, now)
                return
            say = log.debug if self._reported_gone == term else log.warning
            say("the leader is gone", term=term)
            self._reported_gone = term
            await self._take_over(attempt)
        except StoreError:
            detector.timed_out(clock.now())
        else:
            detector.answered(clock.now(), told=self._beacon.hears and identity_of(answer).tells)

    async def _start_responder(self, term: int) -> None:
        """Answer for this term from before it begins, or followers would take its leader for dead."""
        await self._drop_voice()
        identity = Identity(self._election.node, self._election.incarnation)
        subject = self._connection.subject("cdm", "leader", term)
        self._voice = await Responder.start(self._connection, subject, identity, tells=lambda: self._beacon.burns)
        self._voice.can_wait()

    async def _drop_voice(self) -> None:
        if self._voice is not None:
            await self._voice.stop()
            self._voice = None

    def _deactivate(self, reason: str) -> None:
        if self._activation is not None:
            self._activation.scope.cancel()
        self._unrenewed.drop()
        tenure = self._election.tenure
        say = log.info if reason == RESIGNED else log.warning
        say("leadership is over", term=tenure.term if tenure else None, reason=reason)
        if self._told.local_node_is_leader:
            self._tell(LeaderChange(None, self._election.highest_term, local_node_is_leader=False))

    def _tell_leader(self) -> None:
        """Tell of other nodes' leadership; this node's own is told once its barrier is behind it."""
        if self._election.tenure is not None:
            return
        lease = self._election.leader
        leader, term = (lease.node, lease.term) if lease else (None, self._election.highest_term)
        if (leader, term) != (self._told.leader, self._told.term):
            if leader and leader != self._election.node:
                log.info("leader", leader=leader, term=term)
            self._tell(LeaderChange(leader, term, local_node_is_leader=False))

    def _tell(self, change: LeaderChange) -> None:
        self._told = change
        self._route(change)
