"""Whether a rollout may go on, on invented results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cdm.dispatch.messages import CheckResult
from cdm.manager.gates import LEAST_OVERDUE, OVERDUE, Gate, Gates, GateVerdict, Tally, judge, judge_all
from cdm.manager.outbox import Outbox
from cdm.model.artifact import Artifact, Service
from cdm.model.check import Check, CheckOutcome, CheckRun, PrometheusCheck
from tests.unit.world import World

SHOP = Service("org.example", "shop")
P, F, E, N = CheckOutcome.PASS, CheckOutcome.FAIL, CheckOutcome.ERROR, CheckOutcome.NO_DATA
CHECK = Check(http="http://shop/health")

checks = st.builds(
    Check,
    http=st.just("http://shop/health"),
    count=st.integers(1, 5),
    failures=st.integers(0, 3),
    errors=st.integers(0, 3),
)
outcomes = st.lists(st.sampled_from([P, P, P, F, E, N]), max_size=30)


def result(
    outcome: CheckOutcome, at: float = 0.0, check: Check = CHECK, *, index: int = 0, series: str = "1"
) -> CheckResult:
    value = 1.0 if outcome in (P, F) else None
    return CheckResult(SHOP, series, index, check, outcome, value, f"it is {outcome}", at)


def tally(check: Check, each: Sequence[CheckOutcome]) -> Tally:
    found = Tally()
    for at, outcome in enumerate(each):
        found = found.after(check, result(outcome, float(at), check))
    return found


def gate(check: Check, each: Sequence[CheckOutcome]) -> Gate:
    return judge(check, tally(check, each), float(len(each))).gate


def since_cleared(check: Check, each: Sequence[CheckOutcome]) -> list[CheckOutcome]:
    """What came after the last ``count`` passes without anything else, results without data left out."""
    said = [outcome for outcome in each if outcome is not N]
    for end in range(len(said), check.count - 1, -1):
        if all(outcome is P for outcome in said[end - check.count : end]):
            return said[end:]
    return said


def test_of_a_check_of_each_instance_the_address_is_told_that_was_asked() -> None:
    each = Check(http="http://{instance}/health", failures=0)
    asked = replace(result(F, 1.0, each), asked="GET http://10.0.0.2:80/health")
    failed = Tally().after(each, asked)
    assert judge_all([each], [failed], 1.0).reason == "GET http://10.0.0.2:80/health: it is fail"
    later = failed.after(each, replace(result(P, 2.0, each), asked="GET http://10.0.0.1:80/health"))
    assert judge_all([each], [later], 2.0).reason == "GET http://10.0.0.2:80/health: it is fail", "who failed"
    passed = Tally().after(each, replace(result(P, 2.0, each), asked="GET http://10.0.0.1:80/health"))
    assert judge_all([each], [passed], 2.0).reason == "GET http://{instance}/health: 1 of 3 passes", "of all of them"
    assert judge_all([each], [Tally()], 2.0).reason == "GET http://{instance}/health: no result yet"


# One check


def test_it_passes_after_so_many_passes_in_a_row() -> None:
    check = replace(CHECK, count=3)
    assert [gate(check, [P] * number) for number in range(5)] == ["hold", "hold", "hold", "pass", "pass"]
    assert gate(check, [P, P, F, P]) is Gate.HOLD
    assert gate(check, [P, P, F, P, P, P]) is Gate.PASS


def test_it_fails_with_more_failing_answers_than_are_tolerated() -> None:
    assert gate(replace(CHECK, failures=0), [F]) is Gate.FAIL
    assert gate(replace(CHECK, failures=0), [P, P, P, F]) is Gate.FAIL
    assert [gate(replace(CHECK, failures=2), [F] * number) for number in (1, 2, 3)] == ["hold", "hold", "fail"]


def test_failing_now_and_then_is_failing_unless_it_passes_in_between() -> None:
    check = replace(CHECK, count=3, failures=1)
    assert gate(check, [F, P, P, F]) is Gate.FAIL
    assert gate(check, [F, P, P, P, F]) is Gate.HOLD
    assert gate(check, [F, P, P, P, F, P, P, P]) is Gate.PASS


def test_errors_that_are_tolerated_do_not_break_the_row_and_more_begin_it_anew() -> None:
    check = replace(CHECK, count=3, errors=1)
    assert gate(check, [P, E, P, P]) is Gate.PASS
    assert gate(check, [P, P, P, E]) is Gate.PASS
    assert gate(check, [P, P, P, E, E]) is Gate.HOLD
    assert gate(check, [P, E, P, E, P]) is Gate.HOLD
    assert gate(check, [P, E, P, E, P, P, P]) is Gate.PASS


def test_only_passes_with_nothing_in_between_clear_what_was_put_up_with() -> None:
    check = replace(CHECK, count=3, errors=1, failures=1)
    assert gate(check, [P, E, P, P, P, E]) is Gate.PASS
    assert gate(check, [P, E, P, P, E]) is Gate.HOLD
    assert gate(check, [F, P, P, P, F]) is Gate.HOLD
    assert gate(check, [F, P, E, P, P, F]) is Gate.FAIL


def test_an_endpoint_that_answers_every_second_time_is_never_trusted() -> None:
    for errors in range(3):
        check = replace(CHECK, count=2 * errors + 3, errors=errors)
        assert gate(check, [P, E] * 50) is Gate.HOLD


def test_without_data_it_holds_and_goes_on_with_the_row() -> None:
    check = replace(CHECK, count=3)
    assert gate(check, [P, P, P, N]) is Gate.HOLD
    assert gate(check, [P, N, N, P, N, P]) is Gate.PASS
    assert gate(check, [N] * 100) is Gate.HOLD
    assert gate(check, [P, P, P, N, E]) is Gate.HOLD


def test_no_data_is_taken_for_what_the_check_says() -> None:
    assert gate(replace(CHECK, no_data="pass"), [N, N, N]) is Gate.PASS
    assert gate(replace(CHECK, no_data="fail", failures=1), [N, N]) is Gate.FAIL


def test_results_that_stay_away_are_no_pass() -> None:
    check = Check(http="http://shop/health", interval="1m", timeout=5.0)
    found = tally(check, [P, P, P])
    verdict = judge(check, found, 3.0)
    assert verdict == GateVerdict(Gate.PASS, until=2.0 + OVERDUE * 60 + 5.0)
    assert judge(check, found, 200.0) == GateVerdict(Gate.HOLD, "no result for more than 185 s")
    often = Check(http="http://shop/health", interval=1.0, timeout=5.0)
    assert judge(often, tally(often, [P, P, P]), 3.0).until == 2.0 + LEAST_OVERDUE + 5.0


@pytest.mark.parametrize(
    ("each", "told"),
    [
        ([], "no result yet"),
        ([P], "1 of 3 passes"),
        ([P, F], "it is fail; 0 of 3 passes"),
        ([P, F, F], "it is fail (2 failing answers, 1 tolerated)"),
        ([P, F, F, E], "it is fail (2 failing answers, 1 tolerated)"),
        ([P, E], "it is error; 1 of 3 passes"),
        ([F, E], "it is error; 0 of 3 passes"),
        ([P, N], "it is no data"),
        ([P, P, P], ""),
    ],
)
def test_the_reason_is_the_newest_that_there_is_to_say(each: list[CheckOutcome], told: str) -> None:
    assert judge(CHECK, tally(CHECK, each), float(len(each))).reason == told


@given(checks, outcomes)
def test_what_passes_has_passed_so_many_times_with_no_failing_answer_and_few_errors_since(
    check: Check, each: list[CheckOutcome]
) -> None:
    if gate(check, each) is not Gate.PASS:
        return
    assert each[-1] is not N
    row = []
    for outcome in reversed([outcome for outcome in each if outcome is not N]):
        assert outcome is not F
        row.append(outcome)
        if row.count(P) == check.count:
            break
    assert row.count(P) == check.count
    assert row.count(E) <= check.errors


@given(checks, outcomes)
def test_it_fails_exactly_with_more_failing_answers_than_tolerated_since_it_was_well(
    check: Check, each: list[CheckOutcome]
) -> None:
    failing = since_cleared(check, each).count(F)
    assert (gate(check, each) is Gate.FAIL) == (failing > check.failures)


@given(checks, st.lists(st.sampled_from([P, E, N]), max_size=40))
def test_what_cannot_be_said_never_fails(check: Check, each: list[CheckOutcome]) -> None:
    assert gate(check, each) is not Gate.FAIL


@given(checks, outcomes)
def test_it_recovers_whatever_was_before(check: Check, each: list[CheckOutcome]) -> None:
    assert gate(check, [*each, *[P] * check.count]) is Gate.PASS


@given(checks, outcomes, st.data())
def test_results_without_data_change_nothing_once_it_was_measured_again(
    check: Check, each: list[CheckOutcome], data: st.DataObject
) -> None:
    more = list(each)
    more.insert(data.draw(st.integers(0, len(each))), N)
    newest = next((outcome for outcome in reversed(more) if outcome is not E), None)
    if newest is not N:
        assert gate(check, more) is gate(check, each)
    elif gate(check, each) is not Gate.FAIL:
        assert gate(check, more) is Gate.HOLD


@given(checks, outcomes, st.sampled_from([F, E]))
def test_nothing_bad_makes_a_check_pass(check: Check, each: list[CheckOutcome], bad: CheckOutcome) -> None:
    if gate(check, each) is not Gate.PASS:
        assert gate(check, [*each, bad]) is not Gate.PASS


@given(checks, outcomes)
def test_what_does_not_pass_says_why(check: Check, each: list[CheckOutcome]) -> None:
    verdict = judge(check, tally(check, each), float(len(each)))
    assert (verdict.gate is Gate.PASS) == (verdict.reason == "")


# All checks of a rollout


@given(st.lists(st.tuples(checks, outcomes), max_size=4))
def test_one_that_fails_fails_all_and_all_have_to_pass(each: list[tuple[Check, list[CheckOutcome]]]) -> None:
    found = judge_all([check for check, _ in each], [tally(check, said) for check, said in each], 30.0)
    gates = {gate(check, said) for check, said in each}
    if Gate.FAIL in gates:
        assert found.gate is Gate.FAIL
    else:
        assert found.gate is (Gate.HOLD if Gate.HOLD in gates else Gate.PASS)


def test_the_reason_names_the_checks_that_it_comes_from() -> None:
    errors = Check(prometheus=PrometheusCheck("http://prometheus:9090", "sum(errors)"), ok="< 0.01", failures=0)
    one = judge_all([CHECK], [tally(CHECK, [P])], 1.0)
    assert one.reason == "GET http://shop/health: 1 of 3 passes"
    both = judge_all([CHECK, errors], [tally(CHECK, [P]), tally(errors, [])], 1.0)
    assert both.reason == (
        "check 1, GET http://shop/health: 1 of 3 passes; check 2, Prometheus query sum(errors): no result yet"
    )
    failed = judge_all([CHECK, errors], [tally(CHECK, [P]), tally(errors, [F])], 1.0)
    assert failed == GateVerdict(Gate.FAIL, "check 2, Prometheus query sum(errors): it is fail", failed.until)


def test_it_is_looked_at_again_when_the_first_result_is_overdue() -> None:
    rare = Check(http="http://shop/rare", interval="1h")
    verdict = judge_all([rare, CHECK], [tally(rare, [P, P, P]), tally(CHECK, [P, P, P])], 3.0)
    assert verdict == GateVerdict(Gate.PASS, until=2.0 + LEAST_OVERDUE + 5.0)


# What is kept of all rollouts


def gates() -> tuple[Gates, Outbox, list[dict[Service, CheckRun]]]:
    told: list[dict[Service, CheckRun]] = []
    outbox = Outbox(lambda: None, lambda: None, on_checks=lambda: told.append(dict(outbox.checks)))
    return Gates(outbox), outbox, told


RUN = CheckRun((CHECK, replace(CHECK, count=1)), "7/0", "1.1.0", "1.0.0", "rolling")


def test_what_is_to_be_checked_is_in_the_outbox_until_it_ends() -> None:
    each, outbox, told = gates()
    each.begin(SHOP, RUN)
    each.begin(SHOP, RUN)
    assert outbox.checks == {SHOP: RUN}
    each.end(SHOP)
    each.end(SHOP)
    assert outbox.checks == {}
    assert told == [{SHOP: RUN}, {}]


def test_what_the_checks_are_told_changes_without_ado() -> None:
    each, outbox, told = gates()
    each.begin(SHOP, RUN)
    later = replace(RUN, phase="paused", instances=(("10.0.0.1", 80),))
    each.begin(SHOP, later)
    assert outbox.checks == {SHOP: later}
    assert told == [{SHOP: RUN}]
    each.begin(SHOP, replace(later, series="7/1"))
    assert len(told) == 2


def test_a_rollout_without_checks_passes_and_asks_for_none() -> None:
    each, outbox, told = gates()
    assert each.judge(SHOP, 0.0) == GateVerdict(Gate.PASS)
    each.begin(SHOP, replace(RUN, checks=()))
    assert each.judge(SHOP, 0.0) == GateVerdict(Gate.PASS)
    assert outbox.checks == {}
    assert told == []


def test_results_are_counted_where_they_belong_and_no_other() -> None:
    each, _, _ = gates()
    second = RUN.checks[1]
    assert each.hear(result(P, series="7/0")) == ()
    each.begin(SHOP, RUN)
    assert each.hear(result(P, series="7/1")) == ()
    assert each.hear(result(P, check=replace(CHECK, count=9), series="7/0")) == ()
    assert each.hear(result(P, index=2, series="7/0")) == ()
    for _ in range(3):
        assert each.hear(result(P, series="7/0")) == (SHOP.version("1.1.0"), SHOP.version("1.0.0"))
    assert each.hear(result(P, series="7/0")) == ()  # it passes as before
    assert each.judge(SHOP, 0.0).reason == "check 2, GET http://shop/health: no result yet"
    each.hear(result(P, check=second, index=1, series="7/0"))
    assert each.judge(SHOP, 0.0).gate is Gate.PASS
    assert each.judge(Service("g", "other"), 0.0).gate is Gate.PASS


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda run: replace(run, phase="paused", instances=(("10.0.0.1", 80),)), True),
        (lambda run: replace(run, checks=(CHECK,)), True),
        (lambda run: replace(run, checks=(CHECK, Check(nats="shop.health"))), True),
        (lambda run: replace(run, series="7/1", step=1), False),
        (lambda run: replace(run, checks=(replace(CHECK, count=2), run.checks[1])), False),
    ],
)
def test_counting_begins_anew_with_another_step_or_another_check(
    change: Callable[[CheckRun], CheckRun], kept: bool
) -> None:
    each, outbox, _ = gates()
    each.begin(SHOP, RUN)
    each.hear(result(F, series="7/0"))
    each.begin(SHOP, change(RUN))
    assert outbox.checks[SHOP] == change(RUN)
    assert ("it is fail" in each.judge(SHOP, 0.0).reason) is kept


def test_a_new_leader_counts_anew_and_asks_for_nothing_that_another_wanted() -> None:
    each, outbox, _ = gates()
    each.begin(SHOP, RUN)
    each.hear(result(F, series="7/0"))
    later = Gates(outbox)
    assert outbox.checks == {}
    later.begin(SHOP, RUN)
    assert later.judge(SHOP, 0.0).gate is Gate.HOLD


def test_who_leads_no_more_wants_nothing_checked() -> None:
    each, outbox, told = gates()
    each.begin(SHOP, RUN)
    outbox.clear()
    assert told[-1] == {}


def test_the_manager_hears_results_while_it_leads() -> None:
    each = World()
    each.route(result(P))
    each.lead()
    each.settle()
    each.route(result(P))
    state = each.manager.state
    state.gates.begin(SHOP, replace(RUN, checks=(CHECK,), series="1"))  # type: ignore[union-attr]
    for _ in range(3):
        each.route(result(P))
    each.tick()
    assert state.gates.judge(SHOP, 0.0).gate is Gate.PASS  # type: ignore[union-attr]
    assert Artifact("org.example", "shop", "1.1.0") not in each.manager.cluster.desired
