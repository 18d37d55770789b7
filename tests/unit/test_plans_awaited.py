"""What a command that waits makes of a status: whether what it is about is over, how that ended, and how far it is."""

from __future__ import annotations

import msgspec
import pytest

from cdm.cli.judging import End, Ended, Failures, gone_back_to, judged
from cdm.cli.plans import Goal
from cdm.cli.wording import alike, in_words, serves_in_words
from cdm.explain.words import brief
from cdm.model.status import Condition, RolloutStatus, Status
from tests.unit.service_bucket import WEB, status_of


@pytest.mark.parametrize(
    ("status", "goal", "ended", "code"),
    [
        (None, Goal.FORWARD, None, 0),
        (Status(Condition.READY, observed_revision=6), Goal.FORWARD, None, 0),
        (status_of(Condition.PROGRESSING), Goal.FORWARD, None, 0),
        (status_of(Condition.PROGRESSING, "rolling"), Goal.FORWARD, None, 0),
        (status_of(Condition.READY, "paused"), Goal.FORWARD, None, 0),
        (status_of(Condition.PROGRESSING, "complete"), Goal.FORWARD, None, 0),
        (status_of(Condition.READY, "complete"), Goal.FORWARD, Ended(End.COMPLETE), 0),
        (status_of(Condition.READY), Goal.FORWARD, Ended(End.COMPLETE), 0),
        (status_of(Condition.REVERTED, "reverting"), Goal.FORWARD, None, 0),
        (status_of(Condition.REVERTED, "reverted"), Goal.FORWARD, Ended(End.REVERTED, "so"), 3),
        (status_of(Condition.REVERTED, "reverted"), Goal.BACK, Ended(End.REVERTED, "so"), 0),
        (status_of(Condition.READY, "complete"), Goal.BACK, None, 0),
        (status_of(Condition.DEGRADED, "failed"), Goal.FORWARD, Ended(End.FAILED, "so"), 3),
        (status_of(Condition.DEGRADED, "failed"), Goal.BACK, Ended(End.FAILED, "so"), 3),
        (status_of(Condition.INVALID), Goal.FORWARD, Ended(End.REFUSED, "so"), 3),
        (status_of(Condition.SUPERSEDED, "complete"), Goal.FORWARD, Ended(End.SUPERSEDED, "so"), 4),
        (status_of(Condition.READY), Goal.COUNT, Ended(End.COMPLETE), 0),
        (status_of(Condition.REVERTED, "reverted"), Goal.COUNT, Ended(End.REVERTED, "so"), 3),
    ],
)
def test_a_command_that_waits_knows_from_the_status_when_it_is_over(
    status: Status | None, goal: Goal, ended: Ended | None, code: int
) -> None:
    found = judged(7, status, goal)
    assert found == ended
    if found is not None:
        assert found.code(goal) == code


def _counted(
    condition: Condition, desired: int, active: int = 0, pending: int = 0, failed: int = 0, reason: str = "so"
) -> Status:
    return Status(condition, reason, 7, 7, desired, active, pending, failed, healthy=active)


def test_the_number_of_instances_counts_also_where_new_settings_were_taken_back() -> None:
    for counts, ended in (
        ((3, 3), Ended(End.COMPLETE)),
        ((3, 2), None),
        ((3, 3, 1), None),
        ((0,), Ended(End.COMPLETE)),
    ):
        assert judged(7, _counted(Condition.REVERTED, *counts), Goal.COUNT) == ended
    assert judged(7, _counted(Condition.REVERTED, 3, 3), Goal.FORWARD) == Ended(End.REVERTED, "so")


LOOP = "crash loop: {} of 2 instances: exit status 1 after 0.3 s; last output: Traceback | File x | KeyError: 'DB'"


def test_instances_that_do_not_come_up_end_the_wait_as_soon_as_that_is_certain() -> None:
    degraded = Condition.DEGRADED
    all_loop, one_loops = (_counted(degraded, 2, 1, 1, reason=LOOP.format(count)) for count in (2, 1))
    fresh = Failures(None)
    for status, decided in (
        (_counted(degraded, 3, pending=2, failed=1), False),
        (_counted(degraded, 3, active=1, failed=2), False),
        (_counted(degraded, 3, pending=1, failed=2), True),
        (_counted(degraded, 0, failed=1), False),
        (one_loops, False),
        (all_loop, True),
        (Status(degraded, "no nodes", 7, 7, 2), False),
    ):
        assert fresh.decided(status) is decided
    assert judged(7, all_loop, Goal.FORWARD, hopeless=True) == Ended(End.FAILED, all_loop.reason)
    assert judged(7, _counted(Condition.PROGRESSING, 2), Goal.FORWARD, hopeless=True) is None


def test_what_failed_before_an_edit_is_first_tried_again() -> None:
    failed, tried = _counted(Condition.DEGRADED, 2, failed=2), _counted(Condition.PROGRESSING, 2, pending=2)
    all_loop = _counted(Condition.DEGRADED, 2, pending=2, reason=LOOP.format(2))
    for before in (failed, all_loop):
        failures = Failures(before)
        found = [failures.decided(each) for each in (before, failed, tried, all_loop, failed)]
        assert found == [False, before is all_loop, False, False, True], "a crash loop is remembered when it is over"


