"""When heartbeats are due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.node.beats import Beats

pytestmark = pytest.mark.quick

TTL = 9.0
parts = st.floats(0, 1, exclude_max=True)


def _beats(part: float) -> Beats:
    beats = Beats(TTL, lambda: part)
    beats.begin(100.0)
    return beats


@given(part=parts)
def test_three_a_ttl_from_a_time_of_ones_own(part: float) -> None:
    beats = _beats(part)
    assert beats.due == 100 + part * 3
    beats.beat(beats.due)
    assert beats.due == pytest.approx(103 + part * 3)
    beats.at_once(104.0)
    assert beats.due == 104


@given(part=parts, down_for=st.floats(0, 60))
def test_after_an_outage_they_come_spread(part: float, down_for: float) -> None:
    beats = _beats(part)
    beats.beat(101.0)
    beats.accepted(101.0)
    up = 101 + down_for
    while beats.due < up:
        beats.beat(beats.due)  # for nothing
    beats.connected(up)
    assert up <= beats.due <= up + 3, "none later than it would have come anyway, and none waits for more than a third"
    if down_for < TTL:
        assert beats.due < 101 + TTL or beats.due == up, "what lives is renewed before it ends"
    else:
        assert beats.due <= up + part * 3
