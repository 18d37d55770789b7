"""The runtime that runs slices as containers.

- A slice is one container at a time, of the image that its artifact holds, with labels of cdm's.
- Containers go on when the node's process ends without `ContainerRuntime.close`, however it ends; `start` finds them,
  for `adopt` to go on with the same container. What cannot be gone on with, and what no key wants, is removed.
- Nobody stops them while the node's process is away: so slices with ``stop_after`` are kept off such nodes.
- Output is read from the engine, and kept in files as that of processes. After `adopt` it goes on where it stopped.

The folder holds what `SliceRuntime` says, and ``containers/`` (a note on each).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio

from cdm.errors import SliceFailed
from cdm.model.keys import SliceKey
from cdm.model.manifest import Http, Tcp
from cdm.model.secret import SecretForm
from cdm.runtimes import Surroundings, Work
from cdm.runtimes.container import NOTES
from cdm.runtimes.container.configuration import unenforced
from cdm.runtimes.container.containers import Containers, FoundContainer
from cdm.runtimes.container.engine import Engine
from cdm.runtimes.container.images import Images
from cdm.runtimes.container.slice import ContainerSlice
from cdm.runtimes.process.background import Background
from cdm.runtimes.process.slice_runtime import SliceRuntime


class ContainerRuntime(SliceRuntime[ContainerSlice, FoundContainer]):
    """Runs slices as containers. All methods are called from one event loop.

    Args:
        surroundings: what the agent gives it.

    Raises:
        UsageError: there is no container engine on this machine.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        self.engine = Engine.of_machine()
        self.token = ""
        self.rootless = False
        self._containers: Containers | None = None
        self._images: Images | None = None
        self._leaves = False
        """Whether the node leaves, so that nothing of it is to be left here."""
        self._able: Mapping[str, Any] = {}
        """What the engine tells of itself."""

    @property
    def containers(self) -> Containers:
        """Starts and stops them. Raises `SliceFailed` before `start` and after `close`."""
        if self._containers is None:
            raise SliceFailed("the runtime is not started")
        return self._containers

    @property
    def images(self) -> Images:
        """Brings images to the engine. Raises `SliceFailed` before `start`."""
        if self._images is None:
            raise SliceFailed("the runtime is not started")
        return self._images

    @property
    def supervisor(self) -> Containers:
        """The same, as all slices call it."""
        return self.containers

    def warning(self, key: SliceKey) -> str | None:
        """Which limit of a slice is not enforced."""
        each = self._slices.get(key)
        return None if each is None else unenforced(each.work, self._able)

    async def check_machine(self) -> None:
        """Raises `SliceFailed`: the engine does not answer."""
        self._able = await self.engine.ask("GET", "/info")
        self.rootless = any("rootless" in each for each in self._able.get("SecurityOptions") or ())

    async def start(self) -> None:
        """Find what an earlier process of this node left running.

        Raises:
            SliceFailed: the engine does not answer, or a container cannot be removed.
        """
        await self.check_machine()
        self._folder.mkdir(parents=True, exist_ok=True)
        self.token, _ = self._read_token()
        self._images = Images(self.engine, self.token)
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

    async def unload(self, key: SliceKey) -> None:
        """Stop it, and forget it; its output stays for a while. Raises `SliceFailed`: it stays loaded."""
        await self._drop(key)
        self._prune()

    async def _end_found(self, key: SliceKey) -> None:
        if (found := self._found.get(key)) is not None:
            await self.containers.end(found)
            self._found.pop(key, None)

    def _prune(self) -> None:
        used = {each.work.folder for each in self._slices.values()}
        used |= {folder for folder in self.found.values() if folder is not None}
        self.containers.tasks.start_soon(self.images.prune, used)

    def end_with_node(self) -> None:
        """The node leaves: `close` leaves no image either."""
        self._leaves = True

    async def close(self) -> None:
        """Stop all slices at once, each in its own way; leave no container."""
        try:
            await self._stop_all()
        finally:
            containers, self._containers = self._containers, None
            with anyio.CancelScope(shield=True):
                try:
                    if containers is not None:
                        await containers.close()
                        if self._leaves:
                            await self.images.leave()
                finally:
                    await self.engine.close()

    async def detach(self) -> None:
        """End all work, and leave what runs to the next process of the node."""
        containers, self._containers = self._containers, None
        with anyio.CancelScope(shield=True):
            if containers is not None:
                await containers.detach()
            await self.engine.close()


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
