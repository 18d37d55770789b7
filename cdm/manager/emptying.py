"""Why a node that is being drained is not empty yet: each slice that is left there, and what it waits for. Pure."""

from __future__ import annotations

from collections import defaultdict
from math import inf

from cdm.manager.choosing import places, why_not
from cdm.manager.group import SlicePut
from cdm.manager.left import Left
from cdm.manager.onlooker import Lookup, Onlooker
from cdm.manager.situation import Situation
from cdm.manager.standing import Standing, exclusive
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey, encode
from cdm.model.record import RolloutPhase
from cdm.model.slice import SliceState

_NOBODY_LEADS = "nobody leads: nothing is decided until somebody does"
_OVER = (RolloutPhase.COMPLETE, RolloutPhase.REVERTED)


def left_on(look: Onlooker, node: NodeId) -> list[Left]:
    """The slices that are left on a node that is to be empty, in the order of their keys, and why."""
    by_artifact: dict[object, list[SliceKey]] = defaultdict(list)
    for key in look.cluster.on_node.get(node, ()):
        by_artifact[key.artifact].append(key)
    found: list[Left] = []
    for keys in by_artifact.values():
        lookup = look.lookup(keys[0].artifact)
        standing = {put.key: each for each, puts in lookup.at.standings.items() for put in puts}
        waits = _NOBODY_LEADS if look.leader is None else _why_waiting(look, lookup)
        for key in keys:
            put = lookup.at.group.slices[key]
            why = waits if look.leader is None else _why(look, lookup.at, put, standing[key]) or waits
            found.append(Left(encode(key), str(key.artifact), key.ordinal, str(put.value.state), why))
    return sorted(found, key=lambda each: each.key)


def _why(look: Onlooker, at: Situation, put: SlicePut, standing: Standing) -> str:
    """Why this one is left; empty: it waits for its replacement, or for whatever its artifact waits for."""
    value, now = put.value, look.now
    match value.state, standing:
        case SliceState.UNLOADING, Standing.LEAVING:
            rest = put.at + (value.after or 0.0) - now
            return f"serves for {rest:.0f} s more, and is stopped then" if rest > 0 else "is being stopped"
        case SliceState.UNLOAD, Standing.LEAVING:
            return "is told to stop"
        case _, Standing.UNANSWERED:
            return "does not answer the command to stop; does its agent run?"
        case _, Standing.UNLOAD_FAILED:
            return (
                f"could not be stopped: {value.reason or 'no reason given'}; tried again{_in(at.retry_at(put) - now)}"
            )
        case _, Standing.AWAITED | Standing.UNHEARD | Standing.GONE:
            return "its node is not heard"
        case _, Standing.EVACUATED | Standing.MISPLACED | Standing.STUCK:
            return "goes next"
    return ""


def _in(seconds: float) -> str:
    return f" in {seconds:.0f} s" if seconds > 0 else ""


def _because(put: SlicePut) -> str:
    return f": {put.value.reason}" if put.value.reason else ""


def _why_waiting(look: Onlooker, lookup: Lookup) -> str:
    """What the artifact's instances on draining nodes wait for."""
    at, status = lookup.at, lookup.status
    if not at.standings[Standing.DRAINING]:
        return ""
    if at.wanted.outlives:
        return f"stops once nothing of {', '.join(at.wanted.outlives)} runs, which needs it"
    if held := look.held(at.artifact):
        return held
    if at.wanted.instances is None:
        return "no blueprint of it is in force, so nothing is decided about it"
    if status is not None and status.rollout and status.rollout.phase not in _OVER:
        return f"a rollout is under way: {status.reason}"
    return _replacement(at, status.reason if status is not None else "")


def _replacement(at: Situation, told: str) -> str:
    """How far its replacement is; ``told``: what the leader says of the artifact."""
    live = at.standings[Standing.LIVE]
    coming = [put for put in live if put.value.state is not SliceState.ACTIVE]
    if coming:
        first = min(coming, key=lambda put: (put.at, put.key))
        more = f" (and {len(coming) - 1} more)" if len(coming) > 1 else ""
        waits = f": {told}" if not first.value.reason and "waiting for " in told else _because(first)
        return f"waits for its replacement on {first.key.node}{more}, which is {first.value.state}{waits}"
    if len(live) < (at.wanted.instances or 0):
        return _no_place(at)
    healthy_at, last = max(((put.at + at.wanted.min_healthy, put.key) for put in live), default=(-inf, None))
    if last is not None and healthy_at > at.now:
        return f"waits until its replacement on {last.node} is healthy, in {healthy_at - at.now:.0f} s"
    return "goes next"


def _no_place(at: Situation) -> str:
    failed = at.standings[Standing.FAILED]
    if failed:
        first = min(failed, key=at.retry_at)
        again = _in(at.retry_at(first) - at.now)
        return f"its replacement has failed on {first.key.node}, and is tried again{again}{_because(first)}"
    once = any(map(exclusive, at.standings[Standing.DRAINING]))
    if places(at, 1, ()):
        return "must not run twice: it stops next" if once else "its replacement is placed next"
    why = why_not(at, failed, {})
    waits = "must not run twice, and stops once another node takes it" if once else "no other node takes it"
    return f"{waits}: {why}"
