"""How long the last node of all takes to tell that nothing runs any more."""

from __future__ import annotations

import pytest

from cdm.node.last_word import LIMIT, PATIENCE, LastWord

pytestmark = pytest.mark.quick


def test_who_does_not_come_to_lead_gives_up_soon() -> None:
    assert LastWord(10.0).until == 10.0 + PATIENCE


def test_who_leads_late_has_as_long_to_tell_it_as_who_led_at_once() -> None:
    word = LastWord(10.0)
    word.leads(3, 12.9)
    assert word.until == 12.9 + PATIENCE
    word.leads(3, 14.0)
    assert word.until == 12.9 + PATIENCE, "being at it is no progress"


def test_another_term_after_one_that_was_lost_begins_anew_but_not_for_ever() -> None:
    word = LastWord(10.0)
    word.leads(3, 12.0)
    word.leads(4, 14.5)
    assert word.until == 14.5 + PATIENCE
    for term in range(5, 20):
        word.leads(term, word.until - 0.1)
    assert word.until == 10.0 + LIMIT
