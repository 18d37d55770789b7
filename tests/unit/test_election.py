from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.leader.actions import Action, Probe, Read, Renew, StepDown, TakeOver, Wait
from cdm.leader.detector import LOOK_AFTER, RARELY, RAREST, TOLD_JITTER
from cdm.leader.election import HIGHEST, HIGHEST_CREDIBLE, MIDWAY, TURN, Election
from cdm.leader.records import Held, Records, StoredFence, Taken, Tenure, Timing, Vacant
from cdm.model.artifact import NodeId
from cdm.model.node import Fence, Lease
from tests.unit.support import n

ME, OTHER = n(1), n(2)
TIMING = Timing()
DEADLINE = TIMING.ttl - TIMING.margin


def records(lease: Vacant | Held, fence_revision: int, fence_term: int) -> Records:
    return Records(lease, fence(fence_revision, fence_term))


def fence(revision: int, term: int) -> StoredFence:
    return StoredFence(revision=revision, term=term)


def tenure(term: int, lease: int, fence: int, renewed: float) -> Tenure:
    return Tenure(term=term, lease_revision=lease, fence_revision=fence, renewed=renewed)


def take_over(term: int, lease: int, fence: int) -> TakeOver:
    return TakeOver(term=term, lease_revision=lease, fence_revision=fence)


def read(each: Election, found: Records, now: float) -> bool:
    """A reading without anything in between."""
    return each.read(each.reading(), found, now)


def election(random: Callable[[], float] = lambda: 0.5, incarnation: str = "me") -> Election:
    return Election(ME, incarnation, TIMING, random)


def connected(at: float = 0.0) -> Election:
    each = election()
    each.connected(at)
    return each


def held(node: NodeId = OTHER, term: int = 7, revision: int = 100, incarnation: str = "x") -> Held:
    return Held(Lease(node, term, incarnation), revision)


def follower(now: float = 0.0, random: Callable[[], float] = lambda: 0.5) -> Election:
    """Knows that somebody else leads term 7."""
    each = election(random)
    each.connected(now)
    read(each, records(held(), 90, 7), now)
    return each


def leader(sent: float = 0.0) -> Election:
    """Leads term 1: lease 1, fence 2."""
    each = connected(sent)
    read(each, records(Vacant(0), 0, 0), sent)
    action = each.next(sent)
    assert isinstance(action, TakeOver)
    each.won(action, Taken(1, 2), sent)
    return each


def silent_follower(now: float = 5.0) -> Election:
    """Has heard 'no responders' for term 7 once, at ``now``."""
    each = follower(0.0)
    assert each.next(now) == Probe(7)
    each.detector.no_responders(7, now)
    return each


# Taking over


def test_nothing_is_done_before_there_is_a_connection() -> None:
    assert election().next(0.0) == Wait(None)


def test_the_first_thing_is_to_look() -> None:
    assert connected().next(0.0) == Read()


def test_a_lease_that_was_never_written_is_taken_by_compare_and_set_on_nothing() -> None:
    each = connected()
    read(each, records(Vacant(0), 0, 0), 0.0)
    assert each.next(0.0) == take_over(1, 0, 0)


def test_a_lease_that_ended_is_taken_by_compare_and_set_on_its_marker_with_the_next_term() -> None:
    each = connected()
    read(each, records(Vacant(30), 12, 6), 0.0)
    assert each.next(0.0) == take_over(7, 30, 12)


def test_the_next_term_is_above_the_highest_ever_seen_in_the_bucket_or_in_memory() -> None:
    each = follower()
    each.watched_fence(fence(200, 41), 0.0)
    each.watched_lease(held(term=44, revision=201), 1.0)
    read(each, records(Vacant(300), 12, 6), 2.0)
    assert each.next(3.0) == take_over(45, 300, 12)
    assert each.highest_term == 44


@pytest.mark.parametrize("absurd", [HIGHEST_CREDIBLE + 1, 2**53])
def test_an_absurd_term_is_not_counted_on_from(absurd: int) -> None:
    """Or the terms after it could be read by nobody, and every leader would be nobody's for ever."""
    each = follower()
    each.watched_fence(fence(200, absurd), 0.0)
    each.watched_lease(held(term=absurd, revision=201, incarnation=""), 1.0)
    read(each, records(Vacant(300), 200, absurd), 2.0)
    assert each.next(3.0) == take_over(8, 300, 200)
    assert each.highest_term == 7


def test_a_leader_whose_fence_is_set_to_an_absurd_term_begins_the_next_one() -> None:
    each = leader()
    each.watched_fence(fence(77, 2**53), 0.0)
    assert each.next(1.0) == Read()
    read(each, records(held(ME, 1, 1, "me"), 77, 2**53), 1.0)
    assert isinstance(each.next(1.0), StepDown)
    each.stepped_down()
    read(each, records(held(ME, 1, 1, "me"), 77, 2**53), 1.1)
    assert each.next(1.2) == take_over(2, 1, 77)


