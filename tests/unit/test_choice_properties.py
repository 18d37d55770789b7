from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import combinations, product
from math import floor

from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from cdm.allocation.balances import balances_of
from cdm.allocation.case import Case
from cdm.allocation.choice import choose
from cdm.allocation.few import choose_few
from cdm.allocation.neighbours import Neighbours
from cdm.allocation.removal import surplus
from cdm.allocation.shares import Balance, shares
from cdm.allocation.site import Site
from cdm.allocation.sites import Sites, score
from cdm.allocation.strategy import EVEN
from cdm.allocation.verdict import verdicts
from cdm.model.artifact import NodeId
from cdm.model.condition import LabelCondition
from cdm.model.keys import SliceKey
from cdm.model.rules import Neighbour, Preference, Rules, Spread
from tests.unit.placing import OWN, carried_out, case, cases, rules, site
from tests.unit.support import APP

Domain = str | None


@given(cases())
def test_hard_rules_are_never_broken(drawn: tuple[Case, int]) -> None:
    given_, missing = drawn
    counts = choose(given_, missing).counts
    after = carried_out(given_, counts)
    rules = given_.rules
    assert sum(counts.values()) <= missing
    assert all(count > 0 for count in counts.values())
    for node in counts:
        each = after.sites.all[node]
        assert each.open
        assert all(condition.holds(each.labels) for condition in rules.require)
        assert each.capacity is None or each.total <= each.capacity
        assert rules.max_per_node is None or after.mine[node] <= rules.max_per_node
        if rules.needs is not None and rules.needs.cpu:
            assert each.cpu is not None
            assert each.cpu_reserved <= each.cpu
        if rules.needs is not None and rules.needs.memory:
            assert each.memory is not None
            assert each.memory_reserved <= each.memory
        for rule in rules.apart:
            if rule.hard and (value := each.labels.get(rule.by)) is not None:
                assert together(given_, rule.service, rule.by, value) == 0
                if rule.service == OWN:
                    assert together(after, OWN, rule.by, value) == 1
        for rule in rules.near:
            if rule.hard:
                value = each.labels.get(rule.by)
                assert value is not None
                assert together(given_, rule.service, rule.by, value)


def together(given_: Case, service: str, label: str, value: str) -> int:
    counts = given_.of_service[service].items()
    return sum(count for node, count in counts if given_.sites.labels(node).get(label) == value)


@given(cases())
def test_what_is_not_placed_fits_nowhere_and_the_verdicts_say_why(drawn: tuple[Case, int]) -> None:
    given_, missing = drawn
    placed = sum((counts := choose(given_, missing).counts).values())
    fits = any(each.fits for each in verdicts(replace(carried_out(given_, counts), shun={})))
    if placed < missing:
        assert not fits
        assert not any(each.fits for each in verdicts(replace(given_.placed(counts), shun={})))
    assert bool(choose(given_, 1).counts) == any(each.fits for each in verdicts(given_))


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_in_which_nodes_are_given_does_not_matter(drawn: tuple[Case, int], random: object) -> None:
    given_, missing = drawn
    first = choose(given_, missing)
    assert choose(given_, missing) == first
    shuffled = list(given_.sites)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    gone = {node: given_.sites.labels(node) for node in (NodeId(f"n{i}") for i in range(10, 13))}
    other = Sites(shuffled)
    for node, labels in reversed(gone.items()):
        if "zone" in labels:
            other.gone(node, labels)
    mine = dict(reversed(list(given_.mine.items())))
    assert choose(replace(given_, sites=other, mine=mine), missing) == first


@given(cases(), st.data())
def test_what_is_kept_of_nodes_is_what_is_worked_out_anew(drawn: tuple[Case, int], data: st.DataObject) -> None:
    given_, missing = drawn
    choose(given_, missing)  # everything that is kept is made
    everyone = list(given_.sites)
    assume(everyone)
    for _ in range(data.draw(st.integers(1, 3))):
        each = data.draw(st.sampled_from(everyone))
        what = data.draw(st.sampled_from(["put", "gone", "forget"]))
        if what == "put":
            labels = {"node": each.node, **data.draw(st.dictionaries(st.just("zone"), st.sampled_from("abc")))}
            given_.sites.put(replace(each, labels=labels, open=data.draw(st.booleans()), total=0))
        elif what == "gone":
            given_.sites.gone(each.node, each.labels)
        else:
            given_.sites.forget(each.node)
    anew = Sites(given_.sites)
    for node, known in given_.sites._gone.items():
        anew.gone(node, known)
    assert choose(given_, missing) == choose(replace(given_, sites=anew), missing)


