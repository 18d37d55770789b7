"""What an instance was started with, and its digest: two instances of one digest are alike."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from cdm.model.blueprint import Blueprint, Overrides
from cdm.model.rules import Needs


class Template(Struct, frozen=True, omit_defaults=True, dict=True):
    """The fields of a blueprint that, changed, make another instance.

    Defaults are left out of what is digested, so that a later version of cdm with more fields computes the same.
    """

    overrides: Overrides = Overrides()
    restarted: str | None = None
    needs: Needs | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of the fields as JSON: names in order, no white space, UTF-8."""
        fields = to_builtins(self.overrides)
        if self.overrides.stop_after is not None:
            fields["stop_after"] = float(self.overrides.stop_after)  # 30 and 30.0 are written differently
        if self.restarted is not None:
            fields["restarted"] = self.restarted
        if self.needs is not None:
            fields["needs"] = to_builtins(Needs(float(self.needs.cpu), self.needs.memory))
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()

    @property
    def settings(self) -> Template:
        """The same but for when it was restarted, which changes nothing that could be gone back to."""
        return self if self.restarted is None else replace(self, restarted=None)


PLAIN = Template()
"""The template of most blueprints: nothing but what the artifact's manifest says."""


def template_of(blueprint: Blueprint) -> Template:
    """The template that a blueprint's fields make."""
    if blueprint.overrides is None and blueprint.restarted is None and blueprint.rules.needs is None:
        return PLAIN
    return Template(blueprint.overrides or Overrides(), blueprint.restarted, blueprint.rules.needs)
