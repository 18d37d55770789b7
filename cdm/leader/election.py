"""Leadership as a state machine without I/O: facts go in, the next thing to do comes out.

PROTOCOL's "Leadership" is all here; `leadership` carries the actions out. Nothing is remembered but facts: what
the lease and the fence were last seen to be, and, while this process leads, what it holds. What to do next is derived
from them and the clock, so the machine runs in virtual time as well as in real time. The clock must count suspended
time (CLOCK_BOOTTIME): a lease ends while a machine sleeps.

The lease alone never makes a write safe; the fence does. So every shortcut here (taking a dead leader's lease before
its TTL is over) costs at worst a hand-over.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet

from msgspec import Struct

from cdm.model.artifact import NodeId
from cdm.model.node import Lease

TURN = 0.02
"""Seconds that each candidate leaves to those before it when nobody leads: longer than a take-over takes."""
LONGEST_TURN = 0.5
"""Seconds after which any candidate may have its turn."""
HIGHEST_CREDIBLE = 2**51
"""Highest term that is counted on from; no cluster gets there, and what is above it somebody wrote by hand.

Readers take terms up to 2**52 (`cdm.model.slice.Term`): above any term that is believed there is room for all to come.
"""
PROBE_JITTER = 0.2
"""How much the pause between two probes varies, as a fraction of it; enough to break up a common rhythm."""


class Vacant(Struct, frozen=True):
    """Nobody holds the lease. ``revision`` is that of the expiry or delete marker; 0: never written."""

    revision: int


class Held(Struct, frozen=True):
    """Somebody holds the lease."""

    lease: Lease
    revision: int


class Seen(Struct, frozen=True):
    """The lease and the fence, as one look at the server showed them."""

    lease: Vacant | Held
    fence: int
    """Revision of ``_term``; 0: not there."""
    fence_term: int


class Tenure(Struct, frozen=True):
    """What a leader holds."""

    term: int
    lease: int
    """Revision of ``_leader`` to renew from."""
    fence: int
    """Revision of ``_term`` that guards every write."""
    renewed: float
    """When the last acknowledged renewal was sent, in seconds on this node's clock."""


class Timing(Struct, frozen=True):
    """Times of an election, in seconds."""

    ttl: float = 10.0
    """The lease's TTL."""
    probe_pause: float = 0.1
    """Mean pause between two probes of all followers together."""
    confirm_after: float = 0.05
    """Pause before silence is believed."""
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


# What to do next


class Wait(Struct, frozen=True):
    """Nothing, until something is seen or this time comes (None: until something is seen)."""

    until: float | None


class Look(Struct, frozen=True):
    """Read the lease and the fence."""


class TakeOver(Struct, frozen=True):
    """Write lease and fence in one atomic batch, each by compare-and-set on the given revision."""

    term: int
    lease: int
    fence: int


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


