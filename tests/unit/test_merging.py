"""The lines of several versions are shown in one order of time."""

from __future__ import annotations

from datetime import UTC, datetime

import anyio
import pytest

from cdm.output.merging import Merging
from cdm.output.source import Shown
from cdm.output.wire import WireLine
from tests.harness.waiting import bounded

pytestmark = [pytest.mark.anyio, pytest.mark.quick]


def line(second: int, text: str) -> Shown:
    return Shown("g:n:1", "n1", WireLine(datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC), "out", 0, text))


async def test_nothing_is_shown_before_something_earlier_can_no_longer_come() -> None:
    shown: list[str] = []

    async def write(lines: list[Shown]) -> None:
        shown.extend(each.line.text for each in lines)

    merging = Merging(3, write)

    async def reader(number: int, *batches: list[Shown]) -> None:
        for batch in batches:
            await merging.of(number)(batch)
            assert batch[-1].line.text in shown, "a reader waits until its lines are shown"
        merging.over(number)

    with bounded(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader, 0, [line(1, "a"), line(4, "d")], [line(6, "f")])
            tasks.start_soon(reader, 1, [line(2, "b")], [line(3, "c"), line(5, "e")])
            tasks.start_soon(reader, 2)
            await merging.run()
    assert shown == ["a", "b", "c", "d", "e", "f"]
