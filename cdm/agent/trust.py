"""What a node runs: everything, or only what is signed by a key that it trusts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from cdm.artifacts.cache import Fetched
from cdm.artifacts.signing import Signed, TrustedKeys
from cdm.errors import CdmError, SliceFailed, UsageError
from cdm.model.artifact import NodeId
from cdm.model.blueprint import Overrides
from cdm.model.manifest import Manifest
from cdm.runtimes import freely


class Trust:
    """Judges artifacts, and what blueprints change about them.

    No refusal is fatal: another node may trust somebody else, or run anything.

    Args:
        node: the node, for people.
        path: the file with the keys that are trusted, read anew for each decision; None: anything is run.
    """

    def __init__(self, node: NodeId, path: Path | None = None) -> None:
        self.node = node
        self._path = path

    def judge(
        self, fetched: Fetched, overrides: Overrides | None, anew: Callable[[], Awaitable[Signed]]
    ) -> Callable[[], Awaitable[None]]:
        """Judge what is to be loaded; returns what judges it again before each start. Both raise `SliceFailed`.

        Args:
            fetched: what was fetched for it just now.
            overrides: what its blueprint changes.
            anew: reads what of it is signed by now; asked before a start is refused, since it may have been signed with
                another key since it was loaded.
        """
        if self._path is None:
            return freely
        signed = fetched.signed

        async def still() -> None:
            nonlocal signed
            problem = self._problem_with(signed)
            if problem:
                try:
                    signed = await anew()
                except CdmError as error:
                    raise SliceFailed(f"{problem}; who has signed it by now cannot be read: {error}") from None
                problem = self._problem_with(signed)
            if problem:
                raise SliceFailed(problem)

        problem = self._problem_with(signed)
        if not problem and (changed := problem_with(overrides, fetched.manifest)):
            problem = f"{changed}: node {self.node} runs what is signed as it is signed"
        if problem:
            raise SliceFailed(problem)
        return still

    def _problem_with(self, signed: Signed) -> str:
        assert self._path is not None
        try:
            problem = TrustedKeys.read(self._path).problem_with(signed)
        except UsageError as error:
            return f"node {self.node} trusts nobody: {error}"
        return problem and f"node {self.node} runs only artifacts that are signed by a key in {self._path}: {problem}"


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
