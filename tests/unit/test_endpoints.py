"""Which instances of a service are sent requests, and how many of them each gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.cli.router import keys_of
from cdm.dispatch.messages import Cause, Message, ValuePut, ValueRejected, ValueRemove
from cdm.manager.endpoints import Endpoint, endpoints, without_address
from cdm.manager.heard import EXPIRY_GRACE
from cdm.manager.service_view import ServiceView
from cdm.model.artifact import Artifact, NodeId, Service
from cdm.model.blueprint import Overrides
from cdm.model.keys import FENCE, LEASE, NodeKey, RolloutKey, SliceKey, encode
from cdm.model.node import Registration
from cdm.model.record import Rollout, RolloutPhase, Side, Weights
from cdm.model.slice import SliceState, SliceValue
from cdm.model.template import Template
from tests.unit.support import artifacts, n, node_ids

pytestmark = pytest.mark.quick

WEB = Service("acme", "web")
OLD, NEW = Template(Overrides(env={"LEVEL": "1"})), Template(Overrides(env={"LEVEL": "2"}))
S = SliceState
Slices = dict[SliceKey, SliceValue]


def key(node: int = 0, version: str = "1", ordinal: int = 0) -> SliceKey:
    return SliceKey(n(node), WEB.version(version), ordinal)


def serving(port: int = 80, **said: object) -> SliceValue:
    return SliceValue(S.ACTIVE, port=port, address="10.0.0.1", **said)  # type: ignore[arg-type]


def registered(count: int = 8) -> dict[NodeId, Registration]:
    return {n(each): Registration(address=f"10.0.0.{each}") for each in range(count)}


def record(
    source: int,
    target: int,
    phase: RolloutPhase = RolloutPhase.ROLLING,
    versions: tuple[str, str] = ("1", "2"),
    **more: object,
) -> Rollout:
    old, new = (Side(v, 1, t, digest=t.digest) for v, t in zip(versions, (OLD, NEW), strict=True))
    return Rollout(old, new, phase, weights=Weights(source, target), **more)  # type: ignore[arg-type]


def by_version(found: Sequence[Endpoint]) -> dict[str, float]:
    sums: Counter[str] = Counter()
    for each in found:
        sums[each.version] += each.weight  # type: ignore[assignment]
    return {version: round(weight, 2) for version, weight in sums.items()}


def test_active_instances_with_a_port_on_registered_nodes_are_endpoints_and_no_others() -> None:
    slices = {
        key(0): serving(8001),
        key(1): SliceValue(S.ACTIVE, port=8002),
        key(2): SliceValue(S.ACTIVE),
        key(9): serving(8003),
        **{key(3, ordinal=at): SliceValue(state, port=9000) for at, state in enumerate(S) if state is not S.ACTIVE},
    }
    assert endpoints(slices, registered(), None) == [
        Endpoint("10.0.0.1", 8001, 50.0, n(0), "1"),
        Endpoint("10.0.0.1", 8002, 50.0, n(1), "1"),
    ], "what the slice does not say of its address the registration does"


def test_an_instance_of_which_nobody_says_the_address_is_left_out_and_counted() -> None:
    slices = {key(0): SliceValue(S.ACTIVE, port=8001), key(1): serving(8002)}
    nodes = {n(0): Registration(), n(1): Registration()}
    assert [each.port for each in endpoints(slices, nodes, None)] == [8002]
    assert without_address(slices, nodes) == 1


def test_they_are_ordered_by_address_and_port_as_a_number() -> None:
    slices = {key(0, ordinal=at): serving(port) for at, port in enumerate((9000, 80, 10_000))}
    assert [each.port for each in endpoints(slices, registered(), None)] == [80, 9000, 10_000]


def test_a_side_without_weight_is_sent_nothing() -> None:
    slices = {key(0, "1"): serving(1), key(1, "1"): serving(2), key(2, "2"): serving(3)}
    assert by_version(endpoints(slices, registered(), record(100, 0))) == {"1": 100.0}
    assert by_version(endpoints(slices, registered(), record(90, 10))) == {"1": 66.67, "2": 33.33}
    assert by_version(endpoints(slices, registered(), record(0, 100, RolloutPhase.SWITCHED))) == {"2": 100.0}
    assert endpoints({key(2, "2"): serving()}, registered(), record(100, 0)) == []


@pytest.mark.parametrize("phase", [RolloutPhase.COMPLETE, RolloutPhase.REVERTED])
def test_after_a_rollout_all_count_by_themselves(phase: RolloutPhase) -> None:
    slices = {key(0, "1"): serving(1), key(1, "2"): serving(2)}
    assert by_version(endpoints(slices, registered(), record(0, 100, phase))) == {"1": 50.0, "2": 50.0}


def test_a_side_that_has_no_instance_leaves_its_weight_to_the_other() -> None:
    assert by_version(endpoints({key(2, "2"): serving()}, registered(), record(90, 10))) == {"2": 100.0}


def test_within_a_version_sides_are_told_apart_by_template_and_content() -> None:
    same = ("1", "1")
    slices = {
        key(0): serving(1, template=OLD.digest),
        key(1): serving(2, template=NEW.digest),
        key(2): serving(3, template=NEW.digest),
    }
    found = endpoints(slices, registered(), record(90, 10, versions=same))
    assert {each.port: each.weight for each in found} == dict.fromkeys((1, 2, 3), 33.3333)

    old, new = (Side("1", 1, OLD, content, OLD.digest) for content in ("aa", "bb"))
    pushed = Rollout(old, new, RolloutPhase.ROLLING, weights=Weights(100, 0))
    slices = {key(0): serving(1, template=OLD.digest, content="aa"), key(1): serving(2, content="bb")}
    assert {each.port: each.weight for each in endpoints(slices, registered(), pushed)} == {1: 100.0}


def test_an_instance_that_may_be_of_either_side_counts_to_the_one_that_gets_more() -> None:
    slices = {key(0): serving(1), key(1): serving(2, template=NEW.digest)}
    for source, target, weights in ((100, 0, {1: 100.0}), (0, 100, {1: 50.0, 2: 50.0})):
        found = endpoints(slices, registered(), record(source, target, versions=("1", "1")))
        assert {each.port: each.weight for each in found} == weights


def test_what_is_of_neither_side_serves_until_it_is_told_to_go() -> None:
    third = Template(restarted="once").digest
    slices = {key(0): serving(1, template=OLD.digest), key(1): serving(2, template=third)}
    found = endpoints(slices, registered(), record(0, 100, versions=("1", "1")))
    assert [each.port for each in found] == [2]

    # Where one side is to get all, what was replaced in the middle is not listed beside it.
    slices = {key(0, "1"): serving(1), key(1, "2"): serving(2, template=third), key(2, "2"): serving(3, template=third)}
    replaced = record(100, 0)
    assert by_version(endpoints(slices, registered(), replaced)) == {"2": 100.0}
    assert by_version(endpoints({**slices, key(3, "1"): serving(4)}, registered(), replaced)) == {"1": 100.0}


sides = st.sampled_from((None, OLD.digest, NEW.digest, "0" * 64))


@st.composite
def instances(draw: st.DrawFn) -> Slices:
    found: Slices = {}
    for at in range(draw(st.integers(0, 12))):
        state = draw(st.sampled_from([S.ACTIVE] * 4 + [S.UNLOAD, S.UNLOADING, S.ACTIVATING, S.DEACTIVATE]))
        version = draw(st.sampled_from(("0", "1", "2")))
        address = draw(st.sampled_from((None, "10.0.0.9")))
        port = draw(st.sampled_from((None, 8000 + at)))
        place = key(draw(st.integers(0, 9)), version, at)
        found[place] = SliceValue(state, port=port, address=address, template=draw(sides))
    return found


records = st.builds(
    lambda percent, phase, versions: record(100 - percent, percent, phase, versions),
    st.integers(0, 100),
    st.sampled_from(RolloutPhase),
    st.sampled_from((("1", "2"), ("1", "1"), ("2", "1"))),
)


@given(instances(), st.none() | records)
def test_weights_come_to_a_hundred_and_all_are_more_than_nothing(slices: Slices, rollout: Rollout | None) -> None:
    found = endpoints(slices, registered(), rollout)
    if found:
        assert sum(each.weight for each in found) == pytest.approx(100, abs=0.01)
    assert all(each.weight > 0 for each in found)
    assert len({(each.node, each.port) for each in found}) == len(found)


@given(instances(), st.none() | records)
def test_whatever_is_told_to_go_gets_nothing_and_the_others_get_more(slices: Slices, rollout: Rollout | None) -> None:
    found = endpoints(slices, registered(), rollout)
    if not found:
        return
    gone = found[0]
    left = {place: SliceValue(S.UNLOAD) if value.port == gone.port else value for place, value in slices.items()}
    after = {(each.node, each.port): each.weight for each in endpoints(left, registered(), rollout)}
    assert (gone.node, gone.port) not in after
    assert all(after[each.node, each.port] >= each.weight for each in found[1:])


@given(instances(), records)
def test_instances_of_one_side_get_the_same(slices: Slices, rollout: Rollout) -> None:
    found = endpoints(slices, registered(), rollout)
    versions = {rollout.source.version, rollout.target.version}
    if len(versions) == 2:
        for version in ("0", *versions):
            assert len({each.weight for each in found if each.version == version}) <= 1


# Which keys are followed


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject matches a pattern, as NATS has it."""
    *tokens, last = pattern.split(".")
    assert last == ">"
    found = subject.split(".")
    return len(found) > len(tokens) and all(token in ("*", each) for token, each in zip(tokens, found, strict=False))