def test_terms_go_on_above_the_highest_credible_one_whoever_comes_next() -> None:
    """Somebody wrote it by hand; a process that comes later learns of the terms since by what others stored."""
    stored = fence(12, HIGHEST_CREDIBLE)
    lease: Vacant | Held = Vacant(30)
    for number in range(1, 6):
        each = connected()
        read(each, Records(lease, stored), 0.0)
        action = each.next(0.0)
        assert isinstance(action, TakeOver)
        assert action.term == HIGHEST_CREDIBLE + number
        assert msgspec.json.decode(msgspec.json.encode(Fence(action.term)), type=Fence).term == action.term
        each.won(action, Taken(100 * number - 1, 100 * number), 0.0)
        stored = own_fence(100 * number, action.term)
        lease = Vacant(100 * number + 1) if number % 2 else held(ME, action.term, 100 * number - 1, "me")
        if number == 3:
            stored = fence(0, 0)  # it was deleted; the lease has it still
            lease = held(ME, action.term, 100 * number - 1, "me")


def test_a_term_that_is_seen_after_the_highest_credible_one_is_not_taken_a_second_time() -> None:
    each = follower()
    each.watched_fence(fence(200, HIGHEST_CREDIBLE), 0.0)
    each.watched_fence(own_fence(201, HIGHEST_CREDIBLE + 1, "x"), 0.0)
    each.watched_lease(Vacant(300), 1.0)
    assert each.next(2.0) == take_over(HIGHEST_CREDIBLE + 2, 300, 201)


def test_where_there_is_no_term_above_nobody_leads() -> None:
    each = connected()
    read(each, Records(Vacant(30), own_fence(12, HIGHEST, "x")), 0.0)
    assert each.exhausted
    assert each.next(0.0) == Wait(None)


def test_after_a_refusal_both_are_read_again_before_anything_else() -> None:
    each = connected()
    read(each, records(Vacant(0), 0, 0), 0.0)
    each.doubt()
    assert each.in_doubt
    assert each.next(0.1) == Read()
    read(each, records(held(), 101, 7), 0.2)
    assert isinstance(each.next(0.2), Wait)


def test_a_marker_that_expired_itself_counts_as_never_written() -> None:
    each = connected()
    read(each, records(Vacant(30), 12, 6), 0.0)
    each.doubt()
    read(each, records(Vacant(0), 12, 6), 0.1)
    assert each.next(0.1) == take_over(7, 0, 12)


def test_a_won_take_over_is_held_from_the_moment_at_which_it_was_sent() -> None:
    each = leader(sent=5.0)
    assert each.tenure == tenure(1, 1, 2, 5.0)
    assert each.leader == Lease(ME, 1, "me")
    assert each.valid(5.0 + DEADLINE - 0.001)
    assert not each.valid(5.0 + DEADLINE)


def test_a_take_over_whose_ack_was_lost_is_adopted() -> None:
    each = connected()
    read(each, records(Vacant(0), 0, 0), 0.0)
    each.take_over_unknown(take_over(1, 0, 0), 0.0)
    assert each.next(2.0) == Read()
    read(each, records(held(ME, 1, 1, "me"), 2, 1), 2.0)
    assert each.tenure == tenure(1, 1, 2, 0.0)
    assert each.valid(DEADLINE - 0.001)
    assert not each.valid(DEADLINE)


def test_a_take_over_whose_ack_was_lost_and_that_was_not_stored_is_tried_again() -> None:
    each = connected()
    read(each, records(Vacant(0), 0, 0), 0.0)
    each.take_over_unknown(take_over(1, 0, 0), 0.0)
    read(each, records(Vacant(0), 0, 0), 2.0)
    assert each.tenure is None
    assert each.next(2.0) == take_over(1, 0, 0)


@pytest.mark.parametrize(
    "found",
    [
        records(held(ME, 7, 100, "predecessor"), 101, 7),
        records(held(ME, 7, 100, ""), 101, 7),
        records(held(OTHER, 7, 100, "me"), 101, 7),
        records(held(ME, 7, 100, "me"), 99, 6),
    ],
)
def test_a_lease_that_is_not_wholly_ones_own_is_never_adopted(found: Records) -> None:
    each = connected()
    read(each, records(Vacant(0), 0, 0), 0.0)
    each.take_over_unknown(take_over(7, 0, 0), 0.0)
    read(each, found, 0.5)
    assert each.tenure is None
    assert not each.valid(0.5)


def test_a_disconnected_candidate_waits() -> None:
    each = connected()
    read(each, records(Vacant(0), 0, 0), 0.0)
    each.disconnected()
    assert each.next(1.0) == Wait(None)
    each.connected(2.0)
    assert each.next(2.0) == Read()


# Leading


