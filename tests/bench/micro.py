"""Micro-benchmarks of the hot paths, by pytest-benchmark; not collected by a plain ``pytest``.

::

    pytest tests/bench/micro.py --no-cov -p no:cacheprovider
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cdm.allocation.evenly import Host, Ranking, allocate
from cdm.dispatch.messages import MESSAGES
from cdm.dispatch.router import Router
from cdm.manager.cluster import Desired
from cdm.manager.group import Group
from cdm.manager.policy import Policy
from cdm.manager.reconciliation import reconcile
from cdm.manager.standing import Fleet, LiveNode
from cdm.manager.wanted import wanted_of
from cdm.model.blueprint import Blueprint
from cdm.model.keys import SLICES, BlueprintKey, decode_artifact, encode
from cdm.model.slice import SliceValue
from cdm.store.wire import dump
from tests.bench.deciding import Nothing, World, messages
from tests.bench.playground import ACTIVE, artifact, nodes_named, slice_keys

pytest.importorskip("pytest_benchmark")

NODES = nodes_named(1_000)
KEYS = list(slice_keys(1_000, NODES, 100))


def test_encode_slice_keys(benchmark: Any) -> None:
    names = benchmark(lambda: [encode(key) for key in KEYS])
    assert len(set(names)) == len(KEYS)


def test_decode_slice_keys(benchmark: Any) -> None:
    names = [encode(key) for key in KEYS]
    assert benchmark(lambda: [SLICES.decode(name) for name in names]) == KEYS


def test_decode_artifacts_seen_first(benchmark: Any) -> None:
    names = [f"org.example/app{number}/1.0.0" for number in range(1_000)]

    def decode() -> None:
        decode_artifact.cache_clear()
        for name in names:
            decode_artifact(name)

    benchmark(decode)


def test_encode_slice_value(benchmark: Any) -> None:
    assert benchmark(dump, ACTIVE)


def test_decode_slice_value(benchmark: Any) -> None:
    assert benchmark(msgspec.json.Decoder(SliceValue).decode, dump(ACTIVE)) == ACTIVE


def test_parse_blueprint(benchmark: Any) -> None:
    assert benchmark(Blueprint.parse, b'{"instances":3}').instances == 3


def test_route(benchmark: Any) -> None:
    route, sent = Router((Nothing(),), MESSAGES).route, messages()

    def every() -> None:
        for message in sent:
            route(message)

    benchmark(every)


def test_allocate_anew(benchmark: Any) -> None:
    hosts = [Host(node, 0, 0) for node in NODES]
    assert sum(benchmark(allocate, 1_000, hosts).counts.values()) == 1_000


def test_allocate_one_more(benchmark: Any) -> None:
    hosts = [Host(node, number % 3, number % 7) for number, node in enumerate(NODES)]
    assert sum(benchmark(allocate, 1, hosts).counts.values()) == 1


def test_pick_from_ranking(benchmark: Any) -> None:
    ranking = Ranking()
    for number, node in enumerate(NODES):
        ranking.put(node, number % 7)
    assert len(benchmark(ranking.pick, 5, set(NODES[:100]), NODES[500])) == 5


def test_reconcile_new_blueprint(benchmark: Any) -> None:
    fleet = Fleet({node: LiveNode(node, open=True, draining=False) for node in NODES}, lambda node: 0)
    desired = Desired(Blueprint(100), 1, 1)
    plan = benchmark(lambda: reconcile(artifact(1), wanted_of(desired), Group(), fleet, 0.0, Policy()))
    assert len(plan.commands) == 100


def test_change_by_one(benchmark: Any) -> None:
    world = World(10_000, 100)
    numbers = iter(range(10**9))

    def change() -> None:
        app = artifact(next(numbers) % world.blueprints)
        world.put(BlueprintKey(app), Blueprint(world.manager.cluster.group(app).live + 1))
        world.work()
        assert world.answer() == 1

    benchmark.pedantic(change, rounds=50, iterations=1)


def test_round_without_drift(benchmark: Any) -> None:
    world = World(10_000, 100)
    benchmark(world.round)
    assert not world.outbox.orders
