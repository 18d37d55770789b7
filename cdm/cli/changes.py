"""What documents come to: which blueprints are written, changed or removed, and in which fields they differ. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum, unique
from typing import Any

from msgspec import Struct

from cdm.cli.documents import Document, checked_fields, told
from cdm.cli.plans import Edit, Goal, instances_in, text_of
from cdm.cli.service import ServiceLook, VersionLook
from cdm.errors import InvalidBlueprint, UsageError
from cdm.explain.words import brief
from cdm.model import edit
from cdm.model.artifact import Artifact, Service
from cdm.model.blueprint import Blueprint
from cdm.model.rules import EACH
from cdm.model.template import template_of

STAMPS = ("restarted", "rebalanced")
"""What commands write into blueprints; it stays where a document says nothing of it."""
BY_HAND = ("paused", "approved", "abort")
"""What commands write under ``rollout``; it stays for as long as the rollout is the same."""

Looks = Mapping[Service, ServiceLook]


@unique
class Action(StrEnum):
    """What is done about a blueprint."""

    CREATE = "create"
    CHANGE = "change"
    OWN = "own"
    """It says what it said, and is somebody else's from now on."""
    REMOVE = "remove"
    NOTHING = "unchanged"


class Change(Struct, frozen=True):
    """What becomes of one blueprint."""

    version: VersionLook
    """As it was when this was decided."""
    raw: bytes | None
    """What is to stand there; None: nothing."""
    owner: str = ""
    """Who is to look after it; empty: nobody in particular."""
    place: str = ""
    """Where the document is."""

    @property
    def artifact(self) -> Artifact:
        """Whose blueprint it is."""
        return self.version.artifact

    @property
    def action(self) -> Action:
        """What is to be done."""
        before = self.version.raw
        if self.raw is None:
            return Action.NOTHING if before is None else Action.REMOVE
        if before is None:
            return Action.CREATE
        if before != self.raw:
            return Action.CHANGE
        return Action.NOTHING if self.owner == self.version.owner else Action.OWN

    @property
    def blueprint(self) -> Blueprint | None:
        """The same, read; None: there is to be none."""
        return None if self.raw is None else Blueprint.parse(self.raw)

    @property
    def differences(self) -> list[edit.Difference]:
        """The fields in which it differs from what stands there."""
        return edit.differences(_fields(self.version.raw), _fields(self.raw))

    @property
    def words(self) -> list[str]:
        """The same, for people."""
        refused = self.version.raw is not None and not _fields(self.version.raw)
        before = f"{self.version.owner or 'nobody'} -> " if self.version.raw is not None else ""
        owner = [f"owner {before}{self.owner or 'nobody'}"]
        return [
            *(["what stands there is refused, and replaced as a whole"] if refused and self.raw is not None else []),
            *(each.shown(_LONGEST) for each in self.differences if self.raw is not None),
            *(owner if self.raw is not None and self.owner != self.version.owner else []),
        ]

    @property
    def note(self) -> str:
        """Why nothing runs of what is left as it is; empty: something does, or is to."""
        version = self.version
        if self.action is not Action.NOTHING or self.raw is None:
            return ""
        if version.reverted:
            why = f": {brief(version.status.reason)}" if version.status is not None else ""
            return f"it was taken back{why}; `cdm rollout retry {self.artifact.service}` tries it again"
        return "another version has taken its place" if version.replaced_by_another else ""

    @property
    def goal(self) -> Goal:
        """What is waited for once it is written."""
        if self.action is Action.CHANGE and self.version.blueprint is not None and self.blueprint is not None:
            before, after = self.version.blueprint, self.blueprint
            if template_of(before) == template_of(after) and before.rollout.source == after.rollout.source:
                return Goal.COUNT
        return Goal.FORWARD

    @property
    def edit(self) -> Edit:
        """The same for whoever follows what becomes of it; something is to stand there."""
        assert self.raw is not None
        blueprint = Blueprint.parse(self.raw)
        return Edit(self.version, self.raw, instances_in(self.raw), self.goal, blueprint.rollout.source)


_LONGEST = 200
"""Most characters of a value that are shown."""


def _fields(raw: bytes | None) -> edit.Fields:
    """The fields of a blueprint; none where there is none, or where it is refused."""
    try:
        return {} if raw is None else edit.fields_of(raw)
    except InvalidBlueprint:
        return {}


def changes_of(documents: Sequence[Document], looks: Looks, owner: str | None, *, prune: bool) -> list[Change]:
    """What is to be written, in this order, and what is to be removed last.

    Args:
        documents: what there is to be.
        looks: how the services of these documents stand, and of all others where something may be removed.
        owner: who looks after these blueprints; None: whoever did so far.
        prune: whether to remove the other ones that the owner looks after.
    """
    found = [_change(each, looks[each.artifact.service], owner) for each in _in_order(documents)]
    if prune and owner is not None:
        found += (Change(each, None) for each in _left_over(documents, looks, owner))
    return found


