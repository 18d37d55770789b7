"""Desired state: how many instances of an artifact shall run."""

from __future__ import annotations

import re

import msgspec
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
            raise InvalidBlueprint("instances", f"must be from 0 to {MAX_INSTANCES:,}, not {self.instances}")

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
            loose = msgspec.json.decode(raw)
        except RecursionError:
            raise InvalidBlueprint("", "is nested too deeply") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidBlueprint("", f"is not JSON: {error}") from None
        if isinstance(loose, dict):
            return cls._from_fields(loose)
        return cls(_whole_number(loose))

    @classmethod
    def _from_fields(cls, fields: dict[str, object]) -> Blueprint:
        if "instances" in fields:
            _whole_number(fields["instances"])
        try:
            return msgspec.convert(fields, cls)
        except InvalidBlueprint:
            raise
        except msgspec.ValidationError as error:
            # __post_init__'s own error arrives as the cause of msgspec's; ours already names the field.
            if isinstance(error.__cause__, InvalidBlueprint):
                raise error.__cause__ from None
            field = re.search(r"field `([^`]*)`", str(error))
            problem = str(error)
            if field and "unknown" in problem:
                known = ", ".join(cls.__struct_fields__)
                raise InvalidBlueprint(field[1][:64], f"is not a field of a blueprint (fields: {known})") from None
            if field:
                raise InvalidBlueprint(field[1], "is required") from None
            raise InvalidBlueprint("", problem) from None


def _whole_number(value: object) -> int:
    # bool is an int in Python, and 3.0 equals 3: neither is what somebody meant to type here.
    if type(value) is not int:
        shown = repr(value)
        raise InvalidBlueprint(
            "instances", f"must be a whole number, not {shown if len(shown) <= 40 else type(value).__name__}"
        )
    return value