def test_the_lease_is_renewed_every_fifth_of_its_ttl_from_its_own_revision() -> None:
    each = leader()
    assert each.next(0.0) == Wait(2.0)
    assert each.next(2.0) == Renew(tenure(1, 1, 2, 0.0), DEADLINE)
    each.renewed(9, 2.0)
    assert each.next(2.1) == Wait(4.0)
    assert each.next(4.0) == Renew(tenure(1, 9, 2, 2.0), 2.0 + DEADLINE)


def test_a_refused_renewal_whose_lease_is_somebody_elses_is_loss_of_leadership_at_once() -> None:
    each = leader()
    each.doubt()
    assert each.next(2.0) == Read()
    read(each, records(held(OTHER, 2, 10), 11, 2), 2.1)
    assert not each.valid(2.1)
    assert isinstance(each.next(2.1), StepDown)


@pytest.mark.parametrize(
    "found",
    [
        records(Vacant(10), 2, 1),
        records(Vacant(0), 0, 0),
        records(held(ME, 1, 1, "me"), 11, 2),
        records(held(ME, 1, 1, "me"), 0, 0),
        records(held(ME, 2, 10, "me"), 2, 1),
        records(held(ME, 1, 10, "other"), 2, 1),
    ],
)
def test_a_leader_that_finds_its_lease_or_fence_changed_steps_down(found: Records) -> None:
    each = leader()
    each.doubt()
    read(each, found, 2.1)
    assert not each.valid(2.1)
    action = each.next(2.1)
    assert isinstance(action, StepDown)
    assert action.term == 1


def test_a_refused_renewal_whose_lease_is_still_its_own_goes_on_from_that_revision() -> None:
    each = leader()
    each.renewal_unknown(2.0)
    assert each.next(3.0) == Read()
    read(each, records(held(ME, 1, 9, "me"), 2, 1), 3.0)
    assert each.next(3.0) == Renew(tenure(1, 9, 2, 0.0), DEADLINE)


def own_fence(revision: int, term: int = 1, incarnation: str = "me") -> StoredFence:
    return StoredFence(revision=revision, term=term, incarnation=incarnation)


def test_a_fence_that_is_stored_anew_guards_what_is_written_from_then_on() -> None:
    each = leader()
    each.fence_renewed(50)
    assert each.tenure == tenure(1, 1, 50, 0.0)
    each.fence_renewed(40)
    assert each.tenure == tenure(1, 1, 50, 0.0), "an answer that came late"


@pytest.mark.parametrize("how", ["refused", "read", "watched"])
def test_a_fence_of_which_an_earlier_try_was_stored_is_adopted(how: str) -> None:
    each = leader()
    match how:
        case "refused":
            each.fence_refused(own_fence(50))
        case "read":
            each.doubt()
            read(each, Records(held(ME, 1, 1, "me"), own_fence(50)), 1.0)
        case _:
            each.watched_fence(own_fence(50), 0.0)
    assert each.tenure == tenure(1, 1, 50, 0.0)
    assert each.valid(1.0)
    assert not each.in_doubt


def test_a_reading_that_is_behind_does_not_take_a_leaders_new_fence_from_it() -> None:
    each = leader()
    each.fence_refused(own_fence(2))
    assert each.valid(1.0)
    assert each.tenure == tenure(1, 1, 2, 0.0)


def test_a_reading_that_began_before_the_fence_was_written_anew_is_made_again() -> None:
    each = leader()
    each.connected(1.0)
    reading = each.reading()
    each.fence_renewed(50)
    each.read(reading, Records(held(ME, 1, 1, "me"), own_fence(2)), 1.1)
    assert each.valid(1.1)
    assert each.next(1.1) == Read()
    read(each, Records(held(ME, 1, 1, "me"), own_fence(50)), 1.2)
    assert each.tenure == tenure(1, 1, 50, 0.0)
    assert not each.in_doubt


def test_a_fence_that_went_back_is_a_loss() -> None:
    each = leader()
    each.fence_renewed(50)
    each.doubt()
    read(each, Records(held(ME, 1, 1, "me"), own_fence(2)), 1.0)
    assert isinstance(each.next(1.0), StepDown)


@pytest.mark.parametrize(
    "stored", [own_fence(50, 2), own_fence(50, 1, "another"), own_fence(50, 1, ""), fence(0, 0), fence(50, 0)]
)
def test_a_leader_that_cannot_write_its_fence_anew_since_it_is_anothers_leads_no_more(stored: StoredFence) -> None:
    each = leader()
    each.fence_refused(stored)
    assert not each.valid(1.0)
    assert isinstance(each.next(1.0), StepDown)


def test_an_unacked_renewal_does_not_prolong_the_tenure() -> None:
    each = leader()
    for sent in (2.0, 4.0, 6.0, 8.0):
        each.renewal_unknown(sent)
        read(each, records(held(ME, 1, int(sent) * 10, "me"), 2, 1), sent + 0.5)
    assert each.valid(DEADLINE - 0.001)
    assert not each.valid(DEADLINE)
    assert isinstance(each.next(DEADLINE), StepDown)


