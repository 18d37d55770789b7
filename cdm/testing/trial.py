"""One runtime under test, and what it told of its slices."""

from __future__ import annotations

import inspect
import os
import secrets
import socket
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import pytest

from cdm.clock import now
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SliceKey
from cdm.model.manifest import Manifest, Readiness, Tcp
from cdm.runtimes import Runtime, Surroundings, Work, adapted
from cdm.runtimes.secrets import Secrets
from cdm.testing.deeds import Deed

PAUSE = 0.02
"""Seconds between two looks."""
ANSWER = 60.0
"""Seconds for a slice to answer a line, and to end the connection."""
SERVING = Manifest(port="auto", readiness=Readiness(check=Tcp(), interval=0.02), stop_grace=20)
"""Of most slices in these tests."""


class Notice(NamedTuple):
    """What a runtime told of a slice that ended."""

    what: str
    """``crashed``, ``lapsed``, ``restarting`` or ``restarted``."""
    key: SliceKey
    more: tuple[Any, ...]


class Trial:
    """A runtime, and slices for it. Made by the fixture `trial` of `RuntimeConformance`.

    Args:
        folder: where the runtime's own folder is.
        make: makes a runtime.
        work: what has a slice do something; None: the runtime cannot do that.
        patience: seconds to wait at most for what must happen.
    """

    def __init__(
        self,
        folder: Path,
        make: Callable[[Surroundings], Any],
        work: Callable[[Deed, SliceKey, Manifest], Work | None],
        patience: float,
    ) -> None:
        self.node = NodeId(f"node-{secrets.token_hex(4)}")
        """Nobody else's: so what runs of it can be told from all else."""
        self.told: list[Notice] = []
        self._folder = folder
        self._make = make
        self._work = work
        self._patience = patience
        self.runtime = self.another()

    def another(self) -> Runtime:
        """A runtime on the same folder, as the next process of the node makes it."""
        secret = self._folder / "secrets"
        if not secret.exists():
            secret.mkdir(mode=0o700)
        made = self._make(
            Surroundings(
                self.node,
                self._folder / "runtime",
                crashed=lambda key, *more: self.told.append(Notice("crashed", key, more)),
                restarting=lambda key, *more: self.told.append(Notice("restarting", key, more)),
                restarted=lambda key, *more: self.told.append(Notice("restarted", key, more)),
                secrets=Secrets(self.node, secret),
                outlive=600.0,
                lapsed=lambda key, *more: self.told.append(Notice("lapsed", key, more)),
            )
        )
        self.runtime = adapted(made)
        return self.runtime

    async def start(self) -> None:
        """As the node does it, whose heartbeats NATS takes."""
        await self.runtime.check_machine()
        await self.runtime.start()
        self.runtime.heard(now())

    def keep_secret(self, name: str, value: str) -> None:
        """Give the node a secret."""
        (self._folder / "secrets" / name).write_text(value, encoding="utf-8")

    def key(self, ordinal: int = 0, name: str = "slice") -> SliceKey:
        """A slice of this node."""
        return SliceKey(self.node, Artifact("org.example", name, "1.0.0"), ordinal)

    def work(self, deed: Deed, manifest: Manifest = SERVING, ordinal: int = 0) -> Work:
        """What has a slice do this; the test is skipped where the runtime cannot."""
        work = self._work(deed, self.key(ordinal), manifest)
        if work is None:
            pytest.skip(f"no slice of this runtime can {deed}")
        return work

    async def load(self, deed: Deed, manifest: Manifest = SERVING, ordinal: int = 0) -> SliceKey:
        """Load a slice that is to do this."""
        work = self.work(deed, manifest, ordinal)
        await self.runtime.load(work)
        return work.key

    async def up(self, deed: Deed, manifest: Manifest = SERVING, ordinal: int = 0) -> tuple[SliceKey, int]:
        """Load and activate one; returns its key and port."""
        key = await self.load(deed, manifest, ordinal)
        return key, await self.activate(key)

    async def activate(self, key: SliceKey) -> int:
        """Activate a slice that has a port."""
        port = await self.runtime.activate(key)
        assert isinstance(port, int), f"a slice that listens has no port: {port!r}"
        return port

    async def eventually(self, holds: Callable[[], Any], what: str) -> Any:
        """Wait until it holds."""
        began = now()
        while True:
            found = holds()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return found
            if now() - began > self._patience:
                raise AssertionError(f"not within {self._patience:g} s: {what}; told: {self.told}")
            await anyio.sleep(PAUSE)

    async def end_of(self, key: SliceKey) -> Notice:
        """Wait until the runtime told that the slice has ended for good; returns that."""
        ends = await self.eventually(
            lambda: [each for each in self.told if each.what in ("crashed", "lapsed") and each.key == key],
            f"{key} has ended",
        )
        (end,) = ends
        assert isinstance(end, Notice)
        return end


async def ask(port: int, line: str = "") -> str | None:
    """Send a line to a port of this machine; returns what is answered, None where nobody listens."""

    def asked() -> str | None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=ANSWER) as connection:
                if connection.getsockname() == connection.getpeername():
                    return None  # a connection to a port that is free may be given this very port, and meet itself
                connection.sendall(f"{line}\n".encode())
                connection.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: connection.recv(4096), b"")).decode()
        except ConnectionRefusedError:
            return None
        except TimeoutError:
            raise AssertionError(f"port {port} took a connection, and did not end it within {ANSWER:g} s") from None
        except ConnectionError:
            return ""  # it was reset: somebody was there

    return await anyio.to_thread.run_sync(asked)


def slice_processes(node: NodeId) -> Collection[str]:
    """Processes of this machine that the slices of a node are: those that have ``CDM_NODE``, as far as one may look."""
    found = []
    mark = f"CDM_NODE={node}\0".encode()
    for name in os.listdir("/proc"):  # noqa: PTH208  # only names
        if name.isdigit():
            try:
                environment = Path("/proc", name, "environ").read_bytes()
            except OSError:
                continue
            if mark in environment:
                found.append(name)
    return found
