"""What runs slices on a node: the interface between the agent and a runtime.

A runtime is a class with the methods of `Runtime`, made by a function ``(Surroundings) -> Runtime`` that an entry point
of the group ``cdm.runtimes`` names. The agent calls its methods; it never calls two for one slice at the same time. A
call may be cancelled at any await: what it began is then undone by the `unload` or `deactivate` that follows, which is
why both accept a slice in any state, and one that they do not know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct

from cdm.errors import SliceFailed, UsageError
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SliceKey
from cdm.model.manifest import Manifest
from cdm.model.node import EXTERNAL
from cdm.model.secret import SecretRef
from cdm.output import Logging, OutputLine
from cdm.runtimes.run_as import SAME, RunAs
from cdm.runtimes.secrets import Secrets

__all__ = [
    "GROUP",
    "Lapsing",
    "Logging",
    "OutputLine",
    "Runtime",
    "SecretRef",
    "Secrets",
    "Surroundings",
    "Work",
    "adapted",
    "freely",
    "runtime_named",
]

GROUP = "cdm.runtimes"
OURS = {
    "container": "cdm.runtimes.container:made",
    "process": "cdm.runtimes.process.runtime:ProcessRuntime",
    "systemd": "cdm.runtimes.systemd:made",
}
"""What the entry points of cdm itself say: to read those of all that is installed takes 10 ms."""


def _ignored(*_: Any) -> None:
    """Stands for a callback that is not there."""


async def freely() -> None:
    """Lets everything start."""


class Work(Struct, frozen=True):
    """What a slice is to run. docs/runtimes.md has a list of the fields."""

    key: SliceKey
    """The slice: its node, its artifact, and its ordinal among those of the artifact on this node."""
    folder: Path
    """The artifact's content, verified, shared by all slices of it on the node: not to be written to."""
    manifest: Manifest
    """How it is run, with what the blueprint says instead; its ``env`` has no secrets."""
    stop_after: float | None = None
    """Seconds without an accepted heartbeat after which it must be stopped; only where a runtime is `Lapsing`. It then
    gets no more than the manifest's ``stop_grace``."""
    secrets: Mapping[str, SecretRef] = {}
    """Variables, beside the manifest's, that are secrets: to be read from `Surroundings.secrets` whenever the slice
    starts, and told to nobody else; only where a runtime `gives_secrets`."""
    may_start: Callable[[], Awaitable[None]] = freely
    """To be awaited before each start that the runtime makes by itself; raises `SliceFailed` where the slice must not
    be started any more, since whoever signed it is not trusted now."""
    cores: float = 0.0
    """How many it reserves on the node (``needs.cpu``), so that processors can be shared accordingly; 0: none."""


class Surroundings(Struct, frozen=True):
    """What a runtime is given when it is made. docs/runtimes.md has a list of the fields."""

    node: NodeId
    """The node whose slices it runs."""
    folder: Path
    """A folder of the runtime's own; it is kept when the node is started again."""
    crashed: Callable[[SliceKey, str, bool], None]
    """To be called from the event loop when a slice that was active has ended and the runtime will not start it again:
    which, why (exit status and last lines of output), and whether trying again is futile."""
    restarting: Callable[[SliceKey, str, float], None] = _ignored
    """To be called from the event loop when a slice that was active has ended, and again when a start after that has
    failed, if the runtime is going to start it again: which, why it ended or failed, and the most seconds until it is
    ready or given up, back-off, readiness and grace included. Until `restarted` the slice is not ACTIVE, although it
    is active in `Runtime.slices`."""
    restarted: Callable[[SliceKey, int | None], None] = _ignored
    """To be called from the event loop when a slice that was `restarting` is ready: which, and its port."""
    enforce_limits: bool = True
    """Whether a slice whose limits cannot all be enforced on this node is refused; else it is run with a
    `Runtime.warning`."""
    secrets: Secrets = Secrets(NodeId(""))
    """The node's."""
    run_as: RunAs = SAME
    """As whom slices are to run, where the runtime can choose that."""
    outlive: float | None = None
    """For how many seconds slices go on when the node's process ends without `Runtime.close`, counted since the last
    heartbeat was sent that NATS accepted (`Runtime.heard`); None: they end with it, as after `Runtime.end_with_node`.
    Those with ``stop_after`` have that time instead."""
    lapsed: Callable[[SliceKey, str], None] = _ignored
    """To be called from the event loop, in place of `crashed`, when a slice was stopped since its node is cut off
    (`Work.stop_after`): which, and why. That does not count as an end of its program."""


