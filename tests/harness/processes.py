"""`cdm` as processes: nodes that run, and commands that end."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import nats.errors

from cdm.model.node import EXTERNAL
from tests.harness import forked
from tests.harness.forked import Child
from tests.harness.proc import end_keepers, left_keepers
from tests.harness.servers import Addressed, NatsServer
from tests.harness.waiting import LEAST, TTL, bounded, eventually, patience
from tests.harness.wire import Raw, Rejection


def environment() -> dict[str, str]:
    """The environment for processes that tests start: nothing of the developer's own NATS, and no wait for nodes.

    What slices can do that have users of their own is tried in `tests.security.test_slices`.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "CDM_"))}
    # Tests start new clusters all the time; and their folders are nobody else's, so slices cannot be others there.
    return {**clean, "CDM_SETTLE": "1ms", "CDM_RUN_AS": "same"}


def _other(library: Path) -> dict[str, str]:
    """The environment for another ``cdm``, of which no coverage is measured."""
    clean = {name: value for name, value in environment().items() if not name.startswith("COV")}
    return {**clean, "PYTHONPATH": str(library)}


def _for(options: Sequence[str]) -> dict[str, str]:
    """The environment for a node with these options, which are to count."""
    return {
        name: value
        for name, value in environment().items()
        if name != "CDM_RUN_AS" or "--run-as" not in " ".join(options)
    }


class Process:
    """A ``cdm node`` process. Made by `started_node`."""

    def __init__(self, name: str, process: subprocess.Popen[bytes] | Child, log: Path, folder: Path | None) -> None:
        self.name = name
        self._process = process
        self._log = log
        self._folder = folder

    @property
    def pid(self) -> int:
        """Its pid."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text(errors="replace")

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def unharmed(self) -> None:
        """It runs still."""
        assert self.code is None, f"{self.name} ended with {self.code}:\n{self.log[-3000:]}"

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def ends(self, within: float = LEAST) -> int:
        """Wait for its end; returns the exit code."""
        await eventually(lambda: self.code is not None, within, f"{self.name} ends")
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        """End it, if it runs, as a power cut would: with its keeper, and all that this keeps."""
        keepers = self.keepers()
        self.crash()
        end_keepers(*keepers)

    def keepers(self) -> list[int]:
        """Its keeper, also where an earlier process of the node started it, and is gone."""
        return left_keepers(self._folder) if self._folder is not None else []

    def crash(self) -> None:
        """End its process alone, if it runs: what its slices run is left to the next one, for a while."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.send_signal(signal.SIGCONT)
            self._process.wait(patience())


