"""Leadership as a state machine without I/O: facts go in, the next thing to do comes out.

All rules of leadership are here; `leadership` carries the actions out. What to do next is derived from the phase
that this process is in, from what it knows of the lease and the fence, and from the clock, so the machine runs in
virtual time as well as in real time. The clock must count suspended time (CLOCK_BOOTTIME): a lease ends while a
machine sleeps.

The lease alone never makes a write safe; the fence does. So every shortcut here (taking a dead leader's lease before
its TTL is over) costs at worst a hand-over.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet

from msgspec.structs import replace

from cdm.leader.actions import Action, Probe, Read, Renew, StepDown, TakeOver, Wait
from cdm.leader.detector import Detector
from cdm.leader.phases import Deposed, Following, Leading, Undecided
from cdm.leader.records import Doubtful, Held, Known, Reading, Records, StoredFence, Taken, Tenure, Timing, Vacant
from cdm.model.artifact import NodeId
from cdm.model.node import Lease

TURN = 0.02
"""Seconds that each candidate leaves to those before it when nobody leads: longer than a take-over takes."""
LONGEST_TURN = 0.5
"""Seconds after which any candidate may have its turn."""
MIDWAY = 0.25
"""Seconds left, at least, to whoever has written the fence and is about to write the lease."""
HIGHEST_CREDIBLE = 2**51
"""Highest term that is counted on from, whoever wrote it. No cluster gets there by itself.

