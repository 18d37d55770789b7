"""The runtime that runs slices as containers.

- A slice is one container at a time, of the image that its artifact holds, with labels of cdm's.
- Containers go on when the node's process ends without `ContainerRuntime.close`, however it ends; `start` finds them,
  for `adopt` to go on with the same container. What cannot be gone on with, and what no key wants, is removed.
- Nobody stops them while the node's process is away: so slices with ``stop_after`` are kept off such nodes.
- Output is read from the engine, and kept in files as that of processes. After `adopt` it goes on where it stopped.

The folder holds ``logs/``, ``containers/`` (a note on each), and ``token``, which marks this runtime's
containers.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio

from cdm.errors import SliceFailed
from cdm.log import Log
from cdm.model.artifact import Artifact
from cdm.model.keys import SliceKey
from cdm.model.manifest import Http, Tcp
from cdm.model.secret import SecretForm
from cdm.output.reading import batches, folder_name, keys, prune
from cdm.runtimes import OutputLine, Runtime, Surroundings, Work
from cdm.runtimes.container import NOTES
from cdm.runtimes.container.configuration import unenforced
from cdm.runtimes.container.containers import Containers, FoundContainer
from cdm.runtimes.container.engine import Engine
from cdm.runtimes.container.images import Images
from cdm.runtimes.container.slice import ContainerSlice
from cdm.runtimes.loaded import LoadedSlices
from cdm.runtimes.process.background import Background
from cdm.runtimes.process.notes import folder_of
from cdm.runtimes.process.slice import Slice

log = Log("cdm.container")

LOGS = "logs"
KEPT = 20
"""How many unloaded slices' output is kept."""


