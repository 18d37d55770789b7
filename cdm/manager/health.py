"""How the instances of one side of a rollout fare, and what that says of the new side. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import NamedTuple

from cdm.manager.gates import Gate, GateVerdict
from cdm.manager.group import SlicePut
from cdm.manager.standing import MAY_RUN, Fleet, exclusive
from cdm.model.keys import SliceKey
from cdm.model.slice import SliceState

_ACTIVE, _FAILED = SliceState.ACTIVE, SliceState.FAILED


class SideHealth(NamedTuple):
    """Counts of the instances of one template. Times in seconds on this node's clock."""

    live: int = 0
    """Slices that count towards the wanted instances, those on missing nodes included."""
    active: int = 0
    """Live ones that are ACTIVE on a registered node."""
    healthy: int = 0
    """Those of them that have been ACTIVE for ``min_healthy``."""
    troubled: int = 0
    """Slices that failed, or whose program ended, and that have not been healthy since."""
    troubles: int = 0
    """How often that happened to them."""
    troubled_since: float = inf
    """When the latest thing was heard of the one of them that has been silent for longest; what its node could not tell
    is no silence."""
    fatal: bool = False
    """Whether one failed in a way that trying again soon cannot mend."""
    lingering: int = 0
    """Slices that are not live, may still run, and have to have stopped before another one comes up."""
    last_healthy: float = -inf
    """When the latest of the healthy ones became so."""
    next_healthy: float = inf
    """When the next of the active ones will be healthy."""
    draining: int = 0
    """Live ones on nodes that are being emptied: reconciliation replaces each, and ends it when that serves."""
    reason: str = ""
    """Why one of the troubled ones failed."""


def health_of(
    puts: Iterable[SlicePut],
    min_healthy: float,
    fleet: Fleet,
    now: float,
    why: Callable[[SliceKey], str],
    *,
    one_by_one: bool = False,
) -> SideHealth:
    """Count.

    Args:
        puts: the slices.
        min_healthy: seconds.
        fleet: the nodes.
        now: seconds on this node's clock.
        why: why a slice that is up again ended last.
        one_by_one: whether nothing may come up before what is to stop has stopped, whatever that was started with.
    """
    live = active = healthy = troubled = troubles = lingering = draining = 0
    since, last, following, fatal, reason = inf, -inf, inf, False, ""
    for put in puts:
        value, node = put.value, fleet.nodes.get(put.key.node)
        state = value.state
        if node is None or not state.live:
            lingering += exclusive(put) or (one_by_one and node is not None and state in MAY_RUN)
        else:
            live += 1
            draining += node.draining and node.registered
        up = state is _ACTIVE and node is not None and node.registered
        well = up and put.at + min_healthy <= now
        active += up
        healthy += well
        if well:
            last = max(last, put.at + min_healthy)
        elif up:
            following = min(following, put.at + min_healthy)
        ends = (value.failures or 0) + (value.restarts or 0) + (state is _FAILED and not value.lapsed)
        if ends and not well and (state.live or state is _FAILED) and node is not None:
            troubled, troubles = troubled + 1, troubles + ends
            since = min(since, max(put.at, fleet.silent_from(node) - min_healthy))
            fatal = fatal or (state is _FAILED and value.fatal)
            reason = reason or value.reason or why(put.key)
    counts = SideHealth(live, active, healthy, troubled, troubles, since, fatal, lingering, last, following)
    return counts._replace(draining=draining, reason=reason)


NOTHING_WRONG = GateVerdict(Gate.PASS)
TWICE = 2
"""As many failures of new instances say more than one can, which may be the node's fault."""


def judge(new: SideHealth, old: SideHealth, min_healthy: float, now: float, *, side: str = "new") -> GateVerdict:
    """Compare failures and restarts of the new instances with those of the old ones.

    A single failure may have had its reason in the node: then the new instances have ``min_healthy`` seconds to get
    over it. One that trying again cannot mend, or a second one, is enough. ``side`` is what the new ones are called.
    """
    if not new.troubled:
        return NOTHING_WRONG
    count = f"1 {side} instance" if new.troubled == 1 else f"{new.troubled} {side} instances"
    ended = f"{count} failed or restarted{_times(new)}"
    why = f": {new.reason}" if new.reason else ""
    if old.live and new.troubled * old.live <= old.troubled * max(new.live, new.troubled):
        return GateVerdict(Gate.HOLD, f"{ended}, and the old ones do so as often{why}")
    until = new.troubled_since + min_healthy
    if new.fatal or new.troubles >= TWICE or until <= now:
        return GateVerdict(Gate.FAIL, f"{ended}{why}")
    return GateVerdict(Gate.HOLD, f"{ended}; watching{why}", until)


def _times(new: SideHealth) -> str:
    """How often, where that is more than once each."""
    if new.troubles == new.troubled:
        return ""
    if new.troubled > 1:
        return f", {new.troubles} times in all"
    return " twice" if new.troubles == TWICE else f" {new.troubles} times"
