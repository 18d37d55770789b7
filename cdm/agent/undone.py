"""What of a slice failed, and is tried again: told once, then ever more seldom, and when it is done."""

from __future__ import annotations

from cdm import clock
from cdm.errors import SliceFailed
from cdm.log import Lasting, Log
from cdm.model.keys import SliceKey

log = Log("cdm.agent")


class Undone:
    """What is tried again of one slice; most slices never have anything of it.

    Args:
        key: the slice's.
    """

    __slots__ = ("_key", "_lasts")

    def __init__(self, key: SliceKey) -> None:
        self._key = key
        self._lasts: Lasting | None = None
        """None: nothing is."""

    def tell(self, line: str, error: SliceFailed) -> None:
        """It failed, perhaps once more.

        Args:
            line: what that means.
            error: why.
        """
        if self._lasts is None:
            self._lasts = Lasting(log, "what failed of the slice is done", level="error")
        self._lasts.goes_on(clock.now(), line, slice=str(self._key), reason=str(error))

    def over(self) -> None:
        """It is done, if there was anything."""
        if self._lasts is not None:
            self._lasts.over(clock.now(), slice=str(self._key))
            self._lasts = None
