"""What is known of a slice key: each type says what may be written on it."""

from __future__ import annotations

from typing import NamedTuple

from cdm.model.slice import SliceState, SliceValue


class Current(NamedTuple):
    """What a key holds, as the mirror told or as this agent wrote it."""

    revision: int
    value: SliceValue


class Stale(NamedTuple):
    """What a key held in a stream that is gone. Nothing is written until the mirror tells of the new one."""

    value: SliceValue


class Deleted(NamedTuple):
    """This agent has deleted the key, at this revision, and the mirror has not told of it yet."""

    revision: int


def is_late(known: Current | Stale | Deleted | None, new: SliceValue) -> bool:
    """Whether this is an ACTIVATE that answers an earlier LOADED than what the agent knows, or one that it never wrote.

    A later LOADED than what is known is a report of this agent whose acknowledgement was lost.
    """
    if new.state is not SliceState.ACTIVATE or new.loaded is None or isinstance(known, Stale):
        return False
    return known is None or known.revision > new.loaded
