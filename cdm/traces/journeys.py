"""What became of a blueprint, from its put until its slices were ACTIVE, as spans of time. Pure.

They are made from what a leader notes for events: whoever leads next may make the last ones again, with the same ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Struct, field

from cdm.dispatch.messages import DeclaredPut, ValuePut, ValueRemove
from cdm.manager.journal import Note
from cdm.model.artifact import Artifact
from cdm.model.event import UNKNOWN
from cdm.model.keys import BlueprintKey, SliceKey, StatusKey, decode_artifact, encode_artifact
from cdm.model.slice import SliceState, SliceValue
from cdm.model.status import Condition, Status

_GIVEN_UP = (SliceState.UNLOAD, SliceState.UNLOADING)


class JourneySpan(Struct, frozen=True):
    """One span. Times in seconds since 1970, by the server's clock."""

    trace: str
    """What the trace is about, as ``blueprints@17``."""
    about: str
    """What the span is about; no other of its trace is about the same."""
    parent: str
    """What its parent is about; empty: it has none."""
    name: str
    start: float
    end: float
    attributes: dict[str, str | int]
    failed: str = ""
    """Why it failed; empty: it did not."""


class _Put(Struct, frozen=True):
    """A blueprint that is not Ready yet."""

    revision: int
    at: float
    by: str


class _Journey(Struct):
    """A slice on its way."""

    trace: str
    parent: str
    about: str
    since: float
    attributes: dict[str, str | int]
    stages: list[tuple[str, float]] = field(default_factory=list)
    """What was reached, and when."""


class Journeys:
    """Makes spans of notes."""

    def __init__(self) -> None:
        self._puts: dict[str, _Put] = {}
        """By the name of the artifact in keys."""
        self._under_way: dict[SliceKey, _Journey] = {}

    def take(self, note: Note, epoch: float) -> Iterator[JourneySpan]:
        """Take in what happened; yields what is over by it.

        Args:
            note: what happened.
            epoch: the server's clock less that of the note.
        """
        message: Any = note.message
        at = note.at + epoch
        match message:
            case ValuePut(key=BlueprintKey(artifact), revision=revision):
                by = message.by if isinstance(message, DeclaredPut) else UNKNOWN
                self._puts[encode_artifact(artifact)] = _Put(revision, at, by)
            case ValueRemove(key=BlueprintKey(artifact)):
                self._puts.pop(encode_artifact(artifact), None)
            case ValuePut(key=SliceKey() as key, value=SliceValue() as value, revision=revision):
                yield from self._slice(key, value, revision, at)
            case ValueRemove(key=SliceKey() as key):
                self._under_way.pop(key, None)
            case ValuePut(key=StatusKey(name), value=Status(condition=Condition.READY) as status):
                yield from self._ready(name, status, at)

    def _slice(self, key: SliceKey, value: SliceValue, revision: int, at: float) -> Iterator[JourneySpan]:
        state = value.state
        if state is SliceState.LOAD:
            self._under_way[key] = self._begun(key, value, revision, at)
        elif state in _GIVEN_UP:
            self._under_way.pop(key, None)
        elif (journey := self._under_way.get(key)) is None:
            return
        elif state is SliceState.LOADED:
            journey.stages.append(("LOADED", at))
        elif state is SliceState.ACTIVE or state is SliceState.FAILED:
            del self._under_way[key]
            journey.stages.append((state, at))
            yield from _spans(journey, (value.reason or "no reason given") if state is SliceState.FAILED else "")

    def _begun(self, key: SliceKey, value: SliceValue, revision: int, at: float) -> _Journey:
        """Where the blueprint is not Ready yet, the slice is a part of that; else it has a trace of its own."""
        put = self._puts.get(encode_artifact(key.artifact))
        told: dict[str, str | int] = {
            "cdm.artifact": str(key.artifact),
            "cdm.node": key.node,
            "cdm.ordinal": key.ordinal,
            "cdm.term": value.term,
        }
        about = f"slices@{revision}"
        if put is not None and value.blueprint == put.revision:
            trace = f"blueprints@{put.revision}"
            began = min(put.at, at)
            return _Journey(trace, trace, about, began, told, [("LOAD", at)])
        return _Journey(about, "", about, at, told)

    def _ready(self, name: str, status: Status, at: float) -> Iterator[JourneySpan]:
        put = self._puts.get(name)
        if put is None or status.in_force_revision != put.revision:
            return
        del self._puts[name]
        trace = f"blueprints@{put.revision}"
        told: dict[str, str | int] = {
            "cdm.artifact": str(_shown(name)),
            "cdm.blueprint": put.revision,
            "cdm.by": put.by,
            "cdm.instances": status.desired,
            "cdm.term": status.term,
        }
        yield JourneySpan(trace, trace, "", f"serve {_shown(name)}", put.at, max(put.at, at), told)


def _spans(journey: _Journey, failed: str) -> Iterator[JourneySpan]:
    """The slice's span, and one for each stage."""
    end = max(journey.since, journey.stages[-1][1])
    name = f"start {journey.attributes['cdm.artifact']} on {journey.attributes['cdm.node']}"
    yield JourneySpan(
        journey.trace, journey.about, journey.parent, name, journey.since, end, journey.attributes, failed
    )
    start, before = journey.since, "put" if journey.parent else "LOAD"
    for reached, at in journey.stages:
        over = max(start, at)
        why = failed if reached == SliceState.FAILED else ""
        about = f"{journey.about}.{reached}"
        yield JourneySpan(
            journey.trace, about, journey.about, f"{before} to {reached}", start, over, journey.attributes, why
        )
        start, before = over, reached


def _shown(name: str) -> Artifact | str:
    try:
        return decode_artifact(name)
    except ValueError:
        return name
