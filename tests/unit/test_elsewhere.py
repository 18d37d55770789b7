"""What may still run that another process of this node began, as its key and this node's heartbeats tell."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm import clock
from cdm.agent.elsewhere import MAY_BE_LEFT, Doubt, Own, doubt, folder_told
from cdm.agent.holding import WHY
from cdm.manager.standing import MAY_RUN
from cdm.model.blueprint import LAST_MARGIN, LONGEST_LAST_GRACE, Overrides
from cdm.model.slice import SliceState, SliceValue
from tests.harness.waiting import eventually
from tests.unit.test_agent import KEY, Lapses, World, world

pytestmark = [pytest.mark.anyio, pytest.mark.quick]

S = SliceState
STOP_AFTER = 30.0
CERTAIN = STOP_AFTER + LONGEST_LAST_GRACE + LAST_MARGIN
ALONE = Overrides(stop_after=STOP_AFTER)
times = st.floats(0, 1000)
folders = st.none() | st.sampled_from(("own", "other"))
values = st.builds(
    SliceValue, st.sampled_from(SliceState), overrides=st.none() | st.just(ALONE) | st.just(Overrides()), folder=folders
)
owns = st.builds(Own, st.just("own"), times, times)


@given(values, times, owns, times)
def test_it_is_in_doubt_for_as_long_as_a_leader_would_wait(
    value: SliceValue, learned: float, own: Own, now: float
) -> None:
    found = doubt(value, learned, own)
    if value.overrides != ALONE or value.state not in MAY_BE_LEFT or value.folder == "own":
        assert found is None
        return
    assert found is not None
    gone_after = value.overrides.gone_after
    assert gone_after == CERTAIN
    if now < own.others_until + gone_after:
        assert not found.is_over(now)
    elif value.folder is None or own.heard > learned:
        assert found.is_over(now)
    else:
        assert not found.is_over(inf), "nobody has said yet that this process is still the node"


@given(values, st.sampled_from(SliceState), st.booleans(), owns)
def test_a_report_keeps_naming_the_folder_in_doubt_and_else_its_own(
    value: SliceValue, state: SliceState, doubtful: bool, own: Own
) -> None:
    told = folder_told(value, state, doubtful, own)
    if value.overrides == ALONE and state in MAY_BE_LEFT:
        assert told == (value.folder if doubtful else "own")
    else:
        assert told is None


def test_what_a_leader_takes_for_running_may_be_left_but_for_a_command_that_is_not_obeyed_yet() -> None:
    assert {*MAY_RUN} - {*MAY_BE_LEFT} == {S.ACTIVATE}


def test_without_a_folder_of_its_own_nothing_is_named() -> None:
    assert folder_told(SliceValue(S.LOAD, overrides=ALONE), S.ACTIVATING, False, Own()) is None
    assert doubt(SliceValue(S.ACTIVE, overrides=ALONE), 0.0, Own()) == Doubt(-inf, False)


@asynccontextmanager
async def successor(until: float) -> AsyncIterator[World]:
    """An agent whose folder is ``own``, and that took over from a process that was heard until then."""
    async with world(Lapses()) as it:
        it.agent.lives_in("own")
        it.agent.succeeds(until)
        yield it


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (S.ACTIVE, S.ACTIVATING),
        (S.ACTIVATING, S.ACTIVATING),
        (S.DEACTIVATE, S.DEACTIVATING),
        (S.UNLOAD, S.UNLOADING),
        (S.UNLOADING, S.UNLOADING),
    ],
)
@pytest.mark.parametrize("folder", ["other", None], ids=["another folder", "an earlier version"])
async def test_it_is_held_back_and_says_so_for_as_long_as_that_takes(
    state: SliceState, told: SliceState, folder: str | None
) -> None:
    async with successor(clock.now()) as it:
        it.say(state, overrides=ALONE, folder=folder)
        await it.reaches(told)
        held = it.values[-1]
        assert (held.reason, held.folder, held.port) == (WHY, folder, None)
        assert held.deadline is not None
        assert CERTAIN < held.deadline <= CERTAIN + 60
        it.agent.heard(clock.now())
        it.agent.crashed(KEY, "something else ended", False)
        it.agent.wake()
        await eventually(lambda: not it.agent._workers[KEY]._news.is_set)
        assert it.written == [told]
        assert not it.states


async def test_it_is_begun_once_that_is_over_and_a_heartbeat_was_taken_since_it_was_read() -> None:
    async with successor(clock.now() - CERTAIN + 3.0) as it:
        it.say(S.ACTIVE, overrides=ALONE, folder="other")
        await it.reaches(S.ACTIVATING)
        assert it.values[-1].folder == "other"
        await eventually(lambda: clock.now() > it.agent._shared.own.others_until + CERTAIN)
        it.agent.wake()
        await eventually(lambda: not it.agent._workers[KEY]._news.is_set)
        assert it.written == [S.ACTIVATING]
        it.agent.heard(clock.now())
        await it.reaches(S.ACTIVE)
        assert {value.folder for value in it.values[1:]} == {"own"}, "it is claimed before it is begun"


@pytest.mark.parametrize(
    "fields",
    [{"overrides": ALONE, "folder": "own"}, {"overrides": Overrides(), "folder": "other"}, {}],
    ids=["its own folder", "may run twice", "plain"],
)
async def test_other_slices_are_begun_at_once(fields: dict[str, Any]) -> None:
    async with successor(clock.now()) as it:
        it.say(S.ACTIVE, **fields)
        await it.reaches(S.ACTIVE)


async def test_a_command_that_was_not_obeyed_yet_is_obeyed_at_once() -> None:
    async with successor(clock.now()) as it:
        await it.up(overrides=ALONE)
        assert [value.folder for value in it.values] == [None, None, "own", "own"]


async def test_what_it_runs_goes_once_another_process_claims_it_and_comes_back_when_that_was_nothing() -> None:
    """A heartbeat that NATS takes says that this process has its registration still."""
    async with successor(clock.now() - CERTAIN) as it:
        await it.up(overrides=ALONE)
        it.say(S.ACTIVE, overrides=ALONE, folder="other")
        await eventually(lambda: not it.states, 3, "it is stopped")
        it.agent.heard(clock.now())
        await it.reaches(S.ACTIVE)
        assert it.values[-1].folder == "own"


async def test_what_is_being_begun_is_given_up_once_another_process_claims_it() -> None:
    async with successor(clock.now() - CERTAIN) as it:
        await it.loaded(overrides=ALONE)
        it.may_activate = type(it.may_activate)()
        it.say(S.ACTIVATE, overrides=ALONE)
        await eventually(lambda: it.busy)
        it.say(S.ACTIVATING, overrides=ALONE, folder="other")
        await eventually(lambda: not it.states and not it.busy, 3, "nothing of it is left")


async def test_a_node_that_leaves_does_not_say_that_it_is_gone() -> None:
    async with successor(clock.now()) as it:
        it.say(S.ACTIVE, overrides=ALONE, folder="other")
        await it.reaches(S.ACTIVATING)
        assert it.agent.leaves_doubt
        await it.agent.resign()
        await it.agent.withdraw()
        assert it.written == [S.ACTIVATING]