def test_a_domain_whose_last_node_is_forgotten_gets_nothing() -> None:
    each = case(Rules(spread=(Spread("node", anyway=False),)), 1, site(0), site(1))
    assert choose(each, 1).counts == {"n0": 1}
    each.sites.forget(NodeId("n0"))
    assert choose(each, 1).counts == {"n1": 1}


@given(cases())
def test_the_room_of_many_nodes_is_that_of_each(drawn: tuple[Case, int]) -> None:
    given_, _ = drawn
    assert given_.rooms(list(given_.sites)) == [given_.room(each) for each in given_.sites]


@given(cases())
def test_placing_at_once_is_placing_one_by_one(drawn: tuple[Case, int]) -> None:
    given_, missing = drawn
    found, one_by_one = choose(given_, missing).counts, naive(given_, missing)
    # Where several hard rules limit each other, exchanges may find room for more.
    assert found == one_by_one or sum(one_by_one.values()) < sum(found.values()) <= missing


def naive(given_: Case, count: int) -> dict[NodeId, int]:
    """One instance at a time, each on the best of all nodes by a key that says all there is to say."""
    found: Counter[NodeId] = Counter()
    neighbours = Neighbours(given_)
    sites = [each for each in given_.sites if each.open]
    sites = [each for each in sites if all(condition.holds(each.labels) for condition in given_.rules.require)]
    cursor = given_.cursor or ""
    order = [*(each for each in sites if each.node > cursor), *(each for each in sites if each.node <= cursor)]
    room = {each.node: given_.room(each) for each in order}
    balances = balances_of(given_, [(each, room[each.node]) for each in order if neighbours.allow(each)])
    shun = given_.shun
    for _ in range(count):
        able = []
        for turn, each in enumerate(order):
            node = each.node
            values = [balance.next(each.labels.get(balance.spread.by)) for balance in balances]
            if not room[node] or not neighbours.allow(each) or None in values:
                continue
            last_resort = given_.runs_elsewhere and node in shun
            mine = given_.mine.get(node, 0) + found[node] + (node in shun and not given_.runs_elsewhere)
            points = score(given_.rules.prefer, each.labels) + neighbours.wishes(each)
            rank = given_.strategy.rank(given_.artifact, each, mine)
            when = shun[node] if last_resort else 0.0
            able.append((last_resort, values, -points, rank, mine, each.total + found[node], when, turn, each))
        if not able:
            break
        chosen: Site = min(able, key=lambda key: key[:-1])[-1]
        found[chosen.node] += 1
        room[chosen.node] -= 1
        for balance in balances:
            balance.add(chosen.labels.get(balance.spread.by))
        neighbours.placed(chosen)
    return dict(found)


def limits(drawn: Rules) -> int:
    """How many hard rules there are of which one instance's place is what another's depends on."""
    return sum(not each.anyway for each in drawn.spread) + sum(
        each.service == OWN and each.hard for each in drawn.apart
    )


def searched(drawn: Rules) -> bool:
    """Whether it is certain that as many are placed as can be."""
    return limits(drawn) <= 2 and not any(each.service == OWN for each in drawn.near)


@given(cases(rules.filter(searched)))
def test_a_preference_never_makes_anything_unplaceable(drawn: tuple[Case, int]) -> None:
    given_, missing = drawn
    plain = replace(given_, rules=replace(given_.rules, prefer=()))
    soft = replace(plain, rules=replace(plain.rules, near=hard(plain.rules.near), apart=hard(plain.rules.apart)))
    placed = sum(choose(given_, missing).counts.values())
    assert placed == sum(choose(plain, missing).counts.values()) == sum(choose(soft, missing).counts.values())


