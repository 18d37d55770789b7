"""Many ask for the description of an artifact at the same time."""

from __future__ import annotations

from typing import cast

import anyio
import anyio.abc
import pytest

from cdm.artifacts.describing import Describer
from cdm.artifacts.repository import Artifacts
from cdm.artifacts.stored import StoredArtifact
from cdm.errors import CdmError, Uncertain
from cdm.model.artifact import Artifact
from tests.harness.waiting import bounded

pytestmark = pytest.mark.anyio

ONE, TWO = Artifact("g", "one", "1"), Artifact("g", "two", "1")


class Store:
    """Answers when it is told to, and with what it held when it was asked."""

    def __init__(self) -> None:
        self.held = 1
        self.asked: list[Artifact] = []
        self.answers = anyio.Event()
        self.fails = False

    async def describe(self, artifact: Artifact, _digest: str | None = None) -> StoredArtifact:
        """As `Artifacts.describe`; the revision tells what was held."""
        self.asked.append(artifact)
        held, answers = self.held, self.answers
        await answers.wait()
        if self.fails:
            raise Uncertain("no answer in time")
        return cast("StoredArtifact", held)

    def answer(self) -> None:
        """Answer all that was asked so far."""
        self.answers.set()
        self.answers = anyio.Event()


class Crowd:
    """Some who ask."""

    def __init__(self, store: Store, tasks: anyio.abc.TaskGroup) -> None:
        self.describer = Describer(cast("Artifacts", store))
        self.found: list[object] = []
        self.errors: list[CdmError] = []
        self._tasks = tasks

    async def ask(self, count: int, artifact: Artifact = ONE) -> None:
        """So many ask now."""
        for _ in range(count):
            self._tasks.start_soon(self._one, artifact)
        await anyio.wait_all_tasks_blocked()

    async def _one(self, artifact: Artifact) -> None:
        try:
            self.found.append(await self.describer.describe(artifact, None))
        except CdmError as error:
            self.found.append(type(error))
            self.errors.append(error)


async def test_those_who_ask_while_one_is_answered_share_the_next_answer_which_is_no_older_than_their_question() -> (
    None
):
    store = Store()
    with bounded():
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(store, tasks)
            await crowd.ask(1)
            store.held = 2
            await crowd.ask(20)
            store.answer()
            await anyio.wait_all_tasks_blocked()
            assert crowd.found == [1]
            store.answer()
            await anyio.wait_all_tasks_blocked()
            assert crowd.found == [1, *[2] * 20]
            assert store.asked == [ONE, ONE]
            await crowd.ask(1)
            assert len(store.asked) == 3, "what was known before is not told again"
            store.answer()


async def test_those_who_ask_for_something_else_do_not_wait() -> None:
    store = Store()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(store, tasks)
        await crowd.ask(1)
        await crowd.ask(1, TWO)
        assert store.asked == [ONE, TWO]
        store.answer()


async def test_a_failure_is_everybodys_and_not_waited_for_by_one_after_the_other() -> None:
    store = Store()
    with bounded():
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(store, tasks)
            await crowd.ask(1)
            await crowd.ask(20)
            store.fails = True
            for _ in range(2):
                store.answer()
                await anyio.wait_all_tasks_blocked()
            assert crowd.found == [Uncertain] * 21
            assert {str(error) for error in crowd.errors} == {"no answer in time"}
            assert len({id(error) for error in crowd.errors}) == 21, "what each raises tells of its own way alone"


async def test_where_the_one_who_asks_is_cancelled_the_next_one_asks() -> None:
    store, scope = Store(), anyio.CancelScope()
    with bounded():
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(store, tasks)

            async def doomed() -> None:
                with scope:
                    await crowd.describer.describe(ONE, None)

            tasks.start_soon(doomed)
            await crowd.ask(3)
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            assert len(store.asked) == 2
            store.answer()
            await anyio.wait_all_tasks_blocked()
            assert crowd.found == [1, 1, 1]
