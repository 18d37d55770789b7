"""Durations as people write them: "30s", "5m", "1h30m", or a number of seconds."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from cdm.errors import InvalidBlueprint

LONGEST = 30 * 86_400.0
"""Longest duration that is accepted, in seconds."""
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PART = r"(\d+(?:\.\d+)?)(ms|s|m|h|d)"
_DESCRIPTION = 'a duration: seconds, or a text like "30s", "5m" or "1h30m" (at most 30 days)'

PATTERN = r"(?=\d)" + "".join(rf"(?:\d{{1,9}}(?:\.\d{{1,9}})?{unit})?" for unit in ("d", "h", "m", "s", "ms"))
"""What a duration that is written as a text looks like: each unit once, the largest first."""
Duration = (
    Annotated[float, Meta(ge=0, le=LONGEST, description=_DESCRIPTION)]
    | Annotated[str, Meta(pattern=rf"^{PATTERN}\Z", description=_DESCRIPTION)]
)


def seconds(duration: float | str) -> float:
    """A duration in seconds."""
    if isinstance(duration, str):
        return sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, duration))
    return duration


def check_duration(field: str, duration: float | str, least: float = 0.0) -> None:
    """Check what the type cannot: a text may add up to anything.

    Raises:
        InvalidBlueprint: it is longer than `LONGEST`, or shorter than ``least`` seconds.
    """
    if seconds(duration) > LONGEST:
        raise InvalidBlueprint(field, f"must be at most {LONGEST / 86_400:g} days")
    if seconds(duration) < least:
        raise InvalidBlueprint(field, f"must be at least {least:g} s")


def duration_text(duration: float) -> str:
    """A duration in seconds as people write it, to the millisecond: ``1h30m``."""
    rest, parts = round(duration * 1000), list[str]()
    for unit, size in sorted(_UNITS.items(), key=lambda each: -each[1]):
        count, rest = divmod(rest, round(size * 1000))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
