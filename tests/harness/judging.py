"""What was stored in ``slices``, judged: terms grow, and every key goes from state to state by the table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from cdm.model.slice import Kind, SliceState, legal
from tests.harness.wire import Record

LEADERS = ("LOAD", "ACTIVATE", "DEACTIVATE", "UNLOAD")
"""States that leaders write."""


def assert_terms_grow(records: Sequence[Record], *, complete: bool = True) -> None:
    """In stream order no write of a term follows one of a later term's take-over.

    Agents copy the term of the command that they answer; only what leaders write counts. A record through which its
    server was killed is not ``complete``: take-overs may be missing in it.
    """
    highest, by = 0, ""
    for record in records:
        term = record.value.get("term")
        state = record.value.get("state")
        if not isinstance(term, int) or (state is not None and state not in LEADERS):
            continue
        assert term >= highest, f"{record} was stored after term {highest} ({by})"
        if complete and term > highest:
            assert record.key in ("_leader", "_term"), f"{record} is a term's first write and no take-over"
        highest, by = term, f"{record.key} at {record.sequence}"
    assert highest > 0, "no term was ever written"


def assert_legal(records: Sequence[Record], *, deleted: bool = False, repeated: bool = False) -> None:
    """Each key went from state to state by the table; a node may tell a state again, with another deadline or restart.

    Args:
        records: everything that was written.
        deleted: whether a leader deleted keys in whatever state.
        repeated: whether a leader gave a command again while it was obeyed: commands are idempotent.
    """
    assert [record.sequence for record in records] == [*range(1, len(records) + 1)]
    last: dict[str, SliceState | None] = {}
    for record in records:
        if record.key.startswith("_"):
            continue
        before = last.get(record.key)
        state = last[record.key] = None if record.gone else SliceState(record.value["state"])
        again = before is state and state in _TOLD_AGAIN
        again = again or (repeated and _repeats(before, state))
        judged = not again and not (deleted and state is None)
        assert not judged or legal(before, state), f"{before} was followed by {record}"


_TOLD_AGAIN = (SliceState.LOADING, SliceState.ACTIVATING, SliceState.ACTIVE)


def _repeats(before: SliceState | None, state: SliceState | None) -> bool:
    """Whether it is a command, over the state of who obeys it."""
    if before is None or state is None:
        return False
    return state.kind is Kind.COMMAND and before.kind is Kind.TRANSITION and legal(state, before)


def histories(records: Iterable[Record]) -> dict[str, list[SliceState | None]]:
    """What each slice key held, one after the other; None: nothing. What a node may tell again is there once."""
    found: dict[str, list[SliceState | None]] = defaultdict(list)
    for record in records:
        if record.key.startswith("_"):
            continue
        state = None if record.gone else SliceState(record.value["state"])
        if state not in _TOLD_AGAIN or found[record.key][-1:] != [state]:
            found[record.key].append(state)
    return found


def names(states: Sequence[SliceState | None]) -> str:
    """States in one line."""
    return " ".join(str(state or "gone") for state in states)


def live(state: str) -> bool:
    """Whether a slice in this state counts."""
    return SliceState(state).live