@given(artifacts, node_ids, st.integers(0, 9))
def test_all_keys_of_a_service_are_followed_and_neither_the_lease_nor_the_fence(
    artifact: Artifact, node: NodeId, ordinal: int
) -> None:
    pattern = keys_of(artifact.service)
    assert matches(pattern, encode(SliceKey(node, artifact, ordinal)))
    assert matches(pattern, encode(RolloutKey(artifact.service)))
    assert not matches(pattern, encode(LEASE))
    assert not matches(pattern, encode(FENCE))


def test_what_precedes_a_dot_in_the_name_narrows_what_is_followed() -> None:
    assert keys_of(Service("acme", "web")) == "*.>"
    assert keys_of(Service("org.example", "web")) == "*.org.>"
    assert keys_of(Service("org.example", "my.web")) == "*.org.example/my.>"


# What follows from messages


class Seen:
    """A view that is told messages."""

    def __init__(self) -> None:
        self.view = ServiceView(WEB)
        self.view.connected(0.0)
        self.revision = 0

    def take(self, message: Message) -> None:
        before, due = self.view.endpoints(), self.view.wake_at()
        changed = self.view.take(message)
        assert changed or self.view.endpoints() == before
        assert changed or self.view.wake_at() in (due, None)

    def beat(self, node: NodeId, ttl: float | None = None) -> None:
        self.take(ValuePut(NodeKey(node), Registration(ttl=ttl, address="10.0.0.1"), 1))

    def gone(self, node: NodeId, cause: Cause, at: float) -> None:
        gone: ValueRemove[NodeKey, Registration] = ValueRemove(NodeKey(node), 1, cause, at)
        self.take(gone)

    @property
    def ports(self) -> list[int]:
        return [each.port for each in self.view.endpoints()]