@st.composite
def limited(draw: st.DrawFn) -> tuple[Case, int]:
    """A few nodes, and two hard rules that limit each other."""
    waits = [label for label in ("zone", "rack") if draw(st.booleans())]
    spread = tuple(Spread(label, max_skew=draw(st.integers(1, 2)), anyway=False) for label in waits)
    apart = tuple(Neighbour(OWN, label, hard=True) for label in ("zone", "rack") if label not in waits)
    prefer = tuple(Preference(LabelCondition.parse(f"node = n{draw(st.integers(0, 4))}"), 1) for _ in range(2))
    nodes = [
        site(
            number,
            draw(st.sampled_from("ab")),
            labels={"rack": draw(st.sampled_from("xyz"))},
            capacity=draw(st.integers(1, 2)),
        )
        for number in range(draw(st.integers(2, 5)))
    ]
    missing = draw(st.integers(2, 4))
    of_service: dict[str, dict[NodeId, int]] = {OWN: {}}
    return case(Rules(spread=spread, apart=apart, prefer=prefer), missing, *nodes, of_service=of_service), missing


@given(limited())
def test_as_many_are_placed_as_two_hard_rules_allow(drawn: tuple[Case, int]) -> None:
    given_, missing = drawn
    assert sum(choose(given_, missing).counts.values()) == most(given_, missing)


def most(given_: Case, count: int) -> int:
    """The most that can be placed: every order of nodes is tried, one instance at a time."""
    if not count:
        return 0
    one = replace(given_, shun={})
    return max((1 + most(given_.placed({node: 1}), count - 1) for node in fitting(one)), default=0)


def fitting(given_: Case) -> list[NodeId]:
    return [each.node for each in verdicts(given_) if each.fits]


def test_what_is_unplaceable_one_after_the_other_is_exchanged() -> None:
    racks = ("b", "1"), ("a", "1"), ("a", "2")
    nodes = [
        replace(site(i), labels={"node": f"n{i}", "zone": zone, "rack": rack}) for i, (zone, rack) in enumerate(racks)
    ]
    apart = Rules(apart=(Neighbour(OWN, "zone", hard=True), Neighbour(OWN, "rack", hard=True)))
    prefers = replace(apart, prefer=(Preference(LabelCondition.parse("node = n1"), 1),))
    waits = Rules(spread=(Spread("zone", anyway=False), Spread("rack", anyway=False)))
    for each in (apart, prefers, waits):
        assert choose(case(each, 2, *nodes), 2).counts == {"n0": 1, "n2": 1}


def hard(neighbours: Iterable[Neighbour]) -> tuple[Neighbour, ...]:
    return tuple(each for each in neighbours if each.hard)


some_weights = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([1.0, 2.0, 0.5, 3.0, 0.1, 0.2]), min_size=1)


@given(st.integers(0, 30), some_weights)
def test_shares_go_by_largest_remainder(total: int, weights: dict[str, float]) -> None:
    by_domain: dict[Domain, float] = dict(weights.items())
    found = shares(total, by_domain)
    seats = combinations(sorted(map(str, found.tied)), found.seats)
    ways = [{str(each): count + (each in chosen) for each, count in found.whole.items()} for chosen in seats]
    expected = naive_shares(total, weights)
    assert len(ways) == len(expected)
    assert all(way in expected for way in ways)


def naive_shares(total: int, weights: Mapping[str, float]) -> list[dict[str, int]]:
    """Every way to share out by largest remainder, in exact numbers."""
    exact = {domain: Fraction(str(weight)) for domain, weight in weights.items()}
    quotas = {domain: total * weight / sum(exact.values()) for domain, weight in exact.items()}
    whole = {domain: floor(quota) for domain, quota in quotas.items()}
    left = total - sum(whole.values())
    found = []
    for chosen in combinations(sorted(quotas), left):
        least = min((quotas[each] - whole[each] for each in chosen), default=Fraction(1))
        if all(quotas[each] - whole[each] <= least for each in quotas if each not in chosen):
            found.append({domain: count + (domain in chosen) for domain, count in whole.items()})
    return found


