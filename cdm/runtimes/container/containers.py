"""The containers of one runtime: started, found again, stopped and removed."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

import anyio
import anyio.abc
import msgspec

from cdm.errors import SliceFailed, innermost
from cdm.log import Log
from cdm.model.keys import SliceKey
from cdm.runtimes.container.configuration import OWNER
from cdm.runtimes.container.engine import Engine, EngineFailed
from cdm.runtimes.container.run import ContainerRun
from cdm.runtimes.keeper.protocol import Exited
from cdm.runtimes.process.background import Background
from cdm.runtimes.process.handle import RunHandle
from cdm.runtimes.process.notes import RunNote

log = Log("cdm.container")

KILL_PATIENCE = 30.0
"""Seconds for SIGKILL, and for the removal of a container, to have their effect."""
PAUSE = 0.2
_NEVER_RAN = ("created", "dead", "removing")


class FoundContainer(NamedTuple):
    """A container that an earlier process of the node started, and that was ready."""

    name: str
    note: RunNote


class Containers:
    """The containers of one runtime.

    Args:
        engine: where they are.
        token: marks them as this runtime's.
        folder: of its own, for a note on each.
        background: what is done for them.
    """

    def __init__(self, engine: Engine, token: str, folder: Path, background: Background) -> None:
        self._engine = engine
        self._token = token
        self._folder = folder
        self._background = background

    @property
    def tasks(self) -> anyio.abc.TaskGroup:
        """What runs in it is cancelled by `close` and `detach`."""
        return self._background.tasks

    def name(self) -> str:
        """A name for one more."""
        return f"cdm-{self._token[:8]}-{token_hex(6)}"

    async def find(self) -> dict[SliceKey, FoundContainer]:
        """What an earlier process of the node left, by slice. What cannot be gone on with is removed.

        Raises:
            SliceFailed: the engine does not answer, or cannot remove a container.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        filters = msgspec.json.encode({"label": [f"{OWNER}={self._token}"]}).decode()
        found: dict[SliceKey, FoundContainer] = {}
        for each in await self._engine.ask("GET", "/containers/json", all=1, filters=filters):
            name = each["Names"][0].lstrip("/")
            note = self._read(name)
            serves = note is not None and note.ready is not None and each["State"] not in _NEVER_RAN
            if note is not None and serves and note.slice not in found:
                found[note.slice] = FoundContainer(name, note)
            else:
                await self.remove(name)
        names = {each.name for each in found.values()}
        for path in self._folder.iterdir():
            if path.name not in names:
                path.unlink()
        return found

    async def launch(self, run: ContainerRun, body: dict[str, Any]) -> None:
        """Create a container and start it. Where that fails, or is cancelled, there is none.

        Raises:
            EngineFailed: it cannot be started.
            SliceFailed: it cannot be noted.
        """
        try:
            (self._folder / run.name).touch()  # from before it is there until it is removed
        except OSError as error:
            raise SliceFailed(f"cannot be started: {error.strerror}") from None
        try:
            with anyio.CancelScope(shield=True):  # it takes no time, and who is gone cannot tell what came of it
                await self._engine.ask("POST", "/containers/create", body, name=run.name)
                await self._engine.ask("POST", f"/containers/{run.name}/start")
            await anyio.lowlevel.checkpoint()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.remove(run.name)
            raise
        self.follow(run)

    def follow(self, run: ContainerRun, *, goes_on: bool = False) -> None:
        """Keep what it writes, until it has ended."""
        self.tasks.start_soon(self._follow, run, goes_on, name=f"container {run.name}")

    async def _follow(self, run: ContainerRun, goes_on: bool) -> None:
        try:
            await run.follow(goes_on=goes_on)
        except Exception as error:  # an error of ours with one must end neither the others nor the slices' lives
            log.exception("following a container failed", slice=str(run.key))
            run.on_event(Exited(run.name, -9, f"it cannot be followed ({innermost(error)!r})"))

    def note(self, run: RunHandle, note: RunNote) -> None:
        """Note what the next process of the node is to know of it."""
        draft = self._folder / f"{run.name}.new"
        try:
            draft.write_bytes(note.write())
            draft.replace(self._folder / run.name)
        except OSError as error:
            log.warning("a slice will be started anew when this node is", slice=note.key, reason=str(error))
            with suppress(OSError):
                draft.unlink()

    def _read(self, name: str) -> RunNote | None:
        try:
            return RunNote.read((self._folder / name).read_bytes())
        except OSError:
            return None

    async def stop(self, run: RunHandle, number: int, grace: float) -> None:
        """Stop it, and remove it. Raises `SliceFailed`: it cannot be removed."""
        if not run.over.is_set() and grace:
            await self._kill(run.name, number)
            with anyio.move_on_after(grace):
                await run.over.wait()
        if not run.over.is_set():
            await self._kill(run.name, signal.SIGKILL)
            with anyio.move_on_after(KILL_PATIENCE):  # for the last lines of its output
                await run.over.wait()
        await self.remove(run.name)

    async def end(self, found: FoundContainer) -> None:
        """Stop what was found as it wants to be stopped, and remove it. Raises `SliceFailed`."""
        try:
            await self._engine.ask("POST", f"/containers/{found.name}/stop", patience=None)
        except EngineFailed as error:
            log.debug("a container is not stopped", container=found.name, reason=str(error))
        await self.remove(found.name)

    async def remove(self, name: str) -> None:
        """Remove a container, killed if need be; returns when there is none. Raises `SliceFailed`."""
        problem: EngineFailed | None = None
        with anyio.move_on_after(KILL_PATIENCE):
            while True:
                try:
                    await self._engine.ask("DELETE", f"/containers/{name}", force=1, v=1)
                except EngineFailed as error:
                    if error.is_missing:
                        break
                    problem = error  # it is being removed already, for instance
                else:
                    break
                await anyio.sleep(PAUSE)
            (self._folder / name).unlink(missing_ok=True)
            return
        raise SliceFailed(f"container {name} cannot be removed ({problem})")

    async def _kill(self, name: str, number: int) -> None:
        try:
            await self._engine.ask("POST", f"/containers/{name}/kill", signal=signal.Signals(number).name)
        except EngineFailed as error:
            if error.status not in (404, 409):  # it has ended
                raise

    async def close(self) -> None:
        """Remove all that are left, and end all work."""
        await self._background.close()
        for found in (await self.find()).values():
            await self.remove(found.name)

    async def detach(self) -> None:
        """End all work, and leave what runs to the next process of the node."""
        await self._background.close()

    def silent_for(self) -> float:
        """No slice here is stopped since the node is cut off: those are refused."""
        return 0.0