def test_a_leader_steps_down_by_its_own_clock_before_its_lease_can_end() -> None:
    each = leader(sent=100.0)
    each.renewed(5, 102.0)
    each.disconnected()
    assert each.next(103.0) == Wait(102.0 + DEADLINE)
    assert isinstance(each.next(102.0 + DEADLINE), StepDown)
    assert TIMING.margin > 0


def test_a_leader_that_was_suspended_steps_down_before_it_does_anything_else() -> None:
    each = leader()
    each.connected(500.0)
    assert not each.valid(500.0)
    assert isinstance(each.next(500.0), StepDown)


def test_being_fenced_is_loss_of_leadership_at_once() -> None:
    each = leader()
    each.fenced("the server refused a write")
    assert not each.valid(0.1)
    assert each.next(0.1) == StepDown(1, "the server refused a write")


def test_a_late_ack_of_a_renewal_does_not_undo_a_fencing() -> None:
    each = leader()
    each.fenced("fenced")
    each.renewed(9, 2.0)
    assert not each.valid(2.0)
    assert isinstance(each.next(2.0), StepDown)


def test_an_own_lease_seen_after_a_fencing_does_not_undo_it() -> None:
    each = leader()
    each.fenced("fenced")
    read(each, records(held(ME, 1, 1, "me"), 2, 1), 0.5)
    assert isinstance(each.next(0.5), StepDown)


def test_after_stepping_down_the_server_is_looked_at_first() -> None:
    each = leader()
    each.fenced("fenced")
    each.stepped_down()
    assert each.tenure is None
    assert not each.valid(0.1)
    assert each.next(0.1) == Read()


def test_a_term_that_was_given_up_is_never_resumed_though_its_lease_has_not_ended() -> None:
    # Everybody was told that it is over; nobody would be told that it is on again.
    each = leader()
    each.disconnected()
    assert isinstance(each.next(DEADLINE), StepDown)
    each.stepped_down()
    each.connected(DEADLINE + 0.1)
    read(each, records(held(ME, 1, 1, "me"), 2, 1), DEADLINE + 0.2)
    assert each.tenure is None
    assert not isinstance(each.next(DEADLINE + 0.2), (Renew, StepDown))


def test_a_renewal_without_an_ack_does_not_make_an_ended_tenure_valid_again() -> None:
    each = leader()
    each.renewal_unknown(DEADLINE - 0.5)
    assert isinstance(each.next(DEADLINE), StepDown)
    each.stepped_down()
    # The renewal was never stored: the lease is that of the take-over and ends at 10 s.
    read(each, records(held(ME, 1, 1, "me"), 2, 1), DEADLINE + 0.1)
    assert not each.valid(TIMING.ttl + 1.0)


def test_a_fenced_term_is_never_resumed() -> None:
    each = leader()
    each.renewal_unknown(0.5)
    read(each, records(held(ME, 1, 1, "me"), 2, 1), 0.6)
    each.reset("the stream was created anew")
    assert isinstance(each.next(1.0), StepDown)
    each.stepped_down()
    read(each, records(held(ME, 1, 1, "me"), 2, 1), 1.1)
    assert each.tenure is None


def test_a_lease_of_ones_own_past_is_taken_over_with_a_higher_term() -> None:
    each = leader()
    assert isinstance(each.next(DEADLINE), StepDown)
    each.stepped_down()
    read(each, records(held(ME, 1, 1, "me"), 2, 1), DEADLINE)
    assert each.next(DEADLINE) == take_over(2, 1, 2)
    each.doubt()
    read(each, records(Vacant(50), 2, 1), DEADLINE + 2.0)
    assert each.next(DEADLINE + 2.1) == take_over(2, 50, 2)


def test_a_process_that_withdrew_does_not_take_its_own_past_lease_over() -> None:
    each = leader()
    each.withdraw()
    assert isinstance(each.next(DEADLINE), StepDown)
    each.stepped_down()
    read(each, records(held(ME, 1, 1, "me"), 2, 1), DEADLINE)
    assert each.next(DEADLINE) == Wait(None)


def test_a_leader_that_hears_of_another_lease_asks_the_server() -> None:
    for news in (Vacant(50), held(OTHER, 2, 50), held(ME, 1, 50, "another me")):
        each = leader()
        each.watched_lease(news, 1.0)
        assert each.next(1.0) == Read()


def test_a_leader_that_hears_of_another_fence_asks_the_server() -> None:
    for revision, term in ((50, 2), (0, 0)):
        each = leader()
        each.watched_fence(fence(revision, term), 0.0)
        assert each.next(1.0) == Read()


def test_a_leader_is_not_disturbed_by_its_own_renewals_and_by_old_news() -> None:
    each = leader()
    each.renewed(9, 2.0)
    each.watched_lease(held(ME, 1, 9, "me"), 2.1)
    each.watched_lease(Vacant(0), 2.1)
    each.watched_fence(fence(2, 1), 0.0)
    assert each.next(2.2) == Wait(4.0)


