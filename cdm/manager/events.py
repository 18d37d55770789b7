"""What a note of the journal comes to as an event. Pure.

An event's id is derived from the write that it tells of, never from who tells it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from msgspec import to_builtins

from cdm.dispatch.messages import (
    Cause,
    DeclaredPut,
    LeaderChange,
    NodeDied,
    NodeLeft,
    ValuePut,
    ValueRejected,
    ValueRemove,
)
from cdm.errors import InvalidKey
from cdm.manager.cluster import Desired
from cdm.manager.group import SlicePut
from cdm.manager.journal import TELLABLE, Note
from cdm.manager.outbox import Order
from cdm.model.artifact import Artifact
from cdm.model.blueprint import Blueprint
from cdm.model.edit import Fields, differences
from cdm.model.event import LONGEST_REASON, SLICE_KINDS, TYPE, UNKNOWN, Event, EventData, EventKind
from cdm.model.keys import (
    BlueprintKey,
    IntentKey,
    Key,
    NodeKey,
    RolloutKey,
    SeenKey,
    SliceKey,
    StatusKey,
    decode_artifact,
    encode,
)
from cdm.model.node import Intent, Registration, Schedule
from cdm.model.record import Rollout
from cdm.model.slice import TRANSITIONS, SliceState, Writer
from cdm.model.status import Status

MOST_CHANGES = 20
"""Most changes of one blueprint, or node, that are told."""
LONGEST_WORDS = 200
"""Most characters of a change, and of a name that somebody gave, that are told."""
_PLAIN_ID = re.compile(r"[!-~]{1,200}")
"""Ids that are told as they are: they are headers, and nodes choose what some are derived from."""
_KIND = dict(zip(SliceState, SLICE_KINDS, strict=True))


class Tidings(NamedTuple):
    """What is told, but for the time."""

    about: str
    """The write: ``bucket@revision``."""
    kind: str
    subject: str
    data: EventData


class Teller:
    """Makes events.

    Args:
        source: which cluster tells them.
        removed: revisions at which artifacts' blueprints were removed.
    """

    def __init__(self, source: str = "/cdm", removed: Mapping[Artifact, int] = MappingProxyType({})) -> None:
        self._source = source
        self._removed = removed
        self._order: Order | None = None
        """The order that was looked into last, and why it commands what."""
        self._reasons: dict[tuple[SliceKey, SliceState | None], str] = {}

    def tell(self, note: Note, epoch: float) -> Event | None:
        """The event; None: nothing worth telling.

        Args:
            note: what happened.
            epoch: the server's clock less that of the note.
        """
        told = self._told(note, epoch)
        return None if told is None else self._event(told, note.at + epoch)

    def tell_dropped(self, count: int, node: str, about: str, at: float) -> Event:
        """The event that so many are missing; ``at`` by the server's clock."""
        return self._event(Tidings(about, EventKind.DROPPED, f"nodes/{node}", EventData(node, count=count)), at)

    def _event(self, told: Tidings, at: float) -> Event:
        time = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return Event(_id(f"{told.about}.{told.kind}"), TYPE + told.kind, told.subject, time, told.data, self._source)

    def _told(self, note: Note, epoch: float) -> Tidings | None:
        message, before = note.message, note.before
        match message:
            case ValuePut(key=SliceKey()):
                return self._slice(message, before, note.beside)
            case ValueRemove(key=SliceKey()):
                return self._slice_gone(message, before, note.beside)
            case ValuePut(key=BlueprintKey()):
                return _blueprint(message, before)
            case ValueRemove(key=BlueprintKey()) | ValueRejected(key=BlueprintKey()):
                return _no_blueprint(message, before)
            case ValuePut(key=StatusKey()):
                return _condition(message, before)
            case ValuePut(key=RolloutKey()):
                return _rollout(message, before)
        return self._told_of_node(note, epoch)

    def _told_of_node(self, note: Note, epoch: float) -> Tidings | None:
        message, before = note.message, note.before
        match message:
            case ValuePut(key=IntentKey()) | ValueRemove(key=IntentKey()) | ValueRejected(key=IntentKey()):
                return _intent(message, before)
            case ValuePut(key=NodeKey()):
                return _node(message, before, known=note.beside, epoch=epoch)
            case NodeLeft() | NodeDied():
                return _node_gone(message, before)
            case ValueRemove(key=SeenKey(node)):
                return Tidings(_about(message), EventKind.FORGOTTEN, str(message.key), EventData(node, by=_by(message)))
            case LeaderChange(leader, term) if leader is not None:
                return Tidings(f"term@{term}", EventKind.LEADER, f"nodes/{leader}", EventData(leader, term=term))
        return None

    def _slice(self, put: SlicePut, before: SlicePut | None, order: Order | None) -> Tidings | None:
        key, value = put.key, put.value
        old = before.value if before is not None else None
        if old is not None and old.state is value.state and (old.restarts or 0) == (value.restarts or 0):
            return None  # its agent says something else of it, or the same again
        commanded = TRANSITIONS[value.state].writer is Writer.LEADER
        reason = self._reason(order, key, value.state) if commanded else value.reason or ""
        cause, blueprint = f"slices@{before.revision}" if before is not None else "", value.blueprint or 0
        if commanded:
            blueprint = blueprint or self._removed.get(key.artifact, 0)
            cause = f"blueprints@{blueprint}" if blueprint else cause
        data = EventData(
            key.node,
            str(key.artifact),
            key.ordinal,
            old.state if old is not None else "",
            value.state,
            _cut(reason),
            value.term,
            cause=cause,
            blueprint=blueprint,
            fatal=value.fatal,
        )
        return Tidings(f"slices@{put.revision}", _KIND[value.state], str(key), data)

    def _slice_gone(
        self, remove: ValueRemove[SliceKey, Any], before: SlicePut | None, order: Order | None
    ) -> Tidings | None:
        if before is None:
            return None
        key, old = remove.key, before.value
        reason, cause = self._reason(order, key, None), f"slices@{before.revision}"
        data = EventData(
            key.node,
            str(key.artifact),
            key.ordinal,
            old.state,
            reason=_cut(reason),
            term=old.term,
            cause=cause,
            blueprint=old.blueprint or 0,
        )
        return Tidings(_about(remove), EventKind.GONE, str(key), data)

    def _reason(self, order: Order | None, key: SliceKey, state: SliceState | None) -> str:
        """Why this was commanded, where this process commanded it."""
        if order is None:
            return ""
        if order is not self._order:
            self._order = order
            self._reasons = {(each.key, each.state): each.reason for each in order.commands}
        return self._reasons.get((key, state), "")


