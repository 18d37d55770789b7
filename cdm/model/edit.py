"""Edits of blueprints as people wrote them: one thing is changed, and all else stays as it stands there. Pure.

Each function takes a blueprint's bytes and gives back other ones; where nothing is to be changed, the same. What comes
out is what somebody could have typed: a number stays a number where it can.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import to_builtins

from cdm.errors import InvalidBlueprint
from cdm.model.artifact import Artifact
from cdm.model.blueprint import Blueprint
from cdm.model.duration import PATTERN
from cdm.model.problems import without_mark
from cdm.model.rollout import APPROVE, RolloutKind
from cdm.model.rules import EACH, Rules
from cdm.model.rules_typed import typed_rules
from cdm.model.template import Template

Fields = dict[str, Any]

SETTINGS = ("env", "args", "stop_after", "needs")
"""The fields of a blueprint that say how its instances are started; with ``restarted`` they make the template."""
_BY_HAND = ("paused", "approved", "abort")
"""What an operator said of one rollout, and is not meant for the next."""


def fields_of(raw: bytes) -> Fields:
    """The fields of a blueprint as they stand there.

    Raises:
        InvalidBlueprint: it is refused as it is.
    """
    Blueprint.parse(raw)
    typed = json.loads(without_mark(raw))
    return typed if isinstance(typed, dict) else {"instances": typed}


def encoded(fields: Fields) -> bytes:
    """Fields as the bytes of a blueprint, on one line; raises `InvalidBlueprint` for text that is none."""
    try:
        return json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidBlueprint("", "has text with lone surrogates, which is no UTF-8") from None


def written(fields: Fields, like: bytes) -> bytes:
    """A blueprint with these fields, written like another one: on one line or several, or as a mere number.

    Raises:
        InvalidBlueprint: these fields are refused.
    """
    number = not without_mark(like).lstrip().startswith(b"{")
    if number and fields.keys() == {"instances"} and fields["instances"] != EACH:
        raw = str(fields["instances"]).encode()
    else:
        indent = 2 if b"\n" in like.strip() else None
        raw = json.dumps(fields, ensure_ascii=False, indent=indent).encode()
    Blueprint.parse(raw)
    return raw


def _edited(raw: bytes, fields: Fields) -> bytes:
    return raw if fields == fields_of(raw) else written(fields, raw)


def _with_rollout(fields: Fields, changes: Mapping[str, Any]) -> Fields:
    """The same with other fields in ``rollout``; None takes one out, and the last one takes ``rollout`` with it."""
    rollout = {**(fields.get("rollout") or {}), **changes}
    rollout = {name: value for name, value in rollout.items() if name not in changes or value is not None}
    if rollout:
        return {**fields, "rollout": rollout}
    return {name: value for name, value in fields.items() if name != "rollout"}


def scaled(raw: bytes, instances: int) -> bytes:
    """The same with another number of instances."""
    return _edited(raw, {**fields_of(raw), "instances": instances})


def restarted(raw: bytes, stamp: str) -> bytes:
    """The same with another text in ``restarted``, which replaces every instance, or tries once more.

    A rollout begins, so what was said by hand of the last one is taken out.
    """
    fields = {**fields_of(raw), "restarted": stamp}
    return _edited(raw, _with_rollout(fields, dict.fromkeys(_BY_HAND)))


def rebalanced(raw: bytes, stamp: str) -> bytes:
    """The same with another text in ``rebalanced``, which has its instances moved to where they are placed best."""
    return _edited(raw, {**fields_of(raw), "rebalanced": stamp})


def paused(raw: bytes, on: bool) -> bytes:
    """The same with its rollout stopped where it is, or let go on."""
    fields = fields_of(raw)
    if on is bool((fields.get("rollout") or {}).get("paused")):
        return raw
    return _edited(raw, _with_rollout(fields, {"paused": True if on else None}))


def approved(raw: bytes) -> bytes:
    """The same with one more approval."""
    fields = fields_of(raw)
    count = (fields.get("rollout") or {}).get("approved", 0)
    return _edited(raw, _with_rollout(fields, {"approved": count + 1}))


def aborted(raw: bytes) -> bytes:
    """The same with its rollout taken back."""
    return _edited(raw, _with_rollout(fields_of(raw), {"abort": True, "paused": None}))


def released(
    raw: bytes, *, source: str | None, instances: int | str | None = None, way: Mapping[str, Any] | None = None
) -> bytes:
    """The blueprint that has a version take over.

    Args:
        raw: whose settings it is to have: an older blueprint of that version, or that of the version before.
        source: the version that is replaced; None: none is.
        instances: how many, or "each"; None: as many as there.
        way: ``kind`` and ``steps`` of the rollout; None: as there.
    """
    fields = fields_of(raw)
    if instances is not None:
        fields["instances"] = instances
        if instances == EACH:
            fields.pop("rebalanced", None)  # it says nothing of these, and is refused
    changes: Fields = dict.fromkeys(_BY_HAND)
    if way is not None:
        changes |= {"kind": None, "steps": None, **way}
    fields = _with_rollout(fields, {"from": None, **changes})
    if source is not None:
        fields["rollout"] = {"from": source, **fields.get("rollout", {})}
    return _edited(raw, fields)


def without_source(raw: bytes) -> bytes:
    """The same without ``from``: it has acted, and would again with a new revision."""
    return _edited(raw, _with_rollout(fields_of(raw), {"from": None}))


def led(raw: bytes, way: Mapping[str, Any]) -> bytes:
    """The same with other ``kind`` and ``steps``."""
    return _edited(raw, _with_rollout(fields_of(raw), {"kind": None, "steps": None, **way}))


def without_stamps(raw: bytes) -> bytes:
    """The same as a blueprint of another version would have it: that this was restarted, or balanced, is no setting."""
    fields = {name: value for name, value in fields_of(raw).items() if name not in ("restarted", "rebalanced")}
    return _edited(raw, fields)


def with_settings(raw: bytes, settings: Template) -> bytes:
    """The same with other env, args, stop_after and needs; ``restarted`` is no setting, and stays."""
    typed = fields_of(raw)
    wanted: Fields = to_builtins(settings.overrides)
    if Blueprint.parse(raw).rules.needs != settings.needs:
        wanted |= typed_rules(Rules(needs=settings.needs))
    elif "needs" in typed:
        wanted["needs"] = typed["needs"]  # in the units in which somebody wrote them
    fields = {name: value for name, value in typed.items() if name not in SETTINGS or name in wanted}
    fields = {name: wanted.get(name, value) for name, value in {**fields, **wanted}.items()}
    return _edited(raw, _with_rollout(fields, {"from": None, **dict.fromkeys(_BY_HAND)}))


def rolling_way() -> Fields:
    """One instance after another: how a rollout goes where nothing is said."""
    return {}


def blue_green_way() -> Fields:
    """All new instances beside all old ones."""
    return {"kind": str(RolloutKind.BLUE_GREEN)}


def canary_way(steps: Sequence[str]) -> Fields:
    """In steps.

    Args:
        steps: as typed: "10" for per cent of the instances, "5m" for a pause, "approve" for one that ends by hand.

    Raises:
        InvalidBlueprint: one is none of these.
    """
    return {"kind": str(RolloutKind.CANARY), "steps": [_step(each.strip()) for each in steps]}


def _step(text: str) -> Fields:
    share = text.removesuffix("%")
    if share.isascii() and share.isdigit() and len(share) <= 3:
        return {"weight": int(share)}
    if text == APPROVE or re.fullmatch(PATTERN, text):
        return {"pause": text}
    raise InvalidBlueprint("", f"step {text[:20]!r}: write per cent (10), a pause (5m), or approve")


def changes_between(before: bytes | None, after: bytes | None) -> list[str]:
    """What is different, in words; None: there is no blueprint."""
    if after is None:
        return ["deleted"]
    try:
        new = fields_of(after)
    except InvalidBlueprint:
        return ["refused"]
    try:
        old = fields_of(before) if before is not None else None
    except InvalidBlueprint:
        old = None
    if old is None:
        source = (new.get("rollout") or {}).get("from")
        return ["created" if before is None else "mended", *([f"rollout.from {source}"] if source else [])]
    return [each.shown() for each in differences(old, new)] or ["the same again"]


class Difference(NamedTuple):
    """A field in which two blueprints differ; ``before`` or ``after`` is None where it is not there."""

    field: str
    """Its path, as in ``env.LEVEL``."""
    before: Any
    after: Any

    @property
    def tellable(self) -> bool:
        """Whether the values are fit to be shown: variables may be long, and some are secrets."""
        return not self.field.startswith("env.") and self.field not in _UNTOLD

    def shown(self, longest: int = 40) -> str:
        """In words, with values of so many characters at most."""
        name = self.field
        if self.after is None:
            return f"{name} removed"
        if self.before is None:
            return f"{name} {_shown(self.after, longest)}".rstrip() if self.tellable else f"{name} set"
        if not self.tellable:
            return f"{name} changed"
        return f"{name} {_shown(self.before, longest)} -> {_shown(self.after, longest)}"


_UNTOLD = ("args", "restarted", "rollout.steps", "rollout.checks")


def differences(old: Fields, new: Fields) -> list[Difference]:
    """In which fields two blueprints differ, those of the new one first."""
    before, after = _flat(old), _flat(new)
    names = (*after, *(each for each in before if each not in after))
    return [
        Difference(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
    ]


def _flat(fields: Fields, above: str = "") -> Fields:
    """Fields by path: those of objects, as ``rollout``, ``needs`` and ``env``, each on their own."""
    flat: Fields = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{above}{name}.")
        elif value is not None:
            flat[above + name] = value
    return flat


def _shown(value: object, longest: int) -> str:
    text = value if isinstance(value, str) else json.dumps(_plainly(value), ensure_ascii=False)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _plainly(value: object) -> object:
    """The same with numbers as somebody would type them: 3, where 3.0 was read."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case list() | tuple():
            return [_plainly(each) for each in value]
        case dict():
            return {name: _plainly(each) for name, each in value.items()}
    return value


def checked(raw: bytes, artifact: Artifact) -> bytes:
    """The same, once it is known to be valid for this artifact.

    Raises:
        InvalidBlueprint: it is not.
    """
    Blueprint.parse(raw).check_for(artifact)
    return raw
