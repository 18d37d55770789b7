from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.manager.pulse import LATE, LEAST_GAP, Pulse

TTLS = st.floats(0.1, 1000.0)


@given(
    st.floats(0.0, 1e6),
    st.lists(st.tuples(TTLS, st.floats(0.0, LATE - 1e-6), st.booleans()), max_size=20),
    TTLS,
    st.floats(0.0, 1e6),
)
def test_every_long_stop_is_noticed_and_a_busy_process_is_not_taken_for_stopped(
    now: float, before: list[tuple[float, float, bool]], ttl: float, stopped: float
) -> None:
    """Also where nodes with other TTLs join, and where something else has it beat in between."""
    pulse = Pulse(now)
    for other, late, between in before:
        pause = pulse.pause(other)
        if between:
            assert pulse.beat(now + pause / 2) == 0.0
        now += pause + late
        assert pulse.beat(now) == 0.0
    gap = pulse.pause(ttl) + LATE
    now += gap + stopped + 1e-6
    assert pulse.beat(now) == pytest.approx(gap + stopped, abs=1e-3)
    assert pulse.beat(now + pulse.pause(ttl)) == 0.0


@given(TTLS)
def test_no_registration_expires_in_a_stop_that_is_not_noticed(ttl: float) -> None:
    """Where it was put a third of a TTL before, and a sixth of one is needed for the next."""
    gap = Pulse(0.0).pause(ttl) + LATE
    assert gap == pytest.approx(LEAST_GAP) or ttl / 3 + gap + ttl / 6 < ttl
