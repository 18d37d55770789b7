"""Waiting for what must become true: the one way in which tests wait.

Times are those of an idle machine. A machine that is slower, or busy with something else, may take `SLOWNESS` times as
long for anything that is not promised; only what is promised is held against the clock, with `in_time` and `Stopwatch`,
and only for as long as the machine lets this process run when it wants to.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar, overload

import anyio

SLOWNESS = 8
"""How many times slower a machine may be."""
LEAST = 10.0
"""Seconds that an idle machine is given at least."""
SLACK = 3.0
"""Seconds that a noisy machine may add to what is promised."""
TTL = 20.0
"""Seconds of leases and registrations, unless a test says otherwise: none ends by itself, and on a busy machine none is
renewed too late. Tests of what comes after the end of one say how soon that is."""
PAUSE = 0.02
"""Seconds between two looks."""

T = TypeVar("T")


def patience(within: float = LEAST) -> float:
    """Seconds to wait at most for what takes an idle machine so long, or much less."""
    return SLOWNESS * max(within, LEAST)


def bounded(within: float = LEAST) -> AbstractContextManager[anyio.CancelScope]:
    """A block that must end, and that takes an idle machine so many seconds, or much less."""
    return anyio.fail_after(patience(within))


@overload
async def eventually(
    predicate: Callable[[], Awaitable[T]], within: float = ..., what: str = ..., pause: float = ...
) -> T: ...
@overload
async def eventually(predicate: Callable[[], T], within: float = ..., what: str = ..., pause: float = ...) -> T: ...
async def eventually(predicate: Callable[[], Any], within: float = LEAST, what: str = "", pause: float = PAUSE) -> Any:
    """Wait until the predicate is truthy and return its value; fail with its last value otherwise.

    Args:
        predicate: what is looked at.
        within: seconds that this takes an idle machine at most; it is no promise.
        what: what is waited for, for the one who reads of a failure.
        pause: seconds between two looks.
    """
    return await _wait(predicate, lambda: patience(within), what, pause)


@overload
async def in_time(predicate: Callable[[], Awaitable[T]], promised: float, what: str = ..., slack: float = ...) -> T: ...
@overload
async def in_time(predicate: Callable[[], T], promised: float, what: str = ..., slack: float = ...) -> T: ...
async def in_time(predicate: Callable[[], Any], promised: float, what: str = "", slack: float = SLACK) -> Any:
    """The same for what is promised within so many seconds; a noisy or busy machine is given some more."""
    watch = Stopwatch()
    return await _wait(predicate, lambda: watch.bound(promised, slack), what, PAUSE)


class Stopwatch:
    """Holds how long something takes against what is promised.

    Each second for which this process had to wait for its turn, since others had the processors, stands for `SLOWNESS`
    seconds that a promise may take longer: those had to wait, too, who keep it. On a machine with nothing else to do it
    is none.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._waited = _waited()

    @property
    def took(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._began

    def bound(self, promised: float, slack: float = SLACK) -> float:
        """Seconds that what is promised within so many may have taken by now."""
        busy = SLOWNESS * (_waited() - self._waited)
        return min(promised + slack + busy, max(promised + slack, patience(promised)))


def _waited() -> float:
    """Seconds for which this thread was ready to run and did not; 0 where the system does not tell."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


async def _wait(predicate: Callable[[], Any], seconds: Callable[[], float], what: str, pause: float) -> Any:
    began = time.monotonic()
    while True:
        looked = time.monotonic()
        value = predicate()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if looked - began >= (bound := seconds()):
            # No pytest.fail: its exception is no Exception, and task groups bundle those badly.
            raise AssertionError(f"not within {bound:g} s: {what or 'the condition'} (last value: {value!r})")
        await anyio.sleep(pause)
