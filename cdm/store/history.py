"""Works out which of a key's listed revisions still count: the last valid one, and a refused one after it. Pure."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from cdm.dispatch.messages import Cause, KeyRejected, ValuePut, ValueRejected

Known = ValuePut[Any, Any] | ValueRejected[Any, Any] | KeyRejected[Any]
"""What is known of a key: the newest update of it that was emitted."""


class Removal(Struct, frozen=True):
    """A key's last removal in a listed history."""

    sequence: int
    at: float
    cause: Cause
    by: str = ""


class History:
    """What one key's listed history comes to: its last valid value since it was last removed, and a later one that was
    refused.
    """

    __slots__ = ("removed", "updates")

    def __init__(self) -> None:
        self.updates: list[Known] = []
        self.removed: Removal | None = None

    def remove(self, removal: Removal) -> None:
        """The key was removed: nothing before counts."""
        self.updates = []
        self.removed = removal

    def ends_before(self, known: Known) -> bool:
        """Whether the bucket holds something older than what is known: the bucket was set back."""
        return self.updates[-1].revision < known.revision

    def add(self, update: Known) -> None:
        """The key was given a value."""
        if isinstance(update, ValuePut):
            self.updates = [update]
        else:
            if isinstance(update, ValueRejected):
                update = replace(update, removed=self.removed.sequence if self.removed else 0)
            self.updates = [*(each for each in self.updates if isinstance(each, ValuePut)), update]
