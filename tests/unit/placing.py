"""Cases of placement for tests: builders, strategies, and what becomes of a case when its answer is carried out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from msgspec.structs import replace

from cdm.allocation.case import Case
from cdm.allocation.site import Site
from cdm.allocation.sites import Sites
from cdm.allocation.strategy import SHIPPED
from cdm.model.artifact import NodeId
from cdm.model.condition import LabelCondition
from cdm.model.rules import Needs, Neighbour, Preference, Rules, Spread
from tests.unit.support import APP, n

OWN = str(APP.service)
FRIEND = "org.example:friend"


def site(number: int, zone: str | None = None, **facts: Any) -> Site:
    """Node number so and so."""
    labels = {"node": n(number), **({} if zone is None else {"zone": zone}), **facts.pop("labels", {})}
    return Site(n(number), labels, **facts)


def case(rules: Rules, wanted: int, *sites: Site, **facts: Any) -> Case:
    """A case of `APP`."""
    return Case(APP, rules, Sites(sites), wanted, **facts)


def by_label(given: Case, counts: Mapping[NodeId, int], label: str = "zone") -> dict[str | None, int]:
    """Counts by a label's value; values without any are left out."""
    found: Counter[str | None] = Counter()
    for node, count in counts.items():
        found[given.sites.labels(node).get(label)] += count
    return {value: count for value, count in found.items() if count}


def require(*texts: str) -> tuple[LabelCondition, ...]:
    """Conditions."""
    return tuple(LabelCondition.parse(text) for text in texts)


def carried_out(given: Case, counts: Mapping[NodeId, int]) -> Case:
    """The case after these instances were placed, or taken away where there are fewer than none."""
    needs = given.rules.needs or Needs()
    sites = [
        replace(
            each,
            total=each.total + counts.get(each.node, 0),
            cpu_reserved=round(each.cpu_reserved + needs.cpu * counts.get(each.node, 0), 3),
            memory_reserved=each.memory_reserved + needs.memory * counts.get(each.node, 0),
        )
        for each in given.sites
    ]
    mine = {node: count for node, count in (Counter(given.mine) + Counter(counts)).items() if count}
    for node, count in counts.items():
        if count < 0:
            mine[node] = given.mine[node] + count
    of_service = dict(given.of_service)
    if OWN in of_service:
        own = Counter(of_service[OWN])
        for node, count in counts.items():
            own[node] += count
        of_service[OWN] = own
    found = Sites(sites)
    for node, labels in given.sites._gone.items():
        found.gone(node, labels)
    return replace(given, sites=found, mine=mine, of_service=of_service)


zones = st.sampled_from(["a", "b", "c", None])
small = st.integers(0, 3)
# One draw each, and made once: most of the time of these tests is spent in drawing.
_racks = st.sampled_from([None, None, None, "x", "y", "z"])
_costs = st.sampled_from([None, None, None, "1", "2.5", "dear"])
_opens = st.sampled_from([True, True, True, False])
_capacities = st.sampled_from([*[None] * 9, *range(9)])
_cpus = st.sampled_from([None, None, None, 1.0, 2.0, 2.5])
_cpus_reserved = st.sampled_from([0.0, 0.3, 0.75])
_memories = st.sampled_from([*[None] * 11, *range(11)])
_loads = st.sampled_from([None, None, None, 0.0, 0.3, 0.9])


@st.composite
def sites(draw: st.DrawFn, most: int = 7) -> list[Site]:
    """Some nodes, in any order, mostly with room."""
    found = []
    for number in draw(st.permutations(range(draw(st.integers(0, most))))):
        drawn = {"rack": draw(_racks), "cost": draw(_costs)}
        found.append(
            site(
                number,
                draw(zones),
                labels={name: value for name, value in drawn.items() if value is not None},
                open=draw(_opens),
                capacity=draw(_capacities),
                total=draw(small),
                cpu=draw(_cpus),
                cpu_reserved=draw(_cpus_reserved),
                memory=draw(_memories),
                memory_reserved=draw(small),
                load=draw(_loads),
            )
        )
    return found


conditions = st.sampled_from(["zone", "!zone", "zone = a", "zone != a", "zone in (a, b)", "rack", "cost < 2"]).map(
    LabelCondition.parse
)
weights: st.SearchStrategy[dict[str, float]] = st.just({}) | st.dictionaries(
    st.sampled_from(["a", "b", "d", "*"]), st.sampled_from([0.0, 1.0, 2.0, 0.5])
)
spreads = st.builds(Spread, st.sampled_from(["zone", "rack", "node"]), weights, st.integers(1, 3), st.booleans())
neighbours = st.builds(
    Neighbour, st.sampled_from([OWN, FRIEND]), st.sampled_from(["zone", "rack", "node"]), st.booleans()
)
rules = st.builds(
    Rules,
    require=st.lists(conditions, max_size=1).map(tuple),
    prefer=st.lists(st.builds(Preference, conditions, st.integers(1, 100)), max_size=2).map(tuple),
    spread=st.lists(spreads, max_size=2).map(tuple),
    # Blueprints refuse what is to be near itself, hard.
    near=st.lists(neighbours.filter(lambda each: not (each.hard and each.service == OWN)), max_size=1).map(tuple),
    apart=st.lists(neighbours, max_size=1).map(tuple),
    needs=st.none() | st.builds(Needs, st.sampled_from([0.0, 0.1, 0.5]), st.integers(0, 3)),
    max_per_node=st.none() | st.integers(1, 3),
)


@st.composite
def cases(draw: st.DrawFn, rules: st.SearchStrategy[Rules] = rules) -> tuple[Case, int]:
    """A case, and how many instances are missing in it."""
    nodes = draw(sites())
    names = [each.node for each in nodes]
    on_nodes = st.dictionaries(st.sampled_from(names), st.integers(1, 3)) if names else st.just({})
    mine = draw(on_nodes)
    missing = draw(st.integers(0, 12))
    given = case(
        draw(rules),
        sum(mine.values()) + missing,
        *nodes,
        mine=mine,
        of_service={FRIEND: draw(on_nodes), OWN: mine},
        cursor=draw(st.none() | st.integers(0, 8).map(n)),
        shun=draw(st.dictionaries(st.sampled_from(names), st.floats(0, 9), max_size=2)) if names else {},
        runs_elsewhere=draw(st.booleans()),
        strategy=draw(st.sampled_from(list(SHIPPED.values()))),
    )
    for number in draw(st.sets(st.integers(10, 12))):
        given.sites.gone(n(number), {"node": n(number), "zone": draw(st.sampled_from("abcd"))})
    return given, missing