def _blueprint(put: ValuePut[BlueprintKey, Blueprint], before: Desired | None) -> Tidings:
    old, new = before.blueprint if before is not None else None, put.value
    if old is not None:
        changes = _changes(old.typed, new.typed) or ("the same again",)
    else:
        changes = ("created" if before is None else "mended",)
        changes += (f"rollout.from {new.rollout.source}",) if new.rollout.source else ()
    data = EventData(
        artifact=str(put.key.artifact),
        source=str(old.asked) if old is not None else "",
        to=str(new.asked),
        by=_by(put),
        blueprint=put.revision,
        changes=changes,
    )
    return Tidings(_about(put), EventKind.BLUEPRINT, str(put.key), data)


def _no_blueprint(
    message: ValueRemove[BlueprintKey, Any] | ValueRejected[BlueprintKey, Any], before: Desired | None
) -> Tidings:
    refused = isinstance(message, ValueRejected)
    old = before.blueprint if before is not None else None
    data = EventData(
        artifact=str(message.key.artifact),
        source=str(old.asked) if old is not None else "",
        reason=_cut(message.reason) if isinstance(message, ValueRejected) else "",
        by=_by(message),
        blueprint=message.revision,
        changes=() if refused else ("deleted",),
    )
    kind = EventKind.REFUSED if refused else EventKind.BLUEPRINT
    return Tidings(_about(message), kind, str(message.key), data)


def _condition(put: ValuePut[StatusKey, Status], before: Status | None) -> Tidings | None:
    status, name = put.value, put.key.name
    if before is not None and before.condition is status.condition:
        return None
    try:
        artifact = str(decode_artifact(name))
    except InvalidKey:
        artifact = ""  # whatever it is called, it is no artifact
    data = EventData(
        artifact=artifact,
        source=before.condition if before is not None else "",
        to=status.condition,
        reason=_cut(status.reason),
        term=status.term,
        cause=f"blueprints@{status.observed_revision}",
        blueprint=status.observed_revision,
    )
    return Tidings(_about(put), EventKind.CONDITION, f"status/{artifact or name}", data)


