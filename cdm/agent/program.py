"""What the runtime has of one slice: its program, how it was loaded, and how often it was started."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from cdm.agent.ports import Holder
from cdm.agent.shared import Shared
from cdm.agent.steps import LocalState
from cdm.errors import InvalidManifest, SliceFailed
from cdm.model.blueprint import LONGEST_LAST_GRACE, Overrides
from cdm.model.keys import SliceKey
from cdm.model.manifest import Manifest
from cdm.model.secret import secrets_in
from cdm.model.slice import SliceState
from cdm.runtimes import Work

DEADLINE_MARGIN = 60.0
"""Seconds for the node itself, beside what a slice's manifest lets it take."""
LOADS_WITHIN = 120.0
"""Seconds that loading may take which says nothing: what managers allow it."""
LARGE = 16 * 1024 * 1024
"""Bytes from which on loading says how long it may take."""
SLOWEST = 1024 * 1024
"""Bytes a second that are fetched, unpacked, and handed on to the runtime, where the machine is busy."""


class _Loaded(NamedTuple):
    """What was loaded last."""

    manifest: Manifest
    overrides: Overrides | None
    content: str
    """Digest of the artifact's content."""
    may_start: Callable[[], Awaitable[None]]
    """Raises `SliceFailed` where the node does not trust it any more."""


class Interruption(NamedTuple):
    """The runtime is starting an ended program again."""

    reason: str
    """How it ended."""
    within: float
    """Most seconds that it takes."""


