"""What msgspec finds wrong with what people typed, in the words of our own errors: the field, and what it must be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import inspect

UNREADABLE = (ValueError, RecursionError)
"""What msgspec raises for bytes that are not JSON, not text, nested too deeply, or not of the wanted type."""

_ERROR = re.compile(r"(.*?)(?: - at (`key` in )?`\$\.?(.*?)`)?", re.DOTALL)
_FIELD = re.compile(r"Object (contains unknown|missing required) field `(.*)`", re.DOTALL)
_STEP = re.compile(r"\[[^]]*\]|[^.\[]+")
_NAMES: dict[type[inspect.Type], str] = {inspect.StrType: "a text", inspect.VarTupleType: "a list"}
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def told(error: msgspec.ValidationError, wanted: type[Any]) -> str:
    """The same in a line of ours.

    Args:
        error: from reading a value of type ``wanted``.
        wanted: the type.
    """
    found = _ERROR.fullmatch(str(error))
    assert found is not None
    problem, of_key, path = found[1], found[2], found[3] or ""
    kind = inspect.type_info(wanted)
    for step in _STEP.findall(path):
        kind = _inside(kind, step)
    if field := _FIELD.fullmatch(problem):
        name = field[2] if field[2].isprintable() and len(field[2]) <= 40 else repr(field[2][:40])
        what = "is required" if "missing" in field[1] else f"there is no such field{_fields(kind)}"
        return f"{path}.{name}: {what}" if path else f"{name}: {what}"
    if of_key and isinstance(kind, inspect.DictType):
        return f"{path}: each name must be {_described(kind.key_type)}"
    if path.endswith("[...]"):
        return f"{path.removesuffix('[...]')}: each value must be {_described(kind)}"
    return f"{path}: must be {_described(kind)}" if path else f"must be {_described(kind)}"


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
                    if field.name == step:
                        return field.type
            case inspect.DictType(value_type=value):
                return value
            case inspect.VarTupleType(item_type=item):
                return item
    return inspect.AnyType()


def _fields(kind: inspect.Type) -> str:
    """Which fields there are; of several kinds of objects nobody knows here which one is meant."""
    structs = [each for each in _options(kind) if isinstance(each, inspect.StructType)]
    return f" (fields: {', '.join(field.name for field in structs[0].fields)})" if len(structs) == 1 else ""


def _options(kind: inspect.Type) -> tuple[inspect.Type, ...]:
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
        case _:
            return _NAMES.get(type(kind), "an object")


def _either(words: Iterable[str]) -> str:
    *others, last = dict.fromkeys(words)
    return f"{', '.join(others)} or {last}" if others else last
