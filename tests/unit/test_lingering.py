"""Slices that are told to go, and serve a while yet; and ports that only one slice of a node can have."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cdm import clock
from cdm.agent.lingering import GOING, LONGEST, Lingering
from cdm.agent.program import DEADLINE_MARGIN
from cdm.model.keys import SliceKey
from cdm.model.manifest import Manifest
from cdm.model.slice import SliceState, SliceValue
from tests.harness.waiting import eventually
from tests.unit.test_agent import KEY, World, world

pytestmark = [pytest.mark.anyio, pytest.mark.quick]

S = SliceState
OTHER = replace(KEY, ordinal=1)


def told(state: SliceState, after: float | None = None) -> SliceValue:
    return SliceValue(state, after=after)


def test_it_counts_from_the_first_order_and_only_gets_shorter() -> None:
    lingering = Lingering()
    assert lingering.left(0.0) == 0
    lingering.learn(told(S.UNLOAD, 10.0), 100.0)
    assert lingering.left(103.0) == 7.0
    lingering.learn(told(S.UNLOADING, 7.0), 103.0)
    lingering.learn(told(S.UNLOAD, 60.0), 104.0)
    assert lingering.left(104.0) == 6.0, "no longer than it was"
    lingering.learn(told(S.UNLOAD, 5.0), 104.0)
    assert lingering.left(104.0) == 1.0
    lingering.learn(told(S.UNLOAD), 104.0)
    assert lingering.left(104.0) == 0


def test_a_deactivate_that_becomes_an_unload_counts_from_the_deactivate() -> None:
    lingering = Lingering()
    lingering.learn(told(S.DEACTIVATE, 10.0), 0.0)
    lingering.learn(told(S.UNLOAD, 8.0), 3.0)
    assert lingering.left(3.0) == 5.0


def test_what_an_earlier_process_told_is_what_is_left() -> None:
    lingering = Lingering()
    lingering.learn(told(S.UNLOADING, 4.0), 100.0)
    assert lingering.left(101.0) == 3.0


def test_whoever_is_told_to_serve_again_begins_anew() -> None:
    lingering = Lingering()
    lingering.learn(told(S.DEACTIVATE, 1.0), 0.0)
    lingering.learn(told(S.ACTIVATE), 2.0)
    assert lingering.left(0.0) == 0
    lingering.learn(told(S.UNLOAD, 1.0), 10.0)
    assert lingering.left(10.0) == 1.0


@given(st.lists(st.tuples(st.sampled_from(sorted(GOING)), st.none() | st.floats(), st.floats(0, 1e6))), st.data())
def test_whatever_is_told_it_ends_within_a_day_of_the_first_order(
    orders: list[tuple[SliceState, float | None, float]], data: st.DataObject
) -> None:
    lingering = Lingering()
    orders.sort(key=lambda order: order[2])
    for state, after, at in orders:
        lingering.learn(told(state, after), at)
    if orders:
        first = orders[0][2]
        now = data.draw(st.floats(first, 1e7))
        assert 0 <= lingering.left(now) <= max(first + LONGEST - now, 0)


# The worker


@pytest.fixture
async def it() -> AsyncIterator[World]:
    async with world() as it:
        await it.up()
        yield it


@pytest.mark.parametrize(
    ("command", "doing", "rest"), [(S.UNLOAD, S.UNLOADING, None), (S.DEACTIVATE, S.DEACTIVATING, S.LOADED)]
)
async def test_it_serves_on_and_then_stops(
    it: World, command: SliceState, doing: SliceState, rest: SliceState | None
) -> None:
    begun = clock.now()
    it.say(command, after=2.0)
    await it.reaches(doing)
    assert it.states[KEY]
    said = it.values[-1]
    assert said.after is not None
    assert 0 < said.after <= 2.0
    assert said.deadline == pytest.approx(said.after + 10 + DEADLINE_MARGIN, abs=0.2)
    assert (said.port, said.address) == (None, None), "nobody is to be sent there any more"
    await it.reaches(rest)
    assert clock.now() - begun >= 2.0
    assert not it.states.get(KEY)


@pytest.mark.parametrize("after", [None, 0.0, -1.0])
async def test_without_a_time_it_stops_at_once(it: World, after: float | None) -> None:
    it.say(S.UNLOAD, after=after)
    await it.reaches(None)
    assert it.values[-1].after is None


async def test_a_second_order_shortens_it(it: World) -> None:
    it.say(S.UNLOAD, after=3600.0)
    await it.reaches(S.UNLOADING)
    it.say(S.UNLOAD, after=3000.0)
    await eventually(lambda: it.written[-2:] == [S.UNLOADING, S.UNLOADING])
    assert it.values[-1].after == pytest.approx(3000, abs=5)
    assert it.states[KEY]
    it.say(S.UNLOAD)
    await it.reaches(None)


async def test_it_is_stopped_at_once_when_its_key_is_deleted(it: World) -> None:
    it.say(S.UNLOAD, after=3600.0)
    await it.reaches(S.UNLOADING)
    it.remove()
    await eventually(lambda: not it.states)


async def test_a_crash_meanwhile_is_no_failure(it: World) -> None:
    it.say(S.UNLOAD, after=3600.0)
    await it.reaches(S.UNLOADING)
    it.states[KEY] = False
    it.agent.crashed(KEY, "exit status 1", False)
    await it.reaches(None)
    assert S.FAILED not in it.written


async def test_it_is_not_waited_for_while_the_runtime_starts_it_again(it: World) -> None:
    it.say(S.UNLOAD, after=3600.0)
    await it.reaches(S.UNLOADING)
    it.agent.restarting(KEY, "exit status 1", 30.0)
    await it.reaches(None)


async def test_the_time_is_over_at_the_right_moment_without_nats(it: World) -> None:
    it.say(S.UNLOAD, after=2.0)
    await it.reaches(S.UNLOADING)
    it.down = True
    await eventually(lambda: not it.states)
    it.down = False
    await it.reaches(None)


async def test_a_node_that_leaves_does_not_wait(it: World) -> None:
    it.say(S.UNLOAD, after=3600.0)
    await it.reaches(S.UNLOADING)
    await it.agent.resign()
    await it.agent.withdraw()
    assert it.written[-1] is None


async def test_another_process_waits_for_what_is_left_of_what_runs_still() -> None:
    """A runtime may take over what runs; that of processes ends it."""
    made = World()
    made.states[KEY] = True
    made.say(S.UNLOADING, at=clock.now() - 10, after=15.0)
    async with world(made) as it:
        await anyio.sleep(0.1)
        assert it.states[KEY]
        await it.reaches(None)
    made = World()
    made.say(S.UNLOADING, after=3600.0)
    async with world(made) as it:
        await it.reaches(None)


# Ports


def of(it: World, key: SliceKey) -> list[SliceValue]:
    return [value for written, value in it.reports if written == key]


async def test_a_port_that_the_manifest_fixes_is_told_from_loaded_on_and_any_other_while_it_serves() -> None:
    for fixed, loaded in ((8080, 8080), ("auto", None), (None, None)):
        made = World()
        made.manifest = Manifest(port=fixed)  # type: ignore[arg-type]
        async with world(made) as it:
            await it.loaded()
            assert it.values[-1].port == loaded
            it.say(S.ACTIVATE)
            await it.reaches(S.ACTIVE)
            assert it.values[-1].port == (loaded or 1001)
            assert it.values[-2].port == loaded, "of an ACTIVATING"


async def test_who_waits_for_a_port_says_so_and_begins_when_it_is_free() -> None:
    made = World()
    made.manifest = Manifest(port=8080)
    async with world(made) as it:
        await it.up()
        it.say(S.LOAD, OTHER)
        await it.reaches(S.LOADED)
        it.say(S.UNLOAD, after=3600.0)
        await it.reaches(S.UNLOADING)
        it.say(S.ACTIVATE, OTHER)
        await eventually(lambda: of(it, OTHER)[-1].reason)
        waits = of(it, OTHER)[-1]
        assert waits.state is S.ACTIVATING
        assert waits.reason == f"waits for port 8080, which {KEY} has until it is stopped"
        assert waits.deadline is not None
        assert waits.deadline > 3600
        assert not it.states[OTHER]
        it.say(S.UNLOAD)
        await eventually(lambda: of(it, OTHER)[-1].state is S.ACTIVE)
        assert of(it, OTHER)[-1].reason is None
        assert of(it, OTHER)[-2].state is S.ACTIVATING
        assert of(it, OTHER)[-2].reason is None


async def test_a_port_that_another_slice_keeps_is_not_waited_for_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdm.agent.due_port.PATIENCE", 0.3)
    made = World()
    made.manifest = Manifest(port=8080)
    async with world(made) as it:
        await it.up()
        it.say(S.LOAD, OTHER)
        await it.reaches(S.LOADED)
        it.say(S.ACTIVATE, OTHER)
        await it.reaches(S.FAILED)
        said = of(it, OTHER)
        assert said[-1].reason == f"port 8080 is in use by another slice on this node: {KEY}"
        assert said[-2].reason == f"waits for port 8080, which {KEY} still has"
