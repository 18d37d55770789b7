"""Desired state: how many instances of an artifact shall run."""

from __future__ import annotations

import json
from collections import Counter

from msgspec import Struct

from cdm.errors import InvalidBlueprint

MAX_INSTANCES = 100_000
MAX_BYTES = 64 * 1024
"""Longest blueprint that is read, in bytes; people type these."""


class Blueprint(Struct, frozen=True, forbid_unknown_fields=True):
    """Desired state of one artifact.

    Raises:
        InvalidBlueprint: ``instances`` is outside 0 … 100,000.
    """

    instances: int

    def __post_init__(self) -> None:
        if not 0 <= self.instances <= MAX_INSTANCES:
            raise InvalidBlueprint(
                "instances", f"must be from 0 to {MAX_INSTANCES:,}, not {_short(str(self.instances))}"
            )

    @classmethod
    def parse(cls, raw: bytes) -> Blueprint:
        """Read ``3`` or ``{"instances": 3}``.

        Raises:
            InvalidBlueprint: names the field and what is wrong with it.
        """
        if not raw.strip():
            raise InvalidBlueprint("", 'is empty; write a number of instances or {"instances": N}')
        if len(raw) > MAX_BYTES:
            raise InvalidBlueprint("", f"is {len(raw):,} bytes long; at most {MAX_BYTES:,} are read")
        try:
            loose = _DECODER.decode(raw.decode())
        except RecursionError:
            raise InvalidBlueprint("", "is nested too deeply") from None
        except InvalidBlueprint:
            raise
        except ValueError as error:
            raise InvalidBlueprint("", f"is not JSON: {error}") from None
        if not isinstance(loose, dict):
            return cls(_whole_number(loose))
        for field in loose:
            if field not in cls.__struct_fields__:
                known = ", ".join(cls.__struct_fields__)
                raise InvalidBlueprint(_short(field), f"is not a field of a blueprint (fields: {known})")
        if "instances" not in loose:
            raise InvalidBlueprint("instances", "is required")
        return cls(_whole_number(loose["instances"]))


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise InvalidBlueprint(_short(twice), "is given twice")
    return fields


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no number")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)


def _whole_number(value: object) -> int:
    # bool is an int in Python, and 3.0 equals 3: neither is what somebody meant to type here.
    if type(value) is not int:
        shown = {dict: "an object", list: "a list", type(None): "null"}.get(type(value)) or json.dumps(value)
        raise InvalidBlueprint("instances", f"must be a whole number, not {_short(shown)}")
    return value


def _short(text: str) -> str:
    """What was typed, fit to be shown: not long, and without the lone surrogates that JSON can express."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 40 else f"{text[:37]}…"