class ContainerRuntime(Runtime):
    """Runs slices as containers. All methods are called from one event loop.

    Args:
        surroundings: what the agent gives it.

    Raises:
        UsageError: there is no container engine on this machine.
    """

    gives_secrets = True

    def __init__(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        self.engine = Engine.of_machine()
        self.images = Images(self.engine)
        self.token = ""
        self.rootless = False
        self._folder = surroundings.folder
        self._slices: dict[SliceKey, ContainerSlice] = {}
        self._found: dict[SliceKey, FoundContainer] = {}
        self._containers: Containers | None = None
        self._able: Mapping[str, Any] = {}
        """What the engine tells of itself."""

    @property
    def slices(self) -> Mapping[SliceKey, bool]:
        """All slices that are loaded; True: it is active, also while it is being started again."""
        return LoadedSlices(self._slices)

    @property
    def found(self) -> Mapping[SliceKey, Path | None]:
        """What an earlier process of this node left, and nothing was done about yet; with the artifact's folder."""
        return {key: folder_of(found.note) for key, found in self._found.items()}

    @property
    def containers(self) -> Containers:
        """Starts and stops them. Raises `SliceFailed` before `start` and after `close`."""
        if self._containers is None:
            raise SliceFailed("the runtime is not started")
        return self._containers

    @property
    def supervisor(self) -> Any:
        """The same, as slices of the process runtime call it."""
        return self.containers

    def warning(self, key: SliceKey) -> str | None:
        """Which limit of a slice is not enforced."""
        each = self._slices.get(key)
        return None if each is None else unenforced(each.work, self._able)

    async def start(self) -> None:
        """Find what an earlier process of this node left running.

        Raises:
            SliceFailed: the engine does not answer, or a container cannot be removed.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self.token = self._read_token()
        self._able = await self.engine.ask("GET", "/info")
        self.rootless = any("rootless" in each for each in self._able.get("SecurityOptions") or ())
        background = await Background.open()
        self._containers = Containers(self.engine, self.token, self._folder / NOTES, background)
        self._found = await self._containers.find()

    async def load(self, work: Work) -> None:
        """Bring its image to the engine. What was loaded under the key, and may run, is stopped first.

        Raises:
            SliceFailed: what was loaded cannot be stopped, the artifact is no image, or it cannot be run here.
        """
        await self._drop(work.key)
        if problem := _unfit(work):
            raise SliceFailed(problem, fatal=True)
        if self.surroundings.enforce_limits and (problem := unenforced(work, self._able)):
            raise SliceFailed(problem, fatal=True)
        await self.images.has(work.folder)
        self._slices[work.key] = ContainerSlice(work, self)
        self._prune()

    async def adopt(self, work: Work) -> int | None:
        """Go on with what was found of it, as if it had been activated. Returns its port, if it has one.

        Raises:
            SliceFailed: it is not what this work asks for; nothing of it runs any more.
        """
        found = self._found.get(work.key)
        if found is None or not found.note.fits(work):
            await self._end_found(work.key)
            raise SliceFailed("what ran of it when the node was started is not what is to run")
        del self._found[work.key]
        each = self._slices[work.key] = ContainerSlice(work, self)
        each.take_over(found.name, found.note)
        return each.port

    async def activate(self, key: SliceKey) -> int | None:
        """Start it, and wait until it is ready. Returns its port, if it has one.

        Cancelled, or failed, it leaves nothing.

        Raises:
            SliceFailed: it is not loaded, ended, or was not ready in time; fatal where it cannot be run at all.
        """
        each = self._slices.get(key)
        if each is None:
            raise SliceFailed(f"{key} is not loaded")
        return await each.activate()

    async def deactivate(self, key: SliceKey) -> None:
        """Stop it; returns when there is no container of it. Raises `SliceFailed`: it cannot be removed."""
        await self._end_found(key)
        if each := self._slices.get(key):
            await each.deactivate()

    async def unload(self, key: SliceKey) -> None:
        """Stop it, and forget it; its output stays for a while. Raises `SliceFailed`: it stays loaded."""
        await self._drop(key)
        self._prune()

    async def _drop(self, key: SliceKey) -> None:
        await self.deactivate(key)
        if self._slices.pop(key, None) is not None:
            names = {folder_name(each) for each in self._slices}
            await asyncio.to_thread(prune, self._folder / LOGS, names, KEPT)

    async def _end_found(self, key: SliceKey) -> None:
        if (found := self._found.get(key)) is not None:
            await self.containers.end(found)
            self._found.pop(key, None)

    def _prune(self) -> None:
        used = {each.work.folder for each in self._slices.values()}
        used |= {folder for folder in self.found.values() if folder is not None}
        self.containers.tasks.start_soon(self.images.prune, used)

    async def close(self) -> None:
        """Stop all slices at once, each in its own way; leave no container."""
        try:
            async with anyio.create_task_group() as tasks:
                for key in {*self._slices, *self._found}:
                    tasks.start_soon(self._close, key)
        finally:
            containers, self._containers = self._containers, None
            if containers is not None:
                with anyio.CancelScope(shield=True):
                    await containers.close()

    async def _close(self, key: SliceKey) -> None:
        try:
            await self.deactivate(key)
        except SliceFailed as error:
            log.error("slice is not stopped", slice=str(key), reason=str(error))

    async def detach(self) -> None:
        """End all work, and leave what runs to the next process of the node."""
        containers, self._containers = self._containers, None
        if containers is not None:
            with anyio.CancelScope(shield=True):
                await containers.detach()

    # Output

    def written(self, artifact: Artifact) -> Sequence[SliceKey]:
        """This node's slices of the artifact that are loaded, or that there is output of."""
        found = set(keys(self._folder / LOGS, artifact)).union(key for key in self._slices if key.artifact == artifact)
        return sorted(key for key in found if key.node == self.surroundings.node)

    def read(
        self, key: SliceKey, *, lines: int | None = None, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[Sequence[OutputLine]]:
        """A slice's output, also of earlier runs: see `cdm.output.reading.batches`."""
        return batches(self.output_folder(key), lines=lines, since=since, follow=follow)

    # What slices need

    def output_folder(self, key: SliceKey) -> Path:
        """Where the slice's output is."""
        return self._folder / LOGS / folder_name(key)

    def secrets_folder(self, run: str) -> Path:
        """Nowhere: secrets are variables here."""
        return self._folder / "secrets" / run

    def secrets_seen(self, run: str) -> Path:
        """Nowhere."""
        return self.secrets_folder(run)

    def ports(self, but: Slice) -> Collection[int]:
        """The ports that other slices have."""
        ports = {each.port for each in self._slices.values() if each is not but}
        ports |= {found.note.port for found in self._found.values()}
        return {port for port in ports if port is not None}

    def _read_token(self) -> str:
        path = self._folder / "token"
        if not path.exists():
            draft = path.with_suffix(".new")
            draft.write_text(secrets.token_hex(8))
            draft.replace(path)
        return path.read_text().strip()


def _unfit(work: Work) -> str | None:
    """Why no node with this runtime can run it; None: it can be tried."""
    manifest = work.manifest
    if manifest.container is None:
        return "the artifact is a program, and this node runs containers: push an image, or use --runtime process"
    if any(ref.form is SecretForm.FILE for ref in work.secrets.values()):
        return 'secrets: a container is given them as variables alone, not "as": "file"'
    checks = (manifest.readiness.check, manifest.liveness.check if manifest.liveness else None)
    if any(isinstance(check, (Tcp, Http)) and check.port not in (None, manifest.port) for check in checks):
        return "checks of a container are made on the slice's own port; leave port out of them"
    return None