# Following


def test_a_term_that_was_seen_for_less_than_a_second_is_not_judged() -> None:
    each = follower(0.0, random=lambda: 0.0)
    assert each.next(0.0) == Wait(TIMING.acquaintance)
    assert each.next(0.99) == Wait(TIMING.acquaintance)
    assert each.next(1.0) == Probe(7)


def test_a_new_term_begins_the_acquaintance_anew() -> None:
    each = follower(0.0)
    each.watched_lease(held(n(3), 8, 200), 5.0)
    assert each.next(5.5) == Wait(6.0)


def test_a_renewal_does_not_begin_the_acquaintance_anew() -> None:
    each = follower(0.0)
    each.watched_lease(held(revision=200), 5.0)
    assert each.next(5.0) == Probe(7)


def test_a_connection_that_is_up_for_less_than_a_second_judges_nobody() -> None:
    each = follower(0.0)
    each.disconnected()
    each.connected(20.0)
    read(each, records(held(), 90, 7), 20.0)
    assert each.next(20.9) == Wait(21.0)
    assert each.next(21.0) == Probe(7)


def test_no_responders_confirmed_once_takes_the_lease_by_its_current_revision() -> None:
    each = silent_follower(5.0)
    assert each.next(5.0) == Wait(5.0 + TIMING.confirm_after)
    each.watched_lease(held(revision=130), 5.01)
    assert each.next(5.05) == Probe(7)
    assert each.confirmed(5.05) == take_over(8, 130, 90)


def test_a_first_silence_is_not_believed() -> None:
    each = follower(0.0)
    assert each.next(5.0) == Probe(7)
    assert each.confirmed(5.0) is None


def test_a_confirmation_comes_not_before_its_time() -> None:
    each = silent_follower(5.0)
    assert each.confirmed(5.04) is None


@pytest.mark.parametrize("ending", ["answered", "timed_out"])
def test_an_answer_or_a_time_out_between_proves_that_nothing_is_proved(ending: str) -> None:
    each = silent_follower(5.0)
    getattr(each.detector, ending)(5.05)
    assert each.confirmed(5.2) is None
    assert isinstance(each.next(5.05), Wait)


def _asked_at(each: Election, now: float) -> float:
    """When the leader is asked next."""
    action = each.next(now)
    assert isinstance(action, Wait)
    assert action.until is not None
    return action.until


def test_who_is_told_of_a_leaders_end_asks_rarely_until_it_is_told() -> None:
    each = follower(0.0)
    each.detector.answered(5.0, told=True)
    assert _asked_at(each, 5.0) == 5.0 + RARELY * TIMING.probe_pause
    each.detector.followers = 4
    each.detector.answered(5.0, told=True)
    assert _asked_at(each, 5.0) == 5.0 + RAREST * TIMING.ttl, "but still before its lease would end"
    each.detector.followers = 1
    each.detector.answered(5.0, told=True)
    each.detector.ended(5.05)
    assert _asked_at(each, 5.05) == 5.0 + TIMING.probe_pause, "never more often than ever, whoever tells what"
    each.detector.answered(5.1, told=True)
    each.detector.ended(5.5)
    assert 5.5 <= _asked_at(each, 5.5) <= 5.5 + TOLD_JITTER
    each.detector.timed_out(5.6)  # it was being asked when its connection ended
    assert _asked_at(each, 5.6) == pytest.approx(5.6 + TIMING.probe_pause)


@pytest.mark.parametrize("change", ["another term", "another connection", "told no more"])
def test_what_is_told_of_one_leader_on_one_connection_is_told_of_no_other(change: str) -> None:
    each = follower(0.0)
    each.detector.answered(5.0, told=True)
    match change:
        case "another term":
            each.watched_lease(held(n(3), 8, 200), 5.1)
        case "another connection":
            each.disconnected()
            each.connected(5.1)
            read(each, records(held(), 90, 7), 5.1)
            assert _asked_at(each, 5.2) == pytest.approx(5.1 + TIMING.acquaintance)
        case _:
            each.detector.answered(5.1)
    each.detector.timed_out(6.2)
    assert _asked_at(each, 6.2) == pytest.approx(6.2 + TIMING.probe_pause)


@pytest.mark.parametrize("many", range(20))
def test_time_outs_alone_never_lead_to_a_take_over(many: int) -> None:
    each = follower(0.0)
    now = 1.0
    for _ in range(many):
        action = each.next(now)
        if isinstance(action, Wait):
            assert action.until is not None
            now = action.until
        else:
            assert isinstance(action, Probe)
            each.detector.timed_out(now)


def test_silence_of_another_term_than_the_current_one_counts_for_nothing() -> None:
    each = follower(0.0)
    each.watched_lease(held(n(3), 8, 200), 5.0)
    each.detector.no_responders(7, 6.5)
    assert each.confirmed(7.0) is None


