"""Why an artifact's instances are where they are, and why others are nowhere: every rule on every node. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from msgspec import Struct

from cdm.allocation.awaited import awaited
from cdm.allocation.case import Case
from cdm.allocation.installed import strategy_named
from cdm.allocation.moving import moves
from cdm.allocation.verdict import Obstacle, Verdict, broken, nearest, summary, verdicts
from cdm.errors import UsageError
from cdm.manager.choosing import case_of, named
from cdm.manager.group import SlicePut
from cdm.manager.onlooker import Lookup, Onlooker
from cdm.manager.situation import Situation
from cdm.manager.standing import Standing
from cdm.manager.topology import Registered
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SliceKey, encode
from cdm.model.quantity import memory_shown
from cdm.model.rules import NO_RULES, NODE_LABEL, ROUND_ROBIN, Neighbour, Rules, Spread
from cdm.model.slice import TRANSITIONS, Writer

_PLACED = (Standing.LIVE, Standing.AWAITED)
STANDINGS = {
    Standing.AWAITED: "its node is missing and may come back: it is not replaced yet",
    Standing.DRAINING: "its node is to be emptied: it serves until another one is healthy in its place",
    Standing.EVACUATED: "it is to be elsewhere, and goes before another one comes",
    Standing.MISPLACED: "one is wanted on certain nodes, and this is on none of them, or beside another: it goes",
    Standing.MOVING: "it serves until another one is healthy in its place",
    Standing.STUCK: "it did not answer in time: it is unloaded, and replaced",
    Standing.FAILED: "it failed, and is tried again, or replaced",
    Standing.UNLOAD_FAILED: "it failed while it was being unloaded, and is unloaded again",
    Standing.LEAVING: "it is being unloaded",
    Standing.UNANSWERED: "its node does not answer the command to unload it",
    Standing.UNHEARD: "its node is lost; it must not run twice, and may still run there: it is not replaced yet",
    Standing.GONE: "its node is gone, and it with it",
}
"""What a slice means for its artifact, where it does not simply count."""
NOTHING_IN_FORCE = "nothing is placed while no blueprint is in force"


class NodeExplanation(Struct, frozen=True):
    """What the rules say of one more instance on a node."""

    node: NodeId
    fits: bool
    """Whether it takes one more now."""
    instances: int
    """How many it has."""
    obstacles: tuple[Obstacle, ...]
    """All that keeps one more out, the most lasting first."""
    score: int = 0
    """The sum of the preferences that hold, and of the neighbours that are wished for."""
    preferred: tuple[str, ...] = ()
    """Those preferences."""
    domains: tuple[str, ...] = ()
    """For each spread, how the node's domain stands."""
    failed: str = ""
    """Why it failed there, where it did; empty: it did not, or serves there again."""


class Happening(Struct, frozen=True):
    """Something that led to what is explained."""

    at: str
    """When, RFC 3339."""
    kind: str
    """Of the event that tells of it."""
    subject: str
    """The key that it happened to."""
    told: str
    """What happened, in words."""
    by: str = ""
    """Who did it, as declared; empty: nobody is told."""


class WrittenLine(Struct, frozen=True):
    """A line that a program wrote."""

    at: str
    """When, RFC 3339."""
    text: str


class Explanation(Struct, frozen=True):
    """Why an artifact's instances are placed, or are not."""

    artifact: str
    condition: str
    reason: str
    """What the leader says."""
    leader: NodeId | None
    """Who leads; None: nobody does, so nothing is placed."""
    desired: int | None
    """How many instances are wanted; None: no blueprint that is valid says so."""
    placed: int
    """How many of them are somewhere."""
    others: dict[str, int]
    """Slices beyond those, by how they stand."""
    rules: list[str]
    """What the blueprint says of where they go."""
    summary: str
    """How many nodes take one more, and what keeps the others out."""
    awaited: list[str]
    """Domains of spreads that wait for which instances are kept that no node takes."""
    nearest: list[str]
    """Nodes that a single rule keeps out."""
    nodes: list[NodeExplanation]
    """All that are known, in name order."""
    history: list[Happening] = []
    """What was done with it last, and when it failed last, as far as that is kept."""


class HeldRule(Struct, frozen=True):
    """One rule, and how it is kept where an instance is."""

    rule: str
    holds: bool
    why: str = ""
    """What is so, where it does not hold."""


