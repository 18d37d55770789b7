"""Everything that knows NATS: the only package that imports the client."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType


class _Later:
    """Has one module loaded when something of it is first used, and not when it is imported.

    Args:
        name: the module.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's specification, once; of any other there is none here."""
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


# The client imports its own way to talk to JetStream, whose types take a tenth of the time of a short command. cdm uses
# nothing of that.
sys.meta_path.insert(0, _Later("nats.js"))
