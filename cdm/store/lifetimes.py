"""When keys with a TTL end, by this node's clock. Pure.

The server removes a value whose TTL is over, and leaves no trace of it. So whoever saw the value with its TTL knows by
the clock when to look for it; where it is still there, because clocks differ or the server is late, it is looked for
again, after ever longer pauses. Nothing is looked for before its time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from cdm.store.wire import TTL

NEVER = float("inf")
LOOK_AFTER = 0.03
"""Seconds after its end at which a key is looked for: the server is not quicker."""
LOOK_PAUSE = 0.1
"""Least seconds between two looks at one key; servers remove what ended up to a quarter of a second late."""
LONGEST_PAUSE = 60.0
"""Most seconds between two looks at one key."""
EARLY = 1.0
"""Seconds by which the server may have removed a key earlier than this node's clock says."""

_DURATION = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)"
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def ttl_of(headers: Mapping[str, str]) -> float | None:
    """A message's TTL in seconds, which the server takes in seconds or as ``1h30m``; None: it has none."""
    return _seconds(headers.get(TTL, ""))


@lru_cache(maxsize=64)  # heartbeats say the same again and again
def _seconds(text: str) -> float | None:
    if text.isdecimal():
        return float(text)
    parts = re.findall(_DURATION, text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None  # "never", or what the server does not store
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


class Lifetimes:
    """The keys of one bucket that have a TTL. All times are in seconds on this node's clock.

    Args:
        sooner: called when the next look is due sooner than it was.
    """

    def __init__(self, sooner: Callable[[], None] = lambda: None) -> None:
        self.ends: dict[str, float] = {}
        """When each key ends."""
        self.look_at = NEVER
        """When the next look is due, at the earliest."""
        self._looks: dict[str, float] = {}
        """When a key is looked for that was still there after its end, or may be gone before it."""
        self._sooner = sooner

    def begin(self, name: str, end: float) -> None:
        """A key was given a value that ends then."""
        self.ends[name] = end
        if self._looks:
            self._looks.pop(name, None)
        self._expect(end + LOOK_AFTER)

    def forget(self, name: str) -> None:
        """A key is gone, or was given a value that does not end."""
        if self.ends.pop(name, None) is not None:
            self._looks.pop(name, None)

    def due(self, now: float) -> list[str]:
        """The keys that are to be looked for now."""
        if now < self.look_at:
            return []
        due, self.look_at = [], NEVER
        for name, end in self.ends.items():
            look_at = self._looks.get(name, end + LOOK_AFTER)
            if look_at <= now:
                due.append(name)
            self.look_at = min(self.look_at, look_at)
        return due

    def still_there(self, names: Iterable[str], now: float) -> None:
        """These keys were looked for, and found, or it could not be told."""
        for name in names:
            if (end := self.ends.get(name)) is not None:
                pause = min(max((now - end) / 2, LOOK_PAUSE), LONGEST_PAUSE)
                self._looks[name] = now + pause if end <= now else end + LOOK_AFTER
                self._expect(self._looks[name])

    def doubt(self, now: float) -> None:
        """Look for all keys now: their ends may have been missed."""
        self._looks.update(dict.fromkeys(self.ends, now))
        if self.ends:
            self._expect(now)

    def over(self, now: float) -> set[str]:
        """The keys that the server may have removed by now."""
        return {name for name, end in self.ends.items() if end <= now + EARLY}

    def _expect(self, look_at: float) -> None:
        if look_at < self.look_at:
            self.look_at = look_at
            self._sooner()
