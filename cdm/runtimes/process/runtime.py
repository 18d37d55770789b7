"""The runtime that runs slices as processes of this machine.

Every program is started, read, stopped and reaped by the *keeper*, one small process beside the node (see
`cdm.runtimes.keeper.keeper`). What is promised:

- `deactivate` and `unload` return when no process of the slice lives any more, or raise `SliceFailed`.
- After `close` no process of any slice lives. After the node was killed, none does `ORPHAN_BOUND` seconds later; or,
  where slices outlive it (`Surroundings.outlive`, until `end_with_node`), as many after that time, and their grace.
  `detach` leaves them so.
- What the keeper kept until then is found by `start`, for `adopt` to go on with, or to be stopped by any other call.
- What outlived even that (node and keeper killed at once, and a program with children of its own) is ended by `start`,
  before anything is started. A pid is never trusted alone: a mark in the environment, or pid, start time and boot.
- When the keeper is killed, so is every slice; both are started again. That does not count as failures of the slices.

The folder holds what `SliceRuntime` says, ``running/`` (records of what runs), ``secrets/`` (one folder a run),
``slices/`` (what slices that run as others have of their own), and ``keeper`` (the socket of a keeper that outlives its
node). No other living process may use it: its slices would be ended. The node sees to that (see `cdm.node.folder`).
"""

from __future__ import annotations

import asyncio
import resource
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import anyio

from cdm.errors import SliceFailed, UsageError
from cdm.model.keys import SliceKey
from cdm.model.limits import Limits
from cdm.output.reading import folder_name
from cdm.runtimes import Surroundings, Work
from cdm.runtimes.keeper.protocol import RECORDS
from cdm.runtimes.process.given import SECRETS, remove_all
from cdm.runtimes.process.life import SlicePhase
from cdm.runtimes.process.process_slice import ProcessSlice
from cdm.runtimes.process.slice_runtime import LOGS, SliceRuntime
from cdm.runtimes.process.supervising import FoundRun, Place, Supervising
from cdm.runtimes.process.supervisor import Supervisor
from cdm.runtimes.process.users import Users

T = TypeVar("T")

ORPHAN_BOUND = 2.0
"""Seconds after the death of the keeper, or of a node whose slices do not outlive it, when none of their processes
lives any more."""
MIN_FILES = 64
"""File descriptors that node and keeper each need before there is a slice."""
UNLIMITED = (
    "limits.processes cannot be enforced on this node: it runs as root, for whom RLIMIT_NPROC does not hold, and has no"
    " cgroup with the controller pids"
)


