"""``place-require-spread`` and ``place-needs``: the choice of nodes by rules, without a server, beside ``plan``'s."""

from __future__ import annotations

from msgspec.structs import replace

from cdm.allocation.case import Case
from cdm.allocation.choice import choose
from cdm.allocation.site import Site
from cdm.allocation.sites import Sites
from cdm.model.artifact import NodeId
from cdm.model.condition import LabelCondition
from cdm.model.rules import Needs, Rules, Spread
from tests.bench.measure import Figure, Goal, figure, seconds
from tests.bench.playground import artifact, nodes_named

NODES = 1_000
EACH = 1_000
"""Instances of a blueprint, as ``plan allocation`` has them."""

REQUIRE_SPREAD = Rules(require=(LabelCondition.parse("disk = ssd"),), spread=(Spread("zone"),))
NEEDS = Rules(needs=Needs(cpu=0.5, memory=2**28))


def sites() -> Sites:
    """Nodes in three zones, two thirds of them with an SSD, all with room for more than is placed."""
    found = []
    for number, node in enumerate(nodes_named(NODES)):
        labels = {"node": node, "zone": "abc"[number % 3], "disk": "hdd" if number % 3 == number // 3 % 3 else "ssd"}
        found.append(Site(node, labels, cpu=96.0, memory=2**40))
    return Sites(found)


def place_require_spread(quick: bool) -> list[Figure]:
    """Placements by one condition and one spread: of many instances at once, and of one more."""
    return [
        _at_once("place-require-spread", REQUIRE_SPREAD, 500_000, quick),
        _one_more("place-require-spread one more", REQUIRE_SPREAD, quick),
    ]


def place_needs(quick: bool) -> list[Figure]:
    """Placements of instances that reserve cpu and memory."""
    return [_at_once("place-needs", NEEDS, 200_000, quick), _one_more("place-needs one more", NEEDS, quick)]


def _at_once(name: str, rules: Rules, goal: float, quick: bool) -> Figure:
    blueprints, repetitions = (20, 3) if quick else (200, 5)
    everyone = sites()

    def place() -> None:
        for number in range(blueprints):
            chosen = choose(Case(artifact(number), rules, everyone, EACH), EACH)
            assert sum(chosen.counts.values()) == EACH

    return figure(
        name,
        "placements/s",
        [blueprints * EACH / seconds(place) for _ in range(repetitions)],
        (),
        Goal(goal, "value>="),
        note=f"{blueprints:,} blueprints of {EACH:,} on {NODES:,} nodes",
    )


def _one_more(name: str, rules: Rules, quick: bool) -> Figure:
    """Each on a cluster that the one before changed, as a leader places them."""
    everyone = sites()
    values = [_change(everyone, rules, number) for number in range(200 if quick else 2_000)]
    return figure(name, "µs", [each * 1e6 for each in values], note=f"of 3 instances, on {NODES:,} nodes")


def _change(everyone: Sites, rules: Rules, number: int) -> float:
    names = nodes_named(NODES)
    mine = {names[(number * 7 + step) % NODES]: 1 for step in range(2)}
    given = Case(artifact(number), rules, everyone, 3, mine=mine, cursor=names[number % NODES])
    node: list[NodeId | None] = []
    took = seconds(lambda: node.append(choose(given, 1).last))
    assert node[0] is not None
    site = everyone.all[node[0]]
    everyone.put(replace(site, total=site.total + 1, cpu_reserved=site.cpu_reserved + 0.5))
    return took
