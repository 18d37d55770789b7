"""Tells others whether a mirror is complete and follows: each change once, and silence that lasts too long in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Announcer:
    """Tells them, and knows what they were told.

    Args:
        on_change: called with True when the mirror is complete, with False when it may fall behind.
    """

    def __init__(self, on_change: Callable[[bool], None]) -> None:
        self._on_change = on_change
        self._told = False
        self._doubt: asyncio.TimerHandle | None = None

    def tell(self, live: bool) -> None:
        """It is so now."""
        if live != self._told:
            self._told = live
            self._on_change(live)

    def doubt(self, after: float) -> None:
        """There is no consumer: in so many seconds nobody can rely on the mirror, unless there is one by then."""
        self.trust()
        self._doubt = asyncio.get_running_loop().call_later(after, self.tell, False)

    def trust(self) -> None:
        """There is a consumer, or nobody wants to know any more."""
        if self._doubt is not None:
            self._doubt.cancel()
