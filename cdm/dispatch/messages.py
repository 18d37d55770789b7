"""What travels over the router. Every message is a frozen value that names its topic.

A topic is the pair of the message's class and, for messages about a key, the key's class; it is all that dispatch
looks at. `MESSAGES` lists every message that there is.
"""

from __future__ import annotations

from enum import StrEnum, unique
from typing import Any, Generic, TypeVar

from msgspec import Struct

from cdm.model.artifact import Artifact, NodeId, Service
from cdm.model.check import Check, CheckOutcome
from cdm.model.keys import ARTIFACTS, LAYOUTS, STATUS, Key
from cdm.model.node import Intent, Registration

K = TypeVar("K", bound=Key, covariant=True)
V = TypeVar("V", covariant=True)

Topic = tuple[type[Any], type[Any] | None]


class Message(Struct, frozen=True, gc=False):
    """Base of all messages. One whose topic is its class alone needs nothing more."""

    @property
    def topic(self) -> Topic:
        """What dispatch looks at."""
        return (type(self), None)


class KeyedMessage(Message, Generic[K], frozen=True, gc=False):
    """Base of messages about one key of a bucket."""

    key: K

    @property
    def topic(self) -> Topic:
        """The message's class and its key's."""
        return (type(self), type(self.key))


class ValuePut(KeyedMessage[K], Generic[K, V], frozen=True, gc=False):
    """A key was given a value."""

    value: V
    revision: int
    """Sequence of the write in its bucket."""
    at: float = 0.0
    """When the server stored it, in seconds on this node's clock (`cdm.clock`)."""


class DeclaredPut(ValuePut[K, V], Generic[K, V], frozen=True, gc=False):
    """A key was given a value by somebody who said who that was: received as any other `ValuePut`."""

    by: str = ""
    """Who wrote it, as declared."""


@unique
class Cause(StrEnum):
    """Why a key is gone."""

    DELETED = "deleted"
    """Somebody deleted or purged it."""
    EXPIRED = "expired"
    """Its TTL ended."""
    MISSING = "missing"
    """It was not there any more when the bucket was listed again."""


class ValueRemove(KeyedMessage[K], Generic[K, V], frozen=True, gc=False):
    """A key is gone."""

    revision: int
    """Sequence of the marker that tells of it; where there is none, that of the value that expired, or else the last
    sequence known of the bucket."""
    cause: Cause = Cause.DELETED
    at: float = 0.0
    by: str = ""
    """Who deleted it, as declared; empty: nobody said."""


class ValueRejected(KeyedMessage[K], Generic[K, V], frozen=True, gc=False):
    """A key was given a value that does not decode."""

    reason: str
    revision: int
    at: float = 0.0
    removed: int = 0
    """Revision at which the key was last deleted before this, where that is known; 0: it is not."""
    by: str = ""
    """Who wrote it, as declared; empty: nobody said."""


class KeyRejected(Message, Generic[K], frozen=True, gc=False):
    """A bucket holds a key that does not decode. ``kind`` is the kind of key that belongs there."""

    kind: type[K]
    name: str
    """The key's string, as it is in the bucket."""
    reason: str
    revision: int

    @property
    def topic(self) -> Topic:
        """The message's class and the kind of key that the bucket is for."""
        return (type(self), self.kind)


class RejectedKeyRemoved(Message, Generic[K], frozen=True, gc=False):
    """A key that did not decode is gone."""

    kind: type[K]
    name: str

    @property
    def topic(self) -> Topic:
        """The message's class and the kind of key that the bucket is for."""
        return (type(self), self.kind)


class LeaderChange(Message, frozen=True, gc=False):
    """Somebody else leads, or nobody does, or this node does.

    For this node's own leadership it is routed only after the read barrier: all mirrors are complete by then.
    """

    leader: NodeId | None
    term: int
    local_node_is_leader: bool


