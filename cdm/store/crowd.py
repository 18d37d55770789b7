"""When one of many may have its consumer made: not all at once, and not again at once where that failed. Pure.

In a cluster a consumer is work for all of its servers, some milliseconds of it (`tests/bench`). Where each of ten
thousand nodes asks for its own at the same moment, as when NATS is back, none is answered in time; what is made after
that is for nobody, and all ask again. A stream tells how many consumers it has, so each waits for a random part of the
time in which all of them can be made one after the other. With a few that is no time.
"""

from __future__ import annotations

from collections.abc import Callable

from cdm.model.node import HEARING_PACE
from cdm.store.wire import StreamState

PAUSE = 0.25
"""Seconds before another consumer is asked for, at least, where one could not be made."""
REFUSED = 2.0
"""Seconds to which that is stretched for many of them, at most, where somebody answered."""
MOST_DOUBLED = 2
"""How often the time in which all are to have another try is doubled, at most: it may be longer than was thought."""
SOON = 5.0
"""Seconds within which all of a few can be made: the usual time for an answer."""


class Crowd:
    """Those who have a consumer of one stream, as one of them sees it.

    Args:
        many: whether this one is of those of whom each node has one. Others are few, and not to wait for all nodes.
        random: from 0 (included) to 1.
    """

    def __init__(self, many: bool, random: Callable[[], float]) -> None:
        self._many = many
        self._random = random
        self.span = 0.0
        """Seconds in which all of them can be made, as far as is known."""
        self._failures = 0
        """How often there was no answer since all was well."""

    def see(self, stream: StreamState) -> None:
        """The stream as it is now. A server that is in no cluster makes them at once."""
        self.span = stream.consumers * HEARING_PACE if self._many and not stream.alone else 0.0

    @property
    def patience(self) -> float:
        """By how much longer than usual an answer is waited for, before the question is put again: a factor.

        What is made for somebody who asks no longer is made in vain, and taken away again.
        """
        return max(self.span / SOON, 1.0)

    def back(self) -> float:
        """Seconds to wait when the connection is up again: it may be so for all of them."""
        return self._random() * self.span

    def refused(self) -> float:
        """Somebody answered that there can be none now: seconds to wait before it is tried again."""
        return PAUSE + self._random() * min(self.span, REFUSED)

    def unanswered(self) -> float:
        """Nobody answered in time, as where there is too much to do: seconds to wait before it is tried again."""
        span = self.span * 2.0**self._failures
        self._failures = min(self._failures + 1, MOST_DOUBLED)
        return PAUSE + self._random() * span

    def well(self) -> None:
        """There is one, and all came that it had to deliver."""
        self._failures = 0
