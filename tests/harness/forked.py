"""`cdm` in processes of its own that need not import it first.

To import cdm takes longer than most commands do. So each worker of the tests has one process that has imported all of
it (`tests.harness.nursery`) and is forked for each command. A child has a pid, an environment, a folder, input and
output of its own, takes signals, and ends as any Python does. What is not its own is what an interpreter has from its
start: the command line and the environment that /proc shows, the seed of hashes, what ``-X`` and ``PYTHON...`` change.
Tests that are about any of that, and those that ask what is imported when, start ``python -m cdm``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import IO

import anyio
import anyio.to_thread

from tests.harness.nursery import TOLD
from tests.harness.paths import ROOT
from tests.harness.waiting import patience

UNTOLD = -1_000
"""Stands for an exit code that nobody can tell any more."""
PAUSE = 0.01
"""Seconds between two looks at a command whose end nobody will tell."""


class Child:
    """A command that runs; of `subprocess.Popen` it has what tests use. Made by `started`."""

    def __init__(self, told: int) -> None:
        self._told = told
        self.pid: int = TOLD.unpack(os.read(told, TOLD.size))[0]
        self.returncode: int | None = None
        """The exit code, or the number of the signal that ended it, with a minus; None while it runs."""
        try:
            self._descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._descriptor = -1
            self._end()

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        for each in (self._told, self._descriptor):
            if each >= 0:
                os.close(each)
        self._told = self._descriptor = -1

    def _end(self) -> None:
        """Take what is told of its end; where the process that forked it is gone, nobody can tell more than that."""
        if told := os.read(self._told, TOLD.size):
            (self.returncode,) = TOLD.unpack(told)
        else:
            if self._descriptor >= 0 and not select.select([self._descriptor], [], [], 0)[0]:
                return
            self.returncode = UNTOLD
        self._close()

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._look(0)

    def _look(self, seconds: float | None) -> int | None:
        over = None if seconds is None else time.monotonic() + seconds
        while self.returncode is None:
            look = select.poll()
            look.register(self._told, select.POLLIN)
            left = None if over is None else over - time.monotonic()
            if look.poll(None if left is None else max(left, 0.0) * 1000):
                self._end()
            if left is not None and left <= 0:
                break
            if self.returncode is None:
                time.sleep(PAUSE)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, so many seconds at most; returns the exit code."""
        if (code := self._look(timeout)) is None:
            raise subprocess.TimeoutExpired("cdm", timeout or 0.0)
        return code

    async def ended(self) -> int:
        """Wait for its end; returns the exit code."""
        while self.poll() is None:
            await anyio.wait_readable(self._told)
            await anyio.sleep(PAUSE if self.poll() is None else 0)
        return self.wait()

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended, and that is about to be told
                signal.pidfd_send_signal(self._descriptor, signal.Signals(number))

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


class _Nursery:
    """The process that is forked, of this worker; started when it is first needed, and ended with the tests."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._starting = Lock()

    def start(self, request: bytes, descriptors: list[int]) -> None:
        """Have a command started."""
        with self._starting:  # tests do it from threads, too
            try:
                socket.send_fds(self._begun(), [request], descriptors)
            # A keeper that is tried in this process has ended all children that it has.
            except (BrokenPipeError, ConnectionResetError):
                self.close()
                socket.send_fds(self._begun(), [request], descriptors)

    def _begun(self) -> socket.socket:
        if self._control is None:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                number = theirs.fileno()
                command = [sys.executable, "-m", "tests.harness.nursery", str(number)]
                self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[number])
        return self._control

    def close(self) -> None:
        """End it; it writes down what it has measured of coverage."""
        if self._control is not None and self._process is not None:
            self._control.close()
            self._process.wait(patience())
            self._control = self._process = None


_nursery = _Nursery()
close = _nursery.close


def started(
    *arguments: str,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stdout: IO[bytes] | int | None = None,
    stderr: IO[bytes] | int | None = None,
) -> Child:
    """Start ``cdm`` with these arguments.

    Args:
        arguments: of the command line.
        env: its whole environment.
        cwd: its folder; None: the one of the tests.
        stdout: where its output goes: a file or a descriptor; None: the output of the tests.
        stderr: the same for its error output.
    """
    request = {"arguments": arguments, "env": {**env}, "cwd": str(cwd or Path.cwd())}
    ours, theirs = os.pipe()
    nothing = os.open(os.devnull, os.O_RDONLY)
    outputs = [default if each is None else each for default, each in ((1, stdout), (2, stderr))]
    numbers = [each if isinstance(each, int) else each.fileno() for each in outputs]
    try:
        _nursery.start(json.dumps(request).encode(), [nothing, *numbers, theirs])
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
        os.close(nothing)
    return Child(ours)


def ran(*arguments: str, env: Mapping[str, str], cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run ``cdm`` to its end.

    Raises:
        subprocess.TimeoutExpired: it takes longer than anything may.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = started(*arguments, env=env, cwd=cwd, stdout=out, stderr=err)
        try:
            child.wait(patience())
        finally:
            child.kill()
        return _completed(arguments, child, out, err)


async def run(*arguments: str, env: Mapping[str, str], cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run ``cdm`` to its end; it is killed where this is cancelled."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        # In a thread: the first one waits until all of cdm is imported, and nodes of this process run meanwhile.
        begin = partial(started, *arguments, env=env, cwd=cwd, stdout=out, stderr=err)
        child = await anyio.to_thread.run_sync(begin)
        try:
            await child.ended()
        finally:
            child.kill()
        return _completed(arguments, child, out, err)


def _completed(
    arguments: tuple[str, ...], child: Child, out: IO[bytes], err: IO[bytes]
) -> subprocess.CompletedProcess[bytes]:
    out.seek(0)
    err.seek(0)
    return subprocess.CompletedProcess(["cdm", *arguments], child.wait(), out.read(), err.read())
