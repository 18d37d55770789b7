"""The agent's worker where time has to stand still: a runtime and a bucket that do as the test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import msgspec
import pytest

from cdm import clock
from cdm.agent.agent import Agent
from cdm.agent.program import DEADLINE_MARGIN
from cdm.agent.shared import LOADS
from cdm.agent.steps import Do
from cdm.artifacts.cache import Cache, Fetched
from cdm.artifacts.signing import Signed
from cdm.dispatch.messages import Connected, Disconnected, ValuePut, ValueRemove
from cdm.errors import Conflict, SliceFailed, StoreError, Uncertain
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Overrides
from cdm.model.keys import SliceKey
from cdm.model.manifest import Manifest
from cdm.model.slice import SliceState, SliceValue
from cdm.runtimes import Work
from cdm.store.bucket import Bucket
from tests.harness.waiting import eventually
from tests.unit.support import Heard

pytestmark = pytest.mark.anyio

NODE = NodeId("n1")
KEY = SliceKey(NODE, Artifact("g", "one", "1"), 0)
S = SliceState
OLD, NEW = "0" * 64, "1" * 64
ACTIVATION = Manifest().readiness.timeout + Manifest().stop_grace + DEADLINE_MARGIN
"""Seconds that ACTIVATING may take."""


class World:
    """The bucket, the content and the runtime of one agent."""

    def __init__(self, least_stop_after: float = 0.0, address: Callable[[], str | None] = lambda: None) -> None:
        self.values: list[SliceValue] = []
        self.reports: list[tuple[SliceKey, SliceValue]] = []
        self.states: dict[SliceKey, bool] = {}
        self.port = 1000
        self.holds = 0
        self.manifest = Manifest()
        self.size = 0
        """Bytes that the artifact has."""
        self.current = OLD
        """The content that the artifact has at present."""
        self.fetched: list[str | None] = []
        self.written: list[SliceState | None] = []
        self.may_activate = anyio.Event()
        self.may_activate.set()
        self.may_load = anyio.Event()
        self.may_load.set()
        self.may_unload = anyio.Event()
        self.may_unload.set()
        self.may_deactivate = anyio.Event()
        self.may_deactivate.set()
        self.busy = 0
        self.refuses: SliceFailed | None = None
        """Why nothing can be activated."""
        self.stuck: SliceFailed | None = None
        """Why nothing can be stopped."""
        self.tried = 0
        """How often that was tried."""
        self.down = False
        self.deaf_to: SliceState | None = None
        """The state whose acknowledgements are lost."""
        self.before_answer: Callable[[SliceState | None], None] | None = None
        """What the mirror tells before a write is acknowledged."""
        self.revision = 0
        self.last: dict[SliceKey, int] = {}
        """The newest revision of each key."""
        bucket, cache = cast("Bucket", self), cast("Cache", self)
        self.agent = Agent(NODE, bucket, lambda _: self, Path(), cache, least_stop_after, address=address)

    # The leader

    def say(self, state: SliceState, key: SliceKey = KEY, at: float | None = None, **fields: Any) -> None:
        self.revision += 1
        self.last[key] = self.revision
        stored = clock.now() if at is None else at
        self.agent.on_slice(ValuePut(key, SliceValue(state, **fields), self.revision, stored))

    def remove(self) -> None:
        self.revision += 1
        self.last[KEY] = self.revision
        self.agent.on_slice_removed(ValueRemove(KEY, self.revision))

    async def reaches(self, state: SliceState | None) -> None:
        await eventually(lambda: self.written[-1:] == [state], 3, f"{state}, not {self.written}")

    async def loaded(self, **fields: Any) -> None:
        """LOAD it, and wait until it is LOADED."""
        self.say(S.LOAD, **fields)
        await self.reaches(S.LOADED)

    async def up(self, **fields: Any) -> None:
        """LOAD it, ACTIVATE it, and wait until it is ACTIVE."""
        await self.loaded(**fields)
        self.say(S.ACTIVATE, **fields)
        await self.reaches(S.ACTIVE)

    # The bucket

    async def put(self, key: SliceKey, payload: bytes, *, expect: int) -> int:
        value = msgspec.json.decode(payload, type=SliceValue)
        self.values.append(value)
        self.reports.append((key, value))
        return self._write(key, value.state, expect)

    async def delete(self, key: SliceKey, *, expect: int) -> int:
        return self._write(key, None, expect)

    def _write(self, key: SliceKey, state: SliceState | None, expect: int) -> int:
        if self.down:
            raise StoreError("nobody answers")
        last = self.last.get(key, self.revision)
        if self.deaf_to is not None and expect < last:
            raise Conflict("it was stored before")
        assert expect == last
        self.last[key] = self.revision = revision = self.revision + 1
        self.written.append(state)
        if self.before_answer is not None:
            self.before_answer(state)
        if state is not None and state is self.deaf_to:
            raise Uncertain("no answer in time")
        return revision

    # The content

    async def get(
        self, artifact: Artifact, content: str | None = None, sized: Callable[[int], Awaitable[object]] | None = None
    ) -> Fetched:
        if sized is not None:
            await sized(self.size)
        self.fetched.append(content)
        return Fetched(Path(), self.manifest, "d", content or self.current, Signed(b"", {}))

    async def signed(self, artifact: Artifact, fetched: Fetched) -> Signed:
        return fetched.signed

    def hold(self, digest: str) -> None:
        self.holds += 1

    def release(self, digest: str) -> None:
        self.holds -= 1

    # The runtime

    @property
    def slices(self) -> Mapping[SliceKey, bool]:
        return self.states

    async def start(self) -> None:
        pass

    async def load(self, work: Work) -> None:
        if work.key in self.states:
            await self.unload(work.key)
        await self.may_load.wait()
        self.states[work.key] = False

    async def activate(self, key: SliceKey) -> int | None:
        self.busy += 1
        try:
            await self.may_activate.wait()
        finally:
            self.busy -= 1
        if self.refuses is not None:
            raise self.refuses
        self.states[key] = True
        self.port += 1
        return self.manifest.port if isinstance(self.manifest.port, int) else self.port

    async def deactivate(self, key: SliceKey) -> None:
        await self.may_deactivate.wait()
        self._try_to_stop()
        self.states[key] = False

    def _try_to_stop(self) -> None:
        self.tried += 1
        if self.stuck is not None:
            raise self.stuck

    async def unload(self, key: SliceKey) -> None:
        self._try_to_stop()
        self.states.pop(key, None)
        self.busy += 1
        try:
            await self.may_unload.wait()
        finally:
            self.busy -= 1

    async def close(self) -> None:
        pass


class Lapses(World):
    """With a runtime that stops slices by itself."""

    def heard(self, at: float) -> None:
        pass


@asynccontextmanager
async def world(made: World | None = None) -> AsyncIterator[World]:
    made = made or World()
    made.agent.on_connection(Connected(0.0))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.agent.run)
        yield made
        tasks.cancel_scope.cancel()


async def test_what_serves_again_is_not_said_of_a_slice_that_is_to_be_unloaded() -> None:
    """A slice that was ACTIVE is started again, and meanwhile UNLOAD comes: ACTIVE is not written over it."""
    async with world() as it:
        await it.up()
        it.may_activate = anyio.Event()
        it.states[KEY] = False  # as after a failure that could not be reported
        it.agent.wake()
        await eventually(lambda: it.busy)
        it.say(S.UNLOAD)
        await it.reaches(None)
        assert it.written[-4:] == [S.ACTIVE, S.ACTIVATING, S.UNLOADING, None]


async def test_how_it_ended_once_is_not_said_of_what_is_started_anew() -> None:
    async with world() as it:
        await it.up()
        it.agent.restarting(KEY, "exit status 1 after 2.0 s", 5.0)
        await it.reaches(S.ACTIVATING)
        assert it.values[-1].reason == "exit status 1 after 2.0 s"
        it.states[KEY] = False
        it.agent.crashed(KEY, "exit status 1 after 2.0 s; it was started again once", False)
        await it.reaches(S.FAILED)
        await it.up()
        anew = it.values[-2]
        assert (anew.state, anew.reason) == (S.ACTIVATING, None)
        assert anew.deadline == ACTIVATION


@pytest.mark.parametrize("gone", [True, False], ids=["deleted", "unloaded"])
async def test_content_is_let_go_when_loading_anew_is_interrupted(gone: bool) -> None:
    async with world() as it:
        await it.loaded()
        assert it.holds == 1
        it.may_unload = anyio.Event()
        it.say(S.ACTIVATE, overrides=Overrides(env={"A": "b"}))  # other than it was loaded with
        await eventually(lambda: it.busy)
        if gone:
            it.remove()
        else:
            it.say(S.UNLOAD)
            await it.reaches(None)
            it.remove()
        it.may_unload.set()
        await eventually(lambda: not it.agent._workers)
        assert it.holds == 0


async def test_what_is_loaded_is_the_content_that_is_told_and_every_report_tells_it() -> None:
    async with world() as it:
        it.current = NEW
        it.say(S.LOAD, content=OLD)
        await it.reaches(S.LOADED)
        it.say(S.ACTIVATE, content=OLD)
        await it.reaches(S.ACTIVE)
        assert it.fetched == [OLD]
        assert {value.content for value in it.values} == {OLD}


async def test_what_is_loaded_with_another_content_than_is_told_is_loaded_anew() -> None:
    async with world() as it:
        it.say(S.LOAD)
        await it.reaches(S.LOADED)
        it.say(S.ACTIVATE, content=NEW)
        await it.reaches(S.ACTIVE)
        assert it.fetched == [None, NEW]
        it.say(S.DEACTIVATE, content=NEW)
        await it.reaches(S.LOADED)
        for content in (None, NEW):  # not told: whichever it was loaded with
            it.say(S.ACTIVATE, content=content)
            await it.reaches(S.ACTIVE)
            it.say(S.DEACTIVATE, content=content)
            await it.reaches(S.LOADED)
        assert it.fetched == [None, NEW]


@pytest.mark.parametrize("before", ["nothing", "deleted", "loading", "loaded again", "failed"])
async def test_an_activate_that_answers_an_earlier_loaded_is_refused(before: str) -> None:
    """It hung in the network while the leader, and this agent, went on without it."""
    async with world() as it:
        if before != "nothing":
            await it.loaded()
        late = it.revision
        match before:
            case "deleted":
                it.say(S.UNLOAD)
                await it.reaches(None)
            case "loading":
                it.say(S.UNLOAD)
                await it.reaches(None)
                it.may_load = anyio.Event()
                it.say(S.LOAD)
                await it.reaches(S.LOADING)
            case "loaded again":
                await it.loaded()
            case "failed":
                it.say(S.FAILED)
            case _:
                pass
        it.say(S.ACTIVATE, loaded=late)
        await it.reaches(S.FAILED)
        assert it.written[-2:] == [S.ACTIVATING, S.FAILED]
        assert it.values[-1].reason == "a late ACTIVATE, which answers an earlier LOADED"
        await eventually(lambda: not it.states)
        it.may_load.set()
        await it.loaded()
        it.say(S.ACTIVATE, loaded=it.revision)
        await it.reaches(S.ACTIVE)


async def test_a_refused_command_stays_refused_when_the_mirror_is_faster_than_the_answer() -> None:
    async with world() as it:
        it.before_answer = lambda state: (
            it.agent.on_slice(ValuePut(KEY, SliceValue(state), it.revision)) if state is not None else None
        )
        it.say(S.ACTIVATE, loaded=0)
        await it.reaches(S.FAILED)
        assert not it.states


async def test_an_activate_of_an_older_leader_says_nothing_of_the_loaded_that_it_answers_and_is_obeyed() -> None:
    async with world() as it:
        it.say(S.ACTIVATE)
        await it.reaches(S.ACTIVE)


async def test_a_command_that_comes_in_the_moment_that_work_begins_is_not_answered_with_what_was_begun() -> None:
    async with world() as it:
        turns = it.agent._shared.turns[Do.LOAD]
        for _ in range(LOADS):
            turns.acquire_nowait()
        it.say(S.LOAD)
        await eventually(lambda: len(it.written) == 2, what="it tells that it waits for its turn")
        turns.release()  # its task is about to go on, which cannot be cancelled any more
        it.say(S.UNLOAD)
        await it.reaches(None)
        assert it.written == [S.LOADING, S.LOADING, S.UNLOADING, None]


async def test_loading_what_is_large_tells_how_long_that_may_take() -> None:
    """An image of 176 MB took longer than what a leader allows that is told nothing: it was taken for stuck."""
    async with world() as it:
        it.size, it.may_load = 500 * 1024**2, anyio.Event()
        it.say(S.LOAD)
        await eventually(lambda: it.values and it.values[-1].deadline == 120 + 500, what="it tells a deadline")
        assert it.written == [S.LOADING, S.LOADING]
        it.may_load.set()
        await it.reaches(S.LOADED)
        it.say(S.UNLOAD)
        await it.reaches(None)
        assert [each.deadline for each in it.values[-2:]] == [None, Manifest().stop_grace + DEADLINE_MARGIN], "as ever"
        it.size, it.written = 1024**2, []
        await it.loaded()
        assert it.written == [S.LOADING, S.LOADED], "what is small tells nothing more"


@pytest.mark.parametrize("command", [S.UNLOAD, S.LOAD])
async def test_a_failure_is_not_the_answer_to_a_command_that_came_in_the_moment_of_it(command: SliceState) -> None:
    async with world() as it:
        await it.loaded()
        it.may_activate = anyio.Event()
        it.say(S.ACTIVATE)
        await eventually(lambda: it.busy == 1, what="it is being activated")
        it.refuses = SliceFailed("it does not start")
        it.may_activate.set()
        it.say(command)
        await it.reaches(None if command is S.UNLOAD else S.LOADED)
        assert S.FAILED not in it.written


async def test_what_is_listed_at_the_start_is_obeyed() -> None:
    made = World()
    made.revision = 7
    made.say(S.ACTIVATE, loaded=3)
    async with world(made) as it:
        await it.reaches(S.ACTIVE)


async def test_what_is_listed_in_another_stream_is_obeyed() -> None:
    async with world() as it:
        it.agent.on_connection(Disconnected(0.0))
        it.agent.forget()
        it.say(S.ACTIVATE, loaded=0)
        it.agent.on_connection(Connected(1.0))
        await it.reaches(S.ACTIVE)


async def test_an_activate_that_answers_a_loaded_whose_acknowledgement_was_lost_is_obeyed() -> None:
    async with world() as it:
        it.deaf_to = S.LOADED
        await it.loaded()
        it.say(S.ACTIVATE, loaded=it.revision)
        await it.reaches(S.ACTIVE)


async def test_what_is_active_goes_on_when_a_late_activate_comes() -> None:
    async with world() as it:
        await it.loaded()
        late = it.revision
        it.say(S.ACTIVATE, loaded=late)
        await it.reaches(S.ACTIVE)
        port = it.port
        it.say(S.ACTIVATE, loaded=late)
        await it.reaches(S.ACTIVE)
        assert it.written[-2:] == [S.ACTIVATING, S.ACTIVE]
        assert it.port == port, "it was not started again"


async def test_nothing_is_written_into_another_stream_before_its_keys_are_known() -> None:
    async with world() as it:
        await it.loaded()
        it.may_activate = anyio.Event()
        it.say(S.ACTIVATE)
        await eventually(lambda: it.busy)
        it.revision = 0
        it.agent.forget()
        it.may_activate.set()
        await eventually(lambda: it.states[KEY])
        await anyio.sleep(0.1)
        assert it.written[-1] is S.ACTIVATING, "the key may not be there any more"
        it.say(S.ACTIVATING)
        await it.reaches(S.ACTIVE)


async def test_a_late_answer_does_not_bring_back_a_key_that_is_gone() -> None:
    """The write was stored, its echo came, the leader deleted the key, and only then the answer is read."""
    async with world() as it:

        def gone(state: SliceState | None) -> None:
            if state is S.ACTIVE:
                it.agent.on_slice(ValuePut(KEY, SliceValue(S.ACTIVE), it.revision))
                it.remove()

        it.before_answer = gone
        await it.up()
        await eventually(lambda: not it.states)
        await eventually(lambda: not it.agent._workers)


async def test_the_echo_of_a_delete_may_come_before_its_answer() -> None:
    async with world() as it:

        def echo(state: SliceState | None) -> None:
            if state is None:
                it.agent.on_slice_removed(ValueRemove(KEY, it.revision))

        it.before_answer = echo
        await it.loaded()
        it.say(S.UNLOAD)
        await it.reaches(None)
        await eventually(lambda: not it.agent._workers)


async def test_a_failure_without_nats_is_told_afterwards() -> None:
    """It is not started again as if nothing had happened: failures are counted."""
    async with world() as it:
        await it.up()
        it.down = True
        it.states[KEY] = False
        it.agent.crashed(KEY, "exit status 1", False)
        await anyio.sleep(0.1)
        it.down = False
        await it.reaches(S.FAILED)
        assert it.port == 1001, "it was started once"


async def test_what_is_started_again_is_not_active_until_it_is_ready() -> None:
    async with world() as it:
        await it.up()
        assert it.values[-1].restarts is None
        it.agent.restarting(KEY, "exit status 1", 70.0)
        await it.reaches(S.ACTIVATING)
        told = it.values[-1]
        assert (told.reason, told.restarts, told.stable, told.port) == ("exit status 1", 1, 60.0, None)
        assert told.deadline is not None
        assert told.deadline >= 70.0, "the leader waits for as long as the runtime may take"
        it.agent.restarting(KEY, "exit status 2", 71.0)
        await eventually(lambda: it.values[-1].restarts == 2)
        assert (it.written[-1], it.values[-1].reason) == (S.ACTIVATING, "exit status 2")
        it.agent.restarted(KEY, 1001)
        await it.reaches(S.ACTIVE)
        told = it.values[-1]
        assert (told.reason, told.restarts, told.port, told.deadline) == (None, 2, 1001, None)
        assert it.port == 1001, "the agent itself started it once"


async def test_a_restart_that_was_over_before_it_was_told_is_counted() -> None:
    async with world() as it:
        await it.up()
        it.agent.restarting(KEY, "exit status 1", 70.0)
        it.agent.restarted(KEY, 1002)
        await eventually(lambda: it.values[-1].restarts == 1)
        assert (it.written[-1], it.values[-1].port) == (S.ACTIVE, 1002)


async def test_what_is_given_up_while_it_is_started_again_has_failed() -> None:
    async with world() as it:
        await it.up()
        it.agent.restarting(KEY, "exit status 1", 70.0)
        await it.reaches(S.ACTIVATING)
        it.states[KEY] = False
        it.agent.crashed(KEY, "exit status 1; 3 restarts in a row", False)
        await it.reaches(S.FAILED)
        assert (it.values[-1].reason, it.values[-1].restarts) == ("exit status 1; 3 restarts in a row", 1)
        await it.loaded()
        assert it.values[-1].restarts is None, "it was loaded anew"
        it.say(S.ACTIVATE)
        await it.reaches(S.ACTIVE)
        assert it.values[-1].restarts is None


async def test_what_runs_and_is_told_to_be_loaded_is_counted_anew() -> None:
    """A node that was cut off hears only of the new command: nothing was wrong with its program."""
    async with world() as it:
        await it.up()
        for _ in range(2):
            await it.up()
            assert it.states[KEY]
            assert {told.restarts for told in it.values} == {None}


async def test_what_is_started_again_may_be_unloaded_and_loaded_meanwhile() -> None:
    async with world() as it:
        for _ in range(2):
            await it.up()
            it.agent.restarting(KEY, "exit status 1", 70.0)
            await it.reaches(S.ACTIVATING)
            it.say(S.UNLOAD)
            await it.reaches(None)
            it.agent.on_slice_removed(ValueRemove(KEY, it.revision))


async def test_nothing_is_kept_of_slices_that_are_gone() -> None:
    async with world() as it:
        for _ in range(3):
            await it.loaded()
            it.say(S.UNLOAD)
            await it.reaches(None)
            it.agent.on_slice_removed(ValueRemove(KEY, it.revision))
        await eventually(lambda: not it.agent._workers)


@pytest.mark.parametrize(
    ("made", "why"), [(World(), "this node's runtime does not stop slices"), (Lapses(5.0), "at least 5 s")]
)
async def test_what_cannot_be_stopped_in_time_is_not_started(made: World, why: str) -> None:
    async with world(made) as it:
        it.say(S.LOAD, overrides=Overrides(stop_after=4.0))
        await it.reaches(S.FAILED)
        assert why in (it.values[-1].reason or "")
        assert it.values[-1].fatal


async def test_overrides_that_no_program_can_be_started_with_fail_the_slice_and_nothing_else() -> None:
    async with world() as it:
        it.say(S.LOAD, overrides=Overrides(env={"LEVEL": "\0"}))
        await it.reaches(S.FAILED)
        assert it.values[-1].reason == "overrides: env.LEVEL: contains a NUL character"
        assert it.values[-1].fatal
        assert it.holds == 0


async def test_a_node_that_leaves_stops_only_what_must_not_run_twice_and_begins_nothing() -> None:
    for overrides, runs in ((Overrides(stop_after=4.0), False), (None, True)):
        async with world(Lapses()) as it:
            await it.up(overrides=overrides)
            await it.agent.resign()
            assert it.states == {KEY: runs}
            it.agent.wake()
            await anyio.sleep(0.05)
            assert it.states == {KEY: runs}
            assert it.written[-1] is S.ACTIVE


async def test_a_node_that_leaves_deletes_its_keys_and_stops_nothing_by_that() -> None:
    async with world() as it:
        await it.up()
        await it.agent.resign()
        await it.agent.withdraw()
        assert it.written[-1] is None
        it.agent.on_slice_removed(ValueRemove(KEY, it.revision))
        await anyio.sleep(0.05)
        assert it.states == {KEY: True}, "it ends with the node, with its grace"
        it.say(S.LOAD)  # by a leader that has not heard yet that the node leaves
        await eventually(lambda: it.written[-2:] == [None, None])


async def test_a_node_that_leaves_keeps_the_key_of_what_must_not_run_twice_and_may_still_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cdm.agent.agent.LONGEST_LAST_GRACE", -5.9)
    async with world(Lapses()) as it:
        overrides = Overrides(stop_after=4.0)
        await it.up(overrides=overrides)
        it.may_deactivate = anyio.Event()
        await it.agent.resign()
        await it.agent.withdraw()
        assert it.written[-1] is S.ACTIVE


async def test_a_node_that_leaves_does_not_wait_for_a_start() -> None:
    async with world(Lapses()) as it:
        overrides = Overrides(stop_after=4.0)
        await it.loaded(overrides=overrides)
        it.may_activate = anyio.Event()
        it.say(S.ACTIVATE, overrides=overrides)
        await eventually(lambda: it.busy)
        await it.agent.resign()
        assert not it.busy
        assert it.states == {KEY: False}


@pytest.mark.parametrize(
    ("exclusive", "line"), [(False, "slice fails"), (True, "slice must not run twice, and is not stopped")]
)
async def test_what_is_tried_again_is_told_once_and_when_it_is_done(
    monkeypatch: pytest.MonkeyPatch, exclusive: bool, line: str
) -> None:
    """Half a second lies between two tries: a line for each would hide all others."""
    log = Heard()
    monkeypatch.setattr("cdm.agent.undone.log", log)
    monkeypatch.setattr("cdm.agent.reporter.RETRY_PAUSE", 0.01)
    async with world(Lapses()) as it:
        await it.up(overrides=Overrides(stop_after=4.0) if exclusive else Overrides())
        it.stuck, before = SliceFailed("SIGKILL does not end it"), it.tried
        it.remove()
        # Two tries a time where it must not run twice: in between it would be told once more.
        await eventually(lambda: it.tried >= before + 6 and (it.tried - before) % 2 == 0)
        it.stuck = None
        await eventually(lambda: not it.agent._workers)  # its step is over: what was done is logged by then
        assert not it.states
    told = [(level, event) for level, event, _ in log.lines if level != "debug"]
    assert told == [("error", line), ("info", "what failed of the slice is done")]
