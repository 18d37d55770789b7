"""Many who make consumers of one stream do so one after the other; a few do so at once."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.store.crowd import MOST_DOUBLED, PAUSE, PER_CONSUMER, Crowd


def crowd(size: int, random: float = 1.0) -> Crowd:
    found = Crowd(lambda: random)
    found.size = size
    return found


def test_one_that_is_alone_waits_for_nobody() -> None:
    alone = crowd(0)
    assert alone.back() == 0
    assert [alone.failed() for _ in range(20)] == [PAUSE] * 20


def test_a_small_cluster_hardly_waits() -> None:
    assert crowd(10).back() < 0.05
    assert crowd(10).failed() < PAUSE + 0.05


@pytest.mark.parametrize("size", [1_000, 10_000])
def test_many_come_back_one_after_the_other(size: int) -> None:
    random = Random(size).random
    waits = []
    for _ in range(size):
        each = Crowd(random)
        each.size = size
        waits.append(each.back())
    in_the_second_second = sum(1 <= wait < 2 for wait in waits)
    assert in_the_second_second <= 1.3 / PER_CONSUMER
    assert max(waits) <= size * PER_CONSUMER


def test_where_none_can_be_made_they_take_longer_and_not_without_end() -> None:
    many = crowd(10_000)
    pauses = [many.failed() for _ in range(10)]
    assert pauses == sorted(pauses)
    assert pauses[0] == PAUSE + 10_000 * PER_CONSUMER
    assert pauses[-1] == PAUSE + 10_000 * PER_CONSUMER * 2**MOST_DOUBLED


def test_one_that_was_made_counts_as_the_end_of_the_trouble() -> None:
    many = crowd(10_000)
    first, _ = many.failed(), many.failed()
    many.made()
    assert many.failed() == first


@given(size=st.integers(0, 10**6), random=st.floats(0, 1, exclude_max=True), failures=st.integers(0, 100))
def test_no_wait_is_negative_or_longer_than_all_that_are_before(size: int, random: float, failures: int) -> None:
    each = crowd(size, random)
    assert 0 <= each.back() <= size * PER_CONSUMER
    for _ in range(failures):
        assert PAUSE <= each.failed() <= PAUSE + size * PER_CONSUMER * 2**MOST_DOUBLED
