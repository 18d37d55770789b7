"""A manager's slot: free, held, held by somebody else, lost."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.leader.actions import Wait
from cdm.leader.slot import (
    DENIED_PAUSE,
    LONGEST_LOOK_PAUSE,
    LOOK_PACE,
    LookForSlots,
    ReadSlot,
    RenewSlot,
    SlotClaim,
    TakeSlot,
)
from cdm.model.node import Slot
from tests.unit.support import n

pytestmark = pytest.mark.quick

TTL, SLOTS = 9.0, 5
ME, OTHER = Slot(n(1), "me"), Slot(n(2), "x")
LASTS = TTL - 0.9
NEVER = float("-inf")


def _claim(random: Callable[[], float] = lambda: 0.5) -> SlotClaim:
    return SlotClaim(ME, SLOTS, TTL, random)


def _seated(at: float = 100.0, revision: int = 7) -> SlotClaim:
    claim = _claim()
    claim.next(at)
    claim.looked({0, 1}, 10, at)
    claim.taken(3, revision, at)
    return claim


def _returning(claim: SlotClaim) -> bool:
    return claim.returning


def test_a_free_slot_is_taken_at_once_at_the_start() -> None:
    claim = _claim()
    assert claim.next(0.0) == LookForSlots()
    claim.looked({0, 1}, 10, 0.0)
    assert claim.next(0.0) == TakeSlot(3)
    assert claim.held_until == NEVER
    claim.taken(3, 7, 0.1)
    assert (claim.held_until, claim.seat) == (0.1 + LASTS, (3, 7))


UNKNOWN = ("not_renewed", 103.0)
TABLE: dict[str, tuple[list[tuple[object, ...]], float, object, float, bool]] = {
    # What one hears that is seated since 100; when; what is next; until when it may manage; whether it may return.
    "nothing": ([], 101.0, Wait(103.0), 100 + LASTS, False),
    "a third of the TTL is over": ([], 103.0, RenewSlot(3, 7, 100 + LASTS - 103), 100 + LASTS, False),
    "renewed": ([("renewed", 8, 103.0)], 104.0, Wait(106.0), 103 + LASTS, False),
    "over by its own clock": ([], 100 + LASTS, LookForSlots(), NEVER, True),
    "a renewal is not answered": ([UNKNOWN], 103.5, ReadSlot(3), 100 + LASTS, False),
    "and is not stored": (
        [UNKNOWN, ("read", ME, 7, 103.5)], 103.5, RenewSlot(3, 7, 100 + LASTS - 103.5), 100 + LASTS, False,
    ),
    "and is stored": ([UNKNOWN, ("read", ME, 9, 105.0)], 105.0, Wait(106.0), 103 + LASTS, False),
    "of two that are not answered one is stored, perhaps the first": (
        [UNKNOWN, ("read", ME, 7, 104.0), ("not_renewed", 104.0), ("read", ME, 9, 105.0)],
        105.0, Wait(106.0), 103 + LASTS, False,
    ),
    "somebody else's": ([UNKNOWN, ("read", OTHER, 9, 103.5)], 103.5, LookForSlots(), NEVER, True),
    "gone": ([UNKNOWN, ("read", None, 0, 103.5)], 103.5, LookForSlots(), NEVER, True),
    "of this node's process before": (
        [UNKNOWN, ("read", Slot(ME.node, "before"), 9, 103.5)], 103.5, LookForSlots(), NEVER, True,
    ),
    "others know of no slots": ([("excuse", 101.0, True)], 200.0, Wait(203.0), float("inf"), False),
    "and then all know of them": (
        [("excuse", 101.0, True), ("excuse", 150.0, False)], 150.0, LookForSlots(), NEVER, True,
    ),
    "the process stops": ([("stop_seeking",)], 101.0, Wait(103.0), 100 + LASTS, False),
    "and finds its slot over": ([("stop_seeking",)], 200.0, Wait(None), NEVER, True),
    "and holds none any more": ([("give_up",)], 101.0, Wait(None), NEVER, False),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_what_follows_for_one_that_holds_a_slot(name: str) -> None:
    facts, now, action, until, returning = TABLE[name]
    claim = _seated()
    for fact, *arguments in facts:
        getattr(claim, str(fact))(*arguments)
    assert claim.next(now) == action
    assert (claim.held_until, claim.returning) == (until, returning)


def test_one_that_lost_its_slot_takes_another_at_once_and_gives_up_where_there_is_none() -> None:
    claim = _seated()
    assert claim.next(200.0) == LookForSlots()
    assert _returning(claim), "what it has is kept until it is known whether there is another"
    claim.looked({1, 2, 3, 4}, 10, 200.0)
    assert claim.next(200.0) == TakeSlot(0)
    claim.not_taken(200.1)
    assert claim.next(200.1) == LookForSlots()
    claim.looked({0, 1, 2, 3, 4}, 10, 200.2)
    assert _returning(claim) is False
    assert isinstance(claim.next(200.2), Wait)


def test_a_take_that_is_not_answered_is_looked_for() -> None:
    for stored, seat in ((ME, (3, 8)), (OTHER, None), (None, None)):
        claim = _claim()
        claim.next(0.0)
        claim.looked({0, 1}, 10, 0.0)
        claim.unanswered(3, 0.0)
        assert (claim.next(1.0), claim.held_until) == (ReadSlot(3), NEVER)
        claim.read(stored, 8, 1.0)
        assert claim.seat == seat


def test_one_that_may_not_is_patient() -> None:
    claim = _seated()
    claim.next(200.0)
    claim.denied(200.0)
    assert (claim.next(200.0), claim.returning) == (Wait(200 + DENIED_PAUSE), False)


def test_one_that_may_not_asks_again_on_another_connection_and_nobody_else_does() -> None:
    claim = _claim()
    claim.next(0.0)
    claim.denied(0.0)
    claim.connected(10.0)
    assert claim.next(10.0) == LookForSlots()
    claim.looked(set(range(SLOTS)), SLOTS + 2000, 10.0)
    later = claim.next(10.0)
    claim.connected(10.1)
    assert claim.next(10.1) == later != LookForSlots(), "all of them at once would be too many"


@given(nodes=st.integers(6, 20_000), seed=st.integers(0, 99))
def test_all_that_seek_together_look_no_more_often_than_is_good(nodes: int, seed: int) -> None:
    claim = _claim(Random(seed).random)
    claim.next(0.0)
    claim.looked(set(range(SLOTS)), SLOTS + 2 * nodes, 0.0)
    action = claim.next(0.0)
    assert isinstance(action, Wait)
    assert action.until is not None
    pause = min((nodes - SLOTS) * LOOK_PACE, LONGEST_LOOK_PAUSE)
    assert 0.5 * pause <= action.until <= 1.5 * pause


class _Server:
    """The slots as the server keeps them: it removes each when its TTL is over, by a clock of its own."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[Slot, int, float]] = {}
        self.sequence = 0

    def held(self, now: float) -> set[int]:
        self.slots = {number: each for number, each in self.slots.items() if each[2] > now}
        return set(self.slots)

    def put(self, number: int, holder: Slot, expect: int, now: float) -> int | None:
        self.held(now)
        if (self.slots[number][1] if number in self.slots else 0) != expect:
            return None
        self.sequence += 1
        self.slots[number] = (holder, self.sequence, now + TTL)
        return self.sequence


