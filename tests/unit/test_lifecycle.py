"""The agent's steps: legal in every case, and enough to get where the key says."""

from __future__ import annotations

import itertools

import pytest

from cdm.agent.steps import Do, LocalState, StateReport, may_fail, next_step
from cdm.model.slice import TRANSITIONS, Kind, SliceState, Writer, legal

STATES = [None, *SliceState]
CASES = list(itertools.product(STATES, LocalState))
RESULT = {
    Do.LOAD: LocalState.LOADED,
    Do.ACTIVATE: LocalState.ACTIVE,
    Do.DEACTIVATE: LocalState.LOADED,
    Do.UNLOAD: LocalState.NOTHING,
}


@pytest.mark.parametrize(("state", "local"), CASES)
def test_every_report_is_legal_and_the_nodes_to_make(state: SliceState | None, local: LocalState) -> None:
    step = next_step(state, local)
    if isinstance(step, StateReport):
        assert legal(state, step.state)
        assert step.state is None or TRANSITIONS[step.state].writer is Writer.NODE


@pytest.mark.parametrize(("state", "local"), CASES)
def test_steps_lead_to_rest(state: SliceState | None, local: LocalState) -> None:
    """Whatever is found, a runtime that does as it is told gets there in a few steps, and then nothing is done."""
    for _ in range(6):
        step = next_step(state, local)
        if step is None and (state, local) == (SliceState.ACTIVATING, LocalState.RESTARTING):
            local = LocalState.ACTIVE  # the runtime sees to it
        elif step is None:
            break
        elif isinstance(step, StateReport):
            state = step.state
        else:
            local = RESULT[step]
    assert next_step(state, local) is None
    assert state is None or TRANSITIONS[state].kind is Kind.REST
    running = local is LocalState.ACTIVE
    assert running == (state is SliceState.ACTIVE)


@pytest.mark.parametrize("local", LocalState)
@pytest.mark.parametrize("command", [state for state in SliceState if TRANSITIONS[state].kind is Kind.COMMAND])
def test_a_command_is_answered_before_anything_is_done(command: SliceState, local: LocalState) -> None:
    step = next_step(command, local)
    assert isinstance(step, StateReport)
    assert step.state is not None
    assert TRANSITIONS[step.state].kind is Kind.TRANSITION


@pytest.mark.parametrize(("state", "local"), CASES)
def test_only_what_is_told_to_go_and_serves_lingers(state: SliceState | None, local: LocalState) -> None:
    going = state in (SliceState.UNLOADING, SliceState.DEACTIVATING) and local is LocalState.ACTIVE
    assert next_step(state, local, lingers=True) == (None if going else next_step(state, local))


def test_nothing_runs_under_a_key_that_is_not_there() -> None:
    assert next_step(None, LocalState.ACTIVE) is Do.UNLOAD
    assert next_step(None, LocalState.NOTHING) is None


@pytest.mark.parametrize("local", [local for local in LocalState if local is not LocalState.ACTIVE])
def test_what_does_not_run_is_not_active(local: LocalState) -> None:
    assert next_step(SliceState.ACTIVE, local) == StateReport(SliceState.ACTIVATING)


def test_only_what_brings_something_to_run_waits_for_nats() -> None:
    assert [step for step in Do if step.begins] == [Do.LOAD, Do.ACTIVATE]


@pytest.mark.parametrize("state", STATES)
def test_failures_are_reported_where_the_table_has_them(state: SliceState | None) -> None:
    assert may_fail(state) == (state is not None and legal(state, SliceState.FAILED))
