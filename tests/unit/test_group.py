"""What is known of an artifact's slices: counts, and what the records remember though an agent may not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.manager.cluster import Cluster, Desired
from cdm.manager.group import STABLE_AFTER
from cdm.manager.reconciliation import settled
from cdm.manager.wanted import wanted_of
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey
from cdm.model.slice import Kind, SliceState
from tests.unit.reconciling import active
from tests.unit.support import APP, S, cluster_of, group_of, n, put, wanted

# Counts alone


def test_settled_is_a_matter_of_counts() -> None:
    assert settled(wanted_of(wanted(2)), group_of(*active(1, 2)))
    assert settled(wanted_of(wanted(2)), group_of(put(n(1), S.LOADING), put(n(2), S.ACTIVE), put(n(3), S.UNLOADING)))
    assert settled(wanted_of(None), group_of(put(n(1), S.UNLOAD)))
    assert settled(wanted_of(Desired(None, 0, 1, "bad")), group_of(*active(1)))
    assert not settled(wanted_of(wanted(2)), group_of(*active(1)))
    assert not settled(wanted_of(wanted(1)), group_of(*active(1, 2)))
    assert not settled(wanted_of(wanted(1)), group_of(put(n(1), S.LOADED)))
    assert not settled(wanted_of(wanted(1)), group_of(put(n(1), S.ACTIVE), put(n(2), S.FAILED)))
    assert not settled(wanted_of(None), group_of(*active(1)))


# What the records remember


def test_an_agent_that_drops_the_fields_does_not_make_failures_forgotten() -> None:
    cluster = cluster_of(
        put(n(1), S.LOAD, failures=4, blueprint=7), put(n(1), S.LOADING, at=1.0), put(n(1), S.FAILED, at=2.0)
    )
    value = cluster.group(APP).slices[SliceKey(n(1), APP)].value
    assert (value.state, value.failures, value.blueprint) == (S.FAILED, 4, 7)


def test_a_zero_that_an_agent_says_is_believed() -> None:
    cluster = cluster_of(put(n(1), S.LOAD, failures=4), put(n(1), S.FAILED, failures=0))
    assert cluster.group(APP).slices[SliceKey(n(1), APP)].value.failures == 0


@pytest.mark.parametrize(("after", "failures"), [(STABLE_AFTER, 0), (STABLE_AFTER - 1, 4)])
def test_a_slice_that_served_for_long_begins_anew(after: float, failures: int) -> None:
    cluster = cluster_of(put(n(1), S.ACTIVE, failures=4, at=10.0), put(n(1), S.FAILED, at=10.0 + after))
    assert cluster.group(APP).slices[SliceKey(n(1), APP)].value.failures == failures


def test_what_served_for_long_and_could_not_be_started_again_begins_anew_too() -> None:
    """The agent goes on copying the failures of the command."""
    cluster = cluster_of(
        put(n(1), S.ACTIVE, failures=4, at=10.0),
        put(n(1), S.ACTIVATING, failures=4, at=10.0 + STABLE_AFTER),
        put(n(1), S.FAILED, failures=4, at=11.0 + STABLE_AFTER),
    )
    assert cluster.group(APP).slices[SliceKey(n(1), APP)].value.failures == 0
    cluster.put_slice(put(n(1), S.LOAD, failures=1, at=12.0 + STABLE_AFTER))
    assert cluster.group(APP).slices[SliceKey(n(1), APP)].value.failures == 1


def test_failing_while_unloading_is_remembered_until_something_else_happens() -> None:
    key = SliceKey(n(1), APP)
    cluster = cluster_of(put(n(1), S.UNLOADING), put(n(1), S.FAILED))
    assert cluster.group(APP).failed_unloading == {key}
    cluster.put_slice(put(n(1), S.FAILED))
    assert cluster.group(APP).failed_unloading == {key}
    cluster.put_slice(put(n(1), S.UNLOAD))
    assert cluster.group(APP).failed_unloading == set()
    cluster.put_slice(put(n(1), S.FAILED))
    cluster.remove_slice(key)
    assert cluster.groups == {}
    assert cluster.on_node == {}


slice_steps = st.lists(
    st.tuples(st.integers(0, 2).map(n), st.integers(0, 2), st.none() | st.sampled_from(SliceState)), max_size=40
)


@given(slice_steps)
def test_counts_stay_what_the_slices_are(steps: list[tuple[NodeId, int, SliceState | None]]) -> None:
    cluster = Cluster()
    expected: dict[SliceKey, SliceState] = {}
    for node, ordinal, state in steps:
        key = SliceKey(node, APP, ordinal)
        if state is None:
            cluster.remove_slice(key)
            expected.pop(key, None)
        else:
            cluster.put_slice(put(node, state, ordinal))
            expected[key] = state
        group = cluster.group(APP)
        assert {key: each.value.state for key, each in group.slices.items()} == expected
        assert group.live == sum(each.live for each in expected.values())
        assert group.active == sum(each is S.ACTIVE for each in expected.values())
        assert group.failed == sum(each is S.FAILED for each in expected.values())
        assert group.owed == {key for key, each in expected.items() if each in (S.LOADED, S.FAILED)}
        assert group.moving == any(each.kind is not Kind.REST for each in expected.values())
        assert cluster.on_node == {
            node: {key for key in expected if key.node == node} for node in {key.node for key in expected}
        }
        assert cluster.artifacts_on(node) == ([APP] if node in cluster.on_node else [])
        assert group.failed_unloading <= {key for key, each in expected.items() if each is S.FAILED}
