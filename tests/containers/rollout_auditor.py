"""An auditor of rollouts: it judges by I14 and their contract what the stream of slices stored for one service.

As the auditor beside it, it takes nothing from cdm: what a healthy instance is, which way a rollout may go, and what a
leader may write in which phase is written down here again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tests.containers.auditor import Entry, guard, registrations
from tests.containers.rollout_replay import Instance, Leg, Move, Service, batches, commanded

AWAY = ("UNLOAD", "DEACTIVATE")
OVER = ("complete", "reverted", "failed")
"""Phases in which nothing goes on by itself."""
BACK = ("reverting", "reverted")
SETTLED = ("switched", "complete", "reverted")
"""Phases that are not reached before one side is whole."""
WAYS: Mapping[str, Sequence[str]] = {
    "": ("rolling", "paused"),
    "rolling": ("rolling", "paused", "switched", "complete", "reverting", "reverted", "failed"),
    "paused": ("paused", "rolling", "switched", "complete", "reverting", "reverted", "failed"),
    "switched": ("switched", "rolling", "complete", "reverting", "failed"),
    "complete": ("complete", "reverting"),
    "reverting": ("reverting", "reverted", "failed"),
    "reverted": ("reverted",),
    "failed": ("failed", "reverting", "reverted"),
}
"""What may follow a phase while the rollout is to the same template. "": there was no record."""
BEGINNINGS = WAYS[""]


class Bounds(NamedTuple):
    """What is promised of a service."""

    service: str
    """``group/name``, as in keys."""
    wanted: int
    max_surge: int = 1
    """Instances above the wanted number; for blue-green as many as are wanted."""
    max_unavailable: int = 0
    min_healthy: float = 10.0
    """Seconds that an instance has to be ACTIVE to count as healthy."""
    canary: Sequence[float | None] = ()
    """The weights of a canary's steps, in per cent; None: a pause. Behind the last one all are to be new."""
    since: float = 0.0
    """Only what was written from then on is judged, in seconds since 1970."""
    until: float = math.inf


