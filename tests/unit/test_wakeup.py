"""Moments and wake-up calls: who waits for them goes on, and who does not costs nothing."""

from __future__ import annotations

import asyncio
import sys

import anyio
import pytest

from cdm.wakeup import Moment, Wakeup

pytestmark = pytest.mark.anyio


async def test_all_who_wait_go_on() -> None:
    moment, went_on = Moment(), list[int]()

    async def wait(number: int) -> None:
        await moment.wait()
        went_on.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(wait, number)
        await anyio.wait_all_tasks_blocked()
        assert not went_on
        assert not moment.is_set()
        moment.set()
        moment.set()  # before any of them has gone on
    assert went_on == [0, 1, 2]


async def test_who_comes_when_it_has_happened_does_not_wait() -> None:
    moment = Moment()
    moment.set()
    with anyio.fail_after(10):
        await moment.wait()


async def test_those_who_waited_go_on_though_it_is_taken_back_before_their_turn_and_others_wait() -> None:
    moment = Moment()
    waiting = asyncio.create_task(moment.wait())
    await anyio.wait_all_tasks_blocked()
    moment.set()
    moment.clear()
    with anyio.fail_after(10):
        await waiting
    late = asyncio.create_task(moment.wait())
    await anyio.wait_all_tasks_blocked()
    assert not late.done()
    moment.set()
    await late


async def test_one_who_is_cancelled_takes_nobody_else_along() -> None:
    moment = Moment()
    tasks = [asyncio.create_task(moment.wait()) for _ in range(2)]
    await anyio.wait_all_tasks_blocked()
    tasks[0].cancel()
    moment.set()  # before the first has seen that it is cancelled
    with anyio.fail_after(10):
        await tasks[1]
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert moment.is_set()


async def test_a_wake_up_call_that_came_before_wakes_at_once_and_is_forgotten_then() -> None:
    news = Wakeup()
    news.set()
    with anyio.fail_after(10):
        await news.wait()
    assert not news.is_set
    waiting = asyncio.create_task(news.wait())
    await anyio.wait_all_tasks_blocked()
    assert not waiting.done()
    news.set()
    await waiting


async def test_a_wake_up_call_is_not_lost_where_who_waits_is_cancelled() -> None:
    news = Wakeup()
    waiting = asyncio.create_task(news.wait())
    await anyio.wait_all_tasks_blocked()
    waiting.cancel()
    news.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert news.is_set


async def test_one_that_is_woken_all_the_time_lets_others_have_their_turn() -> None:
    news, turns = Wakeup(), list[str]()

    async def other() -> None:
        turns.append("other")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        for _ in range(3):
            news.set()
            await news.wait()
            turns.append("woken")
    assert turns[0] == "other"


async def test_a_moment_is_small_while_nobody_waits() -> None:
    moment = Moment()
    waiting = asyncio.create_task(moment.wait())
    await anyio.wait_all_tasks_blocked()
    moment.set()
    await waiting
    assert sys.getsizeof(moment) <= 64
    assert moment._waiting == ()
