"""Flow control: the server asks whether to deliver on, and the answer may wait while this process writes."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from cdm.errors import StoreError
from cdm.log import Log
from cdm.store.connection import Connection
from cdm.wakeup import Wakeup

log = Log("cdm.watch")

LONGEST_HOLD = 2.0
"""Seconds for which the server's question whether to deliver on may be left unanswered."""


class Backpressure:
    """What a leader's writer and the watch of ``slices`` share; at first nothing is held back.

    The server makes room for a leader's writes when it need not deliver them back at the same time: measured, half as
    many writes again in a second.
    """

    def __init__(self) -> None:
        self._released = anyio.Event()
        self._released.set()

    def hold(self) -> None:
        """Commands wait to be written: updates may wait."""
        if self._released.is_set():
            self._released = anyio.Event()

    def release(self) -> None:
        """All commands are written: updates are wanted again."""
        self._released.set()

    async def released(self) -> None:
        """Wait until updates are not held back."""
        await self._released.wait()


class FlowControl:
    """Answers when the server asks whether to deliver on.

    Args:
        connection: where to answer.
        backpressure: holds the answer back; None: nothing does.
        may_hold: whether it may be held back at present.
    """

    def __init__(self, connection: Connection, backpressure: Backpressure | None, may_hold: Callable[[], bool]) -> None:
        self._connection = connection
        self._backpressure = backpressure
        self._may_hold = may_hold
        self._reply = ""
        self._asked = Wakeup()

    def ask(self, reply: str) -> None:
        """The server waits for an answer at this subject."""
        self._reply = reply
        self._asked.set()

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            await self._asked.wait()
            if self._backpressure is not None and self._may_hold():
                with anyio.move_on_after(LONGEST_HOLD):
                    await self._backpressure.released()
            try:
                await self._connection.publish(self._reply)
            except StoreError as error:
                log.debug("flow control not answered", reason=str(error))
