"""The agent's steps: legal in every case, and enough to get where the key says."""

from __future__ import annotations

import itertools

import pytest

from cdm.agent.steps import Condition, Do, Report, may_fail, next_step
from cdm.model.slice import TRANSITIONS, Kind, SliceState, Writer, legal

STATES = [None, *SliceState]
CASES = list(itertools.product(STATES, Condition))
RESULT = {
    Do.LOAD: Condition.LOADED,
    Do.ACTIVATE: Condition.ACTIVE,
    Do.DEACTIVATE: Condition.LOADED,
    Do.UNLOAD: Condition.NOTHING,
}


@pytest.mark.parametrize(("state", "condition"), CASES)
def test_every_report_is_legal_and_the_nodes_to_make(state: SliceState | None, condition: Condition) -> None:
    step = next_step(state, condition)
    if isinstance(step, Report):
        assert legal(state, step.state)
        assert step.state is None or TRANSITIONS[step.state].writer is Writer.NODE


@pytest.mark.parametrize(("state", "condition"), CASES)
def test_steps_lead_to_rest(state: SliceState | None, condition: Condition) -> None:
    """Whatever is found, a runtime that does as it is told gets there in a few steps, and then nothing is done."""
    for _ in range(6):
        step = next_step(state, condition)
        if step is None:
            break
        if isinstance(step, Report):
            state = step.state
        else:
            condition = RESULT[step]
    assert next_step(state, condition) is None
    assert state is None or TRANSITIONS[state].kind is Kind.REST
    running = condition is Condition.ACTIVE
    assert running == (state is SliceState.ACTIVE)


@pytest.mark.parametrize("condition", Condition)
@pytest.mark.parametrize("command", [state for state in SliceState if TRANSITIONS[state].kind is Kind.COMMAND])
def test_a_command_is_answered_before_anything_is_done(command: SliceState, condition: Condition) -> None:
    step = next_step(command, condition)
    assert isinstance(step, Report)
    assert step.state is not None
    assert TRANSITIONS[step.state].kind is Kind.TRANSITION


def test_nothing_runs_under_a_key_that_is_not_there() -> None:
    assert next_step(None, Condition.ACTIVE) is Do.UNLOAD
    assert next_step(None, Condition.NOTHING) is None


def test_only_what_brings_something_to_run_waits_for_nats() -> None:
    assert [step for step in Do if step.begins] == [Do.LOAD, Do.ACTIVATE]


@pytest.mark.parametrize("state", STATES)
def test_failures_are_reported_where_the_table_has_them(state: SliceState | None) -> None:
    assert may_fail(state) == (state is not None and legal(state, SliceState.FAILED))