def _rollout(put: ValuePut[RolloutKey, Rollout], before: ValuePut[RolloutKey, Rollout] | None) -> Tidings | None:
    record, old = put.value, before.value if before is not None else None
    if old is not None and _stage(old) == _stage(record):
        return None
    target = record.target
    data = EventData(
        artifact=str(put.key.service.version(target.version)),
        source=old.phase if old is not None else "",
        to=record.phase,
        reason=_cut(record.reason),
        term=record.term,
        cause=f"blueprints@{target.revision}",
        blueprint=target.revision,
        changes=(f"{record.source.version} -> {target.version}", f"step {record.step + 1}"),
    )
    return Tidings(_about(put), EventKind.ROLLOUT, str(put.key), data)


def _stage(record: Rollout) -> tuple[object, ...]:
    return record.target.version, record.target.revision, record.phase, record.step


def _intent(
    message: ValuePut[IntentKey, Intent] | ValueRemove[IntentKey, Any] | ValueRejected[IntentKey, Any],
    before: Intent | None,
) -> Tidings:
    schedule, reason = Schedule.NORMAL, ""
    changes: tuple[str, ...] = ()
    if isinstance(message, ValuePut):
        schedule, reason = message.value.schedule, message.value.reason
        if before is not None:
            changes = _changes(to_builtins(before), to_builtins(message.value))
    elif isinstance(message, ValueRejected):
        schedule, reason = Schedule.CORDON, f"unreadable, counts as cordon: {message.reason}"
    source = before.schedule if before is not None else Schedule.NORMAL
    data = EventData(
        message.key.node, source=source, to=schedule, reason=_cut(reason), by=_by(message), changes=changes
    )
    return Tidings(_about(message), EventKind.INTENT, str(message.key), data)


def _node(
    put: ValuePut[NodeKey, Registration],
    before: ValuePut[NodeKey, Registration] | None,
    *,
    known: bool,
    epoch: float,
) -> Tidings | None:
    node, new = put.key.node, put.value
    if before is None and not known and _age(new, put.at + epoch) > TELLABLE:
        return None  # it joined long ago: only this process hears of it for the first time
    if before is not None and before.value.incarnation == new.incarnation:
        changes = _changes(_said(before.value), _said(new))
        if not changes:
            return None  # it was not heard for a while
        return Tidings(_about(put), EventKind.CHANGED, str(put.key), EventData(node, changes=changes))
    about = _about(put) if before is None and known else f"nodes.{encode(put.key)}.{new.incarnation}"
    return Tidings(
        about,
        EventKind.JOINED,
        str(put.key),
        EventData(node, to=_cut(new.role, LONGEST_WORDS), reason=_cut(f"cdm {new.version}")),
    )


def _said(registration: Registration) -> Fields:
    """What a node says of itself, with what is left out of a registration because most nodes say it."""
    fields: Fields = to_builtins(registration.lasting)
    return {"role": str(registration.role), "runtime": registration.runtime, **fields}


def _age(registration: Registration, now: float) -> float:
    try:
        return now - datetime.fromisoformat(registration.started).timestamp()
    except ValueError:
        return TELLABLE + 1


def _node_gone(change: NodeLeft | NodeDied, before: ValuePut[NodeKey, Registration] | None) -> Tidings:
    kind = EventKind.LEFT if isinstance(change, NodeLeft) else EventKind.LOST
    # Who tells it may have heard of the node at any of its heartbeats.
    about = f"nodes.{encode(before.key)}.{before.value.incarnation}" if before is not None else f"nodes.{change.node}"
    return Tidings(about, kind, f"nodes/{change.node}", EventData(change.node))


def _changes(old: Fields, new: Fields) -> tuple[str, ...]:
    return tuple(_cut(each.shown(), LONGEST_WORDS) for each in differences(old, new)[:MOST_CHANGES])


def _about(message: ValuePut[Key, Any] | ValueRemove[Key, Any] | ValueRejected[Key, Any]) -> str:
    bucket = str(message.key).partition("/")[0]
    about = f"{bucket}@{message.revision}"
    if isinstance(message, ValueRemove) and message.cause is not Cause.DELETED:
        return f"{about}.{encode(message.key)}"  # there is no marker of its own
    return about


def _by(message: ValuePut[Key, Any] | ValueRemove[Key, Any] | ValueRejected[Key, Any]) -> str:
    if isinstance(message, ValuePut):
        return _cut(message.by, LONGEST_WORDS) if isinstance(message, DeclaredPut) else UNKNOWN
    return _cut(message.by, LONGEST_WORDS) or UNKNOWN


def _cut(words: str, longest: int = LONGEST_REASON) -> str:
    return words if len(words) <= longest else f"{words[: longest - 1]}…"


def _id(about: str) -> str:
    return about if _PLAIN_ID.fullmatch(about) else hashlib.sha256(about.encode(errors="surrogatepass")).hexdigest()