class Runtime(ABC):
    """Runs slices. Failures are raised as `SliceFailed`.

    What is not abstract is optional. A class that has these methods and does not inherit is fine too: see `adapted`.
    """

    gives_secrets = False
    """Whether it heeds `Work.secrets`; slices that have any are kept off nodes whose runtime does not."""

    async def check_machine(self) -> None:
        """Whether slices can be run on this machine, as it is now. It makes nothing, and no method but `close` or
        `detach` may follow: the node calls it first of all, and ends where this fails.

        Raises:
            UsageError: they cannot.
            SliceFailed: something that they need does not answer.
        """

    async def start(self) -> None:
        """Before all but `check_machine`: stop, or adopt, what an earlier process of this node left running."""

    @abstractmethod
    async def load(self, work: Work) -> None:
        """Prepare; nothing runs yet. Loading again replaces what was loaded."""

    @abstractmethod
    async def activate(self, key: SliceKey) -> int | None:
        """Start, and wait until it is ready. Returns the TCP port that it listens on, if it was given one."""

    @abstractmethod
    async def deactivate(self, key: SliceKey) -> None:
        """Stop; returns when nothing of it runs any more. It stays loaded."""

    @abstractmethod
    async def unload(self, key: SliceKey) -> None:
        """Stop, and forget it."""

    @property
    @abstractmethod
    def slices(self) -> Mapping[SliceKey, bool]:
        """All slices that are loaded; True: it is active, or the runtime is starting it again."""

    def warning(self, key: SliceKey) -> str | None:
        """What users should know of a slice that is loaded: ``cdm status`` shows it. None: nothing."""
        return None

    def listed(self, keys: Collection[SliceKey]) -> None:
        """All slices that the node has are known, for the first time: these. What is left of others may go."""

    @property
    def found(self) -> Mapping[SliceKey, Path | None]:
        """Slices of which something runs since an earlier process of the node, and of which nothing was asked yet, each
        with the folder of its artifact, as far as that is known. They are not among `slices`. `adopt` goes on with one;
        any other call ends it first.
        """
        return {}

    async def adopt(self, work: Work) -> int | None:
        """Go on with a slice that was `found`, as if it had been loaded and activated; it may have ended meanwhile.
        Returns its port, as `activate` does. Where it is not what this work asks for it is stopped, and this fails.
        """
        await self.unload(work.key)
        raise SliceFailed("this runtime cannot go on with what an earlier process of the node began")

    async def close(self) -> None:
        """Stop everything: the node ends. Where this is cancelled, at once and without grace."""
        for key in list(self.slices):
            await self.unload(key)

    async def detach(self) -> None:
        """The node's process ends, and the next one is to find what runs: see `Surroundings.outlive`."""
        await self.close()

    def end_with_node(self) -> None:
        """The node leaves, and `close` follows: where its process is killed before that, slices are to end with it,
        whatever `Surroundings.outlive` says.
        """

    def heard(self, at: float) -> None:
        """NATS accepted a heartbeat of this node that was sent at this time: see `Lapsing`."""

    def written(self, artifact: Artifact) -> Sequence[SliceKey]:
        """This node's slices of the artifact that there is output of: see `Logging`."""
        return ()

    def read(
        self, key: SliceKey, *, lines: int | None = None, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[Sequence[OutputLine]]:
        """A slice's output: see `Logging`."""
        return _nothing()

    @property
    def outlives(self) -> bool:
        """Whether its slices can outlive the node's process: it overrides `detach`."""
        return _overridden(self.detach, Runtime.detach)

    @property
    def lapses(self) -> bool:
        """Whether it is `Lapsing`: it overrides `heard`."""
        return _overridden(self.heard, Runtime.heard)

    @property
    def logs(self) -> bool:
        """Whether it is `Logging`: it overrides `written` and `read`."""
        return _overridden(self.written, Runtime.written) and _overridden(self.read, Runtime.read)


@runtime_checkable
class Lapsing(Protocol):
    """A runtime that stops slices by itself when their node is cut off from NATS (`Work.stop_after`).

    It must do so although the node's process does not run: it may be frozen.
    """

    def heard(self, at: float) -> None:
        """NATS accepted a heartbeat of this node that was sent at this time, in seconds on `cdm.clock`."""


def adapted(made: Any) -> Runtime:
    """A runtime whose class may not inherit from `Runtime`: what it lacks is then as it is there."""
    return made if isinstance(made, Runtime) else _Adapted(made)


class _Adapted(Runtime):
    def __init__(self, made: Any) -> None:
        self._made = made
        optional = (
            "gives_secrets",
            "check_machine",
            "start",
            "listed",
            "close",
            "detach",
            "end_with_node",
            "adopt",
            "heard",
            "warning",
            "written",
            "read",
        )
        for name in optional:
            if hasattr(made, name):
                setattr(self, name, getattr(made, name))

    async def load(self, work: Work) -> None:
        await self._made.load(work)

    async def activate(self, key: SliceKey) -> int | None:
        port: int | None = await self._made.activate(key)
        return port

    async def deactivate(self, key: SliceKey) -> None:
        await self._made.deactivate(key)

    async def unload(self, key: SliceKey) -> None:
        await self._made.unload(key)

    @property
    def slices(self) -> Mapping[SliceKey, bool]:
        found: Mapping[SliceKey, bool] = self._made.slices
        return found

    @property
    def found(self) -> Mapping[SliceKey, Path | None]:
        found: Mapping[SliceKey, Path | None] = getattr(self._made, "found", {})
        return found


def _overridden(method: object, default: object) -> bool:
    return getattr(method, "__func__", None) is not default


async def _nothing() -> AsyncIterator[Sequence[OutputLine]]:
    return
    yield


def runtime_named(name: str) -> Callable[[Surroundings], Any]:
    """What makes the runtime of this name; what it makes goes through `adapted`.

    Raises:
        UsageError: none is installed.
    """
    make: Callable[[Surroundings], Any]
    if name in OURS:
        module, _, what = OURS[name].partition(":")
        make = getattr(import_module(module), what)
        return make
    from importlib.metadata import entry_points  # noqa: PLC0415  # see `OURS`

    found = {each.name: each for each in entry_points(group=GROUP)}
    if name not in found:
        known = ", ".join(sorted({*found, EXTERNAL}))
        raise UsageError(f"there is no runtime {name!r} (installed: {known})")
    make = found[name].load()
    return make
