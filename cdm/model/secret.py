"""What stands for a secret in a blueprint or a manifest: its name, and how a slice is given it.

The value is read on the node when the slice starts. It is never in a bucket; this reference is.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum, unique
from typing import Annotated, Any

from msgspec import Meta, Struct, field

SecretName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\Z",
        description="the name of a secret (letters, digits, dots, dashes and underscores; at most 128)",
    ),
]


@unique
class SecretForm(StrEnum):
    """How a slice is given a secret."""

    ENV = "env"
    """The variable holds it."""
    FILE = "file"
    """The variable holds the path of a file with it, which this slice alone can read."""


class SecretRef(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A value of ``env`` that is read on the node: ``{"secret": "db-password"}``."""

    name: SecretName = field(name="secret")
    form: SecretForm = field(name="as", default=SecretForm.ENV)


def secrets_in(env: Mapping[str, Any]) -> dict[str, SecretRef]:
    """The variables whose values are secrets."""
    return {name: value for name, value in env.items() if isinstance(value, SecretRef)}