@given(seed=st.integers(0, 2**32))
def test_no_two_manage_by_one_slot_and_no_more_than_there_are(seed: int) -> None:
    """Processes that freeze, answers that are lost or late, and time that passes in between."""
    random = Random(seed)
    server, now = _Server(), 0.0
    claims = [SlotClaim(Slot(n(number), "x"), 2, TTL, random.random) for number in range(5)]
    frozen = [0.0] * len(claims)
    for _ in range(300):
        now += random.choice((0.0, 0.01, 0.1, 0.5, 2.0))
        number = random.randrange(len(claims))
        if now < frozen[number]:
            continue
        claim = claims[number]
        if random.random() < 0.03:
            frozen[number] = now + random.uniform(0, 3 * TTL)
            continue
        sent, lost = now, random.random() < 0.1
        match claim.next(now):
            case LookForSlots():
                claim.looked(server.held(now), 15, now)
            case TakeSlot(slot):
                revision = server.put(slot, claim.holder, 0, now + random.choice((0.0, 0.2)))
                if lost:
                    claim.unanswered(slot, sent)
                elif revision is None:
                    claim.not_taken(now)
                else:
                    claim.taken(slot, revision, sent)
            case RenewSlot(slot, revision, _):
                stored = server.put(slot, claim.holder, revision, now)
                if lost or stored is None:
                    claim.not_renewed(sent)
                else:
                    claim.renewed(stored, sent)
            case ReadSlot(slot):
                server.held(now)
                holder, revision, _ = server.slots.get(slot, (None, 0, 0.0))
                claim.read(holder, revision, now)
            case Wait():
                pass
        managing = [each for each in claims if each.held_until > now]
        assert len(managing) <= 2
        assert len({each.seat and each.seat[0] for each in managing}) == len(managing)
