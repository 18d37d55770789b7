"""The runtime that runs slices as transient units of systemd.

Slices live as they do in `ProcessRuntime`, whose promises hold here, too, with these differences:

- Nothing of ours stands between a slice and systemd: units go on when any process of cdm ends. Without a word of the
  node, systemd's own watchdog stops them: see `cdm.runtimes.systemd.watchdog`.
- Each slice has a user of its own, a folder of its own (``HOME``, below /var/lib/private), a private ``/tmp``, and
  nothing else that it may write to. Of the node's folder it sees its artifact only.
- Of a slice that ends with exit status 0 while the node has no process there is no trace, nor of one that is killed by
  SIGTERM, SIGINT, SIGHUP or SIGPIPE then: that counts as exit status 0.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

import anyio

from cdm.errors import SliceFailed, UsageError
from cdm.model.keys import SliceKey
from cdm.model.limits import Limits
from cdm.output.reading import folder_name
from cdm.runtimes import Surroundings, Work
from cdm.runtimes.process.files import open_folder, remove
from cdm.runtimes.process.runtime import ProcessRuntime
from cdm.runtimes.process.supervising import Place, Supervising
from cdm.runtimes.systemd.bus import RefusedBySystemd, SystemdBus
from cdm.runtimes.systemd.supervisor import SystemdSupervisor
from cdm.runtimes.systemd.unit import (
    CREDENTIALS,
    LINKS,
    PRIVATE,
    STATE,
    UnitPlace,
    controllers,
    state_of,
    unenforced,
    unit_name,
)

BOOTED = Path("/run/systemd/system")
_FOR_ALL = 0o755


class SystemdRuntime(ProcessRuntime):
    """Runs slices as units. All methods are called from one event loop.

    Args:
        surroundings: what the agent gives it.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings, cgroups=False)
        self._token = ""
        """Empty: it is not started."""

    async def check_machine(self) -> None:
        """Look whether units can be had here.

        Raises:
            UsageError: systemd does not run this machine, or does not do what this user asks for.
            SliceFailed: it does not answer now.
        """
        await super().check_machine()
        if os.geteuid() != 0 or not await self._in_thread(BOOTED.exists):
            raise UsageError(
                "--runtime systemd (CDM_RUNTIME) needs root, and systemd as this machine's init; choose another runtime"
            )
        bus = SystemdBus(lambda _: None)
        try:
            await bus.connect()
        except RefusedBySystemd as error:
            raise _refused(error) from None
        finally:
            bus.disconnect()

    def unenforced(self, limits: Limits) -> str | None:
        """Which limit cannot be enforced on this node; None: all can."""
        return unenforced(limits, controllers())

    def secrets_seen(self, run: str) -> Path:
        """Where a run's program finds the files with its secrets."""
        return CREDENTIALS / unit_name(self._token, run)

    def listed(self, keys: Collection[SliceKey]) -> None:
        """These are all slices of the node; what others had of their own goes."""
        names = {*map(folder_name, keys)} | {*map(folder_name, self.slices)}
        self.supervisor.tasks.start_soon(self._in_thread, self._clear_all_but, names)

    async def close(self) -> None:
        """Stop everything, and remove what slices had of their own."""
        try:
            await super().close()
        finally:
            if self._token:  # else it was never started, and the folder above is all nodes'
                with anyio.CancelScope(shield=True):
                    await self._in_thread(self._clear_all_but, ())

    async def lodging(self, work: Work) -> Place | None:
        """What a slice has of its own, which systemd makes; its artifact is opened to it. Raises `SliceFailed`."""
        try:
            # Nobody else gets there: the node's folder is closed, and units see nothing of it but their own artifacts.
            work.folder.chmod(_FOR_ALL)
        except OSError as error:
            raise SliceFailed(f"{work.folder} cannot be opened to it: {error.strerror}") from None
        return UnitPlace(state_of(self._token, folder_name(work.key)))

    async def _supervise(self, token: str, is_new: bool) -> Supervising:
        self._token = token

        def content_of(key: SliceKey) -> Path:
            return self._slices[key].work.folder

        try:
            return await SystemdSupervisor.start(self._folder, token, self.surroundings.outlive, content_of)
        except RefusedBySystemd as error:
            raise _refused(error) from None

    async def _clear(self, key: SliceKey) -> None:
        await self._in_thread(self._clear_state, folder_name(key))

    def _clear_all_but(self, names: Collection[str]) -> None:
        for top in (LINKS, PRIVATE):
            with contextlib.suppress(OSError):
                for each in (top / STATE / self._token).iterdir():
                    if each.name not in names:
                        self._clear_state(each.name)

    def _clear_state(self, name: str) -> None:
        """Remove what a slice had of its own, and systemd's link to it."""
        for top in (LINKS, PRIVATE):
            parent = top / STATE / self._token
            with contextlib.suppress(OSError):
                opened = open_folder(parent)
                try:
                    remove(name, opened)
                finally:
                    os.close(opened)
                parent.rmdir()  # the last one is gone
                parent.parent.rmdir()


def _refused(error: RefusedBySystemd) -> UsageError | SliceFailed:
    """What ends the node: where systemd is merely away, whoever starts the node again is not told that it is no use."""
    return (SliceFailed if error.is_away else UsageError)(f"--runtime systemd (CDM_RUNTIME): {error}")
