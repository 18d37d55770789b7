"""Durations as people write them: "30s", "5m", "1h30m", or a number of seconds."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

LONGEST = 30 * 86_400.0
"""Longest duration that is accepted, in seconds."""
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DESCRIPTION = 'a duration: seconds, or a text like "30s", "5m" or "1h30m" (at most 30 days)'

PATTERN = r"(?:\d{1,9}(?:\.\d{1,9})?(?:ms|s|m|h|d))+"
"""What a duration that is written as a text looks like."""
Duration = (
    Annotated[float, Meta(ge=0, le=LONGEST, description=_DESCRIPTION)]
    | Annotated[str, Meta(pattern=rf"^{PATTERN}\Z", description=_DESCRIPTION)]
)


def seconds(duration: float | str) -> float:
    """A duration in seconds, at most `LONGEST`."""
    if isinstance(duration, str):
        return min(sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(duration)), LONGEST)
    return duration
