"""Whose turn it is, for a proxy that goes round a fixed number of turns."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.cli.turns import FEWEST, TurnFiles, turns
from cdm.manager.endpoints import Endpoint
from cdm.model.artifact import NodeId

pytestmark = pytest.mark.quick


def endpoints(*weights: float, first: int = 0) -> list[Endpoint]:
    return [
        Endpoint("10.0.0.1", 8000 + number, weight, NodeId("n"), "1") for number, weight in enumerate(weights, first)
    ]


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=90),
    st.lists(st.integers(1, 100), max_size=90),
    st.integers(0, 9),
)
def test_each_has_the_turns_that_its_weight_is_worth_and_no_more_change_than_must(
    before: list[int], after: list[int], first: int
) -> None:
    old = turns(endpoints(*before), [])
    found = endpoints(*after, first=first)
    new = turns(found, old)
    if not after:
        assert new == []
        return
    assert len(new) >= max(len(old), FEWEST, 2 * len(after))
    had, has = Counter(old), Counter(new)
    for each in found:
        assert abs(has[each.authority] - len(new) * each.weight / sum(after)) < 1 + 1e-6
    assert set(has) <= {each.authority for each in found}
    stay = sum(mine == his for mine, his in zip(new, old, strict=False))
    assert stay == sum(min(had[each], has[each]) for each in has), "whoever keeps turns keeps those that it had"


def test_turns_of_one_are_far_from_each_other() -> None:
    canary = endpoints(10, 90)
    given_ = turns(canary, [])
    at = [number for number, address in enumerate(given_) if address == canary[0].authority]
    assert len(at) == FEWEST / 10
    assert {later - sooner for sooner, later in pairwise(at)} <= {9, 10, 11}


def test_only_files_that_are_others_are_written_and_they_are_known_to_the_next_process(tmp_path: Path) -> None:
    files, changed = TurnFiles(tmp_path).give(endpoints(50, 50))
    assert (len(files), changed) == (FEWEST, True)
    assert {each.read_text() for each in files} == {"10.0.0.1:8000\n", "10.0.0.1:8001\n"}
    when = {each: each.stat().st_ino for each in files}
    assert TurnFiles(tmp_path).give(endpoints(50, 50)) == (files, False)
    assert TurnFiles(tmp_path).give(endpoints(50, 50, first=1)) == (files, True)
    assert sum(each.stat().st_ino != inode for each, inode in when.items()) == FEWEST / 2
    assert TurnFiles(tmp_path).give([]) == ([], False)
    assert len(list(tmp_path.iterdir())) == FEWEST
