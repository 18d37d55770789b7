"""Waiting for what must become true: the one way in which tests wait."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

import anyio

SLACK = 3.0
"""Seconds that a noisy machine may add to what is promised."""
PAUSE = 0.02
"""Seconds between two looks."""

T = TypeVar("T")


@overload
async def eventually(
    predicate: Callable[[], Awaitable[T]], within: float = ..., what: str = ..., pause: float = ...
) -> T: ...


@overload
async def eventually(predicate: Callable[[], T], within: float = ..., what: str = ..., pause: float = ...) -> T: ...


async def eventually(predicate: Callable[[], Any], within: float = 30.0, what: str = "", pause: float = PAUSE) -> Any:
    """Wait until the predicate is truthy and return its value; fail with its last value otherwise."""
    deadline = time.monotonic() + within
    while True:
        value = predicate()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if time.monotonic() >= deadline:
            # No pytest.fail: its exception is no Exception, and task groups bundle those badly.
            raise AssertionError(f"not within {within:g} s: {what or 'the condition'} (last value: {value!r})")
        await anyio.sleep(pause)
