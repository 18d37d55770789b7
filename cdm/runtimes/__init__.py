"""What runs slices on a node: the interface between the agent and a runtime.

A runtime is one class that obeys `Runtime`, made by a function ``(Surroundings) -> Runtime`` that an entry point of
the group ``cdm.runtimes`` names. The agent calls its methods; it never calls two for one slice at the same time. A
call may be cancelled at any await: what it began is then undone by the `unload` or `deactivate` that follows, which is
why both accept a slice in any condition, and one that they do not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

from msgspec import Struct

from cdm.errors import UsageError
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey
from cdm.model.manifest import Manifest
from cdm.model.node import EXTERNAL
from cdm.output import Logging, OutputLine

__all__ = ["GROUP", "Lapsing", "Logging", "OutputLine", "Runtime", "Surroundings", "Work", "runtime_named"]

GROUP = "cdm.runtimes"


class Work(Struct, frozen=True):
    """What a slice is to run."""

    key: SliceKey
    folder: Path
    """The artifact's content, verified, shared by all slices of it on the node: not to be written to."""
    manifest: Manifest
    stop_after: float | None = None
    """Seconds without a heartbeat that was taken, after which it is to be stopped; only where a runtime is `Lapsing`.
    It is then given no more than the manifest's ``stop_grace``."""


class Surroundings(Struct, frozen=True):
    """What a runtime is given when it is made."""

    node: NodeId
    folder: Path
    """A folder of its own, which stays when the node is started again."""
    crashed: Callable[[SliceKey, str, bool], None]
    """To be called from the event loop when a slice that was active ended, for good as far as the runtime is
    concerned: which, why (exit status and last lines of output), and whether to try again is futile."""


class Runtime(Protocol):
    """Runs slices. Failures are raised as `SliceFailed`."""

    async def start(self) -> None:
        """Before anything else: stop, or adopt, what an earlier process of this node left running."""

    async def load(self, work: Work) -> None:
        """Prepare; nothing runs yet. Loading again replaces what was loaded."""

    async def activate(self, key: SliceKey) -> int | None:
        """Start, and wait until it is ready. Returns the TCP port that it listens on, if it was given one."""

    async def deactivate(self, key: SliceKey) -> None:
        """Stop; returns when nothing of it runs any more. It stays loaded."""

    async def unload(self, key: SliceKey) -> None:
        """Stop, and forget it."""

    @property
    def slices(self) -> Mapping[SliceKey, bool]:
        """All slices that are loaded; True: it is active."""

    async def close(self) -> None:
        """Stop everything: the node goes. Where this is cancelled, at once and without grace."""


@runtime_checkable
class Lapsing(Protocol):
    """What a runtime obeys too that stops slices by itself when their node is cut off from NATS (`Work.stop_after`).

    It must do so although the node's process does not run: it may be frozen.
    """

    def heard(self, at: float) -> None:
        """NATS took a heartbeat of this node that was sent at this time, in seconds on `cdm.clock`."""


def runtime_named(name: str) -> Callable[[Surroundings], Runtime]:
    """What makes the runtime of this name.

    Raises:
        UsageError: none is installed.
    """
    found = {each.name: each for each in entry_points(group=GROUP)}
    if name not in found:
        known = ", ".join(sorted({*found, EXTERNAL}))
        raise UsageError(f"there is no runtime {name!r} (installed: {known})")
    make: Callable[[Surroundings], Runtime] = found[name].load()
    return make
