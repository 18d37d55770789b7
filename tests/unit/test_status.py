"""What a status says: how its condition follows from the slices, and which reasons are told, in few words."""

from __future__ import annotations

import pytest

from cdm.manager.cluster import Desired
from cdm.manager.group import SlicePut
from cdm.manager.plan import WHOLE, Plan
from cdm.manager.policy import Policy
from cdm.manager.status import refused_status, status_of
from cdm.model.blueprint import Blueprint
from cdm.model.status import Condition, Status
from tests.unit.reconciling import NOW, active
from tests.unit.support import S, group_of, n, put, wanted


@pytest.mark.parametrize(
    ("puts", "desired", "unplaced", "status"),
    [
        (active(1, 2), wanted(2, 7), 0, Status(Condition.READY, "", 7, 7, 2, 2, 0, 0, 5)),
        ([], wanted(0, 7), 0, Status(Condition.READY, "", 7, 7, 0, 0, 0, 0, 5)),
        (
            [put(n(1), S.LOADING), *active(2)],
            wanted(2, 7),
            0,
            Status(Condition.PROGRESSING, "1 of 2 active", 7, 7, 2, 1, 1, 0, 5),
        ),
        (
            active(1, 2, 3),
            wanted(2, 7),
            0,
            Status(Condition.PROGRESSING, "1 more than 2 active; unloading", 7, 7, 2, 3, 0, 0, 5),
        ),
        (
            [put(n(1), S.FAILED, reason="boom"), *active(2)],
            wanted(2, 7),
            0,
            Status(Condition.DEGRADED, "1 failed: boom", 7, 7, 2, 1, 0, 1, 5),
        ),
        (
            active(1),
            Desired(Blueprint(2), 3, 9, "instances: must be …"),
            0,
            Status(Condition.INVALID, "instances: must be …", 9, 3, 2, 1, 0, 0, 5),
        ),
        ([], Desired(None, 0, 9, "bad"), 0, Status(Condition.INVALID, "bad", 9, 0, 0, 0, 0, 0, 5)),
    ],
)
def test_the_status_says_what_is(puts: list[SlicePut], desired: Desired, unplaced: int, status: Status) -> None:
    assert status_of(desired, group_of(*puts), Plan(unplaced=unplaced), 5, NOW)[0] == status


@pytest.mark.parametrize(("said", "why"), [("", "no node takes new slices"), ("2 nodes full", "2 nodes full")])
def test_an_unschedulable_blueprint_says_why(said: str, why: str) -> None:
    status = status_of(wanted(3), group_of(*active(1)), Plan(unplaced=2, why=said), 1, NOW)[0]
    assert status.condition is Condition.UNSCHEDULABLE
    assert why in status.reason
    assert "2 of 3" in status.reason


def test_what_serves_on_a_draining_node_is_not_missing() -> None:
    """Seven are wanted, and the nodes that six of them serve on are draining."""
    status = status_of(wanted(7), group_of(*active(*range(1, 7))), Plan(unplaced=7), 1, NOW)[0]
    assert status.reason == "1 of 7 instances cannot be placed, and 6 cannot be moved: no node takes new slices"
    status = status_of(wanted(6), group_of(*active(*range(1, 7))), Plan(unplaced=6), 1, NOW)[0]
    assert status.reason == "6 cannot be moved: no node takes new slices"


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_long_reasons_are_cut_and_none_hides_another(count: int) -> None:
    puts = [put(n(number), S.FAILED, reason=f"{number} " + "x" * 1000) for number in range(count)]
    reason = status_of(wanted(count), group_of(*puts), WHOLE, 1, NOW)[0].reason
    assert 400 < len(reason) <= 500
    for number in range(min(count, 3)):
        assert f" {number} xxx" in reason
    assert reason.count("x…x") == min(count, 3)
    assert reason.endswith("; …") == (count > 3)


def crashed(
    after: str = "0.4", folder: str = "/var/n1", line: int = 4, status: int = 1, error: str = "KeyError: 'X'"
) -> str:
    """As the runtime says it, longer than a status has room for."""
    trace = f'Traceback (most recent call last): |   File "{folder}/app/main.py", line {line}, in <module> | '
    return f"exit status {status} after {after} s; last output: {'starting up | ' * 40}{trace}{error}"


def failed_status(*reasons: str) -> str:
    puts = [put(n(number), S.FAILED, reason=reason) for number, reason in enumerate(reasons, 1)]
    return status_of(wanted(len(puts)), group_of(*puts), WHOLE, 1, NOW)[0].reason


def test_of_a_long_reason_its_end_is_told_and_how_it_ended() -> None:
    reason = failed_status(crashed())
    assert reason.startswith("1 failed: exit status 1 after 0.4 s; last output: starting up")
    assert reason.endswith("in <module> | KeyError: 'X'")


def test_reasons_that_differ_only_in_a_duration_a_folder_or_a_line_are_told_once() -> None:
    reason = failed_status(crashed(), crashed(after="12"), crashed(folder="/srv/n2"), crashed(line=17))
    assert reason.count("KeyError") == 1
    assert reason.startswith("4 failed: ")
    assert not reason.endswith("…")
    for other in (crashed(status=2), crashed(error="KeyError: 'Y'"), "exit status 1 after 0.4 s"):
        assert failed_status(crashed(), other).count("exit status") == 2


def test_a_failure_of_which_nothing_is_owed_is_told_without_its_reason() -> None:
    group = group_of(put(n(1), S.FAILED, reason="boom"))
    group.owed.clear()
    assert status_of(wanted(1), group, WHOLE, 1, NOW)[0].reason == "1 failed: no reason given"


def test_of_a_failure_that_is_not_tried_again_soon_it_is_told_when_it_is() -> None:
    group = group_of(put(n(1), S.FAILED, reason="boom", fatal=True))
    reason = status_of(wanted(1), group, WHOLE, 1, NOW)[0].reason
    assert reason == "1 failed: boom; tried again within 5 minutes, or at once by `cdm restart`"
    assert Policy().retry_limit == 300.0


def test_a_refused_blueprint_does_not_hide_what_troubles_the_one_in_force() -> None:
    failed, loading = put(n(1), S.FAILED, reason="boom"), put(n(1), S.LOADING)
    refused = Desired(Blueprint(1), 3, 9, "foo: there is no such field")
    for each, unplaced, reason in (
        (failed, 0, "foo: there is no such field; in force: 1 failed: boom"),
        (loading, 1, "foo: there is no such field; in force: 1 cannot be moved: no node takes new slices"),
        (loading, 0, "foo: there is no such field"),
    ):
        status = status_of(refused, group_of(each), Plan(unplaced=unplaced), 1, NOW)[0]
        assert (status.condition, status.reason) == (Condition.INVALID, reason)
    status = status_of(Desired(None, 0, 9, "bad"), group_of(failed), WHOLE, 1, NOW)[0]
    assert status.reason == "bad", "nothing is in force"


def test_a_blueprint_whose_key_does_not_parse_has_a_status_too() -> None:
    assert refused_status("bad key", 4, 2) == Status(Condition.INVALID, "bad key", observed_revision=4, term=2)


def test_another_term_alone_is_no_news() -> None:
    one = Status(Condition.READY, "", 7, 7, 2, 2, 0, 0, 5)
    assert one.same_as(Status(Condition.READY, "", 7, 7, 2, 2, 0, 0, 6))
    assert not one.same_as(Status(Condition.READY, "", 7, 7, 2, 1, 0, 0, 5))
    assert not one.same_as(None)
