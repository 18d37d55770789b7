"""Why a node takes an instance, and why it does not: every rule on every node. Pure.

The same for the leader, which tells of instances that it cannot place, and for whoever asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec import Struct

from cdm.allocation.balances import balances_of
from cdm.allocation.case import Case
from cdm.allocation.neighbours import Neighbours, Vicinity
from cdm.allocation.shares import Balance
from cdm.allocation.site import Freed, Site, overdrawn
from cdm.allocation.sites import Domain
from cdm.model.artifact import NodeId
from cdm.model.condition import LabelCondition, LabelOperator
from cdm.model.quantity import memory_shown, millicores
from cdm.model.rules import GIVES_SECRETS, TRUST_LABEL, Needs

SHOWN = 3
"""Most near misses that are told."""
MAX_PER_NODE, CPU, MEMORY = "max_per_node", "cpu", "memory"
EACH = "each"
"""What keeps an instance off a node where one is wanted and there is one: nothing is amiss."""


class Obstacle(Struct, frozen=True):
    """A rule that keeps a version off a node."""

    what: str
    """In a word or two: ``draining``, ``memory``, ``zone``; the same for all nodes that it keeps out alike."""
    why: str
    """What is so, to be said of several nodes: ``zone is not eu-1``, ``full``."""
    numbers: str = ""
    """Of this node: ``cpu 7.5 of 8 reserved``."""
    miss: str = ""
    """By how much it falls short: ``256M needed, 100M free``."""

    @property
    def of_number(self) -> bool:
        """Whether fewer instances would be none too many."""
        return self.what in (MAX_PER_NODE, CPU, MEMORY)


class Verdict(Struct, frozen=True):
    """What the rules say of a node."""

    node: NodeId
    obstacles: tuple[Obstacle, ...] = ()
    """All that keeps it out, the most lasting first; none: it fits."""
    score: int = 0
    """The sum of the preferences that hold, and of the neighbours that are wished for."""
    preferred: tuple[str, ...] = ()
    """Those preferences."""
    domains: tuple[str, ...] = ()
    """For each spread, how its domain stands: ``zone a has 2 of 3``."""

    @property
    def fits(self) -> bool:
        """Whether it takes one more instance now."""
        return not self.obstacles


def verdicts(case: Case) -> list[Verdict]:
    """What the rules say of each node that is not dead, about one more instance, in name order."""
    neighbours = Neighbours(case)
    # Judged as `choose` would: every rule but the spread first, since what has no room has no share of some.
    first = [(site, _obstacles(case, neighbours, site)) for site in case.sites]
    balances = balances_of(case, [(site, case.room(site)) for site, obstacles in first if not obstacles])
    # Of a domain the same is said on each of its nodes.
    standing = [{domain: _domain(balance, domain) for domain in balance.counts} for balance in balances]
    prefer = case.rules.prefer
    found: list[Verdict] = []
    for site, obstacles in first:
        stands: list[str] = []
        for balance, known in zip(balances, standing, strict=True):
            stand, full = known.get(site.labels.get(balance.spread.by), _NO_DOMAIN)
            stands.extend(stand)
            obstacles.extend(full)
        held = [each for each in prefer if each.condition.holds(site.labels)]
        points = sum(each.weight for each in held) + neighbours.wishes(site)
        preferred = tuple(str(each.condition) for each in held)
        found.append(Verdict(site.node, tuple(obstacles), points, preferred, tuple(stands)))
    return found


def summary(found: Sequence[Verdict]) -> str:
    """``0 of 12 nodes take it: 7 zone is not eu-1, 3 full (cpu 7.5 of 8 reserved), 2 draining``."""
    taking = sum(each.fits for each in found)
    nodes = "1 node takes" if len(found) == 1 else f"{len(found):,} nodes take"
    if not found:
        return "there is no node"
    head = f"{taking:,} of {nodes} it"
    groups: dict[tuple[str, str], list[str]] = {}
    for each in found:
        if each.obstacles:
            first = each.obstacles[0]
            groups.setdefault((first.what, first.why), []).append(first.numbers)
    told = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    parts = [f"{len(numbers):,} {why}{_numbers(numbers)}" for (_, why), numbers in told]
    return f"{head}: {', '.join(parts)}" if parts else head


def nearest(found: Iterable[Verdict], most: int = SHOWN) -> list[str]:
    """Nodes that a single rule keeps out: ``only memory keeps node-4 out: 256M needed, 100M free``.

    Those come first that fall short of a number.
    """
    misses = sorted(
        (each for each in found if len(each.obstacles) == 1 and each.obstacles[0].what != EACH),
        key=lambda each: not each.obstacles[0].numbers,
    )
    told: list[str] = []
    for each in misses[:most]:
        only = each.obstacles[0]
        said = f": {only.miss}" if only.miss else ""
        told.append(f"only {only.what} keeps {each.node} out{said}")
    return told


def broken(case: Case) -> dict[NodeId, tuple[Obstacle, ...]]:
    """The nodes on which instances are that a hard rule forbids to be there now, and what is wrong."""
    neighbours = Neighbours(case)
    found: dict[NodeId, tuple[Obstacle, ...]] = {}
    for node, count in sorted(case.mine.items()):
        site = case.sites.all.get(node)
        if count and site is not None and (obstacles := _broken_on(case, neighbours, site)):
            found[node] = tuple(obstacles)
    return found


def _broken_on(case: Case, neighbours: Neighbours, site: Site) -> list[Obstacle]:
    found = [_unfulfilled(each, site) for each in case.rules.require if not each.holds(site.labels)]
    found += [_neighbour(side, site) for side in neighbours.hard if not side.kept(site, without=site)]
    # What failed, or is on its way out, is no instance that is where it must not be.
    most, count = case.rules.max_per_node, case.mine.get(site.node, 0)
    if most is not None and count > most:
        found.append(Obstacle(MAX_PER_NODE, "more than may be", f"{count} of {most}"))
    return found + _overdrawn(case, site)


def _obstacles(case: Case, neighbours: Neighbours, site: Site) -> list[Obstacle]:
    """All but the spread: what operators and users would have to change first comes first."""
    rules = case.rules
    found = [_unfulfilled(each, site) for each in rules.require if not each.holds(site.labels)]
    closed = closed_by(registered=site.registered, draining=site.draining, takes=site.open)
    if closed is not None:
        found.append(closed)
    found += [_neighbour(side, site) for side in neighbours.hard if not side.kept(site)]
    held = case.retried.get(site.node, Freed(0))
    mine = case.on_node(site.node)
    if case.each and mine:
        found.append(Obstacle(EACH, "with one already"))
    elif rules.max_per_node is not None and mine >= rules.max_per_node:
        counts = f"{mine} of {rules.max_per_node} on a node"
        found.append(Obstacle(MAX_PER_NODE, "with as many as may be", counts, counts))
    if site.capacity is not None and site.total - held.slices >= site.capacity:
        found.append(full(site.total, site.capacity))
    return found + _needs(case, site)


def closed_by(*, registered: bool, draining: bool, takes: bool) -> Obstacle | None:
    """Why a node takes no slices, whatever is placed; None: it does."""
    if not registered:
        return Obstacle("silence", "missing")
    if draining:
        return Obstacle("draining", "draining")
    return None if takes else Obstacle("cordon", "cordoned")


def full(total: int, capacity: int) -> Obstacle:
    """A node has as many slices as it takes."""
    if capacity == 0:
        return Obstacle("capacity", "taking none")
    counts = f"{total} of {capacity} slices"
    return Obstacle("capacity", "full", counts, counts)


def _unfulfilled(condition: LabelCondition, site: Site) -> Obstacle:
    label, value = condition.label, site.labels.get(condition.label)
    if condition == GIVES_SECRETS:
        return Obstacle("secrets", "giving no secrets")
    if condition.operator is LabelOperator.PRESENT:
        return Obstacle(label, f"without {label}")
    if condition.operator is LabelOperator.ABSENT:
        if label == TRUST_LABEL:
            return Obstacle("trust", "running only what is signed")
        return Obstacle(label, f"with {label}")
    if condition.operator is LabelOperator.NOT_IN:
        return Obstacle(label, f"{label} is {value}")
    if condition.operator is LabelOperator.IN:
        wanted = condition.values[0] if len(condition.values) == 1 else f"one of {', '.join(condition.values)}"
        why = f"{label} is not {wanted}"
    else:
        wanted = f"{condition.operator} {condition.values[0]}"
        why = f"{label} is not {wanted}"
    return Obstacle(label, why, miss=f"{wanted} needed, {'it has none' if value is None else f'it is {value}'}")


def _neighbour(side: Vicinity, site: Site) -> Obstacle:
    rule = side.rule
    where = "" if rule.by == "node" else f" ({rule.by} {site.labels.get(rule.by, 'none')})"
    what = f"near {rule.service}" if side.near else f"apart from {rule.service}"
    why = f"not near {rule.service}" if side.near else f"beside {rule.service}"
    if not side.near and not side.values.get(site.labels.get(rule.by, "")):
        why += ", which is being stopped"
    return Obstacle(what, why, miss=f"{why}{where}")


def _needs(case: Case, site: Site) -> list[Obstacle]:
    needs, found = case.rules.needs, list[Obstacle]()
    if needs is None or case.retried.get(site.node):
        # What a failed slice holds it may take over: then only `Case.room` knows.
        return found if needs is None or case.room(site) else [Obstacle("needs", "full")]
    if millicores(needs.cpu):
        if site.cpu is None:
            found.append(Obstacle(CPU, "not telling its cpu"))
        elif millicores(site.cpu) < millicores(needs.cpu):
            numbers = f"cpu {site.cpu:.6g}"
            found.append(Obstacle(CPU, "too small", numbers, f"{needs.cpu:.6g} needed, {site.cpu:.6g} there"))
        elif millicores(site.cpu) - millicores(site.cpu_reserved) < millicores(needs.cpu):
            free = max((millicores(site.cpu) - millicores(site.cpu_reserved)) / 1000, 0.0)
            numbers = f"cpu {site.cpu_reserved:.6g} of {site.cpu:.6g} reserved"
            found.append(Obstacle(CPU, "full", numbers, f"{needs.cpu:.6g} needed, {free:.6g} free"))
    if needs.memory:
        if site.memory is None:
            found.append(Obstacle(MEMORY, "not telling its memory"))
        elif site.memory < needs.memory:
            numbers = f"memory {memory_shown(site.memory)}"
            miss = f"{memory_shown(needs.memory)} needed, {memory_shown(site.memory)} there"
            found.append(Obstacle(MEMORY, "too small", numbers, miss))
        elif site.memory - site.memory_reserved < needs.memory:
            free_memory = memory_shown(max(site.memory - site.memory_reserved, 0))
            numbers = f"memory {memory_shown(site.memory_reserved)} of {memory_shown(site.memory)} reserved"
            miss = f"{memory_shown(needs.memory)} needed, {free_memory} free"
            found.append(Obstacle(MEMORY, "full", numbers, miss))
    return found


def _overdrawn(case: Case, site: Site) -> list[Obstacle]:
    """More is reserved than the node has by now."""
    needs = case.rules.needs or Needs()
    found: list[Obstacle] = []
    cpu, memory = overdrawn(site)
    if needs.cpu and cpu:
        found.append(Obstacle(CPU, "too full", f"cpu {site.cpu_reserved:.6g} of {site.cpu:.6g} reserved"))
    if needs.memory and memory and site.memory is not None:
        numbers = f"memory {memory_shown(site.memory_reserved)} of {memory_shown(site.memory)} reserved"
        found.append(Obstacle(MEMORY, "too full", numbers))
    return found


_NO_DOMAIN: tuple[list[str], list[Obstacle]] = ([], [])


def _domain(balance: Balance, domain: Domain) -> tuple[list[str], list[Obstacle]]:
    """How a domain stands, and what keeps further instances out of it."""
    by, stand = balance.spread.by, _stand(balance, domain)
    if balance.next(domain) is not None:
        return [stand], []
    return [stand], [Obstacle(f"spread by {by}", f"in a {by} that has its share", stand, stand)]


def _stand(balance: Balance, domain: Domain) -> str:
    by = balance.spread.by
    name = f"without {by}" if domain is None else f"{by} {domain}"
    share = balance.share.get(domain, 0)
    most = f"{share} or {share + 1}" if domain in balance.tied else f"{share}"
    return f"{name} has {balance.counts.get(domain, 0)} of {most}"


def _numbers(each: Sequence[str]) -> str:
    told = Counter(numbers for numbers in each if numbers)
    if not told:
        return ""
    (first, _), *others = told.most_common()
    return f" ({first} and the like)" if others else f" ({first})"
