from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.manager.pulse import LONGEST_GAP, PERIOD, Pulse


@given(st.floats(0.0, 1e9), st.lists(st.floats(0.0, LONGEST_GAP - PERIOD - 1e-6), max_size=20), st.floats(0.0, 1e6))
def test_every_stop_of_a_second_is_noticed_and_a_busy_process_is_not_taken_for_stopped(
    start: float, delays: list[float], stopped: float
) -> None:
    pulse, now = Pulse(start), start
    for delay in delays:
        now += PERIOD + delay
        assert pulse.beat(now) == 0.0
    noticed = pulse.beat(now + LONGEST_GAP + stopped + 1e-6)
    assert noticed == pytest.approx(LONGEST_GAP + stopped, abs=1e-3)
    assert pulse.beat(now + LONGEST_GAP + stopped + 1e-6 + PERIOD) == 0.0
