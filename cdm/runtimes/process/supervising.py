"""What a slice and its runtime need of whatever starts and stops programs for them, and gives them a place."""

from __future__ import annotations

from typing import Protocol

import anyio.abc

from cdm.model.keys import SliceKey
from cdm.runtimes.keeper.protocol import RunUser, Spawn
from cdm.runtimes.process.handle import RunHandle
from cdm.runtimes.process.notes import RunNote
from cdm.runtimes.process.supervisor import FoundRun


class Place(Protocol):
    """What a slice has of its own."""

    @property
    def user(self) -> RunUser | None:
        """As whom it runs; None: the supervisor knows."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables that tell the slice where it may write."""


class Supervising(Protocol):
    """Starts and stops programs, each a run. `cdm.runtimes.process.supervisor` has them kept by a keeper of ours."""

    found: list[FoundRun]
    """What an earlier process of the node began, for the runtime to go on with, or to stop."""

    @property
    def limits_processes(self) -> bool:
        """Whether `Limits.processes` can be enforced; it is known once this is `ready`."""

    @property
    def tasks(self) -> anyio.abc.TaskGroup:
        """What runs in it is cancelled by `close` and `detach`."""

    @property
    def pid(self) -> int | None:
        """The process that keeps what runs; None: there is none now."""

    async def ready(self) -> None:
        """Wait until programs can be started."""

    def name(self) -> str:
        """A name for one more run."""

    def mark(self, run: str) -> dict[str, str]:
        """Variables that all processes of a run have."""

    def spawn(self, spawn: Spawn, key: SliceKey) -> RunHandle:
        """Start a slice's program. Raises `SliceFailed` where nobody can even be asked."""

    def note(self, run: RunHandle, note: RunNote) -> None:
        """Have it noted what the next process of the node is to know of a run."""

    async def stranger(self, run: RunHandle, port: int) -> int | None:
        """The process that listens on a port although it does not belong to the run, if the system tells of one."""

    async def stop(self, run: RunHandle, number: int, grace: float) -> None:
        """Stop all processes of a run; returns when none lives. Raises `SliceFailed`: one cannot be ended."""

    def heard(self, at: float) -> None:
        """NATS accepted a heartbeat that was sent at this time, in seconds on `cdm.clock`."""

    def silent_for(self) -> float:
        """Seconds since the last accepted heartbeat was sent."""

    def outlive(self, seconds: float | None) -> None:
        """What runs outlives this process for so long since the last accepted heartbeat; None: not at all."""

    async def close(self) -> None:
        """Cancel all tasks, and leave nothing running."""

    async def detach(self) -> None:
        """Cancel all tasks, and leave what runs to the next process of the node."""
