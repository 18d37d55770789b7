"""Whether this process can do what it is there for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import inf

from cdm.http.beat import Standstill
from cdm.store.progress import Lag

LONGEST_LAG = 5.0
"""Seconds by which a mirror may be behind its bucket."""
SHADOW = 5.0
"""Seconds for which a process is not ready at least after its event loop stood still."""


def problems(
    *,
    connected: bool | None,
    registered: bool,
    mirrors: Mapping[str, Lag],
    still: Standstill | None,
    recovered: bool,
    now: float,
) -> Iterator[str]:
    """Why this process is not ready; nothing: it is.

    Args:
        connected: whether there is a connection to NATS; None: there was none so far.
        registered: whether its node has registered, where it has one.
        mirrors: how far each bucket's mirror is behind.
        still: when the event loop last stood still.
        recovered: whether everything that happened meanwhile is known.
        now: seconds on this node's clock.
    """
    if connected is None:
        yield "NATS was not reached so far"
    elif not connected:
        yield "there is no connection to NATS"
    if connected is not None and not registered:
        yield "the node has not registered yet"
    if connected is not None and not mirrors:
        yield "no bucket is followed"
    yield from _behind(mirrors.items())
    if still is not None and not recovered:
        yield f"the event loop stood still for {still.seconds:.1f} s, and what happened meanwhile is not known yet"
    elif still is not None and now < still.until + SHADOW:
        yield f"the event loop stood still for {still.seconds:.1f} s, until {now - still.until:.1f} s ago"


def _behind(mirrors: Iterable[tuple[str, Lag]]) -> Iterator[str]:
    for bucket, lag in sorted(mirrors):
        if lag.seconds == inf:
            yield f"{bucket} has not been read yet"
        elif lag.seconds > LONGEST_LAG:
            yield f"what is known of {bucket} is {lag.seconds:.0f} s old"
