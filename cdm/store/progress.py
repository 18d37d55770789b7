"""What a watch is doing, and how far its mirror is behind the bucket. Pure."""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from cdm.store.session import Behind, Live, MirrorPhase


class Phase(Enum):
    """What a watch is doing."""

    SEEKING = auto()
    """There is no consumer."""
    LISTING = auto()
    """The consumer delivers what the bucket held when it was made."""
    LIVE = auto()
    """All of that was delivered; updates follow."""


def phase_of(mirror: MirrorPhase) -> Phase:
    """What a watch is doing whose mirror is in this phase."""
    match mirror:
        case Behind():
            return Phase.SEEKING
        case Live():
            return Phase.LIVE
        case _:
            return Phase.LISTING


class Lag(NamedTuple):
    """How far a mirror is behind its bucket, as far as can be known here."""

    live: bool
    """Whether it is complete, and follows."""
    messages: int | None
    """How many messages it has yet to take in, at least; None: there is no consumer that could tell."""
    seconds: float
    """How old what it shows may be; 0: it shows what there is; inf: it never did."""


def lag(
    live: bool, messages: int | None, *, taken: float, heard: float, complete: float, silence: float, now: float
) -> Lag:
    """Work it out; all times in seconds on this node's clock.

    Args:
        live: whether the mirror is complete, and follows.
        messages: how many it has yet to take in; None: there is no consumer.
        taken: when the message was stored that it took in last.
        heard: when the server was heard of last.
        complete: until when the mirror was complete before, where it is not now; -inf: it never was.
        silence: seconds of silence that are usual.
        now: the time.
    """
    if not live:
        since = complete
    elif messages:
        since = min(taken, now)
    else:
        since = now if now < heard + silence else heard
    return Lag(live, messages, max(now - since, 0.0))
