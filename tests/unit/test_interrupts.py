"""Ctrl-C ends a command, whatever it is doing at that moment."""

from __future__ import annotations

import os
import signal

import anyio
import pytest

from cdm.cli.connected import interruptible

pytestmark = pytest.mark.quick


def test_a_command_ends_although_a_cancellation_is_swallowed() -> None:
    """As `asyncio.wait_for` may swallow it, before Python 3.12."""
    swallowed = False

    async def command() -> None:
        nonlocal swallowed
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await anyio.sleep(5)
        except anyio.get_cancelled_exc_class():
            swallowed = True
        await anyio.sleep(5)
        raise AssertionError("it went on")

    with pytest.raises(KeyboardInterrupt):
        anyio.run(interruptible, command)
    assert swallowed