class SliceExplanation(Struct, frozen=True):
    """Why a slice is where it is."""

    key: str
    """As in the bucket."""
    node: NodeId
    artifact: str
    ordinal: int
    state: str
    reason: str | None
    standing: str
    """What it means for its artifact: ``live``, ``draining``, ``failed``, …"""
    said_by: str
    """Who wrote the state: ``leader``, as a command, or ``node``."""
    term: int
    """Of the leader whose command that was, or was answered."""
    revision: int
    """Of the slice's key."""
    failures: int
    restarts: int
    blueprint: int | None
    """Revision of the blueprint that it serves; None: not told."""
    in_force: int
    """Revision of the blueprint in force; 0: there is none."""
    desired: int | None
    """How many instances are wanted in all."""
    rules: list[HeldRule]
    score: int
    preferred: tuple[str, ...]
    domains: tuple[str, ...]
    better: str = ""
    """The node where it would be better placed, and by which rule; empty: there is none."""
    since: str = ""
    """When the state was written, RFC 3339; empty: not known."""
    blueprint_at: str = ""
    """When the blueprint that it serves was written; empty: that revision is not kept any more."""
    blueprint_by: str = ""
    """Who wrote that, as declared; empty: nobody said."""
    history: list[Happening] = []
    """Its last states, and what was done with its blueprint and its node, as far as that is kept."""
    output: list[WrittenLine] = []
    """What its program wrote last, where it ended."""


def explained(look: Onlooker, artifact: Artifact) -> Explanation:
    """Why the artifact's instances are placed, or are not."""
    found = look.lookup(artifact)
    at, status = found.at, found.status
    case = case_of(at, at.standings[Standing.FAILED])
    judged = verdicts(case)
    placed = sum(len(at.standings[standing]) for standing in _PLACED)
    others = {str(each): len(puts) for each, puts in at.standings.items() if puts and each not in _PLACED}
    return Explanation(
        str(artifact),
        str(status.condition) if status is not None else "Unknown",
        status.reason if status is not None else _unprocessed(found),
        look.leader,
        at.wanted.instances if found.desired is not None else 0,
        placed,
        others,
        [*_each(found), *_in_words(at.wanted.rules, found)],
        summary(judged) if judged else "there is no node that runs slices",
        awaited(case, judged),
        nearest(judged),
        sorted([*_of_sites(judged, at), *_of_others(look, at)], key=lambda each: each.node),
    )


def explained_slice(look: Onlooker, key: SliceKey) -> SliceExplanation | None:
    """Why a slice is where it is; None: there is none."""
    found = look.lookup(key.artifact)
    at = found.at
    put = at.group.slices.get(key)
    if put is None:
        return None
    case = case_of(at)
    mine: Verdict | None = next((each for each in verdicts(case) if each.node == key.node), None)
    value = put.value
    standing = next(each for each, puts in at.standings.items() if any(one.key == key for one in puts))
    return SliceExplanation(
        encode(key),
        key.node,
        str(key.artifact),
        key.ordinal,
        str(value.state),
        value.reason,
        str(standing),
        "leader" if TRANSITIONS[value.state].writer is Writer.LEADER else "node",
        value.term,
        put.revision,
        value.failures or 0,
        value.restarts or 0,
        value.blueprint,
        found.desired.in_force if found.desired is not None else 0,
        at.wanted.instances if found.desired is not None else 0,
        _held(case, key.node),
        mine.score if mine is not None else 0,
        mine.preferred if mine is not None else (),
        mine.domains if mine is not None else (),
        _better(at, case, put, standing) if at.wanted.nodes is None else "",
    )


def _unprocessed(found: Lookup) -> str:
    return "there is no blueprint" if found.desired is None else "no leader has processed it yet"


def _of_sites(judged: list[Verdict], at: Situation) -> Iterator[NodeExplanation]:
    """The nodes that instances may be on."""
    placed = Counter(put.key.node for standing in _PLACED for put in at.standings[standing])
    failed = {put.key.node: put.value.reason or "no reason given" for put in at.standings[Standing.FAILED]}
    for each in judged:
        why = failed.get(each.node, "")
        yield NodeExplanation(
            each.node,
            each.fits,
            placed[each.node],
            each.obstacles,
            each.score,
            each.preferred,
            each.domains,
            why,
        )