@st.composite
def zoned(draw: st.DrawFn) -> tuple[Case, int]:
    """Three zones with some room, some instances, and a spread."""
    nodes = [site(i, "abc"[i % 3], capacity=draw(st.integers(0, 5))) for i in range(draw(st.integers(3, 6)))]
    mine = {each.node: count for each in nodes if (count := draw(st.integers(0, 2)))}
    nodes = [replace(each, total=mine.get(each.node, 0)) for each in nodes]
    weights = draw(st.just({}) | st.fixed_dictionaries(dict.fromkeys("abc", st.sampled_from([1.0, 2.0, 3.0]))))
    spread = Spread("zone", weights, draw(st.integers(1, 3)), draw(st.booleans()))
    missing = draw(st.integers(0, 7))
    return case(Rules(spread=(spread,)), sum(mine.values()) + missing, *nodes, mine=mine), missing


def within(spread: Spread, wanted: int, counts: Mapping[str, int]) -> bool:
    """Whether each zone is within the skew of some share by largest remainder."""
    weights = {zone: spread.weight(zone) for zone in "abc"}
    ways = naive_shares(wanted, weights)
    return any(all(abs(counts[zone] - way[zone]) < spread.max_skew for zone in "abc") for way in ways)


def reachable(given_: Case, missing: int) -> Iterator[dict[str, int]]:
    """Every number of instances by zone that there could be after placing so many."""
    have = in_zones(given_, given_.mine)
    room = in_zones(given_, {each.node: given_.room(each) for each in given_.sites})
    for more in product(*(range(room[zone] + 1) for zone in "abc")):
        if sum(more) == missing:
            yield {zone: have[zone] + extra for zone, extra in zip("abc", more, strict=True)}


def in_zones(given_: Case, counts: Mapping[NodeId, int]) -> dict[str, int]:
    found = dict.fromkeys("abc", 0)
    for node, count in counts.items():
        found[given_.sites.labels(node)["zone"]] += count
    return found


@given(zoned())
def test_the_skew_is_kept_whenever_that_can_be(drawn: tuple[Case, int]) -> None:
    given_, missing = drawn
    (spread,) = given_.rules.spread
    feasible = any(within(spread, given_.wanted, each) for each in reachable(given_, missing))
    counts = in_zones(given_, (Counter(given_.mine) + Counter(choose(given_, missing).counts)))
    if feasible and not (spread.anyway and short_of_its_share(given_, spread)):
        assert within(spread, given_.wanted, counts)
    if spread.anyway:
        room = sum(given_.room(each) for each in given_.sites)
        assert sum(counts.values()) == min(given_.wanted, sum(given_.mine.values()) + room)


def short_of_its_share(given_: Case, spread: Spread) -> bool:
    """Whether some zone has no room for its share: then others are given it."""
    weights = {zone: spread.weight(zone) for zone in "abc"}
    have = in_zones(given_, given_.mine)
    room = in_zones(given_, {each.node: given_.room(each) for each in given_.sites})
    ways = naive_shares(given_.wanted, weights)
    return any(have[zone] + room[zone] < way[zone] for way in ways for zone in "abc")


@given(zoned())
def test_a_spread_that_waits_never_gives_a_zone_more_than_the_skew_allows(drawn: tuple[Case, int]) -> None:
    given_, missing = drawn
    (spread,) = given_.rules.spread
    given_ = replace(given_, rules=Rules(spread=(replace(spread, anyway=False),)))
    placed = choose(given_, missing).counts
    before, after = in_zones(given_, given_.mine), in_zones(given_, Counter(given_.mine) + Counter(placed))
    ways = naive_shares(given_.wanted, {zone: spread.weight(zone) for zone in "abc"})
    most = {zone: max(way[zone] for way in ways) + spread.max_skew - 1 for zone in "abc"}
    assert all(after[zone] <= max(most[zone], before[zone]) for zone in "abc")


@given(zoned())
def test_zones_that_take_nothing_are_as_if_they_were_not_there_for_a_spread_that_goes_on(
    drawn: tuple[Case, int],
) -> None:
    given_, missing = drawn
    (spread,) = given_.rules.spread
    here = [each for each in given_.sites if each.labels["zone"] != "c"]
    mine = {node: count for node, count in given_.mine.items() if given_.sites.labels(node)["zone"] != "c"}
    wanted = sum(mine.values()) + missing
    two = case(Rules(spread=(replace(spread, anyway=True, weights={}),)), wanted, *here, mine=mine)
    three = replace(two, sites=Sites(here))
    three.sites.gone(NodeId("n99"), {"node": "n99", "zone": "c"})
    assert choose(two, missing).counts == choose(three, missing).counts