Action = Wait | Look | TakeOver | Renew | Probe | StepDown


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
        self.candidates: AbstractSet[NodeId] = frozenset()
        """The nodes that take part in elections, as far as this process knows; the leader is one of them."""
        self._random = random
        self._seen: Seen | None = None
        self._term_since = 0.0
        self._lease_since = 0.0
        """When the present state of the lease was first seen."""
        self._highest = 0
        self._tenure: Tenure | None = None
        self._doubt = True
        self._fenced = ""
        self._connected_since: float | None = None
        self._next_probe = 0.0
        self._silent_since: float | None = None
        self._taken_for_dead: dict[str, bool] = {}
        """Incarnations that nobody answered for; True: they were alive all the same."""
        self._renew_at = 0.0
        self._candidate = True
        self._not_before = 0.0
        self._fence_known = False
        self._known_at_look: bool | None = None
        self._attempted = 0.0
        self._attempt: TakeOver | None = None
        """A take-over of which nobody knows yet whether it is stored."""

    @property
    def tenure(self) -> Tenure | None:
        """What this process holds, None where it does not lead. See `valid` before a write."""
        return self._tenure

    @property
    def leader(self) -> Lease | None:
        """Who is seen to lead."""
        return self._seen.lease.lease if self._seen and isinstance(self._seen.lease, Held) else None

    @property
    def followers(self) -> int:
        """How many processes probe, this one included."""
        return max(len(self.candidates) - 1, 1)

    @property
    def highest_term(self) -> int:
        """The highest credible term ever seen."""
        return self._highest

    @property
    def in_doubt(self) -> bool:
        """Whether the outcome of a write is open: the server must be asked."""
        return self._doubt

    def valid(self, now: float) -> bool:
        """Whether this process leads and its lease cannot have ended."""
        return self._tenure is not None and not self._fenced and now < self._deadline(self._tenure)

    # Facts

    def connected(self, now: float) -> None:
        """The connection is up: what was known may be old."""
        self._connected_since = now
        self._doubt = True
        self._silent_since = None

    def disconnected(self) -> None:
        """The connection is down: nothing can be judged."""
        self._connected_since = None
        self._silent_since = None

    def looks(self) -> None:
        """A look at the server begins: what the watcher brings meanwhile is newer than what the look will show."""
        self._known_at_look = self._fence_known

    def seen(self, seen: Seen, now: float) -> bool:
        """A look at the server is complete. Returns whether it shows that the fence was lost."""
        known = self._fence_known if self._known_at_look is None else self._known_at_look
        self._known_at_look = None
        fence_lost = known and seen.fence_term == 0
        if fence_lost or seen.fence_term:
            self._fence_known = seen.fence_term > 0
        self._doubt = False
        self._note_lease(seen.lease, now)
        self._note_term(seen.fence_term)
        held = seen.lease.lease if isinstance(seen.lease, Held) else None
        self._seen = seen
        tenure = self._tenure
        if tenure is not None:
            if held is None or not self._mine(held, tenure.term) or seen.fence != tenure.fence:
                self._fenced = self._fenced or "the lease is somebody else's, or nobody's, on the server"
            else:
                # A renewal whose answer was lost may have been stored: go on from its revision.
                assert isinstance(seen.lease, Held)
                self._tenure = Tenure(tenure.term, seen.lease.revision, tenure.fence, tenure.renewed)
        elif (
            self._attempt is not None
            and held is not None
            and self._mine(held, self._attempt.term)
            and seen.fence_term == held.term
        ):
            # A take-over whose answer was lost was won all the same.
            assert isinstance(seen.lease, Held)
            self._win(held.term, seen.lease.revision, seen.fence, self._attempted)
        self._attempt = None
        return fence_lost

    def watched_lease(self, lease: Vacant | Held, now: float) -> None:
        """The watcher brought a new state of the lease."""
        if self._seen is None or lease.revision <= self._seen.lease.revision:
            return
        last = self.leader
        self._note_lease(lease, now)
        tenure = self._tenure
        if tenure is not None:
            if isinstance(lease, Vacant) or not self._mine(lease.lease, tenure.term):
                # It may be a renewal of ours that expired and was renewed since; the server knows.
                self._doubt = True
            return
        self._seen = Seen(lease, self._seen.fence, self._seen.fence_term)
        if isinstance(lease, Vacant):
            self._not_before = now + self._turn(last.node if last else "")

    def watched_fence(self, revision: int, term: int) -> None:
        """The watcher brought a new fence; revision 0: it is gone."""
        self._note_term(term)
        self._fence_known = self._fence_known or term > 0
        if self._seen is None or (0 < revision <= self._seen.fence):
            return
        if self._tenure is not None:
            if revision != self._tenure.fence:
                self._doubt = True
            return
        self._seen = Seen(self._seen.lease, revision, term)

    def reset(self, reason: str) -> None:
        """The stream is another one than before: what was seen of it is void, the highest term is not."""
        self._seen = None
        self._doubt = True
        if self._tenure is not None:
            self._fenced = reason

    def won(self, action: TakeOver, last_revision: int, sent: float) -> None:
        """The take-over is stored; ``last_revision`` is the batch's last sequence, the fence's."""
        self._win(action.term, last_revision - 1, last_revision, sent)

    def renewed(self, revision: int, sent: float) -> None:
        """The renewal is stored."""
        if self._tenure is not None:
            self._tenure = Tenure(self._tenure.term, revision, self._tenure.fence, sent)
            self._renew_at = sent + self.timing.renew_every

    def refused(self) -> None:
        """A compare-and-set lost: look before doing anything else."""
        self._doubt = True

    def uncertain(self, sent: float, attempt: TakeOver | None = None) -> None:
        """No answer came: the write, sent then, may be stored. Look before doing anything else."""
        self._doubt = True
        if self._attempt is None or attempt is None or attempt.term != self._attempt.term:
            # Of two attempts at one term either may be the stored one: the lease counts from the earlier.
            self._attempted = sent
        self._renew_at = sent
        self._attempt = attempt

    def fenced(self, reason: str) -> None:
        """The server rejected a write of this leader: it leads no more."""
        if self._tenure is not None:
            self._fenced = reason

    def answered(self, now: float) -> None:
        """The leader answered a probe."""
        if self.leader is not None:
            self._taken_for_dead.pop(self.leader.incarnation, None)
        self.unanswered(now)

    def unanswered(self, now: float) -> None:
        """A probe timed out, which proves nothing."""
        self._silent_since = None
        self._plan_probe(now)

    def nobody(self, term: int, now: float) -> None:
        """Nobody answers for the leader of this term: no process has its subject, as far as can be heard from here.

        Between two servers of a cluster that have no route to each other nothing is heard, while both take part in the
        stream. A process that led again after it was taken for dead is such a one: its TTL decides, until it answers.
        (Our own clock does, for a lease that somebody wrote without one would never end.)
        """
        if self.leader is None or self.leader.term != term:
            return
        if self._taken_for_dead.get(self.leader.incarnation) and now < self._lease_since + self.timing.ttl:
            self.unanswered(now)
        elif self._silent_since is None:
            self._silent_since = now

    def stepped_down(self) -> None:
        """Leadership was given up, and everybody told."""
        self._tenure = None
        self._fenced = ""
        self._doubt = True

    def withdraw(self) -> None:
        """Never be a candidate again: the process stops."""
        self._candidate = False

    # What follows

    def next(self, now: float) -> Action:
        """What to do now."""
        if self._tenure is not None:
            return self._lead(self._tenure, now)
        if self._connected_since is None:
            return Wait(None)
        if self._doubt or self._seen is None:
            return Look()
        if not self._candidate:
            return Wait(None)
        lease = self._seen.lease
        if isinstance(lease, Vacant):
            if now < self._not_before:
                return Wait(self._not_before)
            return self._take_over(self._seen)
        return self._follow(self._seen, lease, now)

    def _lead(self, tenure: Tenure, now: float) -> Action:
        if self._fenced:
            return StepDown(tenure.term, self._fenced)
        deadline = self._deadline(tenure)
        if now >= deadline:
            return StepDown(tenure.term, "the lease could not be renewed in time")
        if self._connected_since is None:
            return Wait(deadline)
        if self._doubt:
            return Look()
        if now >= self._renew_at:
            return Renew(tenure, deadline)
        return Wait(min(self._renew_at, deadline))

    def _follow(self, seen: Seen, lease: Held, now: float) -> Action:
        if self._mine(lease.lease, lease.lease.term):
            # This process gave the term up without giving the lease back: nobody else can be meant by it.
            return self._take_over(seen)
        assert self._connected_since is not None
        known = max(self._term_since, self._connected_since) + self.timing.acquaintance
        if now < known:
            return Wait(known)
        if self._silent_since is not None:
            confirm = self._silent_since + self.timing.confirm_after
            if now < confirm:
                return Wait(confirm)
            return Probe(lease.lease.term)
        if now < self._next_probe:
            return Wait(self._next_probe)
        return Probe(lease.lease.term)

    def confirmed(self, now: float) -> TakeOver | None:
        """Nobody answered a second time: take the lease before it expires, if nothing else was seen meanwhile."""
        seen = self._seen
        if (
            seen is None
            or self._silent_since is None
            or self._doubt
            or self._tenure is not None
            or not self._candidate
            or now < self._silent_since + self.timing.confirm_after
        ):
            return None
        self._silent_since = None
        if self.leader is not None:
            self._taken_for_dead[self.leader.incarnation] = False
        return self._take_over(seen)

    def _take_over(self, seen: Seen) -> TakeOver:
        return TakeOver(self._highest + 1, seen.lease.revision, seen.fence)

    def _win(self, term: int, lease: int, fence: int, sent: float) -> None:
        self._tenure = Tenure(term, lease, fence, sent)
        self._fenced = ""
        self._fence_known = True
        self._highest = max(self._highest, term)
        self._renew_at = sent + self.timing.renew_every
        self._doubt = False
        self._seen = Seen(Held(Lease(self.node, term, self.incarnation), lease), fence, term)

    def _mine(self, lease: Lease, term: int) -> bool:
        return lease.node == self.node and lease.incarnation == self.incarnation and lease.term == term

    def _note_term(self, term: int) -> None:
        """Whatever is stored, the next term must be one that everybody can read."""
        if term <= HIGHEST_CREDIBLE:
            self._highest = max(self._highest, term)

    def _note_lease(self, lease: Vacant | Held, now: float) -> None:
        if self._seen is None or lease.revision != self._seen.lease.revision:
            self._lease_since = now
        term = lease.lease.term if isinstance(lease, Held) else None
        known = self.leader.term if self.leader else None
        if term is not None:
            self._note_term(term)
        if term != known:
            if isinstance(lease, Held) and lease.lease.incarnation in self._taken_for_dead:
                self._taken_for_dead[lease.lease.incarnation] = True
            self._term_since = now
            self._silent_since = None
            # Every follower learns of a term at the same moment; from here on their probes are out of step.
            self._next_probe = now + self.timing.acquaintance + self._random() * self._pause

    def _turn(self, last: str) -> float:
        """Seconds to wait, where everybody sees at once that nobody leads: those next to the last leader go first.

        Of several take-overs at once only one is stored, and that one the later for the others (measured: by half).
        """

        def place(node: str) -> tuple[bool, str]:
            return (node <= last, node)

        mine = place(self.node)
        turn = TURN * sum(place(node) < mine for node in self.candidates)
        return turn if turn < LONGEST_TURN else LONGEST_TURN * (1 + self._random())

    @property
    def _pause(self) -> float:
        """Mean pause between two probes of this follower."""
        return self.timing.probe_pause * self.followers

    def _plan_probe(self, now: float) -> None:
        self._next_probe = now + self._pause * (1 + PROBE_JITTER * (2 * self._random() - 1))

    def _deadline(self, tenure: Tenure) -> float:
        return tenure.renewed + self.timing.ttl - self.timing.margin