class Program:
    """What runs, or may run, for one slice. The calls that go to the runtime raise `SliceFailed`.

    Args:
        shared: the node's.
        key: the slice's.
        leaves_within: tells for how many seconds it goes on, where it is told to go; None: it is not.
    """

    def __init__(self, shared: Shared, key: SliceKey, leaves_within: Callable[[], float | None]) -> None:
        self.key = key
        self.port: int | None = None
        self.cores = 0.0
        """How many its key says that it reserves; 0: none."""
        self._interruption: Interruption | None = None
        self._shared = shared
        self.leaves_within = leaves_within
        self._holder = Holder(key, leaves_within)
        self._loaded: _Loaded | None = None
        self._starts = 0
        """Since it was loaded."""
        self._loads_within: float | None = None
        """Seconds that what is being loaded may take for its size; None: nothing is, or it is small."""
        self._content: str | None = None
        """The digest of the content that is held for it."""
        if (folder := shared.runtime.found.get(key)) is not None:
            self._hold(folder.name)  # it is in use, and must stay as it is

    # How it stands

    @property
    def interruption(self) -> Interruption | None:
        """What the runtime is doing by itself about a program that ended; None: it has not ended, or was given up."""
        return self._interruption if self._shared.runtime.slices.get(self.key) else None

    @property
    def local_state(self) -> LocalState:
        """What the runtime has of it."""
        active = self._shared.runtime.slices.get(self.key)
        if active is None:
            return LocalState.NOTHING
        if not active:
            return LocalState.LOADED
        return LocalState.ACTIVE if self._interruption is None else LocalState.RESTARTING

    @property
    def found(self) -> bool:
        """Whether something of it runs since an earlier process of the node, and nothing was done about that yet."""
        return self.key in self._shared.runtime.found

    @property
    def nothing_runs(self) -> bool:
        """Whether the runtime has nothing of it."""
        return self.local_state is LocalState.NOTHING and not self.found

    @property
    def serves(self) -> bool:
        """Whether it may serve just now."""
        return self.local_state is LocalState.ACTIVE or self.found

    @property
    def fixed_port(self) -> int | None:
        """The port that its manifest demands; None: none, or any that is free."""
        port = self._loaded.manifest.port if self._loaded is not None else None
        return port if isinstance(port, int) else None

    @property
    def address(self) -> str | None:
        """Where the node's slices are reached; None: that is not known."""
        return self._shared.address()

    @property
    def warning(self) -> str | None:
        """What users should know of it; None: nothing."""
        return self._shared.runtime.warning(self.key)

    @property
    def grace(self) -> float:
        """Seconds that it has to stop; 0: it is not loaded."""
        return self._loaded.manifest.stop_grace if self._loaded is not None else 0.0

    @property
    def exclusive(self) -> bool:
        """Whether what is loaded must not run twice; what was found counts as that."""
        if self.found:
            return True
        overrides = self._loaded.overrides if self._loaded is not None else None
        return overrides is not None and overrides.stop_after is not None

    @property
    def restarts(self) -> int | None:
        """As keys tell it; None: none."""
        return self._starts - 1 if self._starts > 1 else None

    @property
    def stable(self) -> float | None:
        """Seconds that a program that ended has to be up to count as stable; None: it has not ended."""
        return self._loaded.manifest.restart.stable if self._loaded and self.restarts else None

    @property
    def content(self) -> str | None:
        """Digest of the artifact's content that it was loaded with; None: it is not loaded."""
        return self._loaded.content if self._loaded is not None else None

    def is_loaded_with(self, overrides: Overrides | None, content: str | None) -> bool:
        """Whether it was loaded with these; a content of None is whichever it was loaded with."""
        loaded = self._loaded
        return loaded is not None and loaded.overrides == overrides and content in (None, loaded.content)

    def deadline(self, state: SliceState) -> float | None:
        """Seconds that the state may take as far as is known of the slice; None: as long as any other."""
        if state is SliceState.ACTIVATING and self.interruption is not None:
            return self.interruption.within + DEADLINE_MARGIN
        if self._loads_within is not None:
            return self._loads_within
        if self._loaded is None:
            return None
        manifest = self._loaded.manifest
        if state is SliceState.ACTIVATING:
            return manifest.readiness.timeout + manifest.stop_grace + DEADLINE_MARGIN
        if state in (SliceState.DEACTIVATING, SliceState.UNLOADING):
            serves_on = self.leaves_within() if self.serves else None
            return (serves_on or 0.0) + manifest.stop_grace + DEADLINE_MARGIN
        return None

    # What happens to it

    def restarting(self, reason: str, within: float) -> None:
        """It was active and ended, and the runtime starts it again."""
        self._interruption = Interruption(reason, within)
        self._starts += 1

    def restarted(self, port: int | None) -> None:
        """It is ready again."""
        self._interruption, self.port = None, port

    def count_anew(self) -> None:
        """It is told to be loaded, maybe although it is: its starts count from here."""
        self._starts = 0

    def take_port(self) -> None:
        """Have the port that its manifest demands, if it does, before anything else of this node has it."""
        if (port := self.fixed_port) is not None:
            self._shared.ports.take(port, self._holder)

    def free_port(self) -> None:
        """Have no port any more, unless it is active."""
        if self.local_state not in (LocalState.ACTIVE, LocalState.RESTARTING):
            self._shared.ports.free(self.key)

    # What is done with it

    async def load(
        self,
        overrides: Overrides | None,
        content: str | None = None,
        takes_long: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Fetch its content and load it.

        Args:
            overrides: where it differs from the manifest.
            content: digest of the content that it is to be; None: the one that the artifact has at present.
            takes_long: awaited before that begins where it is so large that `deadline` says more than before.
        """

        async def sized(size: int) -> None:
            if size >= LARGE:
                self._loads_within = LOADS_WITHIN + size / SLOWEST
                if takes_long is not None:
                    await takes_long()

        try:
            work, loaded, digest = await self._prepare(overrides, content, sized)
            self._hold(digest)
            await self._shared.runtime.load(work)
        finally:
            self._loads_within = None
        self._loaded, self._starts = loaded, 0

    async def adopt(self, overrides: Overrides | None, content: str | None, restarts: int | None) -> None:
        """Go on with what was found of it. Where this fails, and nothing is `found` any more, it was stopped.

        Args:
            overrides: as for `load`.
            content: likewise.
            restarts: as its key tells them.
        """
        work, loaded, digest = await self._prepare(overrides, content)
        self._hold(digest)
        self.port = await self._shared.runtime.adopt(work)
        self._loaded, self._starts = loaded, (restarts or 0) + 1
        if self.port is not None:
            self._shared.ports.take(self.port, self._holder)

    async def _prepare(
        self,
        overrides: Overrides | None,
        content: str | None,
        sized: Callable[[int], Awaitable[object]] | None = None,
    ) -> tuple[Work, _Loaded, str]:
        """Fetch its content; returns what is to run, what is remembered of it, and the content's name in the cache."""
        shared = self._shared
        stop_after = overrides.stop_after if overrides else None
        if stop_after is not None:
            self._check_can_stop_after(stop_after)
        fetched = await shared.cache.get(self.key.artifact, content, sized)
        may_start = shared.trust.judge(fetched, overrides, partial(shared.cache.signed, self.key.artifact, fetched))
        try:
            manifest = _overridden(fetched.manifest, overrides)
        except InvalidManifest as error:
            raise SliceFailed(f"overrides: {error}", fatal=True) from None
        secrets = secrets_in(manifest.env)
        if secrets and not shared.runtime.gives_secrets:
            raise SliceFailed("secrets: this node's runtime gives slices none", fatal=True)
        plain = manifest
        if secrets:
            plain = replace(manifest, env={name: value for name, value in manifest.env.items() if name not in secrets})
        work = Work(self.key, fetched.folder, plain, stop_after, secrets, may_start, self.cores)
        return work, _Loaded(manifest, overrides, fetched.content, may_start), fetched.digest

    async def activate(self) -> None:
        """Start it, and wait until it is ready."""
        self._interruption = None
        self._starts += 1
        if self._loaded is not None:
            await self._loaded.may_start()
        self.port = await self._shared.runtime.activate(self.key)
        if self.port is not None:
            self._shared.ports.take(self.port, self._holder)

    async def deactivate(self) -> None:
        """Stop it; it stays loaded."""
        await self._shared.runtime.deactivate(self.key)
        self.free_port()

    async def unload(self) -> None:
        """Stop it, and forget it."""
        await self._shared.runtime.unload(self.key)
        self.free_port()
        self.release()

    def _hold(self, digest: str) -> None:
        self._shared.cache.hold(digest)
        self.release()
        self._content = digest

    def release(self) -> None:
        """Hold no content any more."""
        if self._content is not None:
            self._shared.cache.release(self._content)
            self._content = None

    def _check_can_stop_after(self, stop_after: float) -> None:
        shared = self._shared
        if not shared.runtime.lapses:
            raise SliceFailed("stop_after: this node's runtime does not stop slices by itself", fatal=True)
        if stop_after < shared.least_stop_after:
            raise SliceFailed(
                f"stop_after: {stop_after:g} s is too short for this node's heartbeats;"
                f" at least {shared.least_stop_after:g} s (--node-ttl)",
                fatal=True,
            )


def _overridden(manifest: Manifest, overrides: Overrides | None) -> Manifest:
    if overrides is None:
        return manifest
    args = manifest.args if overrides.args is None else overrides.args
    grace = manifest.stop_grace if overrides.stop_after is None else min(manifest.stop_grace, LONGEST_LAST_GRACE)
    return replace(manifest, env={**manifest.env, **overrides.env}, args=args, stop_grace=grace)
