"""What a bucket's bytes say: typed keys and values, or why they cannot be read. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from cdm.dispatch.messages import DeclaredPut, KeyRejected, ValuePut, ValueRejected
from cdm.errors import InvalidBlueprint, InvalidKey, InvalidValue
from cdm.model.blueprint import Blueprint
from cdm.model.content import Description
from cdm.model.keys import BlueprintKey, Key, Layout
from cdm.model.node import Intent, Registration
from cdm.model.problems import explain
from cdm.store.history import Known


class Decoder:
    """Reads keys and values.

    Args:
        layout: the bucket's.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.key = layout.decode
        """Reads a key; raises `InvalidKey`."""
        self._decoders: dict[type[Key], Callable[[bytes], Any]] = {}
        """What reads the values of each kind of key that was met: making them takes time."""

    def decode_declared(self, name: str, data: bytes, sequence: int, at: float, known: Known | None, by: str) -> Known:
        """The same of a message whose writer said who that is; ``by`` may be empty."""
        found = self.decode(name, data, sequence, at, known)
        if not by:
            return found
        if isinstance(found, ValuePut):
            return DeclaredPut(found.key, found.value, sequence, at, by)
        return replace(found, by=by) if isinstance(found, ValueRejected) else found

    def decode(self, name: str, data: bytes, sequence: int, at: float, known: Known | None) -> Known:
        """What a message says; ``known`` is what was known of its key before."""
        if known is not None and isinstance(known, (ValuePut, ValueRejected)):  # the first is faster
            key: Key = known.key
        else:
            try:
                key = self.key(name)
            except InvalidKey as error:
                return KeyRejected(self._layout.kinds[0], name, str(error), sequence)
        try:
            decoder = self._decoders.get(type(key)) or self._decoder(type(key))
            value = decoder(data)
            if isinstance(key, BlueprintKey):
                value.check_for(key.artifact)
            return ValuePut(key, value, sequence, at)
        except (InvalidBlueprint, InvalidValue) as error:
            reason = str(error)
        except msgspec.ValidationError as error:
            reason = str(explain(error, key.value_type))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            reason = str(error)
        except RecursionError:
            reason = "is nested too deeply"
        return ValueRejected(key, reason, sequence, at)

    def _decoder(self, kind: type[Key]) -> Callable[[bytes], Any]:
        judged = (Blueprint, Intent, Registration, Description)
        made = kind.value_type.parse if kind.value_type in judged else msgspec.json.Decoder(kind.value_type).decode
        self._decoders[kind] = made
        return made


def lasting(update: Known, at: float, end: float | None) -> Known:
    """A registration that does not say how long it holds without a heartbeat holds as long as its message does.

    Args:
        update: what a message of the bucket ``nodes`` says.
        at: when it was stored.
        end: when its TTL is over, on the same clock; None: it has none.
    """
    if end is None or not isinstance(update, ValuePut):
        return update
    said = update.value
    if not isinstance(said, Registration) or said.ttl is not None:
        return update
    return replace(update, value=replace(said, ttl=end - at))
