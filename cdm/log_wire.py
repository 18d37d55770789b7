"""What is said when slices' output is asked for, and how the lines of several are put into one order.

An asker publishes an `Ask` to ``cdm.logs.{node}``, with a subject of its own to answer to. The node answers there with
`Answer` after `Answer`. No more than `WINDOW` of them with lines are on their way: the asker says which one it has
dealt with. While it does not, the node waits, and its disk is the buffer. It also says at least every `RENEWAL`
seconds that it is there; the node ends the answer `LEASE` seconds after it last did.
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
