from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.model.slice import TRANSITIONS, Kind, SliceState, SliceValue, Writer, legal

DOCUMENTED = """
| LOAD | command | leader | LOADING, UNLOAD |
| LOADING | in transition | node | LOADED, FAILED, UNLOAD |
| LOADED | at rest | node | ACTIVATE, UNLOAD |
| ACTIVATE | command | leader | ACTIVATING, UNLOAD |
| ACTIVATING | in transition | node | ACTIVE, FAILED, UNLOAD |
| ACTIVE | at rest | node | DEACTIVATE, UNLOAD, FAILED, ACTIVATING |
| DEACTIVATE | command | leader | DEACTIVATING, UNLOAD |
| DEACTIVATING | in transition | node | LOADED, FAILED, UNLOAD |
| FAILED | at rest, with `reason` and `fatal` | node | UNLOAD, LOAD (retry) |
| UNLOAD | command | leader | UNLOADING |
| UNLOADING | in transition | node | key deleted, FAILED, UNLOAD |
"""

Table = dict[str, tuple[str, str, frozenset[str]]]


def _table(text: str) -> Table:
    table: Table = {}
    for line in text.strip().splitlines():
        state, kind, writer, following = (cell.strip() for cell in line.strip("|").split("|"))
        states = frozenset(each.strip().removesuffix(" (retry)") for each in following.split(","))
        table[state] = (kind.split(",")[0], writer, states)
    return table


def test_the_transition_table_is_the_protocols() -> None:
    coded = {
        str(state): (
            str(row.kind),
            str(row.writer),
            frozenset("key deleted" if each is None else str(each) for each in row.next),
        )
        for state, row in TRANSITIONS.items()
    }
    assert coded == _table(DOCUMENTED)
    assert set(TRANSITIONS) == set(SliceState)


@pytest.mark.parametrize("state", SliceState)
def test_every_state_but_failed_unload_and_unloading_is_live(state: SliceState) -> None:
    assert state.live == (state not in (SliceState.FAILED, SliceState.UNLOAD, SliceState.UNLOADING))


@pytest.mark.parametrize("state", SliceState)
def test_the_kind_of_a_state_and_its_writer_agree(state: SliceState) -> None:
    row = TRANSITIONS[state]
    assert state.kind is row.kind
    assert (row.kind is Kind.COMMAND) == (row.writer is Writer.LEADER)


def test_legality_is_the_tables_and_nobody_elses() -> None:
    table = _table(DOCUMENTED)
    for current in SliceState:
        for following in (*SliceState, None):
            shown = "key deleted" if following is None else str(following)
            assert legal(current, following) == (shown in table[current][2])
    assert [state for state in (*SliceState, None) if legal(None, state)] == [SliceState.LOAD]


def test_every_state_can_be_reached_and_left() -> None:
    reached: set[SliceState] = set()
    waiting = [SliceState.LOAD]
    while waiting:
        state = waiting.pop()
        if state not in reached:
            reached.add(state)
            waiting += [each for each in TRANSITIONS[state].next if each is not None]
    assert reached == set(SliceState)


values = st.builds(
    SliceValue,
    st.sampled_from(SliceState),
    st.integers(0, 2**53),
    st.none() | st.text(),
    st.booleans(),
    st.none() | st.integers(0, 1000),
    st.none() | st.integers(0, 2**53),
    restarts=st.none() | st.integers(0, 2**53),
    stable=st.none() | st.floats(0, 1e6),
    deadline=st.none() | st.floats(0, 1e6),
    folder=st.none() | st.text(),
    lapsed=st.booleans(),
)


@given(values)
def test_a_slices_value_survives_its_bytes(value: SliceValue) -> None:
    assert msgspec.json.decode(msgspec.json.encode(value), type=SliceValue) == value


@given(values, st.dictionaries(st.text().map("x-{}".format), st.integers() | st.text() | st.lists(st.none())))
def test_fields_that_a_reader_does_not_know_are_ignored(value: SliceValue, more: dict[str, object]) -> None:
    fields: dict[str, object] = msgspec.to_builtins(value)
    assert msgspec.json.decode(msgspec.json.encode({**fields, **more}), type=SliceValue) == value


def test_only_the_state_is_required() -> None:
    assert msgspec.json.decode(b'{"state":"LOADED"}', type=SliceValue) == SliceValue(SliceState.LOADED)
    assert msgspec.json.encode(SliceValue(SliceState.LOAD, 7)) == b'{"state":"LOAD","term":7}'


@pytest.mark.parametrize(
    "raw", [b"{}", b'{"state":"load"}', b'{"state":null}', b'"LOAD"', b'{"state":"LOAD","term":"7"}']
)
def test_what_is_no_slice_value_is_refused(raw: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(raw, type=SliceValue)


@pytest.mark.parametrize("field", ["term", "failures", "blueprint", "restarts"])
@pytest.mark.parametrize("number", ["-1", "-1" + "0" * 400, "1" + "0" * 400, str(2**53 + 1)])
def test_a_number_that_nobody_counts_to_is_refused(field: str, number: str) -> None:
    # One such value in a bucket must not end every process that reads it.
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(f'{{"state":"FAILED","{field}":{number}}}', type=SliceValue)
