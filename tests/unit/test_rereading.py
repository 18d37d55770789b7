"""What a mirror holds otherwise than its bucket is suspected, and nothing else, in whatever parts it is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.dispatch.messages import KeyRejected
from cdm.model.keys import SliceKey
from cdm.store.history import Known
from cdm.store.rereading import Rereading

pytestmark = pytest.mark.quick

DELETED = b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n"
EXPIRED = b"NATS/1.0\r\nNats-Marker-Reason: MaxAge\r\n\r\n"
BATCHED = b"NATS/1.0\r\nNats-Batch-Id: a\r\n\r\n"
names = st.sampled_from("abcdefgh")
revisions = st.integers(1, 20)
held = st.dictionaries(revisions, st.tuples(names, st.sampled_from([b"", BATCHED, DELETED, EXPIRED])), max_size=12)
of_each = st.dictionaries(revisions, names).map(lambda by: {name: revision for revision, name in by.items()})
"""A revision of each of some names, which no two have."""
END = 20
"""The stream's last sequence."""


def update(name: str, revision: int) -> Known:
    return KeyRejected(SliceKey, name, "whatever", revision)


@given(held=held, known=of_each, cuts=st.sets(st.integers(0, 12)), other=st.booleans())
def test_all_that_differs_is_suspected_and_nothing_else(
    held: dict[int, tuple[str, bytes]], known: dict[str, int], cuts: set[int], other: bool
) -> None:
    newest = dict(sorted({name: revision for revision, (name, _) in sorted(held.items())}.items()))
    stored = {revision: held[revision] for revision in sorted(newest.values())}
    alive = {name: revision for revision, (name, headers) in stored.items() if headers not in (DELETED, EXPIRED)}
    if other:  # a value and a marker are never one message
        known = {
            name: revision
            for name, revision in known.items()
            if stored.get(revision, ("",))[0] != name or name in alive
        }
    else:
        known = dict(alive)
    mirror = {name: update(name, revision) for name, revision in known.items()}
    found = Rereading(mirror)
    for number, (revision, (name, headers)) in enumerate(stored.items()):
        found.take(name, revision, headers)
        if number in cuts:
            found.look_for(found.names())
            found.next_part()
    found.finish(END)
    found.look_for(found.names())
    assert found.suspects == {name for name in {*alive, *known} if alive.get(name) != known.get(name)}


def test_what_is_changed_meanwhile_is_looked_at_where_it_is_by_then() -> None:
    mirror = {name: update(name, revision) for revision, name in enumerate("abc", 1)}
    found = Rereading(mirror)
    found.take("a", 1, b"")
    mirror["b"] = update("b", 4)  # before it was read
    mirror["a"] = update("a", 5)  # after it was read
    found.take("c", 3, b"")
    found.look_for(found.names())
    found.next_part()
    found.take("b", 4, b"")
    found.take("a", 5, b"")
    del mirror["c"]
    found.finish(6)
    found.look_for(found.names())
    assert not found.suspects
