"""The units of a runtime: what is known of one, and what its end tells."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from pathlib import Path

from cdm.log import Lasting, Log
from cdm.model.manifest import Manifest
from cdm.model.quantity import memory_shown
from cdm.runtimes.keeper.ending import told_of_ending
from cdm.runtimes.keeper.processes import census, listening, sockets
from cdm.runtimes.keeper.protocol import Exited, SpawnRefused
from cdm.runtimes.process.handle import RunHandle
from cdm.runtimes.process.notes import RunNote, manifest_of
from cdm.runtimes.systemd.bus import UnitState
from cdm.runtimes.systemd.output import RawOutput
from cdm.runtimes.systemd.unit import CANNOT_EXECUTE, refused

log = Log("cdm.systemd")

LEFT_ALONE = "stopped: this node's process was gone or frozen for too long"
CLEAN = "exit status 0"


class UnitRun:
    """A unit of this runtime.

    Args:
        name: the run's.
        unit: the unit's.
        handle: what the slice sees of it.
        output: what it writes; None: that is not kept.
        note: what the next process of the node is to know of it; None: it is not known what it is.
    """

    def __init__(
        self, name: str, unit: str, handle: RunHandle, output: RawOutput | None, note: RunNote | None = None
    ) -> None:
        self.name = name
        self.unit = unit
        self.handle = handle
        self.output = output
        self.note = note
        self.changed = asyncio.Event()
        """Its state may be another one."""
        self.asked = asyncio.Event()
        """systemd has answered whether it starts."""
        self.stopped = False
        """Whether it is being stopped because that was asked for."""
        self.pid = 0
        self.unwatched = Lasting(log, "systemd is told again that the node lives", level="error")
        """systemd cannot be told."""
        self._reading = asyncio.Lock()
        self._losing = False

    @property
    def known(self) -> bool:
        """Whether it is known what it runs, and so for how long it may."""
        return self.note is not None and self.note.work is not None

    @property
    def stop_after(self) -> float | None:
        """Seconds without an accepted heartbeat after which it must be stopped; None: it need not be."""
        return self.note.work.stop_after if self.note is not None and self.note.work is not None else None

    async def read(self) -> None:
        """Take what it wrote, if it wrote anything."""
        async with self._reading:
            if self.output is None or not self.output.more:
                return
            try:
                await asyncio.to_thread(self.output.take)
            except (OSError, RuntimeError) as error:
                log.error("what a slice wrote cannot be read", unit=self.unit, reason=str(error))
            writer = self.output.writer
            if writer.said:
                self.handle.said.set()
            if writer.lost and not self._losing:
                log.warning("output is being lost", unit=self.unit, reason=writer.problem)
            self._losing = bool(writer.lost)

    async def read_to_its_end(self) -> tuple[str, ...]:
        """Take what it wrote, of which nothing runs any more; returns the last lines."""
        async with self._reading:
            output, self.output = self.output, None
            if output is None:
                return ()
            try:
                await asyncio.to_thread(output.end, self.handle.ending if self.handle.ended is not None else "")
            except OSError as error:
                log.error("what a slice wrote cannot be kept", unit=self.unit, reason=str(error))
            if output.writer.said:
                self.handle.said.set()
            return output.writer.last

    async def leave(self) -> None:
        """Take what it wrote so far, and leave the rest to the next process of the node."""
        async with self._reading:
            output, self.output = self.output, None
            if output is not None:
                with contextlib.suppress(OSError):
                    while await asyncio.to_thread(output.take):
                        pass
                output.writer.close()
                output.close()

    def ended(self, state: UnitState | None) -> Exited | SpawnRefused | None:
        """How its program ended, or why it could not be run; None: it has not ended."""
        if state is None:  # whatever failed would still be there
            return Exited(self.name, 0, CLEAN)
        if state.ran and state.status is None:
            return Exited(self.name, 0, CLEAN) if state.over else None
        problem = refused(state.status or 0)
        # One that ends at once may have done so between two looks, before systemd said that exec had succeeded.
        if state.ran or (state.status is not None and not problem):
            return Exited(self.name, state.status or 0, self._words(state))
        if state.status is None and not state.over:
            return None
        problem = problem or f"systemd could not start it ({state.result})"
        return SpawnRefused(self.name, problem, fatal=state.status == CANNOT_EXECUTE)

    def _words(self, state: UnitState) -> str:
        limits = (manifest_of(self.note) or Manifest()).limits
        if state.result == "watchdog":
            return LEFT_ALONE
        if state.result == "oom-kill":
            memory = "the machine was out of memory"
            if limits.memory is not None:
                memory = f"over its memory limit of {memory_shown(limits.memory)}"
            return f"killed: {memory}"
        return told_of_ending(state.status or 0, limits, None, asked=self.stopped)


def write_note(path: Path, note: RunNote) -> None:
    """Store it; a reader sees all of it or nothing. Raises `OSError`."""
    draft = path.with_suffix(".new")
    draft.touch(0o600)
    draft.write_bytes(note.write())
    draft.replace(path)


def stranger(port: int, ours: Collection[int]) -> int | None:
    """A process that listens on a port and is none of ours; None: there is none, or it cannot be told."""
    wanted = listening(port).keys()
    if not wanted or any(found is None or found & wanted for found in map(sockets, ours)):
        return None
    return next((pid for pid in census() if pid not in ours and (sockets(pid) or set()) & wanted), None)
