"""What proxies are told: the pools of all services, and each proxy's own words for them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.dispatch.messages import Cause, Message, ValuePut, ValueRejected, ValueRemove
from cdm.http.answers import ASSIGNMENT, Answers, discovery
from cdm.manager.endpoints import Endpoint
from cdm.manager.pools import FINEST, Pools, whole_weights
from cdm.manager.service_view import Pool
from cdm.model.artifact import NodeId, Service
from cdm.model.blueprint import Blueprint
from cdm.model.keys import BlueprintKey, NodeKey, RolloutKey, SliceKey, StatusKey, encode_artifact
from cdm.model.node import Registration
from cdm.model.record import Rollout, RolloutPhase, Side, Weights
from cdm.model.slice import SliceState, SliceValue
from cdm.model.status import Condition, Status
from tests.unit.support import n

WEB, API = Service("acme", "web"), Service("org.example", "api")


class World:
    """Pools that are told messages, as watches would."""

    def __init__(self) -> None:
        self.pools = Pools()
        self.answers = Answers(self.pools)
        self.pools.connected(0.0)
        self.now = 1.0
        for each in range(3):
            self.register(n(each))

    def register(self, node: NodeId, **more: Any) -> None:
        self.take(ValuePut(NodeKey(node), Registration(ttl=4.0, address="10.0.0.9", **more), 1))

    def take(self, message: Message) -> None:
        self.pools.take(message)

    def serve(self, service: Service, node: int, port: int, version: str = "1", **more: Any) -> None:
        value = SliceValue(SliceState.ACTIVE, port=port, **{"address": f"10.0.0.{node}", **more})
        self.take(ValuePut(SliceKey(n(node), service.version(version)), value, 1))

    def leave(self, service: Service, node: int, version: str = "1") -> None:
        self.take(ValuePut(SliceKey(n(node), service.version(version)), SliceValue(SliceState.UNLOAD), 1))

    def want(self, service: Service, instances: int, version: str = "1") -> None:
        self.take(ValuePut(BlueprintKey(service.version(version)), Blueprint(instances), 1))

    def say(self, service: Service, condition: Condition, version: str = "1") -> None:
        self.take(ValuePut(StatusKey(encode_artifact(service.version(version))), Status(condition), 1))

    def of(self, service: Service) -> Pool | None:
        self.pools.refresh(self.now)
        return self.pools.pools.get(service)

    def ports(self, service: Service) -> list[int]:
        pool = self.of(service)
        assert pool is not None
        return [each.port for each in pool.endpoints]


@pytest.fixture
def world() -> World:
    made = World()
    made.want(WEB, 2)
    made.serve(WEB, 0, 8000)
    made.serve(WEB, 1, 8001)
    assert made.ports(WEB) == [8000, 8001]
    return made


def test_the_last_good_ones_stay_where_some_are_wanted_and_none_where_none_is(world: World) -> None:
    world.leave(WEB, 0)
    assert world.ports(WEB) == [8001]
    world.leave(WEB, 1)
    world.now = 5.0
    pool = world.of(WEB)
    assert pool is not None
    assert (pool.endpoints, pool.since, pool.wanted) == ((Endpoint("10.0.0.1", 8001, 100.0, n(1), "1"),), 5.0, True)
    world.now = 9.0
    world.say(WEB, Condition.DEGRADED)
    assert world.of(WEB) == pool, "its age counts from when they went"
    assert world.answers.catalogue().since == 5.0
    assert world.answers.catalogue().stale == "acme:web"

    world.want(WEB, 0)
    assert world.of(WEB) == Pool()
    world.want(WEB, 2)
    assert world.of(WEB) == Pool(wanted=True), "they are not remembered from before"
    world.serve(WEB, 0, 8005)
    assert world.ports(WEB) == [8005]


def test_a_blueprint_that_cannot_be_read_wants_what_it_wanted(world: World) -> None:
    rejected: ValueRejected[BlueprintKey, Blueprint] = ValueRejected(BlueprintKey(WEB.version("1")), "nonsense", 2)
    for wanted, left in ((2, [8000, 8001]), (0, [])):
        world.want(WEB, wanted)
        world.serve(WEB, 0, 8000)
        world.serve(WEB, 1, 8001)
        assert world.ports(WEB) == [8000, 8001]
        world.take(rejected)
        world.leave(WEB, 0)
        world.leave(WEB, 1)
        assert bool(world.ports(WEB)) == bool(left)
    other: ValueRejected[BlueprintKey, Blueprint] = ValueRejected(BlueprintKey(API.version("1")), "nonsense", 2)
    world.take(other)
    pool = world.of(API)
    assert pool is not None
    assert pool.wanted


def test_a_version_that_was_replaced_wants_nothing(world: World) -> None:
    """Also where its status comes before its blueprint: they are streams of their own."""
    world.say(API, Condition.SUPERSEDED)
    world.want(API, 3)
    world.want(API, 0, "2")
    world.serve(API, 2, 9000, "2")
    assert world.ports(API) == [9000]
    world.leave(API, 2, "2")
    assert world.of(API) == Pool()
    world.say(API, Condition.READY)
    pool = world.of(API)
    assert pool is not None
    assert pool.wanted


def test_nodes_that_go_take_their_instances_along_and_bring_them_back(world: World) -> None:
    expired: ValueRemove[NodeKey, Registration] = ValueRemove(NodeKey(n(0)), 2, Cause.EXPIRED, 10.0)
    world.take(expired)
    world.now = 10.0
    assert world.ports(WEB) == [8000, 8001]
    assert world.pools.wake_at() == 12.0
    world.now = 12.0
    assert world.ports(WEB) == [8001]
    world.register(n(0))
    assert world.ports(WEB) == [8000, 8001]
    deleted: ValueRemove[NodeKey, Registration] = ValueRemove(NodeKey(n(1)), 3, Cause.DELETED, 13.0)
    world.take(deleted)
    assert world.ports(WEB) == [8000]


def test_a_service_of_which_nothing_is_left_is_no_service(world: World) -> None:
    for node in (0, 1):
        gone: ValueRemove[SliceKey, SliceValue] = ValueRemove(SliceKey(n(node), WEB.version("1")), 2)
        world.take(gone)
    removed: ValueRemove[BlueprintKey, Blueprint] = ValueRemove(BlueprintKey(WEB.version("1")), 2)
    world.take(removed)
    assert world.of(WEB) is None
    assert world.answers.traefik().body == b"{}"
    world.serve(WEB, 0, 8000)
    assert world.ports(WEB) == [8000]


def test_changes_are_counted_where_a_pool_is_another_and_nowhere_else(world: World) -> None:
    before = world.pools.changes
    world.register(n(0))
    world.say(WEB, Condition.READY)
    world.serve(WEB, 0, 8000)
    world.of(WEB)
    assert world.pools.changes == before
    world.serve(WEB, 0, 8002)
    world.of(WEB)
    assert world.pools.changes == before + 1


def test_each_proxy_is_answered_in_its_own_words(world: World) -> None:
    world.serve(API, 2, 9000, address="::1")
    world.of(WEB)
    answer = world.answers.assignments(frozenset({"acme:web", "acme:none"}))
    told = json.loads(discovery(answer, ASSIGNMENT))
    assert told["version_info"] == answer.digest
    assert told["type_url"] == ASSIGNMENT
    (resource,) = told["resources"]
    (group,) = resource["endpoints"]
    assert (resource["@type"], resource["cluster_name"], len(group["lb_endpoints"])) == (ASSIGNMENT, "acme:web", 2)
    assert group["lb_endpoints"][0] == {
        "endpoint": {"address": {"socket_address": {"address": "10.0.0.0", "port_value": 8000}}},
        "load_balancing_weight": 1,
        "metadata": {"filter_metadata": {"envoy.lb": {"node": n(0), "version": "1"}}},
    }
    assert [each["type"] for each in json.loads(world.answers.clusters().body)] == ["EDS", "EDS"]
    assert json.loads(world.answers.traefik(frozenset({"org.example:api"})).body) == {
        "http": {"services": {"org.example:api": {"loadBalancer": {"servers": [{"url": "http://[::1]:9000"}]}}}}
    }
    assert traefik_takes(json.loads(world.answers.traefik().body))


def traefik_takes(document: dict[str, Any]) -> bool:
    """Whether it is as Traefik's documents of the HTTP provider and of services have it, and no mapping is empty.

    It calls an empty mapping one that "cannot be a standalone element", and then takes nothing of the whole document.
    """
    services = document["http"]["services"]
    assert document == {"http": {"services": services}}
    assert services
    for name, service in services.items():
        assert re.fullmatch(r"[^@\s]+", name), "what follows @ is the provider's name"
        assert service == {"loadBalancer": {"servers": service["loadBalancer"]["servers"]}}
        for each in service["loadBalancer"]["servers"]:
            assert set(each) <= {"url", "weight"}
            assert re.fullmatch(r"http://(\[[0-9a-f:]+\]|[\w.-]+):\d+", each["url"])
            assert isinstance(each.get("weight", 1), int)
    return True


def test_what_nobody_knows_makes_no_other_answer(world: World) -> None:
    """Or whoever asks for other names all the time would have all that is made for them kept."""
    world.of(WEB)
    first = world.answers.catalogue(frozenset({"acme:web"}))
    for number in range(300):
        assert world.answers.catalogue(frozenset({"acme:web", f"x:{number}"})) is first
    assert world.answers.catalogue(frozenset({"x:1"})).body == b"[]"


def test_a_service_behind_names_is_a_cluster_that_looks_them_up(world: World) -> None:
    world.serve(WEB, 0, 8000, address="a.example")
    world.of(WEB)
    (cluster,) = json.loads(world.answers.clusters().body)
    assert cluster["type"] == "STRICT_DNS"
    assert len(cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]) == 2
    (resource,) = json.loads(world.answers.assignments().body)
    assert len(resource["endpoints"][0]["lb_endpoints"]) == 1


def test_envoy_goes_on_with_what_it_has_where_nothing_is_known_to_have_served(world: World) -> None:
    world.want(API, 1)
    world.of(API)
    assert [each["cluster_name"] for each in json.loads(world.answers.assignments().body)] == ["acme:web"]
    world.want(API, 0)
    world.of(API)
    idle = json.loads(world.answers.assignments().body)[1]
    assert (idle["cluster_name"], idle["endpoints"]) == ("org.example:api", [])


def test_prometheus_scrapes_also_what_is_sent_nothing(world: World) -> None:
    sides = Side("1", 1), Side("2", 1)
    record = Rollout(*sides, RolloutPhase.ROLLING, weights=Weights(100, 0))
    world.register(n(2), labels={"zone": "a", "rack.no": "7"})
    world.take(ValuePut(RolloutKey(WEB), record, 1))
    world.of(WEB)
    before = world.pools.changes
    world.serve(WEB, 2, 8002, "2")
    world.of(WEB)
    assert world.pools.changes == before
    *_, last = json.loads(world.answers.targets().body)
    assert last == {
        "targets": ["10.0.0.2:8002"],
        "labels": {
            "__meta_cdm_service": "acme:web",
            "__meta_cdm_group": "acme",
            "__meta_cdm_name": "web",
            "__meta_cdm_version": "2",
            "__meta_cdm_node": n(2),
            "__meta_cdm_node_label_zone": "a",
            "__meta_cdm_node_label_rack_no": "7",
        },
    }


@pytest.mark.parametrize("address", ["a b", "10.0.0.1;", "x/y", "user@host", "fe80::1%a", "", "-x", "a\nb", "{{port}}"])
def test_what_is_no_address_is_told_to_nobody(world: World, address: str) -> None:
    world.serve(WEB, 2, 8002, address=address)
    assert 8002 not in world.ports(WEB) or not address
    world.serve(WEB, 2, 0)
    assert world.ports(WEB) == [8000, 8001]


@given(st.lists(st.floats(0.0001, 100.0), max_size=20))
def test_whole_weights_keep_the_order_and_the_bounds(weights: list[float]) -> None:
    found = [Endpoint("a", 1 + at, weight, NodeId("n"), "1") for at, weight in enumerate(weights)]
    whole = whole_weights(found)
    assert all(1 <= each <= FINEST for each in whole)
    ordered = [each for _, each in sorted(zip(weights, whole, strict=True))]
    assert ordered == sorted(ordered)
    if len(set(weights)) == 1:
        assert set(whole) == {1}
