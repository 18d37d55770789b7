"""What is counted for whoever watches: how long things took, and how far mirrors are behind."""

from __future__ import annotations

import pytest

from cdm.durations import Durations
from cdm.manager.pace import Pace
from cdm.store.progress import Lag, lag

pytestmark = pytest.mark.quick


def test_durations_are_counted_in_the_bucket_whose_bound_they_do_not_exceed() -> None:
    durations = Durations((0.1, 1.0))
    for seconds in (-5.0, 0.1, 0.2, 1.0, 7.0):
        durations.take(seconds)
    assert durations.counts == [2, 2, 1]
    assert durations.total == pytest.approx(8.3)


def test_a_round_lasts_until_nothing_is_left_to_be_decided() -> None:
    pace = Pace()
    pace.worked(1.0, 1.5, done=True)  # no round is under way
    pace.begin(2.0)
    pace.worked(2.0, 2.5, done=False)
    pace.begin(3.0)
    pace.worked(3.0, 3.5, done=True)
    assert (pace.over_at, pace.deciding, pace.rounds.total) == (3.5, 1.5, 1.5)
    pace.begin(4.0)
    pace.break_off()
    pace.worked(9.0, 9.5, done=True)
    assert pace.over_at == 3.5


@pytest.mark.parametrize(
    ("live", "messages", "heard", "seconds"),
    [
        pytest.param(True, 0, 98.0, 0.0, id="the silence of a bucket that nobody writes is no lag"),
        pytest.param(True, 0, 90.0, 10.0, id="a silent server is one"),
        pytest.param(True, 7, 100.0, 5.0, id="what waits is as old as what was taken in last"),
        pytest.param(False, None, 100.0, 40.0, id="what is not complete is as old as what was"),
    ],
)
def test_a_mirror_is_as_old_as_what_it_shows(live: bool, messages: int | None, heard: float, seconds: float) -> None:
    found = lag(live, messages, taken=95.0, heard=heard, complete=60.0, silence=3.0, now=100.0)
    assert found == Lag(live, messages, seconds)
