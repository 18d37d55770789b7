"""What the leader would do if blueprints were other ones: a manager that leads nothing is told so, and decides. Pure.

It decides twice on one look at the buckets, without the change and with it: what is told is what differs. What it
commands is taken for stored, and no agent answers: that shows the first step of everything, and what cannot be done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from cdm.dispatch.messages import LeaderChange, Message, Tick, ValuePut, ValueRemove, Written
from cdm.manager.onlooker import NOBODY, Onlooker
from cdm.manager.outbox import Order
from cdm.manager.plan import Command
from cdm.model.artifact import Artifact, Service
from cdm.model.blueprint import Blueprint
from cdm.model.keys import BlueprintKey, LastValidKey, RolloutKey, SliceKey, encode_artifact
from cdm.model.last_valid import LastValid
from cdm.model.record import Rollout
from cdm.model.slice import SliceValue
from cdm.model.status import Status

_MOST_TURNS = 100
"""Most turns of deciding and storing; two are usual, and a third finds nothing more to do."""
_LONG = 1e6
"""Seconds: longer than any leader that begins waits for nodes."""

Changes = Mapping[Artifact, Blueprint | None]
"""Blueprints as they are to be; None: there is to be none."""


class Foreseen(Struct, frozen=True):
    """What a change leads to first."""

    commands: Sequence[Command]
    """Those that come of the change."""
    rollouts: Mapping[Service, Rollout]
    """Records of rollouts that it begins, or has go on another way."""
    statuses: Mapping[Artifact, Status]
    """What is told then of all blueprints."""
    statuses_before: Mapping[Artifact, Status]
    """What is told without the change."""
    look: Onlooker
    """The cluster as it is, without the change."""


def foresee(messages: Sequence[Message], now: float, changes: Changes) -> Foreseen:
    """What follows from other blueprints.

    Args:
        messages: what the buckets hold.
        now: the time of that, in seconds on this process's clock.
        changes: the blueprints that are other ones.
    """
    without, after = _Rehearsal(messages, now), _Rehearsal(messages, now)
    without.run({})
    after.run(changes)
    known = {(command.key, command.state) for command in without.commands}
    return Foreseen(
        [command for command in after.commands if (command.key, command.state) not in known],
        {
            service: record
            for service, record in after.records.items()
            if record is not None and record != without.records.get(service)
        },
        after.statuses(),
        without.statuses(),
        Onlooker(messages, now),
    )


class _Rehearsal:
    """A manager that believes that it leads."""

    def __init__(self, messages: Iterable[Message], now: float) -> None:
        self._look = Onlooker(messages, now)
        self._now = now
        self._revision = max(
            self._look.cluster.revision, *(each.observed for each in self._look.cluster.desired.values()), 0
        )
        self.commands: list[Command] = []
        self.records: dict[Service, Rollout | None] = {}
        self._told: dict[str, Status | None] = {}

    def run(self, changes: Changes) -> None:
        look = self._look
        term = self._term = 1 + max((each.term for each in look.cluster.statuses.values()), default=0)
        look.now = self._now - _LONG  # so long ago that it waits for no node any more
        look.route(LeaderChange(NOBODY, term, local_node_is_leader=True))
        look.now = self._now
        for artifact, blueprint in changes.items():
            look.route(self._change(BlueprintKey(artifact), blueprint))
        for _ in range(_MOST_TURNS):
            look.route(Tick(self._now))
            if not look.outbox.orders:
                break
            while (order := look.outbox.take_order()) is not None:
                self._store(order)
        self._told = look.outbox.take_statuses(len(look.outbox.statuses))

    def _change(self, key: BlueprintKey, blueprint: Blueprint | None) -> Message:
        self._revision += 1
        if blueprint is None:
            removed: ValueRemove[BlueprintKey, Blueprint] = ValueRemove(key, self._revision, at=self._now)
            return removed
        return ValuePut(key, blueprint, self._revision, self._now)

    def _store(self, order: Order) -> None:
        """Have the mirrors show what is ordered."""
        look = self._look
        for service, record in order.records.items():
            self.records[service] = record
            key = RolloutKey(service)
            self._revision += 1
            if record is None:
                over: ValueRemove[RolloutKey, Rollout] = ValueRemove(key, self._revision, at=self._now)
                look.route(over)
            else:
                look.route(ValuePut(key, record, self._revision, self._now))
        for artifact, copy in order.copies.items():
            self._revision += 1
            look.route(_of_copy(LastValidKey(artifact), copy, self._revision, self._now))
        for command in order.commands:
            self.commands.append(command)
            self._revision += 1
            if command.state is None:
                gone: ValueRemove[SliceKey, SliceValue] = ValueRemove(command.key, self._revision, at=self._now)
                look.route(gone)
            else:
                look.route(ValuePut(command.key, command.value(self._term), self._revision, self._now))
        for artifact in (order.artifact, *order.also):
            look.route(Written(artifact, self._term, self._revision))

    def statuses(self) -> dict[Artifact, Status]:
        """What is told of each blueprint."""
        known = self._look.cluster.statuses | self._told
        named = ((artifact, known.get(encode_artifact(artifact))) for artifact in self._look.cluster.desired)
        return {artifact: status for artifact, status in named if status is not None}


def _of_copy(key: LastValidKey, copy: LastValid | None, revision: int, now: float) -> Message:
    if copy is None:
        gone: ValueRemove[LastValidKey, LastValid] = ValueRemove(key, revision, at=now)
        return gone
    return ValuePut(key, copy, revision, now)
