"""What was delivered and is still to be taken in: answers and commands go first.

All that a node hears comes on one connection, in the order in which the server sent it. Where thousands of deliveries
are before the answer to a write, nothing more is written until they are taken in, and the server is idle meanwhile. So
they are only put down as they are read, which takes a tenth of the time, and taken in between other work. While there
is much to decide or to write, a leader does not take in at all for a while what comes back to it; the server, which is
not answered whether it is to deliver on, then stops.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from cdm.errors import StoreError
from cdm.log import Log
from cdm.store.connection import Connection
from cdm.wakeup import Wakeup

log = Log("cdm.watch")

TURN = 0.0025
"""Seconds of taking in after which others have their turn."""
TURNS_OF_OTHERS = 4
"""Turns of the event loop that others have then: through so many hands an answer goes until the next write is sent."""
LONGEST_HOLD = 2.0
"""Seconds for which deliveries may wait; what is there then is taken in."""
MOST_WAITING = 8 * 1024 * 1024
"""Bytes that may wait here. Where there are more, the oldest are taken in at once, and the rest waits in the socket."""


class Intake:
    """The deliveries of one consumer, in order.

    Args:
        take: takes one in: subject, reply, payload and header block. It must not raise.
        may_wait: whether they may wait at present.
    """

    def __init__(self, take: Callable[[bytes, bytes, bytes, bytes], None], may_wait: Callable[[], bool]) -> None:
        self._take = take
        self._may_wait = may_wait
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[bytes, bytes, bytes, bytes]] = deque()
        self._size = 0
        """Bytes that wait."""
        self._next: asyncio.Handle | None = None
        """The next turn."""
        self._rest = 0
        """How many turns others still have before it."""
        self._took_until = float("-inf")
        """When the last turn was over."""
        self._held_since: float | None = None
        self._due = 0
        """How many deliveries have waited for long enough."""

    def put(self, subject: bytes, reply: bytes, data: bytes, block: bytes) -> None:
        """A message was read."""
        self._waiting.append((subject, reply, data, block))
        self._size += len(data) + len(block)
        if self._next is None:
            if time.monotonic() > self._took_until + TURN:  # others have had their turns
                self._rest = 0
            self._next = self._loop.call_soon(self._turn)
        while self._size > MOST_WAITING:
            self._take_one()

    def length(self) -> int:
        """How many deliveries wait."""
        return len(self._waiting)

    def close(self) -> None:
        """Take in nothing more."""
        if self._next is not None:
            self._next.cancel()
        self._waiting.clear()
        self._size = 0

    def _turn(self) -> None:
        now = time.monotonic()
        if self._rest:
            self._rest -= 1
        elif self._waits(now):
            self._next = self._loop.call_later(TURN, self._turn)
            return
        else:
            while self._waiting and time.monotonic() < now + TURN:
                self._take_one()
            self._rest, self._took_until = TURNS_OF_OTHERS, time.monotonic()
        self._next = self._loop.call_soon(self._turn) if self._waiting else None

    def _waits(self, now: float) -> bool:
        """Whether deliveries wait now, but for those that have done so for long."""
        if self._due or not self._may_wait():
            self._held_since = None
            return False
        if self._held_since is None:
            self._held_since = now
        elif now >= self._held_since + LONGEST_HOLD:
            self._held_since = None
            self._due = len(self._waiting)
            return False
        return True

    def _take_one(self) -> None:
        delivery = self._waiting.popleft()
        self._size -= len(delivery[2]) + len(delivery[3])
        self._due = max(self._due - 1, 0)
        self._take(*delivery)


class FlowControl:
    """Tells the server to deliver on, whenever it asks: all that it delivered before that is taken in.

    Args:
        connection: where to answer.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
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
            try:
                await self._connection.publish(self._reply)
            except StoreError as error:
                log.debug("flow control not answered", reason=str(error))
