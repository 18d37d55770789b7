"""What a slice and its runtime need of whatever starts and stops programs for them, and gives them a place."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import anyio.abc

from cdm import clock
from cdm.model.keys import SliceKey
from cdm.runtimes.keeper.protocol import RunUser, Spawn, Survivor
from cdm.runtimes.process.background import Background
from cdm.runtimes.process.handle import RunHandle
from cdm.runtimes.process.notes import RunNote


class Place(Protocol):
    """What a slice has of its own."""

    @property
    def user(self) -> RunUser | None:
        """As whom it runs; None: the supervisor knows."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables that tell the slice where it may write."""


class FoundRun(NamedTuple):
    """A run that an earlier process of the node began."""

    run: RunHandle
    note: RunNote
    told: Survivor

    @property
    def serves(self) -> bool:
        """Whether it was ready, and is not being stopped: it can be gone on with. Its program may have ended."""
        return self.told.whole and self.note.ready is not None


class Keeping(Protocol):
    """What a slice needs once its program was started, whatever started it."""

    @property
    def tasks(self) -> anyio.abc.TaskGroup:
        """What runs in it is cancelled when nobody keeps runs any more."""

    def note(self, run: RunHandle, note: RunNote) -> None:
        """Have it noted what the next process of the node is to know of a run."""

    async def stop(self, run: RunHandle, number: int, grace: float) -> None:
        """Stop all of a run; returns when nothing of it runs. Raises `SliceFailed`: something cannot be ended."""

    def silent_for(self) -> float:
        """Seconds since the last accepted heartbeat was sent."""


class Supervising(ABC):
    """Starts and stops programs, each a run. `cdm.runtimes.process.supervisor` has them kept by a keeper of ours.

    Args:
        background: where runs are followed, and slices live.
    """

    limits_processes = False
    """Whether `Limits.processes` can be enforced; it is known once this is `ready`."""

    def __init__(self, background: Background) -> None:
        self.found: list[FoundRun] = []
        """What an earlier process of the node began, for the runtime to go on with, or to stop."""
        self._background = background
        self._heard = float("-inf")
        """When the last accepted heartbeat was sent."""
        self._series = secrets.token_hex(4)
        self._count = 0

    @property
    def tasks(self) -> anyio.abc.TaskGroup:
        """What runs in it is cancelled by `close` and `detach`."""
        return self._background.tasks

    def name(self) -> str:
        """A name for one more run."""
        self._count += 1
        return f"{self._series}-{self._count}"

    def heard(self, at: float) -> None:
        """NATS accepted a heartbeat that was sent at this time, in seconds on `cdm.clock`."""
        self._heard = max(at, self._heard)

    def silent_for(self) -> float:
        """Seconds since the last accepted heartbeat was sent."""
        return clock.now() - self._heard

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """The process that keeps what runs; None: there is none now."""

    @abstractmethod
    async def ready(self) -> None:
        """Wait until programs can be started."""

    @abstractmethod
    def mark(self, run: str) -> dict[str, str]:
        """Variables that all processes of a run have."""

    @abstractmethod
    def spawn(self, spawn: Spawn, key: SliceKey) -> RunHandle:
        """Start a slice's program. Raises `SliceFailed` where nobody can even be asked."""

    @abstractmethod
    def note(self, run: RunHandle, note: RunNote) -> None:
        """Have it noted what the next process of the node is to know of a run."""

    @abstractmethod
    async def stranger(self, run: RunHandle, port: int) -> int | None:
        """The process that listens on a port although it does not belong to the run, if the system tells of one."""

    @abstractmethod
    async def stop(self, run: RunHandle, number: int, grace: float) -> None:
        """Stop all processes of a run; returns when none lives. Raises `SliceFailed`: one cannot be ended."""

    @abstractmethod
    def outlive(self, seconds: float | None) -> None:
        """What runs outlives this process for so long since the last accepted heartbeat; None: not at all."""

    @abstractmethod
    async def close(self) -> None:
        """Cancel all tasks, and leave nothing running."""

    @abstractmethod
    async def detach(self) -> None:
        """Cancel all tasks, and leave what runs to the next process of the node."""
