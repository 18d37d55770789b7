"""What the page shows, as facts: each has a name and a value of JSON, and another value replaces it. Pure.

A fact is made of one message about one key, so that a change costs what it is, and not what the cluster is. The page
puts them together. Names begin with what they are about:

- ``b/``: a blueprint as it was written, by its artifact
- ``t/``: what the leader says of it (its status)
- ``n/``: a node's registration
- ``i/``: what an operator wants of a node
- ``g/``: what is remembered of a node
- ``s/``: a slice, by its key in the bucket
- ``x/``: a key that cannot be read, and why
- ``leader``, ``term``, ``away``: who leads since which term; since when NATS is away
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from cdm.dispatch.messages import KeyRejected, Message, RejectedKeyRemoved, ValuePut, ValueRejected, ValueRemove
from cdm.errors import ModelError
from cdm.model.blueprint import Blueprint
from cdm.model.keys import (
    BlueprintKey,
    FenceKey,
    IntentKey,
    Key,
    LeaseKey,
    NodeKey,
    SeenKey,
    SliceKey,
    StatusKey,
    decode_artifact,
    encode,
    place,
)
from cdm.model.node import UNREADABLE_INTENT, Intent, Lease, Registration, Seen
from cdm.model.slice import SliceValue
from cdm.model.status import Status

Value = Any
"""Something that JSON can say; None: there is no such fact any more."""
Fact = tuple[str, Value]

_OF_NODES: dict[type[Key], str] = {NodeKey: "n", IntentKey: "i", SeenKey: "g"}
MOST_GONE = 20_000
"""Facts that are no more and that are told of to those who missed it; who missed more is told everything."""


def told(message: Message, epoch: float) -> Iterator[Fact]:
    """The facts that a message makes.

    Args:
        message: about a bucket.
        epoch: what is added to the times of messages to get seconds since 1970.
    """
    match message:
        case ValuePut(key=Key() as key):
            if (name := _name(key)) is not None:
                yield name, _value(message, epoch)
            yield _unreadable(key), None
        case ValueRemove(key=Key() as key):
            if (name := _name(key)) is not None:
                yield name, None
            yield _unreadable(key), None
        case ValueRejected(key=Key() as key, reason=reason):
            if (name := _name(key)) is not None:
                yield name, _refused(key, reason, message.revision, _at(message.at, epoch))
            yield _unreadable(key), None if isinstance(key, BlueprintKey) else reason
        case KeyRejected(kind=kind, name=name, reason=reason):
            yield _unreadable((kind, name)), reason
        case RejectedKeyRemoved(kind=kind, name=name):
            yield _unreadable((kind, name)), None


def _name(key: Key) -> str | None:
    """What the fact about a key is called; None: the page shows nothing of it."""
    match key:
        case SliceKey():
            return f"s/{encode(key)}"
        case BlueprintKey(artifact):
            return f"b/{artifact}"
        case StatusKey(name):
            with suppress(ModelError):
                return f"t/{decode_artifact(name)}"
        case NodeKey(node) | IntentKey(node) | SeenKey(node):
            return f"{_OF_NODES[type(key)]}/{node}"
        case LeaseKey() | FenceKey():
            return "leader" if isinstance(key, LeaseKey) else "term"
    return None


def _value(put: ValuePut[Any, Any], epoch: float) -> Value:
    key, value = put.key, put.value
    at = _at(put.at, epoch)
    match value:
        case SliceValue():
            return _slice(key, value, at)
        case Blueprint():
            told: dict[str, Value] = {"revision": put.revision, "at": at, "instances": value.instances}
            return {**told, "each": True} if value.each else told
        case Status():
            return _status(value)
        case Registration():
            return _node(value)
        case Intent():
            return {"schedule": str(value.schedule), "reason": value.reason, "at": at}
        case Seen():
            return None if value.gone is None else {"gone": value.gone, "at": at, "labels": value.registration.labels}
        case Lease():
            return str(value.node)
    return value.term


def _refused(key: Key, reason: str, revision: int, at: int) -> Value:
    """What counts where a value cannot be read."""
    match key:
        case BlueprintKey():  # what is in force instead its status says
            return {"revision": revision, "at": at, "refused": reason}
        case IntentKey():
            return {"schedule": str(UNREADABLE_INTENT.schedule), "reason": reason, "at": at}
    return None


def _slice(key: SliceKey, value: SliceValue, at: int) -> Value:
    """Ten thousand of them are told at once: a list, and no more of it than there is to say."""
    rest = [value.restarts or 0, value.failures or 0, value.port or 0, value.reason or ""]
    while rest and not rest[-1]:
        rest.pop()
    return [str(key.node), str(key.artifact), key.ordinal, str(value.state), at, *rest]


def _status(value: Status) -> Value:
    counts = {"healthy": value.healthy, "new": value.up_to_date, "old": value.outdated, "violations": value.violations}
    rollout = value.rollout
    return {
        "condition": str(value.condition),
        "reason": value.reason,
        "observed": value.observed_revision,
        "desired": value.desired,
        **{name: count for name, count in counts.items() if count is not UNSET},
        **({"rollout": msgspec.to_builtins(rollout)} if rollout else {}),
    }


def _node(value: Registration) -> Value:
    """Without what every heartbeat says anew."""
    return {
        "role": value.role,
        "runtime": value.runtime,
        "capacity": value.capacity,
        "labels": value.labels,
        "version": value.version,
        "started": value.started,
        "address": value.address,
        "cpu": value.cpu,
        "memory": value.memory,
        "load": value.load,
        "leaving": value.leaving,
    }


def _at(at: float, epoch: float) -> int:
    return int(max(at + epoch, 0))


def _unreadable(which: Key | tuple[type[Key], str]) -> str:
    return "x/{}/{}".format(*place(which))


class FactChanges(NamedTuple):
    """What changed, for somebody who knew the facts up to a number."""

    number: int
    """Up to which they are known with this."""
    whole: bool
    """Whether these are all facts, and everything else that is known is no more."""
    facts: dict[str, Value]
    """By name; None: no more."""


class PageFacts:
    """All facts as they are now; each knows the number of its last change: who comes back is told what is new."""

    def __init__(self) -> None:
        self.number = 0
        """Of the last change."""
        self._facts: OrderedDict[str, tuple[int, Value]] = OrderedDict()
        """In the order of their last change."""
        self._gone = 0
        self._forgotten = 0
        """Of what is no more since before this change it is not known any more."""

    def note(self, name: str, value: Value) -> bool:
        """Take in a fact; returns whether it is new."""
        before = self._facts.get(name)
        if before is None and value is None:
            return False
        if before is not None:
            if before[1] == value:
                return False
            self._gone -= before[1] is None
        self._gone += value is None
        self.number += 1
        self._facts[name] = (self.number, value)
        self._facts.move_to_end(name)
        if self._gone > MOST_GONE:
            self._forget()
        return True

    def get(self, name: str) -> Value:
        """A fact as it is now; None: there is none."""
        return self._facts.get(name, (0, None))[1]

    def since(self, number: int | None = None) -> FactChanges:
        """What has changed since a number; everything, where that is None or too long ago."""
        if number is None or not self._forgotten <= number <= self.number:
            return FactChanges(self.number, True, {name: it for name, (_, it) in self._facts.items() if it is not None})
        news: dict[str, Value] = {}
        for name, (changed, value) in reversed(self._facts.items()):
            if changed <= number:
                break
            news[name] = value
        return FactChanges(self.number, False, news)

    def _forget(self) -> None:
        self._forgotten = self.number
        for name in [name for name, (_, value) in self._facts.items() if value is None]:
            del self._facts[name]
        self._gone = 0