def test_a_new_lease_between_two_silences_begins_anew() -> None:
    each = silent_follower(5.0)
    each.watched_lease(held(n(3), 8, 200), 5.01)
    assert each.confirmed(5.06) is None


def test_a_disconnection_between_two_silences_begins_anew() -> None:
    each = silent_follower(5.0)
    each.disconnected()
    each.connected(5.02)
    read(each, records(held(), 90, 7), 5.03)
    assert each.confirmed(5.1) is None


def test_a_silence_is_used_once() -> None:
    each = silent_follower(5.0)
    assert each.confirmed(5.1) is not None
    assert each.confirmed(5.2) is None


def test_a_lease_that_nobody_can_read_is_taken_over_because_nobody_answers_for_it() -> None:
    each = connected()
    read(each, records(Held(Lease(NodeId("?"), 0), 40), 39, 6), 0.0)
    assert each.next(1.5) == Probe(0)
    each.detector.no_responders(0, 1.5)
    assert each.confirmed(1.6) == take_over(7, 40, 39)


def _judge(each: Election, term: int, now: float) -> Action:
    """Two probes that nobody answers; returns what follows."""
    each.detector.no_responders(term, now)
    taken = each.confirmed(now + TIMING.confirm_after)
    return taken or each.next(now + TIMING.confirm_after)


