"""Cuts orders into parts that fit a batch. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from operator import attrgetter

from msgspec import Struct
from msgspec.structs import replace

from cdm.manager.outbox import Order, Outbox
from cdm.manager.plan import Command
from cdm.model.artifact import Artifact
from cdm.model.keys import LastValidKey, RolloutKey, encode
from cdm.model.last_valid import LastValid
from cdm.model.record import Rollout
from cdm.model.slice import SliceState
from cdm.store.batch import MAX_BATCH, Write
from cdm.store.wire import DELETE, dump

_says = attrgetter(*(field for field in Command.__struct_fields__ if field not in ("key", "reason")))
"""All that is written of a command under its key."""


class BatchPart(Struct, frozen=True):
    """What goes into one batch."""

    term: int
    writes: list[Write]
    finished: list[Artifact]
    """Artifacts whose orders it completes."""
    touched: list[Artifact]
    """All artifacts that it is about."""
    kinds: Counter[SliceState | None]
    """How many commands of each kind there are in it; None: deletes of slices' keys."""


class Cutter:
    """Takes orders from the outbox, part by part."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._rest: Order | None = None
        """What is left of an order that was begun."""

    @property
    def waiting(self) -> int:
        """How many commands wait for a batch."""
        return self._outbox.queued + (self._rest.size if self._rest else 0)

    def cut(self, term: int, *, one_order: bool) -> BatchPart | None:
        """The next part, of one order or of as many as fit; None where nothing is to be written.

        Orders of other terms are dropped.
        """
        part = BatchPart(term, [], [], [], Counter())
        while (room := MAX_BATCH - len(part.writes)) and (order := self._take()):
            if order.term != term:
                continue
            ahead = [
                *(_write_beside(RolloutKey(service), record) for service, record in order.records.items()),
                *(_write_beside(LastValidKey(artifact), copy) for artifact, copy in order.copies.items()),
            ]
            if len(ahead) > room:  # these and the first commands go together
                self._rest = order
                break
            part.writes.extend(ahead)
            room -= len(ahead)
            commands = order.commands[:room]
            part.writes.extend(_writes(commands, term))
            for command in commands:
                part.kinds[command.state] += 1
            part.touched.extend((order.artifact, *order.also))
            if len(order.commands) > room:
                self._rest = replace(order, commands=order.commands[room:], records={}, copies={})
            else:
                part.finished.extend((order.artifact, *order.also))
                if one_order:
                    break
        return part if part.writes else None

    def drop(self, artifacts: Collection[Artifact]) -> None:
        """Write nothing more of an order of these artifacts that was begun."""
        if self._rest is not None and not {self._rest.artifact, *self._rest.also}.isdisjoint(artifacts):
            self._rest = None

    def drop_all(self) -> list[Artifact]:
        """Write nothing more of any order; returns the artifacts that they are about."""
        dropped: list[Artifact] = []
        while order := self._take():
            dropped.extend((order.artifact, *order.also))
        return dropped

    def _take(self) -> Order | None:
        rest, self._rest = self._rest, None
        return rest or self._outbox.take_order()


def _write_beside(key: RolloutKey | LastValidKey, value: Rollout | LastValid | None) -> Write:
    return Write(encode(key), b"", DELETE) if value is None else Write(encode(key), dump(value))


def _writes(commands: Iterable[Command], term: int) -> Iterator[Write]:
    """Commands as writes; what several in a row say alike, as the LOADs of one blueprint do, is encoded once."""
    said: tuple[object, ...] = ()
    payload = b""
    for command in commands:
        if command.state is None:
            yield Write(encode(command.key), b"", DELETE)
            continue
        says = _says(command)
        if says != said:
            said, payload = says, dump(command.value(term))
        yield Write(encode(command.key), payload)
