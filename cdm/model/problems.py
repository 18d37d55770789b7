"""What msgspec finds wrong with a value that people typed, as the field and what it must be."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from cdm.errors import InvalidBlueprint

UNREADABLE = (ValueError, RecursionError)
"""What msgspec raises for bytes that are not JSON, not UTF-8, nested too deeply, or of another type than expected."""

_ERROR = r"(?s)(.*?)(?: - at (`key` in )?`\$\.?(.*?)`)?"
_FIELD = r"(?s)Object (contains unknown|missing required) field `(.*)`"
_STEP = r"\[[^]]*\]|[^.\[]+"
_NAMES: dict[type[inspect.Type], str] = {inspect.StrType: "a string", inspect.BoolType: "true or false"}
_LONGEST = 240
"""Most characters of what is said of a value."""
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


class Problem(NamedTuple):
    """What is wrong with a value."""

    field: str
    """Path of the field, as in ``readiness.check.kind`` or ``args[1]``; empty: the value as a whole."""
    what: str
    """As in "must be a string"."""

    def __str__(self) -> str:
        return f"{self.field}: {self.what}" if self.field else self.what


def explain(error: msgspec.ValidationError, expected: Any, value: object = None) -> Problem:
    """Say in plain words what an error of msgspec means.

    Args:
        error: from reading a value of type ``expected``.
        expected: the type.
        value: what was read, as plain objects, if it is at hand: names the wrong one of a mapping's values.
    """
    found = re.fullmatch(_ERROR, str(error))
    assert found is not None
    problem, of_key, path = found[1], found[2], found[3] or ""
    if isinstance(cause := error.__cause__, InvalidBlueprint):  # a part of it has found fault with itself
        return Problem(".".join(filter(None, (path, cause.field))), cause.problem)
    kind = inspect.type_info(expected)
    steps = re.findall(_STEP, path)
    for number, step in enumerate(steps):
        kind = _inside(kind, step)
        if step == "[...]" and (name := _culprit(kind, _mapping(value, steps[:number]))) is not None:
            path = path.replace("[...]", f".{name}", 1)
    if field := re.fullmatch(_FIELD, problem):
        name = shortened(field[2])
        what = "is required" if "missing" in field[1] else f"there is no such field{_fields(kind)}"
        return Problem(f"{path}.{name}" if path else name, what)
    if of_key:
        names = [each.key_type for each in _options(kind) if isinstance(each, inspect.DictType)]
        return Problem(path, f"each name must be {_either(map(_described, names))}")
    if path.endswith("[...]"):
        return Problem(path.removesuffix("[...]"), f"each value must be {_described(kind)}")
    return Problem(path, f"must be {_described(kind)}")


def shortened(text: str) -> str:
    """What was typed, fit to be shown: in one line, not long, without the lone surrogates that JSON can express."""
    if text.isprintable() and len(text) <= 40:
        return text
    return repr(text[:40])


def cut(text: str) -> str:
    """A sentence about something that was typed, which may be long."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def without_mark(raw: bytes) -> bytes:
    """Text that people typed, without the byte-order mark that some editors put before UTF-8."""
    return raw.removeprefix(BOM_UTF8)


def problem_with_encoding(raw: bytes) -> str:
    """What a byte-order mark says is wrong with the encoding of JSON or TOML; empty: nothing."""
    if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE, BOM_UTF32_BE)):  # UTF-32's little-endian mark begins like UTF-16's
        return "is UTF-16 or UTF-32, as its byte-order mark says; write it as UTF-8"
    return ""


def _inside(kind: inspect.Type, step: str) -> inspect.Type:
    """The type of a field, of the values of a mapping, or of the items of a list."""
    kinds = _options(kind)
    tags = [each.tag for each in kinds if isinstance(each, inspect.StructType) and each.tag_field == step]
    if tags:
        return inspect.LiteralType(tuple(tags))
    for each in kinds:
        match each:
            case inspect.StructType(fields=fields):
                for field in fields:
                    if field.encode_name == step:
                        return field.type
            case inspect.DictType(value_type=value):
                return value
            case inspect.VarTupleType(item_type=item):
                return item
    return inspect.AnyType()


def _mapping(value: object, steps: Iterable[str]) -> dict[Any, Any]:
    """The mapping at this path; empty where none is found."""
    for step in steps:
        if isinstance(value, list):
            value = value[int(step[1:-1])]
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _culprit(kind: inspect.Type, values: dict[Any, Any]) -> str | None:
    """The name of the first value that is not as expected; None: that cannot be told."""
    return next((shortened(str(name)) for name, each in values.items() if not _fits(kind, each)), None)


def _fits(kind: inspect.Type, value: object) -> bool:
    """Whether a value is as expected; also true where that cannot be told."""
    if isinstance(kind, inspect.Metadata):
        kind = kind.type
    match kind:
        case inspect.StrType(pattern=pattern):
            return isinstance(value, str) and (pattern is None or re.search(pattern, value) is not None)
        case inspect.FloatType(ge=least, le=most):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                return False
            return (least is None or value >= least) and (most is None or value <= most)
        case inspect.UnionType(types=kinds):
            return any(_fits(each, value) for each in kinds)
        case inspect.StructType(cls=cls):
            try:
                msgspec.convert(value, cls)
            except UNREADABLE:
                return False
            return True
        case _:
            return True


def _fields(kind: inspect.Type) -> str:
    """The fields that there are; empty where objects of several kinds are allowed."""
    structs = [each for each in _options(kind) if isinstance(each, inspect.StructType)]
    return f" (fields: {', '.join(field.encode_name for field in structs[0].fields)})" if len(structs) == 1 else ""


def _options(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    if isinstance(kind, inspect.Metadata):
        kind = kind.type
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def _described(kind: inspect.Type) -> str:
    """What a value must be; that it may be left out goes without saying."""
    match kind:
        case inspect.Metadata(extra_json_schema={"description": text}):
            return str(text)
        case inspect.UnionType(types=kinds):
            return _either(_described(each) for each in kinds if not isinstance(each, inspect.NoneType))
        case inspect.LiteralType(values=values):
            return _either(map(json.dumps, values))
        case inspect.EnumType(cls=cls):
            return _either(json.dumps(each.value) for each in cls)
        case inspect.IntType() | inspect.FloatType():
            bounds = [
                f"{words} {bound:,}" for name, words in _BOUNDS.items() if (bound := getattr(kind, name)) is not None
            ]
            number = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
            return f"{number} ({', '.join(bounds)})" if bounds else number
        case inspect.VarTupleType(item_type=item):
            return "a list of strings" if _described(item).startswith("a string") else "a list"
        case _:
            return _NAMES.get(type(kind), "an object")


def _either(words: Iterable[str]) -> str:
    *others, last = dict.fromkeys(words)
    return f"{', '.join(others)} or {last}" if others else last
