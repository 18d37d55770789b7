"""What is said when slices' output is asked for, and how the lines of several are put into one order.

An asker publishes an `Ask` to ``cdm.logs.{node}``, with a subject of its own to answer to. The node answers there with
`Answer` after `Answer`. No more than `WINDOW` of them with lines are on their way: the asker says which one it has
dealt with. While it does not, the node waits, and its disk is the buffer. It also says at least every `RENEWAL`
seconds that it is there; the node ends the answer `LEASE` seconds after it last did. Where an answer broke off (the
node was started again, a connection was lost), the asker asks anew, for what comes `after` the lines that it has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Protocol, TypeVar

import msgspec
from msgspec import Meta, Struct

WINDOW = 8
"""Answers with lines that may be on their way. nats/secure.conf allows a few more for each message of the asker's."""
RENEWAL = 2.0
LEASE = 8.0
QUIET = 2.0
"""Seconds after which a node that has nothing to tell says so."""
MAX_LINES = 100_000
"""Most lines of one slice that may be asked for as its last ones: these are kept in memory."""
MISSING = "lines may be missing here: files were deleted before they were read"


class Ask(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Begins an answer, or goes on with the one to the same subject."""

    artifact: str = ""
    """group:name:version; empty: this goes on with what was asked before."""
    session: str = ""
    """Which answer this is about; empty: the one to the same subject. With it, every message may name another subject
    to answer to, and the newest counts: NATS allows only so many answers to one (``allow_responses``)."""
    ordinal: int | None = None
    """Only this one of the artifact's slices."""
    since: Annotated[float, Meta(ge=0)] | None = None
    """Nothing that is older than so many seconds."""
    lines: Annotated[int, Meta(ge=0, le=MAX_LINES)] | None = None
    """Of each slice only the last so many of what is there now."""
    after: dict[int, Annotated[datetime, Meta(tz=True)]] = {}
    """By ordinal: nothing that is older than this, whatever `since` says. By the node's clock, as lines have it."""
    follow: bool = False
    """Go on with what comes."""
    seen: int = 0
    """The number of the last answer that was dealt with."""
    stop: bool = False
    """No more of it."""


class Line(Struct, frozen=True, array_like=True):
    """One line of output."""

    time: datetime
    stream: str
    """``out``, ``err``, or ``cdm``: a remark of ours."""
    ordinal: int
    text: str


class Answer(Struct, frozen=True, omit_defaults=True):
    """One message of a node."""

    node: str
    artifact: str
    number: int
    """1, 2, …: a gap tells that answers were lost. An answer without lines has the number of the one before."""
    lines: list[msgspec.Raw] = []
    """Each a `Line`."""
    slices: list[int] | None = None
    """In the first answer: the ordinals that there is output of, or may soon be."""
    end: bool = False
    """This is the last one."""
    error: str = ""
    """Why it is."""


class Place:
    """How far the lines of one slice have come, so that another ask goes on there.

    Lines may have the same time: those that had the last one are counted. They come again, and are passed over.
    """

    def __init__(self) -> None:
        self.time: datetime | None = None
        """Of the last line; None: there was none."""
        self._count = 0
        self._again: int | None = None
        """How many of the last time are still to come again; None: what comes is new."""

    def go_back(self) -> None:
        """The lines from `time` on are asked for once more."""
        if self.time is not None:
            self._again = self._count

    def new(self, line: Line) -> list[Line]:
        """The line, unless it was there before. Where lines between are missing, a remark is put before it."""
        missing = False
        if self._again is not None:
            assert self.time is not None
            if line.time < self.time:
                return []
            if line.time == self.time and self._again:
                self._again -= 1
                return []
            missing, self._again = self._again > 0, None
        self._count = self._count + 1 if line.time == self.time else 1
        self.time = line.time
        return [Line(line.time, "cdm", line.ordinal, MISSING), line] if missing else [line]


class Timed(Protocol):
    """Something with a time."""

    @property
    def time(self) -> datetime:
        """When it was."""


T = TypeVar("T", bound=Timed)


def ripe(fronts: Iterable[deque[T]]) -> list[T]:
    """Take what can be put into order: all lines up to where one of the sources has no more at present.

    Args:
        fronts: of each source that has not ended, the lines that are there, at least one.
    """
    fronts = list(fronts)
    # The latest, not the last: a clock may have been set back. So one front at least is emptied.
    bound = min(max(each.time for each in front) for front in fronts)
    found: list[T] = []
    for front in fronts:
        while front and front[0].time <= bound:
            found.append(front.popleft())
    found.sort(key=lambda each: each.time)
    return found
