"""The node's side of its keeper: commands go there, what happens comes back. See `cdm.runtimes.keeper.keeper`.

A keeper that dies takes all programs with it; what it leaves is killed, every run is over, and a new one is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import anyio

from cdm import clock
from cdm.errors import SliceFailed
from cdm.log import Log
from cdm.runtimes.keeper.keeper import KILL_PATIENCE, RECORDS
from cdm.runtimes.keeper.leftovers import PATIENCE, sweep
from cdm.runtimes.keeper.packets import Outbox
from cdm.runtimes.keeper.processes import Process
from cdm.runtimes.keeper.protocol import (
    MARK,
    MAX_PACKET,
    Command,
    Event,
    Exited,
    Gone,
    Heard,
    Lapsed,
    Refused,
    Said,
    Spawn,
    Started,
    Stop,
    decode_event,
    encode,
)

log = Log("cdm.process")

HUNG = KILL_PATIENCE + 5.0
"""Seconds past the grace of a stop after which a keeper that does not answer is killed."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds until a keeper that died, or could not be started, soon after the one before it is tried again: doubled each
time. What kills every keeper must not keep the node busy with starting and ending all of its slices."""
SICK = 4.0
"""A keeper whose death is followed by a pause of so many seconds died once too often: its slices are not started again
as if nothing had been, but by their restart policies, so that at last they are FAILED and run elsewhere."""
STABLE = 60.0
"""Seconds after which a keeper's death is no consequence of the last one."""
LOST = "the process that keeps this node's slices died"


