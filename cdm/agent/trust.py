"""What a node runs: everything, or only what is signed by a key that it trusts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cdm.artifacts.cache import Fetched
from cdm.artifacts.signing import Signed, TrustedKeys
from cdm.errors import SliceFailed, UsageError
from cdm.model.artifact import NodeId
from cdm.model.blueprint import Overrides
from cdm.model.manifest import Manifest


def _anything() -> None:
    """Nothing is refused."""


class Trust:
    """Judges artifacts, and what blueprints change about them.

    Args:
        node: the node, for people.
        path: the file with the keys that are trusted, read anew for each decision; None: anything is run.
    """

    def __init__(self, node: NodeId, path: Path | None = None) -> None:
        self.node = node
        self._path = path

    def judge(self, fetched: Fetched, overrides: Overrides | None) -> Callable[[], None]:
        """Judge what is to be loaded; returns what judges it again before each start. Both raise `SliceFailed`."""
        if self._path is None:
            return _anything

        def still() -> None:
            self._judge(fetched.signed)

        still()
        if problem := problem_with(overrides, fetched.manifest):
            raise SliceFailed(f"{problem}: node {self.node} runs what is signed as it is signed", fatal=True)
        return still

    def _judge(self, signed: Signed) -> None:
        assert self._path is not None
        try:
            problem = TrustedKeys.read(self._path).problem_with(signed)
        except UsageError as error:
            raise SliceFailed(f"node {self.node} trusts nobody: {error}") from None
        if problem:
            told = f"node {self.node} runs only artifacts that are signed by a key in {self._path}: {problem}"
            raise SliceFailed(told, fatal=True)


def problem_with(overrides: Overrides | None, manifest: Manifest) -> str:
    """What a blueprint changes although the manifest does not allow it; empty: nothing."""
    if overrides is None:
        return ""
    allowed = set(manifest.override)
    names = [] if "env" in allowed else [f"env.{name}" for name in overrides.env if f"env.{name}" not in allowed]
    if overrides.args is not None and "args" not in allowed:
        names.append("args")
    if not names:
        return ""
    several = "are" if len(names) > 1 else "is"
    return f"{', '.join(names)[:200]} of the blueprint {several} not in `override` of the signed manifest"
