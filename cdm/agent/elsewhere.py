"""Until when something of a slice may run that another process of this node began: in another folder, or elsewhere.

Pure. Whoever may run a slice that must not run twice is named in its value by the folder that he has. What is in this
node's own folder is found there, or has ended. Of any other folder nothing is known here; but whoever has it stops the
slice when it has not been heard for so long, which is when a leader would have it run on another node, too.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from cdm.model.slice import SliceState, SliceValue

MAY_BE_LEFT = frozenset(
    {
        SliceState.ACTIVATING,
        SliceState.ACTIVE,
        SliceState.DEACTIVATE,
        SliceState.DEACTIVATING,
        SliceState.UNLOAD,
        SliceState.UNLOADING,
    }
)
"""States in which a process that is gone may have left something of a slice. An ACTIVATE it had not obeyed yet: that it
does so is written first."""


class Own(NamedTuple):
    """What this process knows of itself and of others that had its node's id. Times are in seconds on `cdm.clock`."""

    folder: str = ""
    """What tells this node's folder from all others; empty: nothing does."""
    others_until: float = -inf
    """The latest time at which any of them may have been heard by NATS."""
    heard: float = -inf
    """When the last heartbeat of this process was sent that NATS took: until then it was in nobody else's place."""


class Doubt(NamedTuple):
    """What is not known of a slice."""

    until: float
    """When nothing of it can run elsewhere any more, in seconds on `cdm.clock`, if others are not heard again."""
    claimed: bool
    """Whether somebody else's folder is named, by whom this process may have been replaced since its last heartbeat."""

    def is_over(self, now: float) -> bool:
        """Whether nothing of it can run elsewhere."""
        return not self.claimed and self.until <= now


def doubt(value: SliceValue, learned: float, own: Own) -> Doubt | None:
    """What is not known of a slice of this node, of which this process has nothing; None: nothing of it is elsewhere.

    Args:
        value: what its key holds.
        learned: when this process learned that, in seconds on `cdm.clock`.
        own: what this process knows of itself.
    """
    gone_after = value.overrides.gone_after if value.overrides is not None else None
    if gone_after is None or value.state not in MAY_BE_LEFT:
        return None
    if value.folder is not None and value.folder == own.folder:
        return None
    return Doubt(own.others_until + gone_after, value.folder is not None and own.heard <= learned)


def folder_told(value: SliceValue, state: SliceState, doubtful: bool, own: Own) -> str | None:
    """The folder to name with a report, in which something of the slice may run; None: it may run twice, or is stopped.

    Args:
        value: what its key holds.
        state: what is reported.
        doubtful: whether it may still run elsewhere.
        own: what this process knows of itself.
    """
    if value.overrides is None or value.overrides.gone_after is None or state not in MAY_BE_LEFT:
        return None
    return value.folder if doubtful else own.folder or None
