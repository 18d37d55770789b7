"""What is shown of a cluster, by whichever way its messages were heard."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from cdm.dispatch.messages import (
    Cause,
    KeyRejected,
    Message,
    RejectedKeyRemoved,
    ValuePut,
    ValueRejected,
    ValueRemove,
)
from cdm.http.cluster_metrics import cluster_families
from cdm.http.lives import Lives
from cdm.http.sight import Sight
from cdm.manager.cluster_view import ClusterView
from cdm.model.artifact import NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.keys import FENCE, LEASE, BlueprintKey, IntentKey, Key, NodeKey, SeenKey, SliceKey, StatusKey
from cdm.model.keys import encode_artifact as encoded
from cdm.model.node import Fence, Intent, Lease, Registration, Schedule, Seen
from cdm.model.slice import SliceState, SliceValue
from cdm.model.status import Condition, Status
from tests.unit.support import APP

pytestmark = pytest.mark.quick

NODE = NodeId("n1")
PUTS: list[ValuePut[Any, Any]] = [
    ValuePut(BlueprintKey(APP), Blueprint(2), 1),
    ValuePut(SliceKey(NODE, APP), SliceValue(SliceState.ACTIVE, 7), 2),
    ValuePut(LEASE, Lease(NODE, 7), 3),
    ValuePut(FENCE, Fence(6), 4),
    ValuePut(NodeKey(NODE), Registration(), 5),
    ValuePut(IntentKey(NODE), Intent(Schedule.CORDON), 6),
    ValuePut(SeenKey(NODE), Seen(Registration(), "lost"), 7),
    ValuePut(StatusKey(encoded(APP)), Status(Condition.READY, "", 1), 8),
]


def told(view: ClusterView) -> dict[str, Any]:
    return {
        "slices": {str(artifact): set(group.slices) for artifact, group in view.cluster.groups.items()},
        "wanted": {str(artifact): each.instances for artifact, each in view.cluster.desired.items()},
        "statuses": set(view.cluster.statuses),
        "nodes": set(view.nodes),
        "intents": dict(view.intents),
        "seen": set(view.seen),
        "leader": view.lease and view.lease.node,
        "unreadable": dict(view.unreadable),
    }


@pytest.mark.parametrize("put", [put for put in PUTS if put.key != FENCE], ids=lambda put: type(put.key).__name__)
def test_a_key_that_is_gone_leaves_nothing_and_what_cannot_be_read_as_much_as_a_look_finds(
    put: ValuePut[Any, Any],
) -> None:
    key: Key = put.key
    gone = ClusterView.of([put, ValueRemove[Any, Any](key, 9)])
    assert told(gone) == told(ClusterView())
    unreadable = ValueRejected[Any, Any](key, "no JSON", 9)
    followed, looked = ClusterView.of([put, unreadable]), ClusterView.of([unreadable])
    if isinstance(key, BlueprintKey):  # the last valid one stays in force
        assert followed.cluster.desired[APP].instances == 2
        followed.cluster.desired.clear()
        looked.cluster.desired.clear()
    assert told(followed) == told(looked)
    assert followed.unreadable == {key: "no JSON"}
    followed.take(put)
    assert told(followed) == told(ClusterView.of([put]))


def test_how_a_registration_ended_is_known_until_there_is_another_one_or_the_node_is_forgotten() -> None:
    put, seen = PUTS[4], PUTS[6]
    end = ValueRemove[Any, Any](put.key, 9, Cause.EXPIRED, 5.0)
    assert ClusterView.of([put, seen, end]).ends == {NODE: end}
    assert not ClusterView.of([end, put]).ends
    assert not ClusterView.of([seen, end, ValueRemove[Any, Any](seen.key, 10)]).ends
    assert not ClusterView.of([put, replace(end, cause=Cause.MISSING)]).ends, "when that was nobody knows"


def test_the_term_is_the_highest_known() -> None:
    assert ClusterView.of(PUTS).term == 7
    assert ClusterView.of([*PUTS, ValueRemove[Any, Any](LEASE, 9)]).term == 6


def test_a_name_that_is_no_key_is_known_until_it_is_gone() -> None:
    odd: list[Message] = [KeyRejected(SliceKey, "a b", "has a space", 1)]
    assert ClusterView.of(odd).unreadable == {(SliceKey, "a b"): "has a space"}
    assert not ClusterView.of([*odd, RejectedKeyRemoved(SliceKey, "a b")]).unreadable


def test_an_intent_that_cannot_be_read_counts_as_cordon_also_in_metrics() -> None:
    sight = Sight.of([PUTS[4], ValueRejected[Any, Any](IntentKey(NODE), "no JSON", 9)])
    assert sight.schedule(NODE) is Schedule.CORDON
    (closed,) = (each for each in cluster_families(sight, Lives(), 0.0) if each.name == "cdm_node_closed")
    assert [sample.value for sample in closed.samples] == [1.0]
    leaving = ValuePut(NodeKey(NODE), Registration(leaving=True), 10)
    sight.take(leaving)
    assert sight.schedule(NODE) is Schedule.DRAIN
