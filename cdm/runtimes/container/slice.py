"""What is different of a slice that is a container: how it is started, and how it is looked at from outside."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Protocol

import anyio
import anyio.abc

from cdm.errors import SliceFailed
from cdm.log import Log
from cdm.model.manifest import Http, Tcp
from cdm.runtimes import Work
from cdm.runtimes.container.configuration import Asked, configuration, port_inside
from cdm.runtimes.container.containers import Containers
from cdm.runtimes.container.engine import Engine, EngineFailed
from cdm.runtimes.container.images import Images
from cdm.runtimes.container.run import ContainerRun
from cdm.runtimes.process.checks import check_asked, probe
from cdm.runtimes.process.given import Given
from cdm.runtimes.process.handle import RunHandle
from cdm.runtimes.process.notes import RunNote
from cdm.runtimes.process.ports import chosen_port
from cdm.runtimes.process.slice import OTHER_PORTS, Slice, SliceHost

log = Log("cdm.container")

HELD = 0.3
"""Seconds for which a connection must stay open to count: who publishes a port takes connections before the program
does, and closes them where nothing listens inside."""
_TAKEN = ("port is already allocated", "address already in use")


class ContainerHost(SliceHost, Protocol):
    """What a slice needs of its runtime."""

    engine: Engine
    token: str
    rootless: bool
    """Whether addresses of containers cannot be reached from this machine."""

    @property
    def images(self) -> Images:
        """Brings images to the engine. Raises `SliceFailed` while the runtime is not started."""

    @property
    def containers(self) -> Containers:
        """Starts and stops them. Raises `SliceFailed` while the runtime is not started."""


class ContainerSlice(Slice):
    """One slice that is loaded.

    Args:
        work: what it runs.
        host: its runtime.
    """

    def __init__(self, work: Work, host: ContainerHost) -> None:
        super().__init__(work, host)
        self._runtime = host
        self._address: str | None = None
        """Of the container, where it can be reached."""

    def run_of(self, name: str, begun: float | None = None) -> ContainerRun:
        """A container of this slice."""
        manifest, output = self.work.manifest, self._runtime.output_folder(self.key)
        return ContainerRun(self._runtime.engine, name, self.key, manifest, output, begun)

    async def _spawn(self) -> ContainerRun:
        await self.work.may_start()
        runtime = self._runtime
        await self._wait_for_ports()
        given = self._given = Given(Path(), self.work.secrets, runtime.surroundings.secrets)
        chosen, others = self.port is None and self.work.manifest.port == "auto", OTHER_PORTS
        while True:
            self.port = chosen_port(self.work.manifest, runtime.ports(self), self.port)
            image = await runtime.images.has(self.work.folder)
            run = self.run_of(runtime.containers.name())
            body = configuration(self.work, Asked(image, run.name, runtime.token, self.port, given.environment))
            try:
                await runtime.containers.launch(run, body)
                break
            except EngineFailed as error:
                if chosen and others and any(each in str(error) for each in _TAKEN):
                    others -= 1
                    self.port = None
                    log.info("another port is chosen", slice=str(self.key), reason=str(error))
                    continue
                raise SliceFailed(str(error), fatal=error.status == 400) from None
        self._note = RunNote.first(self.work, run.begun, self.port)
        runtime.containers.note(run, self._note)
        self._address = None
        return run

    async def _ask(self, run: RunHandle, check: Tcp | Http, timeout: float) -> str | None:
        """What is wrong when it is asked once; None: nothing. Raises `CannotAsk`."""
        port = self.port or 0
        if isinstance(check, Http):
            return await probe(check, port, timeout)
        inside = port_inside(self.work, port) or 0
        address = await self._address_of(run)
        with anyio.move_on_after(timeout):
            return await _listens(address, inside) if address else await _holds(port)
        return f"port {inside}: no answer within {timeout:g} s"

    async def _address_of(self, run: RunHandle) -> str | None:
        if self._address is None and not self._runtime.rootless:
            with suppress(EngineFailed):  # then it ends, or the engine is away: the next time
                facts = await self._runtime.engine.ask("GET", f"/containers/{run.name}/json")
                self._address = facts["NetworkSettings"].get("IPAddress") or ""
        return self._address

    def take_over(self, name: str, note: RunNote) -> None:
        """Go on with a container that an earlier process of this node started."""
        run = self.run_of(name, note.begun)
        self._runtime.containers.follow(run, goes_on=True)
        self.go_on(run, note)


async def _listens(address: str, port: int) -> str | None:
    try:
        async with await anyio.connect_tcp(address, port):
            return None
    except OSError as error:
        return f"port {port}: {_words(error)}"


async def _holds(port: int) -> str | None:
    """Whether a connection to a published port stays open for a moment."""
    try:
        async with await anyio.connect_tcp("127.0.0.1", port) as connection:
            with anyio.move_on_after(HELD):
                await connection.receive()
            return None
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return f"port {port}: nothing listens inside"
    except OSError as error:
        return f"port {port}: {_words(error)}"


def _words(error: OSError) -> str:
    """What is wrong with a program that cannot be connected to. Raises `CannotAsk`: nothing, as far as is known."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    check_asked(cause)
    return cause.strerror or str(error)
