"""Deliveries are taken in in order, between other work, and may wait while there is much of that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from cdm.store import intake as intake_module
from cdm.store.intake import Intake
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.quick]


class Taken:
    """Takes deliveries in, and remembers them. Made by `taking`."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.pause = 0.0
        self.much = False
        """Whether there is much to do before that."""
        self.intake = Intake(self._take, lambda: self.much)

    def _take(self, subject: bytes, _reply: bytes, _data: bytes, _block: bytes) -> None:
        time.sleep(self.pause)
        self.numbers.append(int(subject))

    def put(self, *numbers: int, size: int = 1) -> None:
        for number in numbers:
            self.intake.put(b"%d" % number, b"", b"x" * size, b"")

    async def has(self, count: int) -> None:
        await eventually(lambda: len(self.numbers) == count, 20)
        assert self.numbers == sorted(self.numbers)


@asynccontextmanager
async def taking() -> AsyncIterator[Taken]:
    taken = Taken()
    yield taken
    taken.intake.close()


async def turns(count: int) -> None:
    """Let the event loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_comes_is_taken_in_in_order_but_not_at_once() -> None:
    async with taking() as taken:
        taken.put(*range(100))
        assert not taken.numbers
        await taken.has(100)
        taken.put(100)
        await taken.has(101)


async def test_others_have_many_turns_in_between() -> None:
    async with taking() as taken:
        taken.pause = intake_module.TURN
        taken.put(*range(3))
        seen = []
        while len(taken.numbers) < 3:
            await turns(1)
            seen.append(len(taken.numbers))
        assert all(seen.count(number) >= intake_module.TURNS_OF_OTHERS for number in (1, 2))


async def test_it_waits_while_there_is_much_to_do_and_goes_on_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "LONGEST_HOLD", 60.0)
    async with taking() as taken:
        taken.much = True
        taken.put(*range(10))
        await anyio.sleep(0.05)
        assert not taken.numbers
        taken.much = False
        await taken.has(10)


async def test_it_does_not_wait_for_ever_and_waits_again_with_what_comes_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake_module, "LONGEST_HOLD", 0.05)
    async with taking() as taken:
        taken.much = True
        taken.put(*range(10))
        await taken.has(10)
        monkeypatch.setattr(intake_module, "LONGEST_HOLD", 60.0)
        taken.put(*range(10, 20))
        await anyio.sleep(0.05)
        assert len(taken.numbers) == 10
        taken.much = False
        await taken.has(20)


async def test_no_more_waits_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "MOST_WAITING", 1000)
    async with taking() as taken:
        taken.much = True
        taken.put(*range(20), size=100)
        assert taken.numbers == list(range(10))
        taken.much = False
        await taken.has(20)


async def test_nothing_is_taken_in_after_the_end() -> None:
    async with taking() as taken:
        taken.put(*range(10))
    await turns(3)
    assert not taken.numbers
