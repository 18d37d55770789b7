"""Tells a proxy of a service's endpoints: at the start, after each change, and again until it has taken them."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NoReturn, Protocol

import anyio
import anyio.to_thread

from cdm import clock
from cdm.cli.filling import FileTemplate, write_whole
from cdm.cli.log_setup import remark
from cdm.cli.router import Follower
from cdm.cli.streams import write_out
from cdm.log import printable
from cdm.manager.endpoints import Endpoint
from cdm.model.artifact import Service

FIRST_PAUSE = 1.0
"""Seconds before a proxy that did not take them is told again; then twice as long each time."""
LONGEST_PAUSE = 30.0
BETWEEN = 1.0
"""Seconds between two times that it is told at least. Each costs a proxy something, and Caddy drops a request that it
reads in that moment: few are better."""
PATIENCE = 60.0
"""Seconds that a command may take."""
MOST_TOLD = 2_000
"""Characters of a command's output that are shown."""


class NotTaken(Exception):
    """A proxy did not take the endpoints; says why."""


class Proxy(Protocol):
    """What is told of endpoints."""

    every: float
    """Seconds after which it is told again although nothing is new; inf: it forgets nothing."""

    async def tell(self, found: Sequence[Endpoint]) -> bool:
        """Tell it; returns whether anything was new to it. Raises `NotTaken`."""


async def feed(follower: Follower, service: Service, proxy: Proxy) -> NoReturn:
    """Tell the proxy whenever something is new, until cancelled."""
    target: tuple[Endpoint, ...] | None = None
    told: tuple[Endpoint, ...] | None = None
    due, pause, failed, kept = math.inf, FIRST_PAUSE, False, False
    while True:
        if not follower.is_behind:
            pool = follower.pool()
            none = pool.wanted and (not pool.endpoints or pool.since is not None)
            if none and not kept:
                remark(f"no instance of {service} serves, though some are wanted; the proxy keeps what it has")
            if pool.endpoints or not pool.wanted:
                target = pool.endpoints
            kept = none
        if target is not None and (target != told or clock.now() >= due):
            told = target
            try:
                if await proxy.tell(target) or failed:
                    await _show(service, len(target))
                due, pause, failed = clock.now() + proxy.every, FIRST_PAUSE, False
            except NotTaken as error:
                remark(f"{error}; trying again in {pause:g} s")
                due, pause, failed = clock.now() + pause, min(2 * pause, LONGEST_PAUSE), True
            await anyio.sleep(BETWEEN)
        await follower.news(None if due == math.inf else max(due - clock.now(), 0))


async def _show(service: Service, count: int) -> None:
    instances = "1 instance" if count == 1 else f"{count} instances"
    line = f"{datetime.now().astimezone():%H:%M:%S}  {printable(str(service))}: {instances}\n"
    await anyio.to_thread.run_sync(write_out, line.encode(), abandon_on_cancel=True)


class FileProxy:
    """A proxy that reads a file, and is told by a command that it is another one.

    Args:
        service: whose endpoints.
        template: what the file is made from.
        path: of the file.
        command: for a shell; empty: none.
    """

    every = math.inf

    def __init__(self, service: Service, template: FileTemplate, path: Path, command: str) -> None:
        self._service = service
        self._template = template
        self._path = path
        self._command = command
        self._taken: str | None = None

    async def tell(self, found: Sequence[Endpoint]) -> bool:
        """Write the file, and run the command; neither where the file is what the command was run for last."""
        text = self._template.filled(self._service, found)
        if text == self._taken:
            return False
        try:
            await anyio.to_thread.run_sync(write_whole, self._path, text)
        except OSError as error:
            raise NotTaken(f"{self._path} cannot be written: {error.strerror or error}") from None
        if self._command:
            try:
                await _run(self._command)
            except OSError as error:  # the machine may have no room for it, or for its output, at the moment
                raise NotTaken(f"--exec cannot be run: {error.strerror or error}") from None
        self._taken = text
        return True


async def _run(command: str) -> None:
    """Run it in a shell; raises `NotTaken`. Its output goes to a file: what it leaves running may hold a pipe open."""
    with tempfile.TemporaryFile() as output:
        process = await anyio.open_process(
            ["/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            with anyio.move_on_after(PATIENCE) as scope:
                await process.wait()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with anyio.CancelScope(shield=True):
                    await process.wait()
        output.seek(0)
        said = printable(output.read(4 * MOST_TOLD).decode(errors="replace").strip().replace("\n", "; "))[:MOST_TOLD]
    if scope.cancelled_caught:
        raise NotTaken(f"--exec took more than {PATIENCE:g} s")
    if process.returncode:
        raise NotTaken(f"--exec ended with {process.returncode}{f': {said}' if said else ''}")
