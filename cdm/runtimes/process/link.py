"""The connection to one keeper: its process, and the node's end of their socket."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio

from cdm.runtimes.keeper.packets import PacketQueue
from cdm.runtimes.keeper.processes import KEEPER
from cdm.runtimes.keeper.protocol import MARK, MAX_PACKET, Command, Event, decode_event, encode

BURST = 64
"""Events that are read at once, before others on the loop have their turn."""


class KeeperLink:
    """A keeper that was started.

    Args:
        process: the keeper.
        end: the node's end of the socket.
        on_event: called with what the keeper tells.
        on_lost: called once when the keeper closed its end; not after `disconnect`.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
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
            *(sys.executable, "-P", "-m", KEEPER),
            *(str(there.fileno()), str(folder), token, "yes" if grouped else "no"),
        ]
        # Programs can read their parent's environment: the node's, which holds credentials, is not passed on.
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), MARK: f"{token}.keeper"}
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
        return cls(process, here, on_event, on_lost)

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
        """Close the socket: the keeper ends all programs, and itself."""
        if self._connected:
            self._connected = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    async def wait(self, timeout: float | None) -> None:
        """Wait for the keeper's end; kill it after so many seconds."""
        try:
            handle = os.pidfd_open(self._process.pid)
        except ProcessLookupError:  # reaped by somebody else
            self._process.poll()
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
        self._process.wait()

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
