"""One run of a slice's program, as the node knows it from its keeper's events."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TypeVar

import anyio

from cdm import clock
from cdm.errors import SliceFailed
from cdm.model.keys import SliceKey
from cdm.model.limits import Logs
from cdm.runtimes.keeper.protocol import Exited, Gone, Lapsed, Listener, Losing, RunEvent, Said, SpawnRefused, Started
from cdm.wakeup import Moment

T = TypeVar("T")

LOST = "the process that keeps this node's slices died"
LOST_HERE = "its keeper died"
"""The same, in the slice's own output."""
CUT_OFF = "stopped: NATS accepted no heartbeat of this node for too long (stop_after)"


class RunHandle:
    """What is known of one run.

    Args:
        name: its name.
        key: the slice's; None: it is not known.
        begun: when it was started, in seconds on `cdm.clock`; None: now.
    """

    def __init__(self, name: str, key: SliceKey | None, begun: float | None = None) -> None:
        self.name = name
        self.key = key
        self.begun = clock.now() if begun is None else begun
        self.ended: Exited | SpawnRefused | None = None
        """How the program itself ended; None: it has not, or its keeper died first."""
        self.excused = False
        """Whether it ended because its keeper died, which does not count as its failure."""
        self.logs = Logs()
        """How much of its output is kept."""
        self.lapsed = False
        """Whether it was stopped because no heartbeat was accepted for too long."""
        self.lacking = ""
        """What it lacks to be ready, as far as a check told."""
        self.last: tuple[str, ...] = ()
        """The last lines of its output, once it is gone."""
        self.left: tuple[int, ...] = ()
        """Processes that could not be stopped."""
        self.stranger: int | None = None
        """A process of somebody else's that listens on its port, as its keeper told last."""
        self.listener_told = Moment()
        self.started = Moment()
        """The program runs, or never will."""
        self.said = Moment()
        """The program wrote the line that is waited for."""
        self.over = Moment()
        """The program itself ended, or never was."""
        self.gone = Moment()
        """No process of it lives; or, where some are `left`, SIGKILL did not end them."""

    def on_event(self, event: RunEvent) -> None:
        """Note what happened."""
        match event:
            case Started():
                self.started.set()
            case Exited() | SpawnRefused():
                if not self.over.is_set():
                    self.ended = event
                self.started.set()
                self.over.set()
            case Said():
                self.said.set()
            case Listener(_, stranger):
                self.stranger = stranger
                self.listener_told.set()
            case Losing():
                pass
            case Lapsed():
                self.lapsed = True
            case Gone(_, last, left):
                self.last, self.left = last, left
                self.end()

    def end(self) -> None:
        """Nothing more will happen, unless something was left."""
        self.started.set()
        if not self.left:
            self.over.set()
        self.gone.set()

    async def unless_over(self, wait: Callable[[], Coroutine[object, object, T]]) -> T | None:
        """Wait for something as long as the program runs; returns None when that ended first."""
        result: T | None = None
        async with anyio.create_task_group() as tasks:

            async def over() -> None:
                await self.over.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(over)
            result = await wait()
            tasks.cancel_scope.cancel()
        return result

    @property
    def stopped(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.gone.is_set() and not self.left

    def expect_end(self) -> None:
        """It is about to be stopped, maybe once more: what came of that before does not count."""
        self.gone.clear()
        self.left = ()

    def check_stopped(self) -> None:
        """Raise `SliceFailed` where SIGKILL did not end all of it."""
        if self.left:
            raise SliceFailed(f"cannot be stopped: SIGKILL does not end pid {', '.join(map(str, self.left))}")

    @property
    def clean(self) -> bool:
        """Whether the program ended with exit status 0."""
        return isinstance(self.ended, Exited) and self.ended.status == 0

    @property
    def unfit(self) -> bool:
        """Whether the program could not be run, and trying again soon would fail the same way."""
        return isinstance(self.ended, SpawnRefused) and self.ended.fatal

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        if self.lapsed:
            return CUT_OFF
        match self.ended:
            case None:
                return LOST
            case SpawnRefused(_, problem):
                return problem
            case Exited() as exited:
                return exited.words