@pytest.fixture
def seen() -> Seen:
    seen = Seen()
    for each in range(2):
        seen.beat(n(each), ttl=4.0)
        seen.take(ValuePut(key(each), serving(8000 + each), 1))
    assert seen.ports == [8000, 8001]
    return seen


def test_slices_of_other_services_and_of_none_are_passed_over(seen: Seen) -> None:
    other = Service("acme", "web2")
    seen.take(ValuePut(SliceKey(n(0), other.version("1")), serving(1), 1))
    seen.take(ValuePut(RolloutKey(other), record(0, 100, versions=("2", "1")), 1))
    assert seen.ports == [8000, 8001]


def test_a_heartbeat_changes_nothing(seen: Seen) -> None:
    assert not seen.view.take(ValuePut(NodeKey(n(0)), Registration(ttl=4.0, address="10.0.0.1"), 2))
    assert seen.view.take(ValuePut(NodeKey(n(0)), Registration(ttl=4.0, address="10.0.0.2"), 3))


def test_a_slice_that_is_removed_or_cannot_be_read_is_out(seen: Seen) -> None:
    removed: ValueRemove[SliceKey, SliceValue] = ValueRemove(key(0), 2)
    rejected: ValueRejected[SliceKey, SliceValue] = ValueRejected(key(1), "nonsense", 2)
    seen.take(removed)
    assert seen.ports == [8001]
    seen.take(rejected)
    assert seen.ports == []
    assert not seen.view.is_known


def test_the_record_of_a_rollout_comes_and_goes(seen: Seen) -> None:
    seen.take(ValuePut(RolloutKey(WEB), record(0, 100), 1))
    assert seen.ports == []
    removed: ValueRemove[RolloutKey, Rollout] = ValueRemove(RolloutKey(WEB), 2)
    seen.take(removed)
    assert seen.ports == [8000, 8001]


def test_a_node_that_leaves_is_out_at_once(seen: Seen) -> None:
    seen.gone(n(0), Cause.DELETED, 10.0)
    assert seen.ports == [8001]


def test_a_node_that_is_not_heard_is_out_after_a_while_unless_it_is_heard_again(seen: Seen) -> None:
    seen.gone(n(0), Cause.EXPIRED, 10.0)
    due = 10.0 + EXPIRY_GRACE * 4.0
    assert seen.view.wake_at() == due
    seen.view.tick(due - 0.1)
    assert seen.ports == [8000, 8001]
    seen.view.tick(due)
    assert seen.ports == [8001]
    assert seen.view.wake_at() is None

    seen.gone(n(1), Cause.EXPIRED, 20.0)
    seen.beat(n(1))
    seen.view.tick(100.0)
    assert seen.ports == [8001]


def test_an_outage_takes_no_node_out_before_it_could_be_heard_for_its_whole_ttl(seen: Seen) -> None:
    seen.view.disconnected()
    for each in range(2):
        seen.gone(n(each), Cause.MISSING, 20.0)
    seen.view.tick(1000.0)
    assert seen.view.wake_at() is None
    assert seen.ports == [8000, 8001]
    seen.view.connected(1000.0)
    assert seen.view.wake_at() == 1004.0
    seen.beat(n(0))
    seen.view.tick(1004.0)
    assert seen.ports == [8000]


def test_an_expiry_of_a_node_that_was_never_known_means_nothing(seen: Seen) -> None:
    seen.gone(n(5), Cause.EXPIRED, 10.0)
    seen.take(ValuePut(key(5), serving(9000), 1))
    assert seen.view.wake_at() is None
    assert 9000 not in seen.ports