def _change(document: Document, look: ServiceLook, owner: str | None) -> Change:
    own = look.version(document.artifact)
    fields = _with_what_commands_wrote(document.fields, own.raw)
    raw = edit.written(fields, like=own.raw or b"1")
    if own.raw is not None and _say_the_same(own.raw, raw):
        raw = own.raw
    return Change(own, raw, own.owner if owner is None else owner, document.place)


def _say_the_same(one: bytes, other: bytes) -> bool:
    try:
        return Blueprint.parse(one) == Blueprint.parse(other)
    except InvalidBlueprint:
        return False


def _with_what_commands_wrote(fields: edit.Fields, stored: bytes | None) -> edit.Fields:
    """The same with what `cdm restart`, `cdm rebalance` and `cdm rollout` wrote, which no document knows of."""
    known = _fields(stored)
    kept = {name: known[name] for name in STAMPS if name in known and name not in fields}
    if fields["instances"] == EACH:
        kept.pop("rebalanced", None)  # it says nothing of these, and is refused
    made = {**fields, **kept}
    rollout = fields.get("rollout") or {}
    by_hand = {name: value for name, value in (known.get("rollout") or {}).items() if name in BY_HAND}
    if by_hand and known.get("rollout", {}).get("from") == rollout.get("from"):
        before, after = Blueprint.parse(edit.written(known, b"1")), Blueprint.parse(edit.written(made, b"1"))
        if template_of(before) == template_of(after):
            made["rollout"] = {**by_hand, **rollout}
    return made


def _in_order(documents: Sequence[Document]) -> list[Document]:
    """Versions that replace others come behind these: else what is replaced would seem to be wanted anew."""
    known = {each.artifact: each for each in documents}
    placed: dict[Artifact, Document] = {}

    def put(document: Document, behind: frozenset[Artifact]) -> None:
        artifact = document.artifact
        source = (document.fields.get("rollout") or {}).get("from")
        before = artifact.service.version(source) if source is not None else None
        if before in known and before not in placed and before not in behind:
            put(known[before], behind | {artifact})
        placed.setdefault(artifact, document)

    for each in documents:
        put(each, frozenset())
    return [*placed.values()]


def _left_over(documents: Iterable[Document], looks: Looks, owner: str) -> Iterator[VersionLook]:
    """What the owner looks after, and no document has; what may be gone back to stays."""
    wanted = {each.artifact for each in documents}
    for each in documents:
        if (source := (each.fields.get("rollout") or {}).get("from")) is not None:
            wanted.add(each.artifact.service.version(source))
    for look in looks.values():
        record = look.under_way
        ends = () if record is None else (record.source.version, record.target.version)
        for version in look.versions.values():
            mine = version.raw is not None and version.owner == owner
            if mine and version.artifact not in wanted and version.version not in ends:
                yield version


# One blueprint, by options


def document_of(artifact: Artifact, look: ServiceLook, instances: int | str | None, sets: Iterable[str]) -> Document:
    """The document that options come to: the blueprint that stands there, with other values.

    Args:
        artifact: whose.
        look: how its service stands.
        instances: how many, or "each"; None: as many as there; 1 where there is none.
        sets: ``FIELD=VALUE``, each.

    Raises:
        UsageError: one of these cannot be read.
        EditRefused: the blueprint that stands there is refused.
        InvalidBlueprint: these values are refused.
    """
    own = look.version(artifact)
    if own.raw is not None:
        text_of(own)  # where it is refused, that is told
    fields = _fields(own.raw) or {"instances": 1}
    if instances is not None:
        fields = {**fields, "instances": instances}
    for each in sets:
        fields = _with_value(fields, each)
    return Document(artifact, checked_fields(fields, artifact), "")


def _with_value(fields: edit.Fields, typed: str) -> edit.Fields:
    """The same with another value of a field; what is no JSON, or must be text, is taken as text."""
    path, equals, text = typed.partition("=")
    if not (path and equals):
        raise UsageError(f"--set {typed}: write FIELD=VALUE, as in env.LEVEL=debug or rollout.max_surge=2")
    made, first = fields, None
    for value in _values(path, text):
        made = _put(fields, path.split("."), value)
        try:
            Blueprint.parse(edit.written({"instances": 1, **made}, b"1"))
        except InvalidBlueprint as error:
            first = first or error
        else:
            return made
    assert first is not None
    problem = told(made, first)
    raise UsageError(f"--set {typed}: {first.field}: {problem}" if first.field else f"--set {typed}: {problem}")


def _values(path: str, text: str) -> Collection[Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return (text,)
    if not path.startswith("env."):
        return (value, text)
    # Variables are text, whatever it looks like; only a secret is named by an object.
    return (value,) if isinstance(value, dict) and value.keys() == {"secret"} else (text,)


def _put(fields: edit.Fields, path: Sequence[str], value: Any) -> edit.Fields:
    name, *rest = path
    if not rest:
        return {**fields, name: value}
    inner = fields.get(name)
    return {**fields, name: _put(inner if isinstance(inner, dict) else {}, rest, value)}