def test_who_led_again_after_it_was_taken_for_dead_is_judged_by_its_ttl_alone() -> None:
    """Two servers without a route to each other: nothing is heard, and both are alive. They must not take turns."""
    each = follower(0.0)
    assert _judge(each, 7, 2.0) == take_over(8, 100, 90)
    each.won(take_over(8, 100, 90), Taken(110, 111), 2.1)
    each.fenced("another term began")
    each.watched_lease(held(term=9, revision=112), 3.0)
    each.stepped_down()
    read(each, records(held(term=9, revision=112), 113, 9), 3.1)
    for second in range(5, 50):
        each.watched_lease(held(term=9, revision=112 + second // 2), float(second))  # it is alive, and renews
        assert isinstance(_judge(each, 9, float(second)), Wait | Probe)
    each.watched_lease(held(term=9, revision=150), 50.0)
    each.detector.answered(51.0)
    assert _judge(each, 9, 52.0) == take_over(10, 150, 113), "it was heard, and is heard no more"


def test_a_lease_without_a_ttl_that_nobody_renews_is_taken_all_the_same() -> None:
    """Somebody wrote it in the name of one who was taken for dead; it would never end by itself."""
    each = follower(0.0)
    assert _judge(each, 7, 2.0) == take_over(8, 100, 90)
    each.doubt()
    read(each, records(held(term=9, revision=112), 113, 9), 3.0)
    for tenth in range(45, int(10 * TIMING.ttl)):
        assert isinstance(_judge(each, 9, tenth / 10), Wait | Probe)
    assert _judge(each, 9, 3.0 + TIMING.ttl) == take_over(10, 112, 113)


def test_who_died_indeed_is_no_reason_to_wait_for_the_next_one() -> None:
    each = follower(0.0)
    assert _judge(each, 7, 2.0) == take_over(8, 100, 90)
    each.doubt()
    read(each, records(held(n(3), term=8, revision=110, incarnation="z"), 111, 8), 2.2)
    assert _judge(each, 8, 4.0) == take_over(9, 110, 111)


def test_a_follower_takes_over_when_the_lease_is_given_back() -> None:
    each = follower(0.0)
    each.watched_lease(Vacant(150), 3.0)
    assert each.next(3.0) == take_over(8, 150, 90)


def test_when_nobody_leads_those_next_to_the_last_leader_go_first() -> None:
    names = [NodeId(f"n{number}") for number in range(4)]
    waits: dict[NodeId, float] = {}
    for name in names:
        each = Election(name, "me", TIMING, lambda: 0.5)
        each.candidates = set(names)
        each.connected(0.0)
        read(each, records(Held(Lease(names[1], 7, "it"), 100), 90, 7), 0.0)
        each.watched_lease(Vacant(150), 3.0)
        action = each.next(3.0)
        waits[name] = action.until - 3.0 if isinstance(action, Wait) and action.until else 0.0
        assert each.next(3.0 + waits[name]) == take_over(8, 150, 90)
    assert sorted(waits, key=waits.__getitem__) == [names[2], names[3], names[0], names[1]]
    assert waits[names[2]] == 0.0
    assert waits[names[3]] == pytest.approx(TURN)


def test_nobody_waits_long_for_a_turn() -> None:
    each = follower(0.0, random=lambda: 0.999)
    each.candidates = {NodeId(f"a{number}") for number in range(1_000)}
    each.watched_lease(Vacant(150), 3.0)
    action = each.next(3.0)
    assert isinstance(action, Wait)
    assert action.until is not None
    assert 3.0 < action.until <= 4.0
    assert each.next(action.until) == take_over(8, 150, 90)


def test_all_followers_together_probe_about_ten_times_a_second() -> None:
    random = Random(1)
    for followers in (1, 10, 100):
        probes = 0
        for _ in range(followers):
            each = follower(0.0, random=random.random)
            each.candidates = {NodeId(f"n{number}") for number in range(followers + 1)}
            now = TIMING.acquaintance
            while now < 100.0:
                action = each.next(now)
                if isinstance(action, Probe):
                    probes += 1
                    each.detector.answered(now)
                elif isinstance(action, Read):
                    read(each, records(held(), 90, 7), now)
                else:
                    assert isinstance(action, Wait)
                    assert action.until is not None
                    now = action.until
        assert 9.0 < probes / 99.0 < 11.5, followers


def test_old_news_of_the_watcher_changes_nothing() -> None:
    each = follower(0.0)
    each.watched_lease(Vacant(100), 2.0)
    each.watched_lease(held(n(3), 6, 50), 2.0)
    each.watched_fence(fence(90, 99), 0.0)
    assert each.leader == Lease(OTHER, 7, "x")
    assert each.next(2.0) == Probe(7)


def test_the_watcher_is_not_believed_before_the_first_look() -> None:
    each = connected()
    each.watched_lease(Vacant(5), 0.0)
    each.watched_fence(fence(6, 3), 0.0)
    assert each.next(0.0) == Read()
    read(each, records(Vacant(0), 0, 0), 0.1)
    assert each.next(0.1) == take_over(4, 0, 0)


# Ends


def test_who_has_withdrawn_takes_over_nothing() -> None:
    each = follower(0.0)
    each.withdraw()
    each.watched_lease(Vacant(150), 3.0)
    assert each.next(3.0) == Wait(None)
    silent = silent_follower(5.0)
    silent.withdraw()
    assert silent.confirmed(5.1) is None
    assert silent.next(9.0) == Wait(None)


def test_a_leader_that_has_withdrawn_keeps_its_lease_until_it_is_given_back() -> None:
    each = leader()
    each.withdraw()
    assert isinstance(each.next(2.0), Renew)


def test_when_the_stream_is_another_one_the_leader_steps_down_and_the_next_term_is_higher() -> None:
    each = leader()
    each.watched_fence(fence(3, 17), 0.0)
    each.reset("the stream was created anew")
    assert not each.valid(1.0)
    assert each.next(1.0) == StepDown(1, "the stream was created anew")
    each.stepped_down()
    assert each.next(1.0) == Read()
    read(each, records(Vacant(0), 0, 0), 1.1)
    assert each.next(1.1) == take_over(18, 0, 0)


def test_a_follower_of_another_stream_looks_anew_and_goes_above_the_highest_term() -> None:
    each = follower(0.0)
    each.reset("went back")
    assert each.leader is None
    assert each.next(1.0) == Read()
    read(each, records(Vacant(1), 0, 0), 1.0)
    assert each.next(1.0) == take_over(8, 1, 0)


def test_a_lost_fence_makes_the_leader_step_down_and_the_next_term_higher() -> None:
    each = leader()
    each.watched_fence(fence(0, 0), 0.0)
    assert each.next(1.0) == Read()
    read(each, records(held(ME, 1, 1, "me"), 77, 0), 1.0)
    assert isinstance(each.next(1.0), StepDown)
    each.stepped_down()
    read(each, records(Vacant(78), 77, 0), 12.0)
    assert each.next(12.0) == take_over(2, 78, 77)


def test_a_lost_fence_is_noticed_once_and_then_again_only_when_there_was_one_in_between() -> None:
    each = follower(0.0)
    assert read(each, records(held(revision=101), 200, 0), 1.0)
    assert not read(each, records(held(revision=102), 200, 0), 2.0)
    assert not read(each, records(held(n(3), 8, 300), 301, 8), 3.0)
    assert read(each, records(held(n(3), 8, 302), 303, 0), 4.0)


def test_there_is_no_loss_where_there_never_was_a_fence() -> None:
    each = connected()
    assert not read(each, records(Vacant(0), 0, 0), 0.0)
    assert not read(each, records(Vacant(0), 0, 0), 1.0)


def test_the_first_leader_of_all_notices_the_loss_of_the_fence_that_it_wrote_itself() -> None:
    each = leader()
    each.watched_fence(fence(0, 0), 0.0)
    assert each.next(1.0) == Read()
    assert read(each, records(held(ME, 1, 1, "me"), 77, 0), 1.0)


def test_a_follower_from_the_very_beginning_notices_the_loss_of_the_first_fence() -> None:
    each = connected()
    read(each, records(Vacant(0), 0, 0), 0.0)
    each.watched_lease(held(term=1, revision=1), 0.1)
    each.watched_fence(fence(2, 1), 0.0)
    each.watched_fence(fence(0, 0), 0.0)
    each.doubt()
    assert read(each, records(held(term=1, revision=1), 77, 0), 1.0)


@given(st.floats(0.1, 3600.0))
def test_renewals_and_the_margin_fit_into_any_ttl(ttl: float) -> None:
    timing = Timing(ttl=ttl)
    assert 0 < timing.renew_every < ttl
    assert timing.margin > 0
    if ttl >= 1.0:
        assert ttl - timing.margin > 2 * timing.renew_every


# Leases that expire without a trace


def test_a_lease_that_is_not_renewed_is_looked_for_after_its_ttl_and_not_before() -> None:
    each = follower(0.0)
    each.detector.timed_out(TIMING.ttl + 5.0)  # a frozen leader answers nothing, which proves nothing
    assert each.next(TIMING.ttl) == Wait(TIMING.ttl + LOOK_AFTER)
    assert each.next(TIMING.ttl + LOOK_AFTER) == Read()
    read(each, records(Vacant(0), 90, 7), TIMING.ttl + LOOK_AFTER)
    assert each.next(TIMING.ttl + LOOK_AFTER) == take_over(8, 0, 90)


def test_a_renewed_lease_is_not_looked_for() -> None:
    each = follower(0.0)
    for number in range(1, 200):
        now = number * TIMING.renew_every
        assert each.next(now) != Read()
        each.watched_lease(held(revision=100 + number), now)
        each.detector.answered(now)


def test_a_lease_that_is_still_there_is_looked_for_after_ever_longer_pauses() -> None:
    """Whoever holds it may have been started with another TTL; one that was put without a TTL never ends."""
    each = follower(0.0)
    now, looks = 0.0, 0
    while now < 1_000.0:
        each.detector.timed_out(now)
        action = each.next(now)
        if action == Read():
            looks += 1
            read(each, records(held(), 90, 7), now)
        now += 0.01
    assert 5 < looks < 30


def test_where_the_lease_is_known_to_have_expired_it_is_read_and_taken_in_turn() -> None:
    each = follower(0.0)
    each.candidates = {ME, OTHER, n(3)}
    each.lease_expired(100, 5.0)
    assert each.next(5.0) == Read()
    read(each, records(Vacant(0), 90, 7), 5.0)
    # Those that come after the last leader have their turn before this one.
    assert each.next(5.0) == Wait(5.0 + TURN)
    assert each.next(5.0 + TURN) == take_over(8, 0, 90)


def test_that_an_older_lease_has_expired_is_no_news() -> None:
    each = follower(0.0)
    each.watched_lease(held(revision=105), 1.0)
    each.lease_expired(100, 5.0)
    assert each.next(5.0) != Read()


def test_a_leader_whose_lease_is_told_to_be_gone_reads_before_it_believes_it() -> None:
    each = leader()
    each.lease_expired(1, 1.0)
    assert each.next(1.0) == Read()
    read(each, records(Vacant(0), 2, 1), 1.0)
    assert isinstance(each.next(1.0), StepDown)


# Fence and lease in two steps


def test_whoever_has_written_a_fence_alone_is_left_time_for_its_lease() -> None:
    each = connected()
    read(each, records(Vacant(99), 90, 7), 0.0)
    each.watched_fence(own_fence(101, 8, "other"), 1.0)
    action = each.next(1.0)
    assert isinstance(action, Wait)
    assert action.until is not None
    assert MIDWAY <= action.until - 1.0 <= 2 * MIDWAY
    # It may have died meanwhile.
    assert each.next(action.until) == take_over(9, 99, 101)
    # Or it leads.
    each.watched_lease(held(term=8, revision=102), action.until)
    assert not isinstance(each.next(action.until), TakeOver)


def test_a_silent_leader_is_not_replaced_while_another_one_is_about_to() -> None:
    each = follower(0.0)
    each.detector.no_responders(7, 2.0)
    each.watched_fence(own_fence(101, 8, "other"), 2.04)
    assert each.confirmed(2.06) is None
    assert each.confirmed(2.06 + 2 * MIDWAY) == take_over(9, 100, 101)


def test_a_fence_that_goes_with_the_lease_is_waited_for_by_nobody() -> None:
    each = follower(0.0)
    each.watched_lease(held(term=8, revision=101), 1.0)
    each.watched_fence(own_fence(102, 8, "x"), 1.0)
    each.lease_expired(101, 2.0)
    read(each, records(Vacant(0), 102, 8), 2.0)
    assert isinstance(each.next(2.0 + TURN), TakeOver)


def test_a_leader_that_finds_another_fence_under_its_own_lease_is_deposed() -> None:
    """Somebody wrote the fence, and died before the lease: this process takes over anew."""
    each = leader()
    each.watched_fence(own_fence(5, 2, "other"), 1.0)
    assert each.next(1.0) == Read()
    mine = Held(Lease(ME, 1, "me"), 1)
    read(each, Records(mine, own_fence(5, 2, "other")), 1.0)
    assert isinstance(each.next(1.0), StepDown)
    each.stepped_down()
    read(each, Records(mine, own_fence(5, 2, "other")), 1.0)
    assert each.next(1.0) == take_over(3, 1, 5)
