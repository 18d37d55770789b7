"""What a measurement is, and how it is taken: interleaved with its baseline, several times, with its spread."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Literal

import anyio
from msgspec import Struct

MIB = 1024 * 1024
REST = 0.5
"""Seconds for which a process is watched to see whether it rests."""
BUSY = 0.06
"""Share of a processor from which on it does not."""


class Goal(Struct, frozen=True):
    """What a figure must show.

    Args:
        limit: the number that it is held against.
        kind: whether the figure's value or its ratio is meant, and on which side of the limit it has to be.
    """

    limit: float
    kind: Literal["value>=", "value<=", "ratio>=", "ratio<=", "max<="]

    def met(self, value: float, ratio: float | None, high: float) -> bool:
        """Whether the figure shows it."""
        number = {"v": value, "r": ratio, "m": high}[self.kind[0]]
        assert number is not None
        return number >= self.limit if self.kind.endswith(">=") else number <= self.limit

    def __str__(self) -> str:
        what = self.kind[:-2]
        return f"{'' if what == 'value' else f'{what} '}{'≥' if self.kind.endswith('>=') else '≤'} {self.limit:,g}"


class Figure(Struct, frozen=True):
    """One line of the table: medians, with the extremes."""

    name: str
    value: float
    unit: str
    low: float
    high: float
    n: int
    """Repetitions."""
    baseline: float | None = None
    """The same of the raw client, in the same unit."""
    ratio: float | None = None
    """Median of the ratios of each repetition to the baseline's that was taken beside it."""
    peak: float | None = None
    """Peak resident memory of the process that did the work, in bytes."""
    goals: tuple[Goal, ...] = ()
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether all goals are met; None where there are none."""
        if not self.goals:
            return None
        return all(goal.met(self.value, self.ratio, self.high) for goal in self.goals)


def figure(
    name: str,
    unit: str,
    values: Sequence[float],
    baselines: Sequence[float] = (),
    *goals: Goal,
    peak: float | None = None,
    note: str = "",
) -> Figure:
    """Sum up repetitions, and those of the baseline that were taken in turns with them."""
    baseline = ratio = None
    if baselines:
        baseline = statistics.median(baselines)
        ratio = statistics.median(value / beside for value, beside in zip(values, baselines, strict=True))
    return Figure(
        name,
        statistics.median(values),
        unit,
        min(values),
        max(values),
        len(values),
        baseline,
        ratio,
        peak_memory() if peak is None else peak,
        goals,
        note,
    )


async def in_turns(n: int, *sides: Callable[[], Awaitable[float]]) -> list[list[float]]:
    """Measure each side ``n`` times, in turns and each time in the opposite order; returns their values."""
    values: list[list[float]] = [[] for _ in sides]
    for repetition in range(n):
        order = range(len(sides)) if repetition % 2 == 0 else reversed(range(len(sides)))
        for side in order:
            values[side].append(await sides[side]())
    return values


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


async def at_rest(pid: int, within: float = 60.0) -> None:
    """Wait until a process uses hardly any processor time."""
    deadline = time.monotonic() + within
    used = processor_time(pid)
    while True:
        await anyio.sleep(REST)
        before, used = used, processor_time(pid)
        if used - before < BUSY * REST or time.monotonic() > deadline:
            return


def processor_time(pid: int, *, ended: bool = False) -> float:
    """Seconds that a process was computing for, on its own behalf and in the kernel.

    Args:
        pid: the process.
        ended: whether those of its children count, too, that have ended.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if ended else 13])) / os.sysconf("SC_CLK_TCK")


def wakings(pid: int) -> int:
    """How often threads of a process went to sleep, to be woken later."""
    found = (each.joinpath("status").read_text() for each in Path(f"/proc/{pid}/task").iterdir())
    return sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in found)


def peak_memory(pid: int | None = None) -> float:
    """The most bytes that a process ever had resident: this one, or another one that still runs."""
    return _status(pid, "VmHWM")


def memory(pid: int | None = None) -> float:
    """The bytes that a process has resident now."""
    return _status(pid, "VmRSS")


def proportional_memory(pid: int) -> float:
    """The bytes that a process has to itself, and its shares of those that it has with others (PSS).

    The system tells of a process that hides itself, as nodes and keepers do, to root alone.
    """
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024.0


def _status(pid: int | None, field: str) -> float:
    text = Path(f"/proc/{os.getpid() if pid is None else pid}/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024.0
