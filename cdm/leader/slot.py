"""A manager's slot as a state machine without I/O: facts go in, the next thing to do comes out.

Of the nodes that may manage only so many do: each holds one of the slots ``nodes/_manager.{number}``, which it takes by
compare-and-set where it is free, and renews before its TTL ends. Whoever finds its slot lost, or over by its own clock,
manages no more, before another can hold it. The clock must count suspended time (CLOCK_BOOTTIME).

A slot makes no write safe: lease and fence do. It keeps most nodes from mirroring everything.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet

from msgspec import Struct
from msgspec.structs import replace

from cdm.leader.actions import Wait
from cdm.model.node import Slot

RENEWALS_PER_TTL = 3
LOOK_PACE = 0.5
"""Mean seconds between two looks for a free slot, of all nodes that seek one together."""
LONGEST_LOOK_PAUSE = 30.0
"""Mean seconds between two looks of one node, at most: there may be fewer that seek than it seems."""
DENIED_PAUSE = 60.0
"""Seconds after which a node that may not take a slot tries again, where it is connected meanwhile."""


class LookForSlots(Struct, frozen=True):
    """Find out which slots are held."""


class TakeSlot(Struct, frozen=True):
    """Write this slot, if there is nothing under its key."""

    number: int


class ReadSlot(Struct, frozen=True):
    """Find out who holds this slot."""

    number: int


class RenewSlot(Struct, frozen=True):
    """Write this slot again, by compare-and-set, within so many seconds."""

    number: int
    revision: int
    within: float


SlotAction = Wait | LookForSlots | TakeSlot | ReadSlot | RenewSlot


class Seeking(Struct, frozen=True):
    """No slot is held; free ones are looked for then."""

    at: float
    denied: bool = False
    """Whether that is so late because this process might not take one."""


class FreeSlot(Struct, frozen=True):
    """This slot was free."""

    number: int


class Seated(Struct, frozen=True, kw_only=True):
    """This slot is held."""

    number: int
    revision: int
    renewed: float
    """When the last acknowledged write was sent."""
    renew_at: float
    tried: float | None = None
    """When a renewal was first sent of which nobody knows whether it is stored."""
    doubtful: bool = False
    """Whether what is stored must be read before anything else."""


class UnansweredTake(Struct, frozen=True):
    """The slot may have been taken, by what was sent then."""

    number: int
    sent: float


class Excused(Struct, frozen=True):
    """None is needed."""


class SlotClaim:
    """What one node knows of its slot, and what follows from it.

    Args:
        holder: what this process writes.
        slots: how many there are.
        ttl: of a slot, in seconds.
        random: from 0 (included) to 1.
    """

    def __init__(self, holder: Slot, slots: int, ttl: float, random: Callable[[], float]) -> None:
        self.holder = holder
        self.slots = slots
        self.ttl = ttl
        self._random = random
        self._phase: Seeking | FreeSlot | UnansweredTake | Seated | Excused = Seeking(float("-inf"))
        self.returning = False
        """Whether a slot was lost, and none is known to be free or not: then what it was held for is kept."""
        self.leaving = False
        """Whether the process stops: it seeks none."""

    @property
    def held_until(self) -> float:
        """Until when this process may manage, by its own clock; in the past where it may not."""
        match self._phase:
            case Seated(renewed=renewed):
                return renewed + self.ttl - self.margin
            case Excused():
                return float("inf")
            case _:
                return float("-inf")

    @property
    def margin(self) -> float:
        """How many seconds before its slot can end its holder gives it up."""
        return max(self.ttl / 10, 0.2)

    @property
    def seat(self) -> tuple[int, int] | None:
        """Number and revision of the slot that is held; None: there is none."""
        return (self._phase.number, self._phase.revision) if isinstance(self._phase, Seated) else None

    # Facts

    def looked(self, held: AbstractSet[int], keys: int, now: float) -> None:
        """These slots are held, of a bucket with so many keys."""
        if not isinstance(self._phase, Seeking):
            return
        if free := [number for number in range(self.slots) if number not in held]:
            self._phase = FreeSlot(free[int(self._random() * len(free))])
            return
        # Beside the slots most nodes have two keys: what they say of themselves, and what is remembered of them.
        seeking = max((keys - len(held)) / 2 - len(held), 1)
        pause = min(seeking * LOOK_PACE, LONGEST_LOOK_PAUSE)
        self._seek(now + pause * (0.5 + self._random()))

    def taken(self, number: int, revision: int, sent: float) -> None:
        """The slot is this process's, by what was sent then."""
        self._sit(number, revision, sent)

    def not_taken(self, now: float) -> None:
        """Somebody else was faster."""
        self._phase = Seeking(now)

    def unanswered(self, number: int, sent: float) -> None:
        """Whether the slot was taken is not known."""
        self._phase = UnansweredTake(number, sent)

    def denied(self, now: float) -> None:
        """This process may not take one."""
        self.returning = False
        self._phase = Seeking(now + DENIED_PAUSE, denied=True)

    def connected(self, now: float) -> None:
        """There is another connection than before: it may be one that may do more, as where permissions are granted."""
        if isinstance(self._phase, Seeking) and self._phase.denied:
            self._phase = Seeking(now)

    def renewed(self, revision: int, sent: float) -> None:
        """The renewal that was sent then is stored."""
        if isinstance(self._phase, Seated):
            self._sit(self._phase.number, revision, sent)

    def not_renewed(self, sent: float) -> None:
        """The renewal that was sent then was refused, or not answered: what is stored is not what was known."""
        if isinstance(seat := self._phase, Seated):
            self._phase = replace(seat, tried=sent if seat.tried is None else seat.tried, doubtful=True)

    def read(self, stored: Slot | None, revision: int, now: float) -> None:
        """This is stored under the key of the slot."""
        ours = stored == self.holder
        match self._phase:
            case UnansweredTake(number, sent) if ours:
                self._sit(number, revision, sent)
            case UnansweredTake():
                self._phase = Seeking(now)
            case Seated() as seat if ours and revision == seat.revision:
                self._phase = replace(seat, renew_at=now, doubtful=False)
            case Seated() as seat if ours:
                # Which of several renewals that is nobody knows: count from the first.
                self._sit(seat.number, revision, seat.renewed if seat.tried is None else seat.tried)
            case Seated():
                self._lose(now)
            case _:
                pass

    def excuse(self, now: float, excused: bool) -> None:
        """Whether whoever manages does so without a slot, for there are managers that know of none."""
        if excused and isinstance(self._phase, Seated):
            self._phase = Excused()
        elif not excused and isinstance(self._phase, Excused):
            self._lose(now)

    def stop_seeking(self) -> None:
        """The process stops: what it holds it keeps, and seeks nothing."""
        self.leaving = True

    def give_up(self) -> tuple[int, int] | None:
        """The process ends, and holds no slot from now on; returns the `seat` that it held."""
        seat, self.leaving, self._phase = self.seat, True, Seeking(float("-inf"))
        return seat

    # What follows

    def next(self, now: float) -> SlotAction:
        """What to do now."""
        if isinstance(self._phase, Seated) and now >= self.held_until:
            self._lose(now)
        match self._phase:
            case Seeking(at):
                if self.leaving:
                    return Wait(None)
                return Wait(at) if now < at else LookForSlots()
            case FreeSlot(number):
                return TakeSlot(number)
            case UnansweredTake(number):
                return ReadSlot(number)
            case Seated() as seat:
                if seat.doubtful:
                    return ReadSlot(seat.number)
                if now < seat.renew_at:
                    return Wait(min(seat.renew_at, self.held_until))
                return RenewSlot(seat.number, seat.revision, self.held_until - now)
            case Excused():
                return Wait(now + self.ttl / RENEWALS_PER_TTL)

    def _sit(self, number: int, revision: int, renewed: float) -> None:
        self.returning = False
        self._phase = Seated(
            number=number, revision=revision, renewed=renewed, renew_at=renewed + self.ttl / RENEWALS_PER_TTL
        )

    def _lose(self, now: float) -> None:
        self.returning = True
        self._phase = Seeking(now)

    def _seek(self, at: float) -> None:
        self.returning = False
        self._phase = Seeking(at)
