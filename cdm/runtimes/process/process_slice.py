"""What is different of a slice that is a program of this machine: how it is started, and who else may have its port."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from cdm.errors import SliceFailed
from cdm.model.manifest import Http, Line, Tcp
from cdm.runtimes import Work
from cdm.runtimes.keeper.protocol import Lapse, Spawn
from cdm.runtimes.process.command import prepare
from cdm.runtimes.process.given import NO_SECRETS, Given
from cdm.runtimes.process.handle import CUT_OFF, RunHandle
from cdm.runtimes.process.notes import RunNote
from cdm.runtimes.process.slice import Slice, SliceHost
from cdm.runtimes.process.supervising import Place, Supervising


class ProcessHost(SliceHost, Protocol):
    """What a slice needs of its runtime."""

    @property
    def supervisor(self) -> Supervising:
        """Starts and stops programs. Raises `SliceFailed` while the runtime is not started."""

    def secrets_seen(self, run: str) -> Path:
        """Where a run's program finds the files with its secrets."""


class ProcessSlice(Slice):
    """One slice that is loaded.

    Args:
        work: what it runs.
        host: its runtime.
        lodging: what it has of its own; None: it runs as the node itself.
    """

    def __init__(self, work: Work, host: ProcessHost, lodging: Place | None = None) -> None:
        super().__init__(work, host)
        self._runtime = host
        self._lodging = lodging

    async def _spawn(self) -> RunHandle:
        if self._cut_off:
            raise SliceFailed(CUT_OFF, lapsed=True)
        await self.work.may_start()
        runtime = self._runtime
        keeping = runtime.supervisor
        await keeping.ready()
        await self._wait_for_ports()
        name = keeping.name()
        self._given.remove()
        given = NO_SECRETS
        if wanted := self.work.secrets:
            folder, secrets = runtime.secrets_folder(name), runtime.surroundings.secrets
            given = Given(folder, wanted, secrets, runtime.secrets_seen(name))
        self._given = given
        lodging, outside = self._lodging, dict(os.environ)
        outside |= lodging.environment if lodging else {}
        program = prepare(self.work, keeping.mark(name), outside, runtime.ports(self), self.port, given)
        given.write(lodging.user if lodging else None)
        self.port = program.port
        manifest = self.work.manifest
        check = manifest.readiness.check
        stop_after = self.work.stop_after
        lapse = None if stop_after is None else Lapse(stop_after, self._stop_signal, manifest.stop_grace)
        run = keeping.spawn(
            Spawn(
                name,
                program.path,
                program.arguments,
                program.environment,
                program.directory,
                str(runtime.output_folder(self.key)),
                manifest.limits,
                manifest.logs,
                check.text if isinstance(check, Line) else None,
                lapse,
                lodging.user if lodging else None,
                self.work.cores,
                self._stop_signal,
                manifest.stop_grace,
            ),
            self.key,
        )
        self._note = RunNote.first(self.work, run.begun, self.port)
        keeping.note(run, self._note)
        return run

    async def _taken_by_a_stranger(self, run: RunHandle, check: Tcp | Http) -> str | None:
        """Somebody else may have bound a port that was free when it was chosen, and listen in the program's place."""
        port = self.port
        if self.work.manifest.port != "auto" or port is None or check.port not in (None, port):
            return None
        stranger = await self._runtime.supervisor.stranger(run, port)
        return None if stranger is None else f"port {port}: another process listens there (pid {stranger})"
