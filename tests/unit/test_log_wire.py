"""Going on behind the lines that were read, and no line twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from cdm.output.wire import MISSING, Position, WireLine

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def line(at: int, text: str = "") -> WireLine:
    """A line of so many milliseconds after the first."""
    return WireLine(BEGAN + timedelta(milliseconds=at), "out", 0, text)


@given(
    st.lists(st.sampled_from([0, 0, 0, 1, 5]), max_size=30),
    st.lists(st.integers(0, 30), max_size=5).map(sorted),
    st.booleans(),
)
def test_every_line_is_new_once_wherever_it_breaks_off(pauses: list[int], breaks: list[int], filtered: bool) -> None:
    """``filtered``: whether the node keeps back what is older, as it is asked to; one of an old version does not."""
    written = [line(sum(pauses[: number + 1]), str(number)) for number in range(len(pauses))]
    place = Position()
    found: list[WireLine] = []
    for end in [*breaks, len(written)]:
        place.go_back()
        since = place.time
        for each in written[:end]:
            if since is None or not filtered or each.time >= since:
                found += place.new(each)
    assert found == written


def test_lines_that_were_deleted_between_are_told() -> None:
    place = Position()
    assert [place.new(each) for each in (line(1), line(1))] == [[line(1)], [line(1)]]
    place.go_back()
    assert [each.text for each in place.new(line(9, "later"))] == [MISSING, "later"]
    assert place.new(line(9)) == [line(9)]


def test_a_clock_that_was_set_back_hides_nothing() -> None:
    place = Position()
    assert [place.new(each) for each in (line(9), line(3))] == [[line(9)], [line(3)]]
