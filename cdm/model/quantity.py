"""Amounts of memory as people write them: "256M", "1Gi", or a number of bytes; and shares of a processor."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from cdm.errors import InvalidBlueprint

MOST_MEMORY = 2**60
"""Largest amount of memory that is accepted, in bytes."""
MOST_CPU = 10_000.0
"""Most cores that are accepted."""
UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
"""Bytes of each unit: M is a million, Mi is 1,048,576."""

_PATTERN = r"(\d{1,19}(?:\.\d{1,9})?)([KMGT]i?)?"
_MEMORY = 'an amount of memory: bytes, or a text like "256M", "1.5G" or "1Gi" (at most 2^60 bytes)'
_CPU = f"a number of cores from 0 to {MOST_CPU:,.0f}, in steps of 0.001"
Memory = (
    Annotated[int, Meta(ge=0, le=MOST_MEMORY, description=_MEMORY)]
    | Annotated[str, Meta(pattern=rf"^{_PATTERN}\Z", description=_MEMORY)]
)
Cores = Annotated[float, Meta(ge=0, le=MOST_CPU, description=_CPU)]


def memory_of(typed: int | str) -> int:
    """An amount of memory in bytes, rounded up to a whole one.

    Raises:
        InvalidBlueprint: it is no amount of memory, or too much.
    """
    if isinstance(typed, int):
        amount = typed
    elif found := re.fullmatch(_PATTERN, typed):
        whole, _, fraction = found[1].partition(".")
        amount = -(-int(whole + fraction) * UNITS[found[2] or ""] // 10 ** len(fraction))
    else:
        amount = -1
    if not 0 <= amount <= MOST_MEMORY:
        raise InvalidBlueprint("", f"must be {_MEMORY}")
    return amount


def memory_text(amount: int) -> str | int:
    """An amount of memory as people type it, and exactly: `memory_of` reads the same from it."""
    for unit in ("Ti", "T", "Gi", "G", "Mi", "M", "Ki", "K"):
        if amount and amount % UNITS[unit] == 0:
            return f"{amount // UNITS[unit]}{unit}"
    return amount


def memory_shown(amount: int) -> str:
    """An amount of memory for people: exact where it is a round one, otherwise with about three digits."""
    exact = memory_text(amount)
    if amount < UNITS["K"] or (isinstance(exact, str) and len(exact) <= len("1024Mi")):
        return str(exact)
    unit = next(unit for unit in ("Ti", "Gi", "Mi", "Ki", "") if amount >= UNITS[unit])
    return f"{amount / UNITS[unit]:.3g}{unit}" if amount < 1000 * UNITS[unit] else f"{amount // UNITS[unit]:,}{unit}"


def millicores(cores: float) -> int:
    """Cores in thousandths, so that sums of them are exact."""
    return round(cores * 1000)


def check_cores(field: str, cores: float) -> None:
    """Check what the type cannot.

    Raises:
        InvalidBlueprint: it is not a whole number of thousandths of a core, or more than `MOST_CPU`.
    """
    whole = millicores(cores) if 0 <= cores <= MOST_CPU else 0
    if abs(cores * 1000 - whole) > 1e-6 * max(1.0, cores) or (cores and not whole):
        raise InvalidBlueprint(field, f"must be {_CPU}")
