"""What explanations and events say, in words. Pure."""

from __future__ import annotations

from cdm.manager.endings import LAST_OUTPUT
from cdm.model.event import SLICE_KINDS, Event, EventKind

LONGEST = 500
"""Most characters of a reason in a line that tells how far it is: more than the reasons of a status have."""
BAD = frozenset({"failed", EventKind.LOST, EventKind.REFUSED, EventKind.DROPPED})
"""Events of what is not as anybody wants it."""
_USUAL = {
    "loading": "LOAD",
    "loaded": "LOADING",
    "activate": "LOADED",
    "activating": "ACTIVATE",
    "active": "ACTIVATING",
    "unloading": "UNLOAD",
}
"""What a slice usually was before, which goes without saying."""


def event_in_words(event: Event) -> str:
    """What happened, in a line, without what it happened to."""
    data, parts = event.data, []
    if event.kind == EventKind.DROPPED:
        return f"{data.count:,} events are missing: more happened than could be told"
    if event.kind == EventKind.LEADER:
        return f"leads, term {data.term}"
    if event.kind in (EventKind.CONDITION, EventKind.INTENT, EventKind.ROLLOUT):
        parts.append(f"{data.source} -> {data.to}" if data.source not in ("", data.to) else data.to)
    elif event.kind in SLICE_KINDS and data.source and _USUAL.get(event.kind) != data.source:
        parts.append(f"was {data.source}")
    if event.kind == EventKind.FORGOTTEN:
        parts.append("is not remembered any more")
    # What became of a node's schedule is said already.
    said = [each for each in data.changes if event.kind == EventKind.INTENT and each.startswith("schedule ")]
    if changes := [each for each in data.changes if each not in said]:
        parts.append("; ".join(changes))
    if event.kind == EventKind.BLUEPRINT and not data.source and data.to:
        parts.append(f"instances {data.to}")
    text = ", ".join(parts)
    if data.reason:
        text = f"{text}: {brief(data.reason)}" if text else brief(data.reason)
    return f"{text}, by {data.by}" if data.by else text


def brief(reason: str) -> str:
    """A reason on one line: of the last lines of output only the very last, which says what went wrong."""
    how, *outputs = reason.split(LAST_OUTPUT)
    said = LAST_OUTPUT.join((how, *(each.rpartition(" | ")[2] for each in outputs)))
    line = " ".join(said.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]}…{line[-LONGEST // 2 :]}"
