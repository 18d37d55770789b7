"""What happened, as the leader tells it in the stream of events: CloudEvents 1.0, in JSON.

An event is told under a subject of its own, ``cdm.event.{kind}.{node or _}.{artifact key or _}``, so that whoever wants
to hear of one node, one artifact or one kind asks for no more than that.
"""

from __future__ import annotations

from contextlib import suppress
from enum import StrEnum, unique

from msgspec import Struct, field

from cdm.errors import InvalidArtifact
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import encode_artifact, encode_node
from cdm.model.slice import SliceState

EVENTS = "cdm_events"
"""Name of the stream, without prefix."""
NONE = "_"
"""Stands in a subject for the node or artifact of an event that is about none."""
UNKNOWN = "unknown"
"""Who wrote something, where nobody said."""
LONGEST_REASON = 2_000
"""Most characters of a reason that are told; the value itself holds all of it."""
TYPE = "cdm."
"""What the types of events begin with; their kind follows."""


@unique
class EventKind(StrEnum):
    """What happened. The states of slices are kinds, too: `SLICE_KINDS`."""

    GONE = "gone"
    """A slice's key was deleted: the instance is no more."""
    BLUEPRINT = "blueprint"
    """A blueprint was written, or removed."""
    REFUSED = "refused"
    """A blueprint was written that is not valid."""
    CONDITION = "condition"
    """A blueprint has another condition."""
    ROLLOUT = "rollout"
    """A rollout began, takes its next step, or is over."""
    INTENT = "intent"
    """A node was cordoned or drained, or takes slices again."""
    JOINED = "joined"
    """A node registered."""
    CHANGED = "changed"
    """A node says something else of itself than before."""
    LEFT = "left"
    """A node stopped in good order."""
    LOST = "lost"
    """A node was not heard of for its whole TTL."""
    FORGOTTEN = "forgotten"
    """What was remembered of a node was removed."""
    LEADER = "leader"
    """A node took over."""
    DROPPED = "dropped"
    """There were more events than could be told: ``count`` of them are missing."""


SLICE_KINDS = tuple(state.lower() for state in SliceState)
"""The kinds of events that tell of a slice's state, in the order of a slice's life."""
KINDS = (*SLICE_KINDS, *EventKind)
"""All kinds."""


class EventData(Struct, frozen=True, omit_defaults=True):
    """What is told of an event; what does not apply is left out."""

    node: str = ""
    artifact: str = ""
    """``group:name:version``; of a rollout, the version that takes over."""
    ordinal: int = 0
    """Of several slices of one artifact on one node, which one."""
    source: str = field(name="from", default="")
    """What was before: a slice's state, a blueprint's instances or condition, a rollout's phase, a node's schedule."""
    to: str = ""
    """The same, since."""
    reason: str = ""
    term: int = 0
    """The leadership in which it was decided, or commanded."""
    by: str = ""
    """Who wrote it, as declared in the header ``Cdm-By``; ``unknown`` where nobody said."""
    cause: str = ""
    """The write that led to it, ``bucket@revision``."""
    blueprint: int = 0
    """Of a slice: revision of the blueprint that it serves."""
    fatal: bool = False
    """Of a failure: trying again soon does not help."""
    changes: tuple[str, ...] = ()
    """What is different, in words."""
    count: int = 0


class Event(Struct, frozen=True):
    """One event, as it is stored."""

    id: str
    """Derived from the write that it tells of: two leaders that tell of the same write tell it once."""
    type: str
    """``cdm.`` and the kind."""
    subject: str
    """The key that it is about."""
    time: str
    """When the write that it tells of was stored, by the server's clock; RFC 3339."""
    data: EventData
    source: str = "/cdm"
    """Which cluster tells it: with a prefix ``/PREFIX/cdm``."""
    specversion: str = "1.0"
    datacontenttype: str = "application/json"

    @property
    def kind(self) -> str:
        """One of `KINDS`, or what a later version calls so."""
        return self.type.removeprefix(TYPE)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The subject that it is told under, without prefix."""
        artifact, node = NONE, self.data.node
        with suppress(InvalidArtifact):
            artifact = encode_artifact(Artifact.parse(self.data.artifact))
        return ("cdm", "event", self.kind, encode_node(NodeId(node)) if node else NONE, artifact)


def event_filter(
    kind: str | None = None, node: NodeId | None = None, artifact: Artifact | None = None
) -> tuple[str, ...]:
    """The subjects of all events of a kind, of a node and of an artifact, as far as given; without prefix."""
    return (
        "cdm",
        "event",
        "*" if kind is None else kind,
        "*" if node is None else encode_node(node),
        ">" if artifact is None else encode_artifact(artifact),
    )