def test_a_balance_is_the_same_after_adding_and_taking_away() -> None:
    balance = Balance(Spread("zone"), 4, dict.fromkeys("abc", 1.0), dict.fromkeys("abc", 1), dict.fromkeys("abc", 9))
    before = [balance.next(zone) for zone in "abc"]
    balance.add("a")
    assert [balance.next(zone) for zone in "bc"] == [0.5, 0.5]
    balance.remove("a")
    assert [balance.next(zone) for zone in "abc"] == before == [0.0, 0.0, 0.0]


@given(cases(), st.data())
def test_what_goes_goes_by_class_and_off_forbidden_nodes_first(drawn: tuple[Case, int], data: st.DataObject) -> None:
    given_, _ = drawn
    keys = [SliceKey(node, APP, ordinal) for node, count in given_.mine.items() for ordinal in range(count)]
    classes = [data.draw(st.integers(0, 1)) for _ in keys]
    ranked = [[key for key, each in zip(keys, classes, strict=True) if each == rank] for rank in range(2)]
    count = data.draw(st.integers(0, len(keys) + 1))
    given_ = replace(given_, wanted=max(len(keys) - count, 0))
    gone = surplus(given_, count, ranked)
    assert len(gone) == len(set(gone)) == min(count, len(keys))
    assert not set(gone) & set(ranked[1]) or set(ranked[0]) <= set(gone)
    assert surplus(given_, count, [list(reversed(group)) for group in ranked]) == gone
    fulfilled = [all(each.holds(given_.sites.labels(key.node)) for each in given_.rules.require) for key in keys]
    for key, each, holding in zip(keys, classes, fulfilled, strict=True):
        if not holding and key not in gone:
            stays = [k for k, e, h in zip(keys, classes, fulfilled, strict=True) if e == each and h and k in gone]
            assert not stays or given_.rules.apart or given_.rules.near or given_.rules.max_per_node


@given(zoned(), st.integers(0, 6))
def test_the_skew_is_kept_on_the_way_down_whenever_that_can_be(drawn: tuple[Case, int], count: int) -> None:
    given_, _ = drawn
    (spread,) = given_.rules.spread
    keys = [SliceKey(node, APP, ordinal) for node, mine in given_.mine.items() for ordinal in range(mine)]
    have, count = in_zones(given_, given_.mine), min(count, len(keys))
    given_ = replace(given_, wanted=len(keys) - count, rules=Rules(spread=(replace(spread, anyway=False),)))
    fewer = (
        {zone: have[zone] - less for zone, less in zip("abc", some, strict=True)}
        for some in product(*(range(have[zone] + 1) for zone in "abc"))
        if sum(some) == count
    )
    gone = Counter(key.node for key in surplus(given_, count, [keys]))
    left = in_zones(given_, {node: mine - gone[node] for node, mine in given_.mine.items()})
    if any(within(spread, given_.wanted, each) for each in fewer):
        assert within(spread, given_.wanted, left)


def plain(drawn: Rules) -> Rules:
    """Rules for which a few can be placed without a look at all nodes."""
    near, apart = (tuple(each for each in some if each.service != OWN) for some in (drawn.near, drawn.apart))
    return replace(drawn, spread=drawn.spread[:1], near=hard(near), apart=hard(apart))


@given(
    cases(rules.map(plain)),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9), st.booleans()), max_size=8),
    st.integers(1, 4),
)
def test_a_few_are_placed_as_if_all_nodes_were_looked_at(
    drawn: tuple[Case, int], changes: list[tuple[int, int, bool]], count: int
) -> None:
    given_, _ = drawn
    given_ = replace(given_, wanted=sum(given_.mine.values()) + count, strategy=EVEN)
    for number, total, is_open in changes:
        choose_few(given_, count)  # what is kept is followed from change to change
        site_ = given_.sites.all.get(NodeId(f"n{number}"))
        if site_ is not None:
            given_.sites.put(replace(site_, total=total, open=is_open))
    few = choose_few(given_, count)
    if few is not None:
        assert few.counts == naive(given_, count)
        assert few.last in few.counts
