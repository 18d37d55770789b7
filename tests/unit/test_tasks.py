"""Tasks end together, and leave no trace in the task that waited for them."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from cdm.store.tasks import together

pytestmark = [pytest.mark.quick, pytest.mark.anyio]


async def test_what_fails_ends_the_others_and_whoever_waited_goes_on_in_a_scope_of_anyio() -> None:
    ended = []

    async def fail() -> None:
        raise ValueError("wrong")

    async def last() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("last")

    with anyio.CancelScope() as scope:
        with pytest.raises(ExceptionGroup) as caught:
            await together(last(), fail())
        assert [str(each) for each in caught.value.exceptions] == ["wrong"]
        assert ended == ["last"]
        scope.cancel()
        await anyio.sleep(60)
    assert scope.cancelled_caught


async def test_whoever_is_cancelled_again_and_again_waits_until_all_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cdm.store.tasks.CANCELLED_ANEW", 60.0)  # who waits is cancelled each turn, these are once
    ended = []

    async def slow(name: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    with anyio.move_on_after(0.01) as scope:
        await together(slow("a"), slow("b"))
    assert scope.cancelled_caught
    assert sorted(ended) == ["a", "b"]
