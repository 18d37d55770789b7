"""Where a slice is in its life."""

from __future__ import annotations

from enum import Enum, auto

import anyio

from cdm.errors import SliceFailed
from cdm.wakeup import Moment


class SlicePhase(Enum):
    """Where a slice is in its life.

    ::

        LOADED ── activate ──> STARTING ── ready ──> ACTIVE ── ended ──> RESTARTING ── ready ──> ACTIVE
                                  │                    │                     │
                                  └────────────────────┴──────────┬──────────┘
                                    deactivate, cancelled, failed, given up
                                                                  │
        LOADED <── no process lives ────────────────────────── STOPPING <── deactivate, activate ── STUCK
                                                                  └── SIGKILL does not end it ──> STUCK
    """

    LOADED = auto()
    """No process of it lives."""
    STARTING = auto()
    ACTIVE = auto()
    RESTARTING = auto()
    """It ended by itself, and is stopped, waits, or starts anew."""
    STOPPING = auto()
    STUCK = auto()
    """A process of it could not be ended."""


class Life:
    """One passage from STARTING, or from STUCK, to LOADED."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        """Cancelled to stop it."""
        self.settled = Moment()
        """It became active, or never will."""
        self.over = Moment()
        """The slice is LOADED or STUCK."""
        self.failure: SliceFailed | None = SliceFailed("was stopped before it was ready")
        """Why it did not become active; None: it did."""
        self.stuck: SliceFailed | None = None
        """Why it could not be stopped."""
