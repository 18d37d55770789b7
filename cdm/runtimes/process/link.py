"""The connection to one keeper: its process, and the node's end of their socket.

The keeper was started by this process, or by an earlier one of the node, and outlived it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec

from cdm import clock
from cdm.log import Lasting, Log
from cdm.runtimes.keeper.door import knock, peer
from cdm.runtimes.keeper.packets import PacketQueue
from cdm.runtimes.keeper.processes import KEEPER
from cdm.runtimes.keeper.protocol import (
    MARK,
    MAX_PACKET,
    OF_KEEPER,
    PROTOCOL,
    Command,
    Event,
    Hello,
    Survivor,
    decode_event,
    encode,
)

log = Log("cdm.process")

BURST = 64
"""Events that are read at once, before others on the loop have their turn."""
OURS = str(Path(__file__).parents[3])
"""Where cdm is imported from, which may be known to a hook alone."""
PATIENCE = 10.0
"""Seconds that a keeper which outlived an earlier process of the node has to say what runs, at least; and that is tried
to reach it."""
PAUSE = 0.1
"""Seconds until it is tried again."""


class KeeperProcess:
    """The keeper's process.

    Args:
        pid: its.
        child: where this process started it.
    """

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self._child = child
        self._handle = None if child is not None else os.pidfd_open(pid)

    def kill(self) -> None:
        """SIGKILL."""
        if self._child is not None:
            self._child.kill()
        elif self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def handle(self) -> int | None:
        """A descriptor that can be read from once it has ended, for the caller to close; None: it was reaped."""
        try:
            return os.pidfd_open(self.pid) if self._handle is None else os.dup(self._handle)
        except ProcessLookupError:
            return None

    def reap(self) -> None:
        """It has ended."""
        if self._child is not None:
            self._child.wait()
        self._let_go()

    def leave(self) -> None:
        """It goes on without this process."""
        if self._child is not None:
            self._child.returncode = 0  # nobody is to wait for it
        self._let_go()

    def _let_go(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class Met(NamedTuple):
    """A keeper that outlived an earlier process of the node."""

    process: KeeperProcess
    end: socket.socket
    hello: Hello
    running: tuple[Survivor, ...]


async def meet(folder: Path, patience: float = 0.0) -> Met | None:
    """Reach the keeper that an earlier process of the node left, and have it tell what runs.

    None: there is none, or none that can be used; what there is of it is then ended by whoever calls (`sweep`).

    Args:
        folder: the runtime's own; the node has it to itself.
        patience: seconds for which what the keeper keeps may run on without a node: it may have been stopped, or wait
            for a disk, and is not given up before.

    Raises:
        OSError: it cannot be told whether there is one.
    """
    reached = await _reach(folder)
    if reached is None:
        return None
    process, end = reached
    met: Met | None = None
    silent = asyncio.get_running_loop().call_later(
        PATIENCE, partial(log.warning, "the keeper of an earlier process does not answer yet", pid=process.pid)
    )
    try:
        with anyio.fail_after(max(PATIENCE, patience)):
            hello = await _next(end)
            if isinstance(hello, Hello) and 1 <= hello.protocol <= PROTOCOL:
                running = [await _next(end) for _ in range(hello.running)]
                met = Met(process, end, hello, tuple(each for each in running if isinstance(each, Survivor)))
            else:
                log.warning("the keeper of an earlier process speaks another language: its slices end", said=hello)
    except (ConnectionError, TimeoutError, msgspec.DecodeError) as error:
        log.warning("the keeper of an earlier process cannot be taken over: its slices end", reason=repr(error))
    finally:
        silent.cancel()
        if met is None:
            end.close()
            process.leave()
    return met


async def _reach(folder: Path) -> tuple[KeeperProcess, socket.socket] | None:
    """Its process, and our end of a connection to it; None: there is none. Raises `OSError`: that cannot be told."""
    hindered = Lasting(log, "it can be told again whether a keeper of an earlier process runs")
    limit = clock.now() + PATIENCE
    while True:
        try:
            end = knock(str(folder))
            found = None if end is None else _found(end)
        except OSError as error:
            if clock.now() >= limit:
                raise
            what = "it cannot be told yet whether a keeper of an earlier process runs"
            hindered.goes_on(clock.now(), what, reason=error.strerror)
            await anyio.sleep(PAUSE)
        else:
            hindered.over(clock.now())
            return found


def _found(end: socket.socket) -> tuple[KeeperProcess, socket.socket] | None:
    """Who is at the other end; None: it has ended. Raises `OSError`: that cannot be told."""
    try:
        return KeeperProcess(peer(end)[0]), end
    except OSError as error:
        end.close()
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # which says nothing about the process
            raise
        return None


async def _next(end: socket.socket) -> Event:
    packet: bytes = await asyncio.get_running_loop().sock_recv(end, MAX_PACKET)
    if not packet:
        raise ConnectionError("it closed the socket")
    event: Event = decode_event(packet)
    return event


class KeeperLink:
    """A keeper that runs.

    Args:
        process: the keeper.
        end: the node's end of the socket.
        on_event: called with what the keeper tells.
        on_lost: called once when the keeper closed its end; not after `disconnect`.
    """

    def __init__(
        self,
        process: KeeperProcess,
        end: socket.socket,
        on_event: Callable[[Event], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._process = process
        self._socket = end
        self._packets = PacketQueue(end)
        self._on_event = on_event
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._connected = True
        self._loop.add_reader(end, self._on_readable)

    @classmethod
    def open(
        cls, folder: Path, token: str, on_event: Callable[[Event], None], on_lost: Callable[[], None], *, grouped: bool
    ) -> KeeperLink:
        """Start a keeper. Raises `OSError`."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [
            *(sys.executable, "-P", "-S", "-m", KEEPER),  # what is installed beside cdm may hook in (site): not here
            *(str(there.fileno()), str(folder), token, "yes" if grouped else "no"),
        ]
        # Programs can read their parent's environment: the node's, which holds credentials, is not passed on.
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, (*sys.path, OURS))), MARK: f"{token}.{OF_KEEPER}"}
        if "PATH" in os.environ:
            environment["PATH"] = os.environ["PATH"]
        try:
            process = subprocess.Popen(
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
        return cls(KeeperProcess(process.pid, process), here, on_event, on_lost)

    @property
    def pid(self) -> int:
        """The keeper's."""
        return self._process.pid

    def send(self, command: Command) -> None:
        """Send a command. Raises `OSError` where it is too long."""
        packet = encode(command)
        if len(packet) > MAX_PACKET:
            raise OSError(errno.E2BIG, "the manifest with its arguments expanded is too long")
        idle = not self._packets.waiting
        self._packets.send(packet)
        if idle and self._packets.waiting:
            self._loop.add_writer(self._socket, self._on_writable)

    def kill(self) -> None:
        """SIGKILL to the keeper, which takes all programs with it."""
        self._process.kill()

    def disconnect(self) -> None:
        """Close the socket: the keeper ends all programs, and itself, unless they are to outlive this process."""
        if self._connected:
            self._connected = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def leave(self) -> None:
        """Close the socket, and have no more to do with the keeper, which outlives this process."""
        self.disconnect()
        self._process.leave()

    async def wait(self, timeout: float | None) -> None:
        """Wait for the keeper's end; kill it after so many seconds."""
        handle = self._process.handle()
        if handle is None:  # reaped by somebody else
            self._process.reap()
            return
        ended = asyncio.Event()
        self._loop.add_reader(handle, ended.set)
        try:
            with anyio.move_on_after(timeout) as scope:
                await ended.wait()
            if scope.cancelled_caught:
                self._process.kill()
                await ended.wait()
        finally:
            self._loop.remove_reader(handle)
            os.close(handle)
        self._process.reap()

    def _on_writable(self) -> None:
        self._packets.flush()
        if not self._packets.waiting:
            self._loop.remove_writer(self._socket)

    def _on_readable(self) -> None:
        for _ in range(BURST):
            if not self._connected:
                return
            try:
                packet = self._socket.recv(MAX_PACKET)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self.disconnect()
                self._on_lost()
                return
            self._on_event(decode_event(packet))