def started_node(name: str, log: Path, *options: str, library: Path | None = None, fresh: bool = False) -> Process:
    """Start ``cdm node`` with these options, beside its log.

    Args:
        name: what it is called in messages.
        log: where its output goes.
        options: of the command.
        library: where ``cdm`` is imported from; None: what is tested.
        fresh: whether it is a Python of its own, in whose environment others may look (`tests.harness.forked`).
    """
    with log.open("ab") as output:
        if library is None and not fresh:
            own = forked.started("node", *options, env=_for(options), cwd=log.parent, stdout=output, stderr=output)
            return Process(name, own, log, _folder_of(options, log.parent))
        other = subprocess.Popen(
            [sys.executable, "-m", "cdm", "node", *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=_for(options) if library is None else _other(library),
            cwd=log.parent,
        )
    return Process(name, other, log, _folder_of(options, log.parent))


def _folder_of(options: Sequence[str], where: Path) -> Path | None:
    """The folder of a node, by which its keeper is found; None: it has none, or keeps nothing."""
    if {EXTERNAL, "manager"} & {*options} or "--folder" not in options:
        return None
    return where / options[options.index("--folder") + 1]


class Processes:
    """``cdm node`` processes on one server or cluster. Made by `processes`."""

    def __init__(self, urls: str, folder: Path, options: Sequence[str]) -> None:
        self._urls = urls
        self._folder = folder
        self._options = options
        self.all: dict[str, Process] = {}
        """The process that was started last under each name."""
        self._ever: list[Process] = []

    def start(
        self, name: str, *options: str, library: Path | None = None, url: str = "", fresh: bool = False
    ) -> Process:
        """Start a node.

        Args:
            name: its id.
            options: of the command.
            library: where ``cdm`` is imported from instead of what is tested.
            url: where it finds the server, if not where all do.
            fresh: whether it is a Python of its own, in whose environment others may look.
        """
        log = self._folder / f"{name}-{secrets.token_hex(2)}.log"
        options = ("--id", name, "--server", url or self._urls, "--log-level", "debug", *self._options, *options)
        started = self.all[name] = started_node(name, log, *_outside(options), *options, library=library, fresh=fresh)
        self._ever.append(started)
        return started

    async def heard(self, user: Raw) -> None:
        """Wait until whoever leads knows all that was written of nodes so far: what comes later may go past it.

        Each bucket is a stream of its own. A blueprint may be decided on before a cordon that was written earlier.
        """
        nobody = f"nobody-{secrets.token_hex(4)}"
        await user.stubborn("nodes", f"{nobody}.intent", {"schedule": "cordon"})

        async def known() -> bool:
            leader = self.all.get((await user.lease()).get("node", ""))
            return leader is not None and f"node={nobody} schedule=cordon" in leader.log

        await eventually(known, what="whoever leads knows of it")
        await user.stubborn("nodes", f"{nobody}.intent", b"", {"KV-Operation": "DEL"})

    def kill(self) -> None:
        """End all that were ever started, with all that they run."""
        left = [pid for process in self._ever for pid in process.keepers()]
        for process in self._ever:
            process.crash()
        end_keepers(*left, *(pid for process in self._ever for pid in process.keepers()))

    def unharmed(self, *but: str) -> None:
        """Every process runs still, except these."""
        for name, process in self.all.items():
            if name not in but:
                process.unharmed()

    def know(self, schedule: str, *nodes: str, managers: Sequence[str] = ()) -> bool:
        """Whether the managers that run know of an intent; a leader may see a blueprint that was written later first.

        Args:
            schedule: of the intent; ``normal`` where it was removed.
            nodes: whose intent it is.
            managers: who must know it; all processes where none are named.
        """
        return all(
            _told_last(process.log, node, schedule)
            for name, process in self.all.items()
            for node in nodes
            if process.code is None and name in (managers or self.all)
        )

    def logs(self) -> str:
        """The last lines of every process."""
        return "\n".join(f"--- {name}\n{process.log[-60000:]}" for name, process in self.all.items())


def _told_last(log: str, node: str, schedule: str) -> bool:
    """Who came up late, or manages anew, never hears of what was removed before."""
    _, told, last = log.rpartition("this node is going to manage")[2].rpartition(f"node={node} schedule=")
    return last.startswith(schedule) if told else schedule == "normal"


@asynccontextmanager
async def processes(
    server: NatsServer | Sequence[NatsServer],
    user: Raw,
    folder: Path,
    *names: str,
    lease_ttl: float = TTL,
    node_ttl: float = TTL,
    options: Sequence[str] = (),
) -> AsyncIterator[Processes]:
    """``cdm node`` processes that are registered, and have a leader who knows them; killed with the ``with`` block."""
    servers = [server] if isinstance(server, NatsServer) else server
    times = ("--lease-ttl", str(lease_ttl), "--node-ttl", str(node_ttl), "--reconcile-interval", "1")
    running = Processes(",".join(one.url for one in servers), folder, (*times, *options))
    try:
        for name in names:
            running.start(name)

        async def up() -> bool:
            running.unharmed()
            try:
                registered = await user.registrations()
            except (Rejection, nats.errors.Error):
                return False
            return set(names) <= set(registered) and bool(await user.lease())

        await eventually(up, 30, "all nodes are registered and one leads")
        await running.heard(user)
        yield running
    except BaseException:
        if os.environ.get("CDM_TEST_LOGS"):
            print(running.logs())
        raise
    finally:
        running.kill()


@contextmanager
def node_processes(
    server: Addressed, folder: Path, node_ttl: float = TTL, lease_ttl: float = TTL
) -> Iterator[Processes]:
    """Room for ``cdm node`` processes; killed with the ``with`` block."""
    times = ("--lease-ttl", str(lease_ttl), "--node-ttl", str(node_ttl), "--reconcile-interval", "1")
    running = Processes(server.url, folder, times)
    try:
        yield running
    finally:
        running.kill()


async def command_line(
    *arguments: str, within: float = 20, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run ``cdm`` to its end."""
    if arguments[0] == "node" and arguments[1:2] not in (("forget",), ("leave",)):
        arguments = ("node", *_outside(arguments), *arguments[1:])
    with bounded(within):
        return await forked.run(*arguments, env={**environment(), "COLUMNS": "200", **(env or {})})


def _outside(options: Sequence[str]) -> tuple[str, ...]:
    """Leaves a node's slices to the test's own agent, unless the options say otherwise."""
    return () if {"--runtime", "manager"} & {*options} else ("--runtime", EXTERNAL)