def _of_others(look: Onlooker, at: Situation) -> Iterator[NodeExplanation]:
    """Nodes that are no choice at all: they run no slices, or are gone and not forgotten."""
    hosting, topology = look.placement.nodes, look.topology
    placed = Counter(put.key.node for put in at.group.slices.values())
    for node, presence in topology.nodes.items():
        if node not in hosting and isinstance(presence, Registered):
            why = Obstacle("role", "running no slices", f"role {presence.registration.role}")
            yield NodeExplanation(node, False, placed[node], (why,))
    for node, seen in topology.seen.items():
        if node not in topology.nodes:
            yield NodeExplanation(node, False, placed[node], (Obstacle("gone", seen.gone or "gone"),))


# Rules in words


def _each(found: Lookup) -> list[str]:
    blueprint = found.desired.blueprint if found.desired is not None else None
    return ["one on every node that fits"] if blueprint is not None and blueprint.each else []


def _in_words(rules: Rules, found: Lookup) -> list[str]:
    each = found.at.wanted.nodes is not None
    return [
        *(f"require {condition}" for condition in rules.require),
        *(_neighbour("near", one) for one in rules.near),
        *(_neighbour("apart from", one) for one in rules.apart),
        *_needs(rules),
        *([] if rules.max_per_node is None or each else [f"at most {rules.max_per_node} on a node"]),
        *map(_spread, rules.spread),
        *(f"prefer {one.condition}, weight {one.weight}" for one in rules.prefer),
        *([] if rules.strategy == ROUND_ROBIN else [_strategy(rules.strategy)]),
    ]


def _strategy(name: str) -> str:
    """Whether it is installed where this is asked: what the leader makes of it, its status tells."""
    try:
        return f"strategy {strategy_named(name).name}"
    except UsageError:
        return f"strategy {name}, which is not installed here"


def _neighbour(how: str, rule: Neighbour) -> str:
    by = "" if rule.by == NODE_LABEL else f" by {rule.by}"
    return f"{how} {rule.service}{by}{'' if rule.hard else ', where that can be'}"


def _needs(rules: Rules) -> list[str]:
    needs = rules.needs
    if needs is None:
        return []
    cpu = [f"cpu {needs.cpu:.6g}"] if needs.cpu else []
    return ["needs " + ", ".join([*cpu, *([f"memory {memory_shown(needs.memory)}"] if needs.memory else [])])]


def _spread(spread: Spread) -> str:
    weights = ", ".join(f"{value} {weight:g}" for value, weight in spread.weights.items())
    skew = f", max_skew {spread.max_skew}" if spread.max_skew != 1 else ""
    return f"spread by {spread.by}{f' ({weights})' if weights else ''}{skew}{'' if spread.anyway else ', or wait'}"


# One slice


def _held(case: Case, node: NodeId) -> list[HeldRule]:
    """The hard rules, and whether each holds on a node that has an instance."""
    rules = case.rules
    if rules is NO_RULES:
        return []
    labels = case.sites.labels(node)
    found: list[HeldRule] = []
    for each in rules.require:
        holds = each.holds(labels)
        found.append(HeldRule(f"require {each}", holds, "" if holds else _value(each.label, labels.get(each.label))))
    wrong = {each.what: each for each in broken(case).get(node, ())}
    for how, neighbours in (("near", rules.near), ("apart from", rules.apart)):
        hard = (one for one in neighbours if one.hard)
        found += (_rule(_neighbour(how, one), wrong.get(f"{how} {one.service}")) for one in hard)
    if rules.max_per_node is not None and not case.each:
        found.append(_rule(f"at most {rules.max_per_node} on a node", wrong.get("max_per_node")))
    needs = _needs(rules)
    if needs:
        found.append(_rule(needs[0], wrong.get("cpu") or wrong.get("memory")))
    return found


def _value(label: str, value: str | None) -> str:
    return f"it has no {label}" if value is None else f"{label} is {value}"


def _rule(rule: str, wrong: Obstacle | None) -> HeldRule:
    return HeldRule(rule, wrong is None, "" if wrong is None else wrong.numbers or wrong.why)


def _better(at: Situation, case: Case, put: SlicePut, standing: Standing) -> str:
    if standing is not Standing.LIVE:
        return ""
    found = moves(case, [put.key], 1)
    return f"{found[0].to}, for {named(at, found)[0].why}" if found else ""