class ContentsUnknown(Message, frozen=True, gc=False):
    """What the artifacts consist of cannot be read: what was told of it before does not hold any more."""


class Connected(Message, frozen=True, gc=False):
    """Nodes can be heard (again): NATS is connected, the mirror is complete, and heartbeats are accepted."""

    at: float


class Disconnected(Message, frozen=True, gc=False):
    """Nodes cannot be heard: the connection to NATS is down, or heartbeats are not accepted."""

    at: float


class Tick(Message, frozen=True, gc=False):
    """Time has passed, or there is work: whoever asked to be woken looks at the clock."""

    at: float


class NodeJoined(Message, frozen=True):
    """A node has registered, or registered anew with another description or incarnation."""

    node: NodeId
    registration: Registration


class NodeLeft(Message, frozen=True, gc=False):
    """A node took its registration back: it stopped in good order."""

    node: NodeId


class NodeMissing(Message, frozen=True, gc=False):
    """A node's registration is gone, but it is too early to call the node dead."""

    node: NodeId


class NodeDied(Message, frozen=True, gc=False):
    """A node has not been heard of for its whole TTL while this process could have heard it."""

    node: NodeId


class IntentChanged(Message, frozen=True, gc=False):
    """An operator cordoned or drained a node, or made it schedulable again."""

    node: NodeId
    intent: Intent


class Written(Message, frozen=True, gc=False):
    """All commands of one order are stored; ``revision`` is the last one's sequence."""

    artifact: Artifact
    term: int
    revision: int


class FenceRenewal(Message, frozen=True, gc=False):
    """The outcome of a write of this term is unknown, so its fence is being written anew, or was.

    Nothing is decided until the mirror of ``slices`` has reached the fence's new revision.
    """

    term: int
    revision: int | None
    """The fence's new revision; None: not stored yet."""


class WriteFailed(Message, frozen=True, gc=False):
    """An order's commands are not stored, or nobody knows whether they are."""

    artifact: Artifact
    term: int
    revision: int
    """The stream's last sequence after the failure: a mirror that has come this far shows what became of it."""
    reason: str


class CheckResult(Message, frozen=True, gc=False):
    """A check of a rollout was made once."""

    service: Service
    series: str
    """The `CheckRun.series` that was to be judged when the check was made."""
    index: int
    """Which of the rollout's checks."""
    check: Check
    """What it was then: it may be another one by now."""
    outcome: CheckOutcome
    value: float | None
    """What was measured; None: no number."""
    reason: str
    """In plain words, what came of it; in one line."""
    at: float
    """When, in seconds on this node's clock."""
    asked: str = ""
    """The request, for people, where it is another one each time: to one of several instances."""


def about(*kinds: type[Key]) -> tuple[Any, ...]:
    """The messages that a watch sends about keys of these kinds, as a router takes them."""
    return tuple(message[kind, kind.value_type] for kind in kinds for message in (ValuePut, ValueRemove, ValueRejected))


def about_rejected(*kinds: type[Key]) -> tuple[Any, ...]:
    """The messages about keys that do not decode, in buckets for keys of these kinds."""
    return tuple(message[kind] for kind in kinds for message in (KeyRejected, RejectedKeyRemoved))


MESSAGES: tuple[Any, ...] = (
    *(message for layout in LAYOUTS for message in about(*layout.kinds)),
    *(message for layout in LAYOUTS if layout is not STATUS for message in about_rejected(layout.kinds[0])),
    *about(*ARTIFACTS.kinds),
    ContentsUnknown,
    LeaderChange,
    Connected,
    Disconnected,
    Tick,
    NodeJoined,
    NodeLeft,
    NodeMissing,
    NodeDied,
    IntentChanged,
    Written,
    WriteFailed,
    FenceRenewal,
    CheckResult,
)
"""Every message that there is, as a router takes them. (Every key of ``status`` and ``artifacts`` decodes.)"""
