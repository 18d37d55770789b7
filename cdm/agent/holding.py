"""One slice that must not run twice is held back while another process of this node may still run it."""

from __future__ import annotations

from cdm import clock
from cdm.agent.elsewhere import Doubt, doubt
from cdm.agent.own_key import OwnKey
from cdm.agent.program import DEADLINE_MARGIN, Program
from cdm.agent.reports import HeldUp
from cdm.agent.shared import Shared
from cdm.log import Log
from cdm.model.slice import SliceState

log = Log("cdm.agent")

WHY = "held back: another process of this node, in another folder or on another machine, may still run it (stop_after)"
_TOLD_AS = {
    SliceState.ACTIVE: SliceState.ACTIVATING,
    SliceState.DEACTIVATE: SliceState.DEACTIVATING,
    SliceState.UNLOAD: SliceState.UNLOADING,
}
"""What is told of a slice that is held back, where that is another state than its key holds."""


class Holding:
    """Whether a slice is held back, and what of that is told.

    Args:
        shared: the node's.
        key: the slice's.
        program: likewise.
    """

    def __init__(self, shared: Shared, key: OwnKey, program: Program) -> None:
        self._shared = shared
        self._key = key
        self._program = program
        self._told_until = float("-inf")

    @property
    def doubt(self) -> Doubt | None:
        """Why it is held back; None: it is not."""
        value = self._key.value
        found = doubt(value, self._key.learned, self._shared.own) if value is not None else None
        if value is None or found is None or found.is_over(clock.now()):
            return None
        # Where no folder is named, an earlier version has written that: what is here is nowhere else.
        return None if value.folder is None and not self._program.nothing_runs else found

    def untold(self, state: SliceState, doubtful: Doubt) -> tuple[SliceState, HeldUp] | None:
        """What is yet to be told of it; None: nothing, or nothing that is known."""
        within = doubtful.until - clock.now()
        told = self._key.is_told and doubtful.until <= self._told_until
        if told or within <= 0 or self._shared.resigned:
            return None
        return _TOLD_AS.get(state, state), HeldUp(within + DEADLINE_MARGIN, WHY)

    def told(self, doubtful: Doubt) -> None:
        """That is told now."""
        self._told_until = doubtful.until
        log.warning(WHY, slice=str(self._program.key), within=round(doubtful.until - clock.now(), 1))
