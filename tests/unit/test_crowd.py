"""Many who make consumers of one stream do so one after the other; a few do so at once."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.model.node import HEARING_PACE
from cdm.store.crowd import MOST_DOUBLED, PAUSE, REFUSED, SOON, Crowd
from cdm.store.wire import StreamState


def state(consumers: int, *, alone: bool = False) -> StreamState:
    return StreamState("", 1, 0.0, alone=alone, consumers=consumers)


def crowd(size: int, random: float = 1.0) -> Crowd:
    found = Crowd(many=True, random=lambda: random)
    found.see(state(size))
    return found


def few() -> list[Crowd]:
    """Those who wait for nobody: one who knows of no others, one whose like are few, one whose server does it alone."""
    unknown = Crowd(many=True, random=lambda: 1.0)
    manager = Crowd(many=False, random=lambda: 1.0)
    manager.see(state(10_000))
    alone = Crowd(many=True, random=lambda: 1.0)
    alone.see(state(10_000, alone=True))
    return [unknown, manager, alone]


@pytest.mark.parametrize("each", few())
def test_some_wait_for_nobody(each: Crowd) -> None:
    assert each.back() == 0
    assert each.patience == 1
    assert {each.unanswered() for _ in range(20)} == {each.refused()} == {PAUSE}


def test_a_small_cluster_hardly_waits() -> None:
    small = crowd(10)
    assert small.back() < 0.05
    assert small.patience == 1
    assert small.refused() < PAUSE + 0.05
    assert small.unanswered() < PAUSE + 0.05


@pytest.mark.parametrize("size", [1_000, 10_000])
def test_many_come_back_one_after_the_other(size: int) -> None:
    random, waits = Random(size).random, []
    for _ in range(size):
        each = Crowd(many=True, random=random)
        each.see(state(size))
        waits.append(each.back())
    assert sum(1 <= wait < 2 for wait in waits) <= 1.3 / HEARING_PACE
    assert max(waits) <= size * HEARING_PACE


def test_where_many_wait_answers_may_take_as_long_as_all_of_them() -> None:
    assert crowd(int(SOON / HEARING_PACE)).patience == 1
    assert crowd(10_000).patience * SOON == 10_000 * HEARING_PACE


def test_where_nobody_answers_they_take_longer_and_not_without_end() -> None:
    many = crowd(10_000)
    pauses = [many.unanswered() for _ in range(10)]
    assert pauses == sorted(pauses)
    assert pauses[0] == PAUSE + 10_000 * HEARING_PACE
    assert pauses[-1] == PAUSE + 10_000 * HEARING_PACE * 2**MOST_DOUBLED


def test_where_somebody_answers_they_do_not() -> None:
    many = crowd(10_000)
    assert {many.refused() for _ in range(10)} == {PAUSE + REFUSED}


def test_when_all_is_well_the_trouble_is_forgotten() -> None:
    many = crowd(10_000)
    first, _ = many.unanswered(), many.unanswered()
    many.well()
    assert many.unanswered() == first


@given(size=st.integers(0, 10**6), random=st.floats(0, 1, exclude_max=True), failures=st.integers(0, 100))
def test_no_wait_is_negative_or_longer_than_all_take(size: int, random: float, failures: int) -> None:
    each = crowd(size, random)
    assert 0 <= each.back() <= each.span
    assert PAUSE <= each.refused() <= PAUSE + REFUSED
    for _ in range(failures):
        assert PAUSE <= each.unanswered() <= PAUSE + each.span * 2**MOST_DOUBLED
