"""Judges, from probes that nobody answers, whether a leader is gone. Pure: time comes with the facts.

Only 'no responders' counts, and only when it comes twice; a probe that times out proves nothing. A wrong judgement
costs a hand-over and never correctness: the fence sees to that.

A lease that expires leaves no trace on the server. So it is looked for where it was not renewed for its TTL.
"""

from __future__ import annotations

from collections.abc import Callable

from cdm.leader.records import Held, Timing, Vacant

PROBE_JITTER = 0.2
"""How much the pause between two probes varies, as a fraction of it; enough to break up a common rhythm."""
RARELY = 25
"""How many times longer that pause is where followers are told when a leader's connection ends."""
RAREST = 0.5
"""The longest it is then, as a part of the lease's TTL: what is told may get lost."""
TOLD_JITTER = 0.05
"""Seconds over which followers spread their probes when they are told so."""
LOOK_AFTER = 0.1
"""Seconds after its TTL at which a lease is looked for that was not seen to be renewed."""
LOOK_PAUSE = 0.1
"""Least seconds between two looks at a lease that is still there."""


class Detector:
    """What one follower has heard of the present leader.

    Args:
        timing: how long things take.
        random: from 0 (included) to 1; spreads the followers' probes.
    """

    def __init__(self, timing: Timing, random: Callable[[], float]) -> None:
        self.followers = 1
        """How many processes probe, this one included."""
        self._timing = timing
        self._random = random
        self._lease: Vacant | Held | None = None
        self._lease_since = 0.0
        self._look_at = 0.0
        self._term_since = 0.0
        self._next_probe = 0.0
        self._probed_at = 0.0
        self._told = False
        """Whether this follower is told when the leader's connection ends, as the leader said last."""
        self._silent_since: float | None = None
        self._presumed_dead: dict[str, bool] = {}
        """Incarnations that nobody answered for; True: they led again afterwards, so they were alive."""

    def observe(self, lease: Vacant | Held, now: float) -> None:
        """This is the state of the lease."""
        old, self._lease = self._lease, lease
        if old is None or lease.revision != old.revision:
            self._lease_since = now
            self._look_at = now + self._timing.ttl + LOOK_AFTER
        elif now >= self._look_at:  # whoever looked found it as it was: clocks differ, or it has another TTL
            self._look_at = now + max((now - self._lease_since - self._timing.ttl) / 2, LOOK_PAUSE)
        known = old.holder.term if old and old.holder else None
        if known == (lease.holder.term if lease.holder else None):
            return
        if lease.holder and lease.holder.incarnation in self._presumed_dead:
            self._presumed_dead[lease.holder.incarnation] = True
        self._term_since = now
        self._silent_since = None
        self._told = False
        # Every follower learns of a term at the same moment; from here on their probes are out of step.
        self._next_probe = now + self._timing.acquaintance + self._random() * self._pause

    @property
    def look_at(self) -> float:
        """When it is to be looked whether the lease has expired, unless it is renewed before."""
        return self._look_at

    def forget_lease(self) -> None:
        """What was observed is of another stream."""
        self._lease = None

    def forget_silence(self) -> None:
        """The connection came or went: whoever was not heard before may be heard now, and nothing may be told."""
        self._silent_since = None
        self._told = False
        self._next_probe = min(self._next_probe, self._probed_at + self._pause)

    def next_probe(self, connected_since: float, now: float) -> float:
        """When the leader is to be probed next; not in the future: now."""
        known = max(self._term_since, connected_since) + self._timing.acquaintance
        if now < known:
            return known
        if self._silent_since is not None:
            return self._silent_since + self._timing.confirm_after
        return self._next_probe

    def ended(self, now: float) -> None:
        """The leader's connection ended, as is told: it is asked soon, and then as often as ever until it answers."""
        self._told = False
        soon = max(now + self._random() * TOLD_JITTER, self._probed_at + self._timing.probe_pause)
        self._next_probe = min(self._next_probe, soon)

    def answered(self, now: float, *, told: bool = False) -> None:
        """The leader answered a probe; ``told``: this follower will be told when the leader's connection ends."""
        self._told = told
        if self._lease is not None and self._lease.holder:
            self._presumed_dead.pop(self._lease.holder.incarnation, None)
        self.timed_out(now)

    def timed_out(self, now: float) -> None:
        """A probe was not answered in time, which proves nothing."""
        self._silent_since = None
        self._probed_at = now
        self._next_probe = now + self._pause * (1 + PROBE_JITTER * (2 * self._random() - 1))

    def no_responders(self, term: int, now: float) -> None:
        """Nobody answers for the leader of this term: no process has its subject, as far as can be heard from here.

        Between two servers of a cluster that have no route to each other nothing is heard, while both take part in the
        stream. A process that led again after it was presumed dead is such a one: its TTL decides, until it answers.
        (This node's clock does, for a lease that somebody wrote without a TTL would never end.)
        """
        if self._lease is None or not self._lease.holder or self._lease.holder.term != term:
            return
        if self._presumed_dead.get(self._lease.holder.incarnation) and now < self._lease_since + self._timing.ttl:
            self.timed_out(now)
        elif self._silent_since is None:
            self._silent_since = now

    def confirms(self, now: float) -> bool:
        """Whether 'no responders', heard now, confirms an earlier one: the leader is presumed dead from here on."""
        if self._silent_since is None or now < self._silent_since + self._timing.confirm_after:
            return False
        self._silent_since = None
        if self._lease is not None and self._lease.holder:
            self._presumed_dead[self._lease.holder.incarnation] = False
        return True

    @property
    def _pause(self) -> float:
        """Mean pause between two probes of this follower."""
        pause = self._timing.probe_pause * self.followers
        return max(pause, min(RARELY * pause, RAREST * self._timing.ttl)) if self._told else pause
