"""Messages between ``cdm logs`` and the nodes, and how the lines of several slices are put into one order.

A client publishes a `LogRequest` to ``cdm.logs.{node}``, with a subject of its own as the reply subject. The node
publishes `LogReply` after `LogReply` there. At most `WINDOW` replies with lines are on their way: the client
acknowledges those that it has shown, and until it does the node waits, with its disk as the buffer. The client also
sends a request at least every `RENEWAL` seconds; the node ends its replies `LEASE` seconds after the last one. Where
replies break off (the node was restarted, a connection was lost), the client sends a new request for what comes
`after` the lines that it has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Protocol, TypeVar

import msgspec
from msgspec import Meta, Struct

WINDOW = 8
"""Replies with lines that may be unacknowledged. nats/secure.conf allows a few more for each request."""
RENEWAL = 2.0
LEASE = 8.0
QUIET = 2.0
"""Seconds without lines after which a node sends an empty reply, which shows that it is there."""
MAX_LINES = 100_000
"""The most that `LogRequest.lines` may be: so many lines of one slice are kept in memory."""
MISSING = "lines may be missing here: files were deleted before they were read"


class LogRequest(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Begins a session of replies, or goes on with one."""

    artifact: str = ""
    """group:name:version; empty: this belongs to a session that has begun."""
    session: str = ""
    """Name of the session; empty: the reply subject is its name. With a name, every request may bring another reply
    subject, and the newest counts: NATS allows only so many replies to one (``allow_responses``)."""
    ordinal: int | None = None
    """Only this one of the artifact's slices."""
    since: Annotated[float, Meta(ge=0)] | None = None
    """Nothing older than so many seconds."""
    lines: Annotated[int, Meta(ge=0, le=MAX_LINES)] | None = None
    """Of each slice only the last so many of what is there now."""
    after: dict[int, Annotated[datetime, Meta(tz=True)]] = {}
    """By ordinal: nothing older than this, whatever `since` says. By the node's clock, as the times of lines are."""
    previous: bool = False
    """Of each slice only the run of its program that ended last. Nodes without the feature `RUN_MARKS` show all."""
    follow: bool = False
    """Go on with lines that are yet to be written."""
    seen: int = 0
    """Acknowledges the replies up to this number."""
    stop: bool = False
    """Ends the session."""


class WireLine(Struct, frozen=True, array_like=True):
    """One line of output."""

    time: datetime
    stream: str
    """``out``, ``err``, or ``cdm``: a remark of cdm's."""
    ordinal: int
    text: str
    partial: bool = False
    """Whether the line goes on in the next one of this slice and stream."""


KEEPS_NONE = "its runtime keeps no output"
"""The error of a node that can have no output."""


class LogReply(Struct, frozen=True, omit_defaults=True):
    """One message from a node."""

    node: str
    artifact: str
    number: int
    """1, 2, …: a gap shows that replies were lost. A reply without lines has the number of the one before."""
    lines: list[msgspec.Raw] = []
    """Each a `WireLine`."""
    slices: list[int] | None = None
    """In the first reply: the ordinals of slices that have output, or may soon have."""
    end: bool = False
    """The last reply of its session."""
    error: str = ""
    """Why the session ends; empty: everything that was asked for has been sent."""


class Position:
    """How far the lines of one slice have been received, so that another request can go on there.

    Several lines may have the same time. Those with the latest time are counted: when they are sent again, so many are
    passed over.
    """

    def __init__(self) -> None:
        self.time: datetime | None = None
        """Of the last line; None: there was none."""
        self._count = 0
        self._again: int | None = None
        """How many lines with the latest time are still to be passed over; None: what comes is new."""

    def go_back(self) -> None:
        """The lines from `time` on have been asked for once more."""
        if self.time is not None:
            self._again = self._count

    def new(self, line: WireLine) -> list[WireLine]:
        """The line, unless it was received before. Where lines before it are missing, a remark comes first."""
        missing = False
        if self._again is not None and self.time is not None:
            if line.time < self.time:
                return []
            if line.time == self.time and self._again:
                self._again -= 1
                return []
            missing, self._again = self._again > 0, None
        self._count = self._count + 1 if line.time == self.time else 1
        self.time = line.time
        return [WireLine(line.time, "cdm", line.ordinal, MISSING), line] if missing else [line]


class Timed(Protocol):
    """Something with a time."""

    @property
    def time(self) -> datetime:
        """When it was."""


T = TypeVar("T", bound=Timed)


def ripe(fronts: Iterable[deque[T]]) -> list[T]:
    """Remove and return, in order of time, the lines that nothing still to come can precede.

    Args:
        fronts: for each source that has not ended, the lines received from it, at least one.
    """
    fronts = list(fronts)
    # The latest time of each, not its last: a clock may have been set back. At least one of them is emptied.
    bound = min(max(each.time for each in front) for front in fronts)
    found: list[T] = []
    for front in fronts:
        while front and front[0].time <= bound:
            found.append(front.popleft())
    found.sort(key=lambda each: each.time)
    return found
