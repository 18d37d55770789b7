"""The one clock that cdm judges time by: seconds, steady, counting the time that the machine was suspended."""

from __future__ import annotations

import time

if hasattr(time, "CLOCK_BOOTTIME"):

    def now() -> float:
        """Seconds since the machine started; never goes back, and goes on while it sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:  # pragma: no cover - not on Linux

    def now() -> float:
        """Seconds on the steadiest clock that there is here."""
        return time.monotonic()