class Rollouts:
    """What was stored of one service, judged.

    Args:
        slices: everything that the stream of slices stored, from its first message on.
        nodes: the same of the stream of nodes.
        bounds: what is promised.
        grace: seconds for which a node's or an agent's news may be unknown to a leader that acts.
        blur: seconds by which a leader may be wrong about the server's time.
    """

    def __init__(
        self,
        slices: Sequence[Entry],
        nodes: Sequence[Entry],
        bounds: Bounds,
        grace: float = 1.0,
        blur: float = 0.25,
    ) -> None:
        self._slices = slices
        self._bounds = bounds
        self._service = Service(bounds.service)
        self._grace = grace
        self._blur = blur
        self._nodes = registrations(nodes, max((entry.time for entry in (*slices, *nodes)), default=0.0))

    def violations(self) -> list[str]:
        """Everything that was promised and did not hold."""
        moves = list(self._service.moves(self._slices))
        found = [*self.ways(), *self.terms()]
        for move in moves:
            if self._bounds.since <= move.time <= self._bounds.until:
                found += [*self._surge(move), *self._unavailable(move), *self._order(move), *self._named(move)]
                found += [*self._share(move), *self._whole(move)]
        return found

    @property
    def legs(self) -> list[Leg]:
        """What the record said, one after the other, without deletes."""
        return [Leg(entry) for entry in self._slices if entry.key == self._service.record and not entry.gone]

    def reached(self, phase: str, after: float = 0.0) -> float | None:
        """When the record first said so, from a moment on."""
        return next((leg.entry.time for leg in self.legs if leg.phase == phase and leg.entry.time >= after), None)

    def first_failure(self, version: str, after: float = 0.0) -> float | None:
        """When an instance of a version first FAILED or was ACTIVATING again, from a moment on."""
        for move in self._service.moves(self._slices):
            for key, now in move.after.items():
                before = move.before.get(key)
                if now.template.version != version or move.time < after or before is None or before == now:
                    continue
                again = now.state == "ACTIVATING" and (before.state == "ACTIVE" or now.restarts > before.restarts)
                if (now.state == "FAILED" != before.state) or again:
                    return move.time
        return None

    def healthy_again(self, version: str, after: float) -> float | None:
        """When all that was live were the wanted healthy ones of this version and nothing else, from a moment on."""
        for move in self._service.moves(self._slices):
            live = [each for each in move.after.values() if each.live]
            if move.time >= after and all(each.template.version == version for each in live):
                up = [each.up for each in live if each.up is not None]
                if len(up) == len(live) == self._bounds.wanted:
                    return max(move.time, max(up, default=0.0) + self._bounds.min_healthy)
        return None

    def most(self) -> int:
        """The most live instances that there ever were, on whatever nodes."""
        moves = self._service.moves(self._slices)
        return max((sum(each.live for each in move.after.values()) for move in moves), default=0)

    def commands(self, after: float = 0.0) -> int:
        """Commands and records that leaders wrote for the service."""
        ours = [entry for entry in self._slices if self._service.owns(entry.key) and commanded(entry)]
        return sum(entry.time >= after for entry in [*ours, *(leg.entry for leg in self.legs)])

    # What is judged of the record alone.

    def ways(self) -> list[str]:
        """The record goes its legal ways only; a rollout to something else begins anew."""
        found = []
        last: Leg | None = None
        for entry in self._slices:
            if entry.key != self._service.record:
                continue
            if entry.gone:
                last = None
                continue
            leg = Leg(entry)
            if leg.phase not in WAYS or leg.new is None or leg.old is None:
                found.append(f"{entry}: is no record of a rollout")
                continue
            found += [f"{entry}: {problem}" for problem in _way(last, leg)]
            last = leg
        return found

    def terms(self) -> list[str]:
        """No record is of an earlier term than one before it, or than the fence; each is written under the fence."""
        found = []
        term = fence = number = 0
        for batch in batches(self._slices):
            for entry in batch:
                if entry.key == "_term" and not entry.gone:
                    fence, number = entry.fields.get("term", 0), entry.sequence
                if entry.key != self._service.record:
                    continue
                if guard(batch[0]) != str(number):
                    found.append(f"{entry}: a record without the fence #{number}")
                own = term if entry.gone else entry.fields.get("term", 0)
                if own < term:
                    found.append(f"{entry}: the record was of term {term} before")
                if own > fence:
                    found.append(f"{entry}: a record of term {own} under the fence of term {fence}")
                term = max(term, own)
        return found

    # What is judged of each move.

    def _surge(self, move: Move) -> Iterator[str]:
        loads = self._loads(move)
        most = self._bounds.wanted + self._bounds.max_surge
        count = sum(each.live and self._steady(each.node, move.time) for each in move.after.values())
        if loads and count > most:
            yield f"{loads[-1]}: makes {count} live ones where {self._bounds.wanted} + {self._bounds.max_surge} may be"

    def _unavailable(self, move: Move) -> Iterator[str]:
        taken = [
            entry
            for entry in move.entries
            if self._takes(entry, move) and self._surely_healthy(move.before[entry.key], move.time)
        ]
        least = self._bounds.wanted - self._bounds.max_unavailable
        left = sum(self._perhaps_healthy(each, move.time) for each in move.after.values())
        if taken and left < least:
            yield f"{taken[0]}: takes a healthy one, and leaves {left} healthy ones where {least} are to stay"

    def _order(self, move: Move) -> Iterator[str]:
        """A record comes before the commands of its batch."""
        command: Entry | None = None
        for entry in move.entries:
            if entry.key != self._service.record:
                command = entry
            elif command is not None:
                yield f"{entry}: comes after a command of its batch, {command}"

    def _named(self, move: Move) -> Iterator[str]:
        """What is started beside something else is what the record names, and is not on its way back."""
        for entry in self._loads(move):
            started = move.after[entry.key].template
            others = [each.template for key, each in move.before.items() if each.live and key != entry.key]
            leg = move.leg
            if leg is None:
                if not all(started.same(each) for each in others):
                    yield f"{entry}: another template beside those that run, and no record of it"
            elif leg.old is not None and leg.new is not None:
                old, new = started.same(leg.old), started.same(leg.new)
                if not old and not new:
                    yield f"{entry}: the record names neither as old nor as new what it starts"
                elif not old and leg.phase in BACK:
                    yield f"{entry}: starts a new one while the rollout is {leg.phase}"
                elif not new and leg.phase == "complete":
                    yield f"{entry}: starts an old one after the rollout"

    def _share(self, move: Move) -> Iterator[str]:
        """A canary has no more new instances than its step says."""
        leg, steps = move.leg, self._bounds.canary
        if not steps or leg is None or leg.phase in OVER or leg.step >= len(steps):
            return
        share = next((weight for weight in reversed(steps[: leg.step + 1]) if weight is not None), 0)
        most = max(1, math.floor(self._bounds.wanted * share / 100 + 0.5))
        loads = [entry for entry in self._loads(move) if leg.starts(move.after[entry.key].template)]
        new = [each for each in move.after.values() if each.live and leg.starts(each.template)]
        count = sum(self._steady(each.node, move.time) for each in new)
        if loads and count > most:
            yield f"{loads[-1]}: makes {count} new ones where {share:g} % of {self._bounds.wanted} may be"

    def _whole(self, move: Move) -> Iterator[str]:
        """A rollout is complete, or switched, or reverted, once all that is wanted is healthy on that side."""
        leg, before = move.leg, move.leg_before
        if leg is None or leg.phase not in SETTLED or (before and before.phase == leg.phase):
            return
        new = [each for each in move.before.values() if leg.starts(each.template)]
        old = [each for each in move.before.values() if not leg.starts(each.template)]
        count = sum(self._perhaps_healthy(each, move.time) for each in (old if leg.phase == "reverted" else new))
        if count < self._bounds.wanted - self._bounds.max_unavailable:
            yield f"{leg.entry}: {leg.phase} with {count} healthy ones where {self._bounds.wanted} are wanted"
        if leg.phase == "reverted" and any(each.live for each in new):
            yield f"{leg.entry}: reverted, and there are new ones"

    # How things stood.

    def _loads(self, move: Move) -> list[Entry]:
        return [
            entry for entry in move.entries if self._service.owns(entry.key) and entry.fields.get("state") == "LOAD"
        ]

    def _takes(self, entry: Entry, move: Move) -> bool:
        """Whether a leader ends with this what served."""
        if entry.key not in move.before:
            return False
        if entry.gone:
            return move.before[entry.key].state != "UNLOADING" or bool(guard(entry))
        return entry.fields.get("state") in AWAY

    def _surely_healthy(self, each: Instance, time: float) -> bool:
        """Whether a leader has to take it for healthy."""
        least = self._bounds.min_healthy + self._blur
        return each.up is not None and time - each.up >= least and self._steady(each.node, time)

    def _perhaps_healthy(self, each: Instance, time: float) -> bool:
        """Whether a leader may take it for healthy: what has just happened to it may be unknown."""
        least = self._bounds.min_healthy - self._blur
        healthy = each.up is not None and time - each.up >= least
        fell = each.fell
        unheard = fell is not None and time - fell.until <= self._grace and fell.until - fell.since >= least
        return (healthy or unheard) and any(value is not None for value in self._node(each.node, time))

    def _steady(self, node: str, time: float) -> bool:
        """Whether a node was registered all the while."""
        return all(value is not None for value in self._node(node, time))

    def _node(self, node: str, time: float) -> list[Any]:
        """What its registration was lately."""
        return self._nodes[node].during(time - self._grace, time) if node in self._nodes else [None]


def _way(last: Leg | None, leg: Leg) -> Iterator[str]:
    """What is wrong with the way from one record to the next."""
    if last is not None and last.same_as(leg):
        if leg.phase not in WAYS[last.phase]:
            yield f"is no way on from {last.phase}"
        elif leg.step < last.step and leg.phase not in BACK:
            yield f"goes back from step {last.step}"
        return
    if leg.phase not in BEGINNINGS:
        yield f"begins a rollout as {leg.phase}"
    if leg.step != 0:
        yield f"begins a rollout with step {leg.step}"
    if last is not None:
        yield from _succession(last, leg)


def _succession(last: Leg, leg: Leg) -> Iterator[str]:
    """What is wrong with where a rollout after another one would go back to."""
    assert last.old is not None
    assert last.new is not None
    assert leg.old is not None
    stable = last.new if last.phase == "complete" else last.old
    if not leg.old.same(stable):
        yield f"would go back to what was not healthy as a whole, and not to {stable.version} {stable.digest}"