class ProcessRuntime(SliceRuntime[ProcessSlice, FoundRun]):
    """Runs slices as processes. All methods are called from one event loop.

    Args:
        surroundings: what the agent gives it.
        cgroups: whether to put every slice into a cgroup where that is possible.
        users: as whom slices run; None: as the surroundings say.
    """

    def __init__(self, surroundings: Surroundings, *, cgroups: bool = True, users: Users | None = None) -> None:
        super().__init__(surroundings)
        self._users = users or Users.of(surroundings.folder, surroundings.run_as)
        self._cgroups = cgroups
        self._supervisor: Supervising | None = None
        self._heard = float("-inf")

    def warning(self, key: SliceKey) -> str | None:
        """Which limit of a slice is not enforced."""
        each = self._slices.get(key)
        return None if each is None or self._supervisor is None else self.unenforced(each.work.manifest.limits)

    def unenforced(self, limits: Limits) -> str | None:
        """Which limit cannot be enforced on this node, once the supervisor is `ready`; None: all can."""
        return UNLIMITED if limits.processes is not None and not self._limits_processes else None

    @property
    def keeper(self) -> int | None:
        """The keeper's pid; None: there is none."""
        return None if self._supervisor is None else self._supervisor.pid

    async def check_machine(self) -> None:
        """Raises `UsageError`: too few files may be open."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if files != resource.RLIM_INFINITY and files < MIN_FILES:
            raise UsageError(
                f"only {files} files may be open (ulimit -n); a node needs {MIN_FILES}, and about 3 more for each slice"
            )

    async def start(self) -> None:
        """End what an earlier process of this node left running, or find it, where a keeper kept it.

        Raises:
            SliceFailed: a process cannot be ended.
            UsageError: see `check_machine`.
        """
        await self.check_machine()
        self._folder.mkdir(parents=True, exist_ok=True)
        await self._in_thread(self._users.start, (LOGS, RECORDS), (SECRETS,))
        self._supervisor = await self._supervise(*self._read_token())
        self._found = {found.note.slice: found for found in self._supervisor.found}
        remove_all(self._folder, {found.run.name for found in self._found.values()})
        self.heard(self._heard)

    def heard(self, at: float) -> None:
        """NATS accepted a heartbeat of this node, sent at this time on `cdm.clock`: slices with stop_after run on."""
        self._heard = at
        if self._supervisor is not None:
            self._supervisor.heard(at)

    async def load(self, work: Work) -> None:
        """Take note of it. What was loaded under the key, and may run, is stopped first.

        Raises:
            SliceFailed: what was loaded cannot be stopped, or a limit cannot be enforced on this node, or there is no
                user for it.
        """
        await self._drop(work.key)
        if work.manifest.container is not None:
            raise SliceFailed("the artifact is the image of a container; run it with --runtime container", fatal=True)
        if work.manifest.limits != Limits() and self.surroundings.enforce_limits:
            await self.supervisor.ready()
            if problem := self.unenforced(work.manifest.limits):
                raise SliceFailed(problem, fatal=True)
        self._slices[work.key] = ProcessSlice(work, self, await self._lodge(work))

    async def adopt(self, work: Work) -> int | None:
        """Go on with what was found of it, as if it had been activated. Returns its port, if it has one.

        Raises:
            SliceFailed: it was not ready, or is not what this work asks for; nothing of it runs any more.
        """
        found = self._found.get(work.key)
        try:
            if found is not None and found.serves and found.note.fits(work):
                lodging = await self.lodging(work)
                if found.told.user == (lodging.user if lodging else None):
                    del self._found[work.key]
                    each = self._slices[work.key] = ProcessSlice(work, self, lodging)
                    each.go_on(found.run, found.note)
                    return each.port
        finally:
            await self._end_found(work.key)  # where that did not come about
        raise SliceFailed("what ran of it when the node was started is not what is to run")

    async def unload(self, key: SliceKey) -> None:
        """Stop it, and forget it; its output stays for a while.

        Raises:
            SliceFailed: a process of it cannot be ended; it stays loaded.
        """
        await self._drop(key)
        await self._clear(key)  # also of what an earlier process of the node had

    def listed(self, keys: Collection[SliceKey]) -> None:
        """These are all slices of the node; what others had of their own goes."""
        if self._users.others:
            self.supervisor.tasks.start_soon(self._in_thread, self._users.clear_all_but, {*map(folder_name, keys)})

    async def close(self) -> None:
        """Stop all slices at once, each in its own way, and then the keeper, which leaves nothing running."""
        try:
            await self._stop_all()
        finally:
            keeping, self._supervisor = self._supervisor, None
            if keeping is not None:
                with anyio.CancelScope(shield=True):
                    await keeping.close()
                    for key, each in self._slices.items():
                        if each.phase is SlicePhase.LOADED:
                            await self._clear(key)
                remove_all(self._folder)

    def end_with_node(self) -> None:
        """What runs does not outlive this process any more."""
        if self._supervisor is not None:
            self._supervisor.outlive(None)

    async def detach(self) -> None:
        """End all work, and leave what runs to the next process of the node."""
        keeping, self._supervisor = self._supervisor, None
        if keeping is not None:
            with anyio.CancelScope(shield=True):
                await keeping.detach()

    def secrets_seen(self, run: str) -> Path:
        """Where a run's program finds the files with its secrets."""
        return self.secrets_folder(run)

    @property
    def supervisor(self) -> Supervising:
        """Starts and stops programs. Raises `SliceFailed` before `start` and after `close`."""
        if self._supervisor is None:
            raise SliceFailed("the runtime is not started")
        return self._supervisor

    async def _end_found(self, key: SliceKey) -> None:
        """Stop what an earlier process of this node left of it. Raises `SliceFailed`; then it stays found."""
        if (found := self._found.get(key)) is not None:
            await self.supervisor.stop(found.run, found.told.signal, found.told.grace)
            self._found.pop(key, None)
            shutil.rmtree(self.secrets_folder(found.run.name), ignore_errors=True)

    @property
    def _limits_processes(self) -> bool:
        return self._users.others or self.supervisor.limits_processes

    async def _supervise(self, token: str, is_new: bool) -> Supervising:
        """Begin to keep programs, the runtime's own marked by this token; nothing is yet where it is new."""
        taken, outlive = self._users.taken, self.surroundings.outlive
        return await Supervisor.start(self._folder, token, taken, outlive, grouped=self._cgroups, is_new=is_new)

    async def lodging(self, work: Work) -> Place | None:
        """Give a slice what it has of its own, or what it had before; None: nothing. Raises `SliceFailed`."""
        if not self._users.others:
            return None
        return await self._in_thread(self._users.lodge, folder_name(work.key), work.folder)

    async def _lodge(self, work: Work) -> Place | None:
        try:
            return await self.lodging(work)
        except BaseException:  # where it is cancelled, the thread goes on
            with anyio.CancelScope(shield=True):
                await self._clear(work.key)
            raise

    async def _clear(self, key: SliceKey) -> None:
        if self._users.others:
            await self._in_thread(self._users.clear, folder_name(key))

    async def _in_thread(self, call: Callable[..., T], *args: object) -> T:
        try:
            return await asyncio.to_thread(call, *args)
        except RuntimeError as error:
            if "start new thread" not in str(error):
                raise
            return call(*args)  # none can be started now
