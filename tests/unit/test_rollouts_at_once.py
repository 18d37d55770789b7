"""Several releases that are written before a leader looks: the same comes of them as if it had looked each time."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.model.artifact import Artifact
from cdm.model.node import Schedule
from cdm.model.rollout import RolloutKind, RolloutSettings
from tests.unit.rollout_world import NEXT_VERSION, blueprint, count, finish, later, running
from tests.unit.support import APP, S
from tests.unit.world import World

pytestmark = pytest.mark.quick
VERSIONS = [Artifact(APP.group, APP.name, f"1.{number}.0") for number in range(9)]


def release(each: World, version: Artifact, source: Artifact) -> None:
    each.apply(version, blueprint(rollout=RolloutSettings(source=source.version)))


def over(each: World) -> None:
    for _ in range(3):
        finish(each)
        later(each, 60.0)


def serving(each: World) -> dict[str, int]:
    return {version.version: active for version in VERSIONS if (active := count(each, version))}


@given(st.permutations(VERSIONS[1:5]), st.data())
def test_no_more_versions_are_left_of_releases_that_were_written_at_once(
    order: list[Artifact], data: st.DataObject
) -> None:
    at_once, one_by_one, before = running(), running(), [APP]
    for version in order:
        source = data.draw(st.sampled_from(before))
        release(at_once, version, source)
        release(one_by_one, version, source)
        finish(one_by_one)
        later(one_by_one, 60.0)
        before.append(version)
    over(at_once)
    left = serving(at_once)
    assert len(left) <= len(serving(one_by_one))
    assert left[order[-1].version] == 3


def test_a_long_chain_that_was_written_at_once_leaves_the_last() -> None:
    each = running()
    for source, version in pairwise(VERSIONS):
        release(each, version, source)
    each.run_down()
    started = [version.version for version in VERSIONS if each.states(version)]
    assert set(started) <= {APP.version, VERSIONS[-1].version}, "what was replaced meanwhile is not started"
    over(each)
    assert serving(each) == {VERSIONS[-1].version: 3}


def test_a_record_that_is_lost_brings_no_old_version_back() -> None:
    each = running()
    for source, version in pairwise(VERSIONS[:5]):
        release(each, version, source)
        finish(each)
        later(each, 60.0)
    each.store_record(APP.service, None)
    each.run_down()
    assert {version.version for version in VERSIONS if each.states(version)} == {VERSIONS[4].version}
    over(each)
    assert serving(each) == {VERSIONS[4].version: 3}


@pytest.mark.parametrize("kind", [RolloutKind.ROLLING, RolloutKind.BLUE_GREEN])
@pytest.mark.parametrize("wait", [1, 11, 21, 25])
def test_nothing_healthy_is_stopped_when_all_nodes_are_drained_in_the_middle(kind: RolloutKind, wait: int) -> None:
    each = running()
    settings = RolloutSettings(source=APP.version, kind=kind, keep_old="5s")
    each.apply(NEXT_VERSION, blueprint(rollout=settings))
    for _ in range(wait):
        later(each, 1.0)
    for node in list(each.nodes):
        each.intend(node, Schedule.DRAIN)
    for _ in range(60):
        later(each, 1.0)
        assert sum(count(each, version, S.ACTIVE) for version in (APP, NEXT_VERSION)) >= 3