def test_going_back_to_what_does_not_come_up_ends_the_wait() -> None:
    def reverting(why: str, *, stuck: bool = False) -> Status:
        rollout = RolloutStatus("reverting", "rolling", "1", "2", why=why, stuck=stuck)
        return Status(Condition.PROGRESSING, why, 7, 7, rollout=rollout)

    going = "going back to 1: 1 new instance failed or restarted: boom; 0 of 2 old instances healthy"
    assert judged(7, reverting(going), Goal.BACK) is None
    stuck = f"{going}; 1 old instance failed or restarted: KeyError"
    ended = judged(7, reverting(stuck, stuck=True), Goal.BACK)
    assert ended == Ended(End.FAILED, stuck)
    assert ended.code(Goal.BACK) == 3


def test_it_is_gone_back_only_when_what_was_gone_back_to_serves() -> None:
    taken_back = status_of(Condition.REVERTED, "reverted")
    assert gone_back_to(taken_back) == "1"
    assert gone_back_to(status_of(Condition.REVERTED, "reverting")) is None
    coming, serving = _counted(Condition.PROGRESSING, 2, 1, 1), _counted(Condition.READY, 2, 2)
    failed, loops = _counted(Condition.DEGRADED, 2, failed=2), _counted(Condition.DEGRADED, 2, 2, reason=LOOP.format(2))
    one_failed = _counted(Condition.DEGRADED, 2, 1, failed=1)

    def ended(of: Status, serving: Status | None = None) -> Ended | None:
        return judged(7, of, Goal.BACK, serving=serving)

    assert ended(taken_back, coming) is ended(taken_back, one_failed) is None
    assert ended(taken_back, serving) == Ended(End.REVERTED, "so")
    assert ended(taken_back) == Ended(End.REVERTED, "so"), "its blueprint was deleted, so that nothing is told of it"
    for status in (failed, loops):
        found = ended(taken_back, status)
        assert found == Ended(End.FAILED, f"taken back, but what it went back to does not come up: {status.reason}")
        assert found.code(Goal.BACK) == 3

    # The same version with the settings before tells of itself.
    same = RolloutStatus("reverted", "rolling", "2", "2")
    assert gone_back_to(Status(Condition.REVERTED, rollout=same)) is None

    def told(status: Status, condition: Condition) -> Ended | None:
        return ended(msgspec.structs.replace(status, condition=condition, rollout=same))

    assert told(coming, Condition.REVERTED) is told(one_failed, Condition.DEGRADED) is None
    assert told(serving, Condition.REVERTED) == Ended(End.REVERTED, "so")
    assert told(failed, Condition.DEGRADED) == Ended(
        End.FAILED, "taken back, but what it went back to does not come up: so"
    )


def test_where_something_was_taken_back_progress_is_told_of_what_serves() -> None:
    taken_back = _counted(Condition.REVERTED, 3, 2, reason="boom")
    assert serves_in_words(taken_back) == "2 of 3 instances active"
    assert serves_in_words(_counted(Condition.DEGRADED, 3, 2, reason="1 failed: x")) == (
        "2 of 3 instances active: 1 failed: x"
    )


def test_how_far_it_is_is_told_in_a_line() -> None:
    assert in_words(None, 7) == "waiting for the leader"
    assert in_words(status_of(Condition.DEGRADED), 7) == "Degraded: so"
    rolling = status_of(Condition.PROGRESSING, "rolling", active=2, pending=1, healthy=1, up_to_date=3, outdated=0)
    old = Status(Condition.PROGRESSING, active=3, healthy=3, up_to_date=3, outdated=0)
    versions = {WEB.version("0"): Status(Condition.SUPERSEDED), WEB.version("1"): old, WEB.version("2"): rolling}
    told = in_words(rolling, 7, versions)
    assert told == "rolling 1 -> 2: because (2: 1 of 3 healthy, 1: 3 of 3 healthy)"
    settings = RolloutStatus("rolling", "rolling", "2", "2", why="because")
    status = Status(Condition.PROGRESSING, "so", 7, 7, rollout=settings, healthy=4, up_to_date=2, outdated=3)
    assert in_words(status, 7, versions) == "rolling: because (2 new, 3 old, 4 healthy)"


def test_of_an_output_only_the_last_line_is_told_and_a_change_of_durations_is_no_news() -> None:
    line = in_words(_counted(Condition.DEGRADED, 2, reason=LOOP.format(2)), 7)
    assert line == ("Degraded: crash loop: 2 of 2 instances: exit status 1 after 0.3 s; last output: KeyError: 'DB'")
    assert alike(line, line.replace("0.3 s", "12 s"))
    assert not alike(line, line.replace("2 of 2", "1 of 2"))
    assert len(brief("x" * 1000)) < 600
    assert "\n" not in brief("a\nb")
