"""What runtimes have in common whose slices are `Slice`s: those that are loaded or found, and what they write."""

from __future__ import annotations

import asyncio
import contextlib
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import anyio

from cdm.errors import SliceFailed
from cdm.log import Log
from cdm.model.artifact import Artifact
from cdm.model.keys import SliceKey
from cdm.output.reading import batches, folder_name, keys, prune, tail
from cdm.runtimes import OutputLine, Runtime, Surroundings
from cdm.runtimes.loaded import LoadedSlices
from cdm.runtimes.process.given import SECRETS
from cdm.runtimes.process.notes import RunNote, folder_of
from cdm.runtimes.process.slice import Slice
from cdm.runtimes.process.token import new_token, token_of

log = Log("cdm.process")

LOGS = "logs"
"""The folder, inside the runtime's own, with the output of slices."""
KEPT = 20
"""How many unloaded slices' output is kept."""


class FoundSlice(Protocol):
    """What an earlier process of the node left of a slice."""

    @property
    def note(self) -> RunNote:
        """What that process noted of it."""


S = TypeVar("S", bound=Slice)
F = TypeVar("F", bound=FoundSlice)


class SliceRuntime(Runtime, Generic[S, F]):
    """Runs slices. All methods are called from one event loop.

    Its folder holds ``logs/`` (one folder a slice; it stays after `unload` for the `KEPT` slices that wrote last) and
    ``token``, which marks what is this runtime's.

    Args:
        surroundings: what the agent gives it.
    """

    gives_secrets = True

    def __init__(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        self._folder = surroundings.folder
        self._slices: dict[SliceKey, S] = {}
        self._found: dict[SliceKey, F] = {}
        """What an earlier process of this node began, and nothing was done about yet."""

    @property
    def slices(self) -> Mapping[SliceKey, bool]:
        """All slices that are loaded; True: it is active, also while it is being started again after a crash."""
        return LoadedSlices(self._slices)

    @property
    def found(self) -> Mapping[SliceKey, Path | None]:
        """What an earlier process of this node left, and nothing was done about yet; with the artifact's folder."""
        return {key: folder_of(found.note) for key, found in self._found.items()}

    async def activate(self, key: SliceKey) -> int | None:
        """Start it, and wait until it is ready. Returns its port, if it has one.

        Cancelled, or failed, it leaves nothing running.

        Raises:
            SliceFailed: it is not loaded, ended, or was not ready in time; fatal where it cannot be run at all.
        """
        each = self._slices.get(key)
        if each is None:
            raise SliceFailed(f"{key} is not loaded")
        return await each.activate()

    async def deactivate(self, key: SliceKey) -> None:
        """Stop it; returns when nothing of it runs any more.

        Raises:
            SliceFailed: something of it cannot be ended.
        """
        await self._end_found(key)
        if each := self._slices.get(key):
            await each.deactivate()

    @abstractmethod
    async def _end_found(self, key: SliceKey) -> None:
        """Stop what an earlier process of this node left of it. Raises `SliceFailed`; then it stays found."""

    async def _drop(self, key: SliceKey) -> None:
        """Stop it, and forget it. Raises `SliceFailed`; then it stays loaded."""
        await self.deactivate(key)
        if self._slices.pop(key, None) is not None:
            await self._clear(key)
            names = {folder_name(each) for each in self._slices}
            with contextlib.suppress(RuntimeError):  # no thread can be started now: the next time
                await asyncio.to_thread(prune, self._folder / LOGS, names, KEPT)

    async def _clear(self, key: SliceKey) -> None:
        """Remove what a slice had of its own, beside its output."""

    async def _stop_all(self) -> None:
        """Stop all slices at once, each in its own way."""
        async with anyio.create_task_group() as tasks:
            for key in {*self._slices, *self._found}:
                tasks.start_soon(self._stop, key)

    async def _stop(self, key: SliceKey) -> None:
        try:
            await self.deactivate(key)
        except SliceFailed as error:
            log.error("slice is not stopped", slice=str(key), reason=str(error))

    # Output

    def written(self, artifact: Artifact) -> Sequence[SliceKey]:
        """This node's slices of the artifact that are loaded, or that there is output of."""
        found = set(keys(self._folder / LOGS, artifact)).union(key for key in self._slices if key.artifact == artifact)
        return sorted(key for key in found if key.node == self.surroundings.node)

    def read(
        self, key: SliceKey, *, lines: int | None = None, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[Sequence[OutputLine]]:
        """What a slice wrote, also in earlier runs, a little at a time: see `cdm.output.reading.batches`."""
        return batches(self.output_folder(key), lines=lines, since=since, follow=follow)

    def output(
        self, key: SliceKey, *, lines: int | None = None, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[OutputLine]:
        """The same line by line: see `cdm.output.reading.tail`."""
        return tail(self.output_folder(key), lines=lines, since=since, follow=follow)

    # What slices need

    def output_folder(self, key: SliceKey) -> Path:
        """Where the slice's output is."""
        return self._folder / LOGS / folder_name(key)

    def secrets_folder(self, run: str) -> Path:
        """Where the files with a run's secrets are."""
        return self._folder / SECRETS / run

    def ports(self, but: Slice) -> set[int]:
        """The ports that other slices have."""
        ports = {each.port for each in self._slices.values() if each is not but}
        ports |= {found.note.port for found in self._found.values()}
        return {port for port in ports if port is not None}

    def _read_token(self) -> tuple[str, bool]:
        """What marks all that is this runtime's, and whether it was made just now, for there was none."""
        found = token_of(self._folder)
        return (new_token(self._folder), True) if found is None else (found, False)