Above it only those are counted on from that name the process that wrote them: others somebody wrote by hand.
"""
HIGHEST = 2**52
"""Highest term that there can be: readers take no higher ones (`cdm.model.slice.Term`)."""


class Election:
    """The facts of one process, and what follows from them.

    Args:
        node: this node.
        incarnation: nonce of this process.
        timing: how long things take.
        random: from 0 (included) to 1; spreads the followers' probes.
    """

    def __init__(self, node: NodeId, incarnation: str, timing: Timing, random: Callable[[], float]) -> None:
        self.node = node
        self.incarnation = incarnation
        self.timing = timing
        self.detector = Detector(timing, random)
        self._random = random
        self._candidates: AbstractSet[NodeId] = frozenset()
        self._phase: Following | Undecided | Leading | Deposed = Following()
        self._knowledge: Known | Doubtful = Doubtful(None)
        self._connected_since: float | None = None
        self.withdrawn = False
        """Whether this process is no candidate any more."""
        self.until = float("inf")
        """When this process ceases to be a candidate, or to lead; in the past where it is none."""
        self.won_terms = 0
        """How many terms this process has led."""
        self.lost_terms = 0
        """How many of them the server ended: it refused a write, or lease or fence were another's, or gone."""
        self._fence_known = False
        """Whether there was a fence when it was last heard of: that there is none now is a loss."""
        self._highest = 0
        self._turn_at = 0.0
        """When this candidate has its turn to take a lease that nobody holds."""

    @property
    def tenure(self) -> Tenure | None:
        """What this process holds, None where it does not lead. See `valid` before a write."""
        return self._phase.tenure if isinstance(self._phase, Leading | Deposed) else None

    @property
    def leader(self) -> Lease | None:
        """Who leads, as far as is known."""
        records = self._knowledge.records
        return records.lease.holder if records else None

    @property
    def candidates(self) -> AbstractSet[NodeId]:
        """The nodes that take part in elections, as far as this process knows; the leader is one of them."""
        return self._candidates

    @candidates.setter
    def candidates(self, candidates: AbstractSet[NodeId]) -> None:
        self._candidates = candidates
        self.detector.followers = max(len(candidates) - 1, 1)

    @property
    def highest_term(self) -> int:
        """The highest credible term ever seen."""
        return self._highest

    @property
    def exhausted(self) -> bool:
        """Whether there is no term above the highest one: nobody can lead any more."""
        return self._highest >= HIGHEST

    @property
    def in_doubt(self) -> bool:
        """Whether the server must be asked, because the outcome of a write is open or what was known may be old."""
        return isinstance(self._knowledge, Doubtful)

    def valid(self, now: float) -> bool:
        """Whether this process leads and its lease cannot have ended."""
        return isinstance(self._phase, Leading) and now < min(self.timing.deadline(self._phase.tenure), self.until)

    # Facts: the connection

    def connected(self, now: float) -> None:
        """The connection is up: what was known may be old."""
        self._connected_since = now
        self.doubt()
        self.detector.forget_silence()

    def disconnected(self) -> None:
        """The connection is down: nothing can be judged."""
        self._connected_since = None
        self.detector.forget_silence()

    # Facts: the records

    def doubt(self) -> None:
        """What is known may be wrong, as a write that was refused shows: read the records before anything else."""
        self._knowledge = Doubtful(self._knowledge.records)

    def reading(self) -> Reading:
        """A reading of the server begins."""
        return Reading(self._fence_known, self.tenure.fence_revision if self.tenure else 0)

    def read(self, reading: Reading, records: Records, now: float) -> bool:
        """A reading is complete. Returns whether it shows that the fence was lost."""
        lease, fence = records.lease, records.fence
        if self.tenure is not None and self.tenure.fence_revision > max(reading.fence_revision, fence.revision):
            return False  # the fence was written anew meanwhile: the reading shows what was there before
        fence_lost = reading.fence_known and fence.term == 0
        if fence_lost or fence.term:
            self._fence_known = fence.term > 0
        self._note_lease(lease, now)
        self._note_term(fence.term, fence.incarnation)
        self._give_way(records, now)
        self._knowledge = Known(records)
        match self._phase:
            case Leading(tenure=tenure, renew_at=renew_at):
                if self._holds(lease, tenure.term) and self._guards(fence, tenure):
                    # Renewals of either whose answers were lost may have been stored: go on from their revisions.
                    tenure = replace(tenure, lease_revision=lease.revision, fence_revision=fence.revision)
                    self._phase = Leading(tenure, renew_at)
                else:
                    self.fenced("the lease is somebody else's, or nobody's, on the server")
            case Undecided(attempt=attempt, sent=sent):
                self._phase = Following()
                if self._holds(lease, attempt.term) and fence.term == attempt.term:
                    self._lead(attempt.term, lease.revision, fence.revision, sent)
            case _:
                pass
        return fence_lost

    def watched_lease(self, lease: Vacant | Held, now: float) -> None:
        """The watch brought a new state of the lease."""
        records = self._knowledge.records
        if records is None or lease.revision <= records.lease.revision:
            return
        last = self.leader
        self._note_lease(lease, now)
        if (tenure := self.tenure) is not None:
            if not self._holds(lease, tenure.term):
                # It may be a renewal of ours that expired and was renewed since; the server knows.
                self.doubt()
            return
        self._hear(Records(lease, records.fence))
        if lease.holder is None:
            self._turn_at = now + self._turn(last.node if last else "")

    def lease_expired(self, revision: int, now: float) -> None:
        """The lease of this revision is gone, and left no marker: what is there now must be read."""
        lease = self._knowledge.records.lease if self._knowledge.records else None
        if lease is not None and lease.holder and lease.revision <= revision:
            self.doubt()
            self._turn_at = now + self._turn(lease.holder.node)

    def watched_fence(self, fence: StoredFence, now: float) -> None:
        """The watch brought a new fence, or that it is gone."""
        self._note_term(fence.term, fence.incarnation)
        self._fence_known = self._fence_known or fence.term > 0
        records = self._knowledge.records
        if records is None or 0 < fence.revision <= records.fence.revision:
            return
        if (tenure := self.tenure) is not None:
            if self._guards(fence, tenure):
                self.fence_renewed(fence.revision)
            else:
                self.doubt()
            return
        self._give_way(Records(records.lease, fence), now)
        self._hear(Records(records.lease, fence))

    def reset(self, reason: str) -> None:
        """The stream is another one than before: what was known of it is void, the highest term is not."""
        self._knowledge = Doubtful(None)
        self.detector.forget_lease()
        self.fenced(reason)

    # Facts: what became of this process's writes

    def won(self, attempt: TakeOver, revisions: Taken, sent: float) -> None:
        """The take-over, whose lease was sent then, is stored."""
        self._lead(attempt.term, revisions.lease, revisions.fence, sent)
        lease = Held(Lease(self.node, attempt.term, self.incarnation), revisions.lease)
        self.detector.observe(lease, sent)
        self._knowledge = Known(
            Records(lease, StoredFence(revision=revisions.fence, term=attempt.term, incarnation=self.incarnation))
        )

    def take_over_unknown(self, attempt: TakeOver, sent: float) -> None:
        """The take-over, sent then, was not answered: it may be stored."""
        self._phase = Undecided(attempt, sent)
        self.doubt()

    def renewed(self, revision: int, sent: float) -> None:
        """The renewal, sent then, is stored."""
        if isinstance(self._phase, Leading):
            tenure = replace(self._phase.tenure, lease_revision=revision, renewed=sent)
            self._phase = Leading(tenure, sent + self.timing.renew_every)

    def renewal_unknown(self, sent: float) -> None:
        """The renewal, sent then, was not answered: it may be stored, and is to be tried again at once."""
        if isinstance(self._phase, Leading):
            self._phase = Leading(self._phase.tenure, sent)
        self.doubt()

    def fence_renewed(self, revision: int) -> None:
        """The fence is stored anew: it guards what is written from now on, and refuses what is still under way."""
        if isinstance(self._phase, Leading) and revision > self._phase.tenure.fence_revision:
            self._phase = Leading(replace(self._phase.tenure, fence_revision=revision), self._phase.renew_at)

    def fence_refused(self, stored: StoredFence) -> None:
        """The fence was not stored anew, since this is stored: an earlier try of the same, or the end of this term."""
        if (tenure := self.tenure) is not None and self._guards(stored, tenure):
            self.fence_renewed(stored.revision)
        else:
            self.fenced("another fence is stored")

    def fenced(self, reason: str) -> None:
        """This process leads no more: the server rejected a write of its term, or its lease or fence is gone."""
        if isinstance(self._phase, Leading):
            self._phase = Deposed(self._phase.tenure, reason)
            self.lost_terms += 1

    def stepped_down(self) -> None:
        """Leadership was given up, and everybody told."""
        self._phase = Following()
        self.doubt()

    def withdraw(self) -> None:
        """Be no candidate any more: the process stops."""
        self.withdrawn = True

    def stand_again(self) -> None:
        """Be a candidate again, for a new term: the process stops, and nobody else is left."""
        self.withdrawn = False
        if self.tenure is not None:
            self.stepped_down()

    # What follows

    def next(self, now: float) -> Action:
        """What to do now."""
        match self._phase:
            case Deposed(tenure=tenure, reason=reason):
                return StepDown(tenure.term, reason)
            case Leading() as leading:
                return self._next_of_leader(leading, now)
            case _:
                pass
        return self._next_of_follower(now)

    def _next_of_follower(self, now: float) -> Action:
        if self._connected_since is None:
            return Wait(None)
        if isinstance(self._knowledge, Doubtful):
            return Read()
        if self.withdrawn or self.exhausted or now >= self.until:
            return Wait(None)
        records = self._knowledge.records
        holder = records.lease.holder
        if holder is None:
            return Wait(self._turn_at) if now < self._turn_at else self._take_over(records)
        if self._is_mine(holder):
            # This process gave the term up without giving the lease back: nobody else holds it.
            return self._take_over(records)
        look_at, probe_at = self.detector.look_at, self.detector.next_probe(self._connected_since, now)
        if now < look_at:
            return Probe(holder.term) if probe_at <= now else Wait(min(look_at, probe_at))
        return Read()

    def _next_of_leader(self, leading: Leading, now: float) -> Action:
        deadline = self.timing.deadline(leading.tenure)
        if now >= deadline:
            return StepDown(leading.tenure.term, "the lease could not be renewed in time")
        if now >= self.until:
            return StepDown(leading.tenure.term, "this node holds no manager's slot any more")
        deadline = min(deadline, self.until)
        if self._connected_since is None:
            return Wait(deadline)
        if isinstance(self._knowledge, Doubtful):
            return Read()
        if now >= leading.renew_at:
            return Renew(leading.tenure, deadline)
        return Wait(min(leading.renew_at, deadline))

    def confirmed(self, now: float) -> TakeOver | None:
        """Nobody answered a second time: take the lease before it expires, if nothing else was heard meanwhile."""
        following = isinstance(self._phase, Following) and not self.withdrawn and self._turn_at <= now < self.until
        if following and isinstance(self._knowledge, Known) and self.detector.confirms(now):
            return self._take_over(self._knowledge.records)
        return None

    def _take_over(self, records: Records) -> TakeOver:
        return TakeOver(
            term=self._highest + 1, lease_revision=records.lease.revision, fence_revision=records.fence.revision
        )

    def _lead(self, term: int, lease_revision: int, fence_revision: int, sent: float) -> None:
        tenure = Tenure(term=term, lease_revision=lease_revision, fence_revision=fence_revision, renewed=sent)
        self._phase = Leading(tenure, sent + self.timing.renew_every)
        self.won_terms += 1
        self._fence_known = True
        self._highest = max(self._highest, term)

    def _give_way(self, records: Records, now: float) -> None:
        """Leave some time to whoever has just written a fence, and not yet the lease that goes with it.

        Else candidates would depose each other in turn, each before the other has its lease.
        """
        before, holder = self._knowledge.records, records.lease.holder
        news = before is not None and records.fence.revision > before.fence.revision
        if news and records.fence.incarnation != self.incarnation and (not holder or holder.term < records.fence.term):
            self._turn_at = max(self._turn_at, now + MIDWAY * (1 + self._random()))

    def _hear(self, records: Records) -> None:
        """The watch brings what is newer, and settles no doubt."""
        self._knowledge = Known(records) if isinstance(self._knowledge, Known) else Doubtful(records)

    def _holds(self, lease: Vacant | Held, term: int) -> bool:
        return lease.holder is not None and self._is_mine(lease.holder) and lease.holder.term == term

    def _guards(self, fence: StoredFence, tenure: Tenure) -> bool:
        """Whether this is the tenure's fence, as it was first written or anew."""
        written_anew = fence.term == tenure.term and fence.incarnation == self.incarnation
        return fence.revision == tenure.fence_revision or (fence.revision > tenure.fence_revision and written_anew)

    def _is_mine(self, lease: Lease) -> bool:
        return lease.node == self.node and lease.incarnation == self.incarnation

    def _note_term(self, term: int, incarnation: str) -> None:
        """Whatever is stored, there must be room for the terms to come; and no term may ever come twice."""
        if term <= HIGHEST_CREDIBLE or (incarnation and term <= HIGHEST):
            self._highest = max(self._highest, term)

    def _note_lease(self, lease: Vacant | Held, now: float) -> None:
        if lease.holder:
            self._note_term(lease.holder.term, lease.holder.incarnation)
        self.detector.observe(lease, now)

    def _turn(self, last: str) -> float:
        """Seconds to wait, where everybody learns at once that nobody leads: those next to the last leader go first.

        Of several take-overs at once only one is stored, and that one the later for the others (measured: by half).
        """

        def place(node: str) -> tuple[bool, str]:
            return (node <= last, node)

        mine = place(self.node)
        turn = TURN * sum(place(node) < mine for node in self._candidates)
        return turn if turn < LONGEST_TURN else LONGEST_TURN * (1 + self._random())
