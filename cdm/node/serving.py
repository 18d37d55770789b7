"""The part of a node that is there for its own slices: it mirrors their keys and no others.

With the runtime ``external`` an agent outside obeys the commands and `Serving` only keeps what it is told to do; with
any other runtime `Running` has an agent of our own.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from cdm.agent.agent import Agent
from cdm.artifacts.cache import Cache
from cdm.artifacts.repository import Artifacts
from cdm.dispatch.messages import (
    Connected,
    Disconnected,
    KeyRejected,
    RejectedKeyRemoved,
    ValuePut,
    ValueRejected,
    ValueRemove,
    about,
    about_rejected,
)
from cdm.dispatch.router import receiver
from cdm.errors import FolderTaken, UsageError
from cdm.log import Log
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey, encode_node
from cdm.model.node import Role
from cdm.model.slice import SliceValue
from cdm.node.part import Ground
from cdm.output.service import LogService
from cdm.runtimes import Lapsing, Surroundings, runtime_named
from cdm.store.bucket import Bucket

log = Log("cdm.slices")

SENT = (*about(SliceKey), *about_rejected(SliceKey), Connected, Disconnected)
"""Every message about a node's own slices."""


class OwnSlices:
    """The slices of this node, as their keys are.

    Args:
        node: this node; other nodes' slices are passed over.
    """

    def __init__(self, node: NodeId) -> None:
        self._node = node
        self.slices: dict[SliceKey, SliceValue] = {}
        self.complete = False
        """Whether all keys are known at present: they are not until the first listing, and without NATS."""

    @receiver
    def on_slice(self, put: ValuePut[SliceKey, SliceValue]) -> None:
        """A command came, or the agent reported a state."""
        if put.key.node == self._node:
            self.slices[put.key] = put.value
            log.debug("slice", slice=str(put.key), state=str(put.value.state), reason=put.value.reason)

    @receiver
    def on_slice_removed(self, remove: ValueRemove[SliceKey, SliceValue]) -> None:
        """What ran under this key is to run no more."""
        if self.slices.pop(remove.key, None) is not None:
            log.debug("slice is gone", slice=str(remove.key))

    @receiver
    def on_connection(self, change: Connected | Disconnected) -> None:
        """The mirror is complete, or may fall behind from now on."""
        self.complete = isinstance(change, Connected)


class Unreadable:
    """Tells of what cannot be read under a node's slice keys. Nothing follows from it: what was known before stays."""

    @receiver
    def on_slice_rejected(self, rejected: ValueRejected[SliceKey, SliceValue]) -> None:
        """Nobody can tell what the slice is to do."""
        log.warning("unreadable slice", slice=str(rejected.key), reason=rejected.reason)

    @receiver
    def on_key_rejected(self, rejected: KeyRejected[SliceKey]) -> None:
        """A key does not parse: it is reported and left alone."""
        log.warning("unreadable key is left alone", bucket="slices", key=rejected.name, reason=rejected.reason)

    @receiver
    def on_rejected_key_removed(self, removed: RejectedKeyRemoved[SliceKey]) -> None:
        """Nothing was made of it, so nothing is to be undone."""
        log.info("unreadable key is gone", bucket="slices", key=removed.name)


class Serving:
    """The node's own slices, run by somebody else."""

    def __init__(self, ground: Ground) -> None:
        node = ground.settings.node
        self.own = OwnSlices(node)
        self._mirrors = {"slices": f"{encode_node(node)}.>"}
        # Elsewhere the manager tells of it.
        self._unreadable = (Unreadable(),) if ground.settings.role is Role.AGENT else ()

    @property
    def mirrors(self) -> Mapping[str, str]:
        """This node's keys in ``slices``: a permission can be written for them."""
        return self._mirrors

    @property
    def receivers(self) -> tuple[object, ...]:
        """What keeps the slices."""
        return (self.own, *self._unreadable)

    @property
    def sends(self) -> tuple[Any, ...]:
        """All about slices."""
        return SENT

    @property
    def work(self) -> tuple[Callable[[], Coroutine[Any, Any, object]], ...]:
        """Nothing: the agent outside works."""
        return ()

    async def prepare(self) -> None:
        """Buckets are the managers' business; the mirror and the registration wait for them."""

    async def recreate(self, bucket: Bucket) -> None:
        """Buckets are the managers' business."""

    def heard(self, at: float) -> None:
        """Nothing here lives by it."""

    def wake(self) -> None:
        """Nothing here has a clock."""

    def reset(self, reason: str) -> None:
        """The mirror lists anew by itself."""

    async def resign(self) -> None:
        """The leader unloads what runs here once the registration is gone."""

    async def give_back(self) -> None:
        """Nothing is held."""

    async def close(self) -> None:
        """Nothing runs here."""


class Running(Serving):
    """The node's own slices, run by a runtime of ours."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        settings = ground.settings
        # Absolute: slices are started in folders of their own.
        folder = (settings.folder or state_folder(settings.prefix, settings.node)).expanduser().absolute()
        make = runtime_named(settings.runtime)
        runtime = make(Surroundings(settings.node, folder / "runtime", self._crashed))
        artifacts = Artifacts(ground.connection)
        cache = Cache(folder / "artifacts", artifacts, settings.cache_bytes)
        self._cache, self._folder = cache, folder
        self._lock: int | None = None
        self._runtime = runtime
        self.agent = Agent(settings.node, ground.buckets["slices"], runtime, cache, settings.node_ttl)
        self.logs = LogService(ground.connection, settings.node, runtime)

    async def prepare(self) -> None:
        """Take the folder, and end what an earlier process of this node left running.

        Raises:
            FolderTaken: another living process uses this node's folder.
            UsageError: the folder cannot be used.
        """
        try:
            # First: what another node downloads, and runs, would be taken for a dead one's.
            self._lock = _taken(self._folder)
            await self._cache.start()
            await self._runtime.start()
        except OSError as error:
            raise UsageError(
                f"folder {self._folder} cannot be used: {error.strerror or error}; choose another --folder (CDM_FOLDER)"
            ) from None

    def _crashed(self, key: SliceKey, reason: str, fatal: bool) -> None:
        self.agent.crashed(key, reason, fatal)

    @property
    def receivers(self) -> tuple[object, ...]:
        """The agent."""
        return (self.agent, *self._unreadable)

    @property
    def work(self) -> tuple[Callable[[], Coroutine[Any, Any, object]], ...]:
        """Obey, and show what the slices write."""
        return (self.agent.run, self.logs.run)

    def heard(self, at: float) -> None:
        """Slices that must not run twice may run on."""
        if isinstance(self._runtime, Lapsing):
            self._runtime.heard(at)

    def reset(self, reason: str) -> None:
        """Revisions say nothing any more."""
        self.agent.forget()

    async def resign(self) -> None:
        """Once the registration is gone others take the slices' places: those that must not run twice stop before."""
        await self.agent.resign()

    async def close(self) -> None:
        """Nothing runs on without its node; then its folder is free."""
        try:
            await self._runtime.close()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None


def state_folder(prefix: str, node: NodeId) -> Path:
    """Where a node keeps what it fetched and what its slices wrote, unless it is told."""
    base = Path("/var/lib") if os.geteuid() == 0 else Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state")
    return base.expanduser() / "cdm" / (prefix or "default") / encode_node(node)


def _taken(folder: Path) -> int:
    """Lock a node's folder, which is made where it is not there; free when what this returns is closed."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise FolderTaken(
            f"{folder} is used by another process; if that is no node of this name, choose another --folder"
        ) from None
    except OSError:
        os.close(lock)
        raise
    return lock
