"""A copy of a blueprint that is in force: what a new leader reads where refused ones pushed it out of its history.

It is in ``slices``, under the fence, and not in ``status``: what a blueprint gives programs, nodes need not read.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, json

from cdm.model.blueprint import Blueprint


class LastValid(Struct, frozen=True):
    """The value under ``slices/_blueprint.{blueprint key}``."""

    revision: int
    """Of the blueprint."""
    blueprint: dict[str, Any]
    """As people type it; usual values are left out."""

    @classmethod
    def of(cls, blueprint: Blueprint, revision: int) -> LastValid:
        """The copy of a blueprint."""
        return cls(revision, blueprint.typed)

    def read(self) -> Blueprint:
        """The blueprint. Raises `InvalidBlueprint`: this was not written by cdm, or by a later version."""
        return Blueprint.parse(json.encode(self.blueprint))