class Run:
    """One run of a program, as the node knows it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.begun = clock.now()
        self.pid: int | None = None
        self.refused: Refused | None = None
        self.status: int | None = None
        self.lost = False
        """Whether it ended because its keeper did, and does not count as failed."""
        self.lapsed = False
        """Whether it was stopped because no heartbeat was taken for too long."""
        self.last: tuple[str, ...] = ()
        """The last lines of its output, once it is gone."""
        self.left: tuple[int, ...] = ()
        """Processes that could not be stopped."""
        self.started = asyncio.Event()
        """The program runs, or never will."""
        self.said = asyncio.Event()
        """The awaited line was written."""
        self.over = asyncio.Event()
        """The program itself ended, or never was."""
        self.gone = asyncio.Event()
        """Nothing of it lives; or, where some are `left`, SIGKILL did not end them."""

    def take(self, event: Event) -> None:
        """Note what happened."""
        match event:
            case Started(_, pid):
                self.pid = pid
                self.started.set()
            case Refused():
                self.refused = event
                self.started.set()
                self.over.set()
            case Said():
                self.said.set()
            case Exited(_, status):
                if not self.over.is_set():
                    self.status = status
                self.over.set()
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


class Keeping:
    """The keeper of one runtime.

    Args:
        folder: the runtime's own.
        token: what this runtime's runs are marked with.
        grouped: whether to use cgroups where they are to be had.
    """

    def __init__(self, folder: Path, token: str, *, grouped: bool) -> None:
        self._folder = folder
        self._token = token
        self._grouped = grouped
        self._runs: dict[str, Run] = {}
        self._count = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._outbox: Outbox | None = None
        self._ready = asyncio.Event()
        self._reviving: asyncio.Task[None] | None = None
        self._launched = float("-inf")
        """When the present keeper was started."""
        self._pause = 0.0
        """Seconds to wait before the next one is."""
        self._closed = False
        self._heard: Heard | None = None

    @property
    def pid(self) -> int | None:
        """The keeper's pid; None: there is none now."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """End what a predecessor left, and start the keeper. Raises `SliceFailed` where something cannot be ended."""
        if left := await sweep(self._folder / RECORDS, self._token):
            raise SliceFailed(f"processes of an earlier run of this node cannot be ended: {_pids(left)}")
        self._launch()

    def spawn(self, spawn: Spawn) -> Run:
        """Have a program started. Raises `SliceFailed` where that cannot even be asked for."""
        if not self._ready.is_set():
            raise SliceFailed(LOST)
        run = Run(spawn.run)
        try:
            self._send(spawn)
        except OSError as error:
            raise SliceFailed(f"cannot be started: {error.strerror}", fatal=True) from None
        self._runs[run.name] = run
        return run

    def heard(self, at: float) -> None:
        """NATS took a heartbeat that was sent at this time; see `Heard`."""
        self._heard = Heard(at)
        if self._ready.is_set():
            self._send(self._heard)

    def name(self) -> str:
        """A name for one more run."""
        self._count += 1
        return f"{os.getpid()}-{self._count}"

    async def ready(self) -> None:
        """Wait until there is a keeper."""
        await self._ready.wait()

    async def stop(self, run: Run, number: int, grace: float) -> None:
        """Stop all of a run; returns when nothing of it lives.

        Raises:
            SliceFailed: something of it cannot be ended, not even by SIGKILL.
        """
        if run.gone.is_set() and not run.left:
            return
        run.gone.clear()
        run.left = ()
        if self._ready.is_set():
            with contextlib.suppress(OSError):
                self._send(Stop(run.name, number, grace))
        with anyio.move_on_after(grace + HUNG) as scope:
            await run.gone.wait()
        if scope.cancelled_caught:
            log.error("the keeper of processes does not answer: it is killed", pid=self.pid)
            if self._process is not None:
                self._process.kill()
            with anyio.move_on_after(PATIENCE + HUNG) as scope:
                await run.gone.wait()
            if scope.cancelled_caught:
                raise SliceFailed("cannot be stopped: its keeper is gone, and what it left cannot be ended")
        if run.left:
            raise SliceFailed(f"cannot be stopped: SIGKILL does not end {_pids(run.left)}")

    async def close(self) -> None:
        """End the keeper, and with it what may still run."""
        self._closed = True
        self._ready.clear()
        if self._reviving is not None:
            self._reviving.cancel()
            await asyncio.gather(self._reviving, return_exceptions=True)
        self._disconnect()
        if self._process is not None:
            await self._wait(KILL_PATIENCE + 5.0)
        try:
            if left := await sweep(self._folder / RECORDS, self._token):
                log.error("processes cannot be ended", pids=_pids(left))
        except OSError as error:
            log.error("cannot look for processes that are left", reason=str(error))
        for run in list(self._runs.values()):
            run.end()
        self._runs.clear()

    def _launch(self) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        grouped = "yes" if self._grouped else "no"
        command = [
            *(sys.executable, "-P", "-m", "cdm.runtimes.keeper.keeper"),
            *(str(there.fileno()), str(self._folder), self._token, grouped),
        ]
        # Programs cannot see the node's environment in their parent's: there are credentials in it.
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), MARK: f"{self._token}.keeper"}
        if "PATH" in os.environ:
            environment["PATH"] = os.environ["PATH"]
        try:
            self._process = subprocess.Popen(
                command,
                cwd="/",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[there.fileno()],
                start_new_session=True,
            )
        except BaseException:
            here.close()
            raise
        finally:
            there.close()
        self._socket, self._outbox = here, Outbox(here)
        asyncio.get_running_loop().add_reader(here, self._on_readable)
        if self._heard is not None:
            self._send(self._heard)
        self._launched = clock.now()
        self._ready.set()

    def _send(self, command: Command) -> None:
        assert self._socket is not None
        assert self._outbox is not None
        packet = encode(command)
        if len(packet) > MAX_PACKET:
            raise OSError(errno.E2BIG, "the manifest with its arguments expanded is too long")
        idle = not self._outbox.waiting
        self._outbox.send(packet)
        if idle and self._outbox.waiting:
            asyncio.get_running_loop().add_writer(self._socket, self._on_writable)

    def _on_writable(self) -> None:
        assert self._outbox is not None
        self._outbox.flush()
        if self._socket is not None and not self._outbox.waiting:
            asyncio.get_running_loop().remove_writer(self._socket)

    def _on_readable(self) -> None:
        for _ in range(64):  # others on the loop have their turn
            if self._socket is None:
                return
            try:
                packet = self._socket.recv(MAX_PACKET)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._on_lost()
                return
            event = decode_event(packet)
            run = self._runs.get(event.run)
            if run is None:
                continue
            run.take(event)
            if isinstance(event, Gone) and not event.left:
                del self._runs[event.run]

    def _disconnect(self) -> None:
        if self._socket is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket)
            loop.remove_writer(self._socket)
            self._socket.close()
            self._socket = self._outbox = None

    def _on_lost(self) -> None:
        self._disconnect()
        self._ready.clear()
        if not self._closed:
            log.error("the keeper of processes died: all slices of this node are started again", pid=self.pid)
            self._reviving = asyncio.get_running_loop().create_task(self._revive())

    async def _revive(self) -> None:
        """Go on until there is a keeper again, whatever is in the way: without one nothing of this node runs."""
        pause = 0.0 if clock.now() - self._launched >= STABLE else self._pause
        while True:
            self._pause = min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE)
            try:
                await self._bury(forgiven=pause < SICK)
                await anyio.sleep(pause)
                self._launch()
            except Exception as error:  # nobody waits for this task
                log.exception("the keeper of processes cannot be started again", reason=str(error))
                await anyio.sleep(FIRST_PAUSE)  # it may not have come to the pause
                pause = self._pause
            else:
                return

    async def _bury(self, *, forgiven: bool) -> None:
        """End what a dead keeper left, and tell that its runs are over, or lost where it is no fault of theirs."""
        self._disconnect()
        if self._process is not None:
            self._process.kill()
            await self._wait(None)
        while left := await sweep(self._folder / RECORDS, self._token):
            log.error("processes cannot be ended", pids=_pids(left))
        lost, self._runs = self._runs, {}
        for run in lost.values():
            run.lost = forgiven and not run.over.is_set()
            run.left = ()  # nothing lives: the next keeper, which knows nothing of it, is not to be asked
            run.end()

    async def _wait(self, timeout: float | None) -> None:
        """Wait for the keeper's end; one that does not end is killed."""
        process = self._process
        if process is None:
            return
        try:
            handle = os.pidfd_open(process.pid)
        except ProcessLookupError:  # pragma: no cover - reaped by somebody else
            process.poll()
            self._process = None
            return
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(handle, ended.set)
        try:
            with anyio.move_on_after(timeout) as scope:
                await ended.wait()
            if scope.cancelled_caught:
                process.kill()
                await ended.wait()
        finally:
            loop.remove_reader(handle)
            os.close(handle)
        process.wait()
        self._process = None


def _pids(processes: Iterable[Process | int]) -> str:
    return "pid " + ", ".join(str(each if isinstance(each, int) else each.pid) for each in processes)
