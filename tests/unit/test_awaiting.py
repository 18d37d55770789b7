"""A command that waits ends where what its instances wait for cannot come unless somebody changes something."""

from __future__ import annotations

import pytest

from cdm.cli.awaiting import DOUBT, Awaited
from cdm.cli.judging import End, Ended
from cdm.manager.dependencies import told_of_circle, told_of_waiting, waited_for
from cdm.model.artifact import Artifact
from cdm.model.status import Condition, Status

pytestmark = pytest.mark.quick

WEB, API, DB, DB2, LOG = (
    Artifact("acme", name, version)
    for name, version in (("web", "1"), ("api", "1"), ("db", "1"), ("db", "2"), ("log", "1"))
)


def status(condition: Condition, reason: str = "", desired: int = 1, active: int = 0, failed: int = 0) -> Status:
    return Status(condition, reason, 7, 7, desired, active, desired - active - failed, failed)


def waits(*services: Artifact) -> Status:
    return status(Condition.PROGRESSING, told_of_waiting([str(each.service) for each in services]))


FAILED = status(Condition.DEGRADED, "1 failed: there is no artifact acme:db:1", failed=1)
COMING = status(Condition.PROGRESSING, "0 of 1 active")
REFUSED = Status(Condition.INVALID, "instances: must be a number", 7)
NO_ROOM = status(Condition.UNSCHEDULABLE, "1 of 1 instances cannot be placed: no node takes new slices")
NONE = status(Condition.READY, desired=0)


def judged(
    of: Status,
    statuses: dict[Artifact, Status],
    *,
    before: dict[Artifact, Status] | None = None,
    written: tuple[Artifact, ...] = (),
    ends: dict[Artifact, Ended] | None = None,
    after: float = 0.0,
) -> Ended | None:
    """What is judged of `WEB` when this is its status, after so many seconds of nothing else."""
    known = dict(before or {})
    awaited = Awaited(known, set(), dict.fromkeys((WEB, *written), 7))
    known |= {WEB: of, **statuses}
    awaited.ends |= ends or {}
    found = awaited.judged(WEB, of, 100.0)
    if after:
        assert found is None
        assert awaited.due(WEB) == 100.0 + DOUBT
        found = awaited.judged(WEB, of, 100.0 + after)
    return found


def test_what_was_doubted_before_an_outage_is_doubted_anew() -> None:
    awaited = Awaited({}, set(), {WEB: 7})
    alone = status(Condition.PROGRESSING, f"0 of 1 active; {told_of_waiting([str(DB.service)])}")
    assert awaited.judged(WEB, alone, 100.0) is None
    awaited.forget()
    assert awaited.judged(WEB, alone, 100.0 + DOUBT) is None
    assert awaited.judged(WEB, alone, 100.0 + 2 * DOUBT) is not None


def test_what_is_waited_for_is_read_as_it_is_told() -> None:
    for services in ((WEB,), (WEB, API), (WEB, API, DB)):
        names = tuple(each.service for each in services)
        assert waited_for(f"rolling; {told_of_waiting(map(str, names))}") == names
    assert waited_for("waiting for 1 exclusive instance to stop") == ()


@pytest.mark.parametrize(
    ("of", "statuses", "culprit", "why"),
    [
        (waits(DB), {DB: FAILED}, DB, FAILED.reason),
        (waits(LOG, DB), {DB: FAILED, LOG: COMING}, DB, FAILED.reason),
        (waits(API), {API: waits(DB), DB: FAILED}, DB, FAILED.reason),
        (waits(DB), {DB: REFUSED}, DB, REFUSED.reason),
        (waits(DB), {DB: FAILED, DB2: NONE}, DB, FAILED.reason),
        (waits(DB), {DB: FAILED, DB2: COMING}, None, ""),
        (waits(DB), {DB: COMING}, None, ""),
        (waits(DB), {DB: NO_ROOM}, None, ""),
        (waits(API), {API: waits(DB), DB: waits(API)}, None, ""),
        (COMING, {DB: FAILED}, None, ""),
    ],
)
def test_the_wait_ends_where_nothing_of_what_is_waited_for_comes_up(
    of: Status, statuses: dict[Artifact, Status], culprit: Artifact | None, why: str
) -> None:
    found = judged(of, statuses)
    if culprit is None:
        assert found is None
        return
    assert found is not None
    assert found.end is End.FAILED
    assert found.reason.endswith(f", which does not come up: {why}")
    assert found.hint(WEB) == f"`cdm explain {culprit}` tells more"


def test_what_failed_before_is_tried_again_first_and_what_was_written_is_taken_up_first() -> None:
    old = Status(Condition.INVALID, "instances: must be a number", 3)
    assert judged(waits(DB), {}, before={DB: FAILED}) is None
    assert judged(waits(DB), {DB: old}, written=(DB,)) is None
    assert judged(waits(DB), {}, written=(DB,)) is None
    ended = Ended(End.FAILED, "crash loop: 1 of 1 instances: exit status 1")
    found = judged(waits(DB), {DB: COMING}, written=(DB,), ends={DB: ended})
    assert found is not None
    assert found.hint(WEB) == "`cdm logs acme:db:1` shows what its instances wrote"


def test_blueprints_that_need_another_one_are_waited_with_for_a_moment() -> None:
    circle = status(Condition.DEGRADED, told_of_circle((WEB.service, DB.service, WEB.service)))
    for of, statuses, told in (
        (waits(DB), {}, "waiting for acme:db, of which no blueprint wants an instance"),
        (waits(DB), {DB: NONE}, "waiting for acme:db, of which no blueprint wants an instance"),
        (circle, {}, circle.reason),
    ):
        assert judged(of, statuses, after=DOUBT - 1) is None
        assert judged(of, statuses, after=DOUBT) == Ended(End.FAILED, told)


@pytest.mark.parametrize(
    ("end", "reason", "hint"),
    [
        (End.FAILED, "crash loop: 2 of 2 instances: exit status 1 after 0.3 s", "logs"),
        (End.FAILED, "1 failed: not ready within 1 s (connection refused)", "logs"),
        (End.REVERTED, "2 new instances failed or restarted: killed: over its memory limit of 64Mi", "logs"),
        (End.FAILED, "1 failed: there is no artifact acme:db:1 in bucket artifacts", "explain"),
        (End.REVERTED, "no instance became healthy for 600 s: 1 of 1 instances cannot be placed", "explain"),
        (End.REFUSED, "instances: must be a number", ""),
        (End.TIMED_OUT, "not over within 3 s", ""),
    ],
)
def test_the_command_that_tells_more_is_named(end: End, reason: str, hint: str) -> None:
    told = Ended(end, reason).hint(DB)
    assert told.startswith(f"`cdm {hint} acme:db:1` ") if hint else not told
