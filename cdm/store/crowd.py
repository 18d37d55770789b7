"""When one of many may have its consumer made: not all at once, and not again at once where that failed. Pure.

In a cluster a consumer is work for all of its servers, some milliseconds of it (`tests/bench`). Where each of ten
thousand nodes asks for its own at the same moment, as when NATS is back, none is answered in time; what is made after
that is for nobody, and all ask again. A stream tells how many consumers it has, so each waits for a random part of the
time in which all of them can be made one after the other. With a few that is no time.
"""

from __future__ import annotations

from collections.abc import Callable

PER_CONSUMER = 0.004
"""Seconds that the servers are given for each."""
PAUSE = 0.25
"""Seconds before another consumer is asked for, at least, where one could not be made."""
MOST_DOUBLED = 2
"""How often the time in which all are to have another try is doubled, at most: it may be longer than was thought."""


SOON = 5.0
"""Seconds within which all of a few can be made: these ask again where nobody answers at once."""


class Crowd:
    """Those who have a consumer of one stream, as one of them sees it.

    Args:
        random: from 0 (included) to 1.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self.size = 0
        """How many they are, as far as is known."""
        self._random = random
        self._failures = 0
        """How often none could be made since the last one was."""

    @property
    def patience(self) -> float | None:
        """Seconds in which the answer to the one question that is put may come: others are before it. None: a few are.

        A question that is put again does not take the place of the one before, and what is made for somebody who has
        gone is made in vain, and taken away again.
        """
        span = self.size * PER_CONSUMER
        return span if span > SOON else None

    def back(self) -> float:
        """Seconds to wait when the connection is up again: it may be so for all of them."""
        return self._random() * self.size * PER_CONSUMER

    def failed(self) -> float:
        """None could be made: seconds to wait before it is tried again."""
        span = self.size * PER_CONSUMER * 2.0**self._failures
        self._failures = min(self._failures + 1, MOST_DOUBLED)
        return PAUSE + self._random() * span

    def made(self) -> None:
        """One was made."""
        self._failures = 0
