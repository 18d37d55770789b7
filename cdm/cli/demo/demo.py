"""``cdm demo``: a cluster's life in about ten seconds, on a real nats-server, each step checked."""

from __future__ import annotations

import os
import signal
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cdm import clock
from cdm.artifacts.entry import completed
from cdm.artifacts.packing import pack
from cdm.artifacts.repository import Artifacts
from cdm.cli.demo import web
from cdm.cli.demo.playground import TTL, HttpReply, Playground, lives, playground
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
from cdm.cli.signals import open_signals
from cdm.errors import CdmError
from cdm.model.artifact import Artifact, NodeId, node_id
from cdm.model.keys import BlueprintKey, SliceKey
from cdm.model.manifest import Http, Manifest, Readiness
from cdm.model.slice import SliceState, SliceValue
from cdm.store.wire import dump

ARTIFACT = Artifact("org.example", "slice", "1.0.0")
MANIFEST = Manifest(port="auto", readiness=Readiness(Http(), interval=0.05))
NODES = [node_id(f"node-{number}") for number in (1, 2, 3)]
PATIENCE = 10.0


def demo() -> int:
    """Play a cluster's whole life on this machine: elect, push, publish, scale, kill, correct drift.

    Starts an embedded nats-server in a temporary folder and three real `cdm node` processes, which run a small web
    service. Every step is checked, also by asking the service; the exit code is 1 if one fails. Nothing is left behind.
    """
    configure_logs(LogFormat.CONSOLE, LogLevel.ERROR)
    return anyio.run(_until_signal, Console(highlight=False))


async def _until_signal(console: Console) -> int:
    """Play, and clean up also after Ctrl-C or SIGTERM."""
    code = 130
    async with anyio.create_task_group() as tasks:
        with open_signals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:

            async def listen() -> None:
                async for _ in signals:
                    tasks.cancel_scope.cancel()

            tasks.start_soon(listen)
            code = await _demo(console)
            tasks.cancel_scope.cancel()
    return code


class Done(NamedTuple):
    """A step that held, for the screen."""

    title: str
    proof: str
    took: float


async def _demo(console: Console) -> int:
    started = clock.now()
    async with playground() as ground:
        done: list[Done] = []
        script = Script(ground)
        with Live(console=console, auto_refresh=False, transient=True, redirect_stderr=False) as live:
            for title, step in script.steps:

                def draw(title: str = title) -> None:
                    live.update(_screen(ground, title), refresh=console.is_terminal)

                ground.on_change = draw
                draw()
                began = clock.now()
                try:
                    proof = await step()
                except CdmError as error:
                    live.console.print(Text.assemble(("✗ ", "bold red"), f"{title}: {error}"))
                    _show_logs(ground, live.console)
                    return 1
                done.append(Done(title, proof, clock.now() - began))
                live.console.print(Text.assemble(("✓ ", "bold green"), (title, "bold"), f"  {done[-1].took:.1f} s"))
                live.console.print(Padding(Text(proof), (0, 0, 0, 2)))
    console.print(f"\nAll {len(done)} steps held, in {clock.now() - started:.0f} s. Nothing is left behind.")
    return 0


class Script:
    """The steps, in order. Each does something, waits for what must follow, and returns what it saw."""

    def __init__(self, ground: Playground) -> None:
        self.ground = ground
        self.serving: dict[SliceKey, HttpReply] = {}
        """What replied at the end of the last step."""
        self.dead: NodeId | None = None
        self.steps: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("Start three nodes; one is elected", self.elect),
            ("cdm artifact push org.example:slice:1.0.0 web.py", self.push),
            ("nats kv put blueprints org.example/slice/1.0.0 3", self.publish),
            ("… put 5", self.scale_up),
            ("… put 2", self.scale_down),
            ("kill -9 one slice's process", self.kill_slice),
            ("… put 3, and kill -9 the leading node", self.kill_leader),
            ("What ran on the dead node runs elsewhere", self.replace_dead),
            ("Delete one slice's key by hand, and add another", self.correct_drift),
            ("nats kv del -f blueprints org.example/slice/1.0.0", self.remove),
        ]

    async def elect(self) -> str:
        """Three nodes register, and one of them leads."""
        ground = self.ground
        for node in NODES:
            ground.start_node(node)
        await ground.until("no leader, or not all nodes registered", self._complete, PATIENCE)
        assert ground.lease is not None
        return f"{ground.lease.node} leads term {ground.lease.term}; registered: {', '.join(sorted(ground.registered))}"

    async def push(self) -> str:
        """A small web service is stored."""
        artifacts = Artifacts(self.ground.connection)
        await artifacts.ensure(create=True)
        with tempfile.TemporaryDirectory(prefix="cdm-push-") as folder:
            packed = pack(Path(web.__file__), Path(folder))
            content = packed.content(completed(MANIFEST, packed.tree))
            await artifacts.push(ARTIFACT, packed.path, content)
        stored = await artifacts.describe(ARTIFACT)
        self._check(stored.content == content, "the store holds something else")
        return f"a web service of {content.size} bytes, sha256 {content.sha256[:12]}"

    async def publish(self) -> str:
        """Three instances, one on each node, and all of them reply."""
        await self._put(3)
        await self._serve(3)
        self._check([*self.serving] == [SliceKey(node, ARTIFACT) for node in NODES], "not one instance on each node")
        loads = [put for put in self.ground.commands if put.value.state is SliceState.LOAD]
        self._check(len(loads) == 3, f"{len(loads)} LOAD commands instead of 3")
        self._check(all(put.value.term == self._term for put in loads), "a LOAD has another term")
        return f"3 LOADs of term {self._term}; they reply:\n" + "\n".join(map(_line, self.serving.values()))

    async def scale_up(self) -> str:
        """Two more, and the three stay where they are."""
        before = self.serving
        await self._put(5)
        await self._serve(5)
        spread = sorted(Counter(key.node for key in self.serving).values(), reverse=True)
        self._check(before.items() <= self.serving.items(), "an instance moved, or was started again")
        self._check(spread == [2, 2, 1], f"spread {spread} instead of 2+2+1")
        more = [reply for key, reply in self.serving.items() if key not in before]
        return "spread 2+2+1; 2 more reply:\n" + "\n".join(map(_line, more))

    async def scale_down(self) -> str:
        """Exactly three are unloaded, and do not reply any more."""
        before, mark = self.serving, len(self.ground.commands)
        await self._put(2)
        await self._serve(2)
        commands = self.ground.commands[mark:]
        self._check(
            len(commands) == 3 and all(put.value.state is SliceState.UNLOAD for put in commands),
            "not exactly three UNLOAD commands",
        )
        self._check(self.serving.items() <= before.items(), "an instance moved, or was started again")
        await self._gone(before[put.key] for put in commands)
        return "3 UNLOADs; no longer running: " + ", ".join(str(put.key) for put in commands)

    async def kill_slice(self) -> str:
        """The node restarts it; nothing else changes."""
        before, mark = self.serving, len(self.ground.commands)
        key, old = next(iter(before.items()))
        os.kill(old.pid, signal.SIGKILL)
        await self._gone([old], listens=True)
        await self._serve(2)
        new = self.serving[key]
        self._check(before.keys() == self.serving.keys(), "an instance moved")
        self._check(len(self.ground.commands) == mark, "the leader sent a command")
        return f"{old.slice} is restarted, pid {old.pid} → {new.pid}"

    async def kill_leader(self) -> str:
        """Another node leads a higher term, long before the lease ends; no program outlives its node."""
        await self._put(3)
        await self._serve(3)
        ground, old = self.ground, self.ground.lease
        if old is None:
            raise CdmError("nobody leads")
        lost = [reply for key, reply in self.serving.items() if key.node == old.node]
        self._check(len(lost) == 1, f"{len(lost)} slices on {old.node} instead of 1")
        began = clock.now()
        ground.kill_node(old.node)
        self.dead = old.node
        took = await ground.until(
            "no new leader", lambda: ground.lease is not None and ground.lease.term > old.term, TTL + 2
        )
        await self._gone(lost)
        gone = clock.now() - began
        assert ground.lease is not None
        led = f"{ground.lease.node} leads term {ground.lease.term} after {took * 1000:.0f} ms"
        return f"{led}; what {old.node} ran is gone after {gone * 1000:.0f} ms"

    async def replace_dead(self) -> str:
        """After its heartbeat TTL the dead node's slices are replaced and its keys deleted."""
        ground, dead, before = self.ground, self.dead, self.serving
        await ground.until(
            "the dead node's registration did not expire", lambda: dead not in ground.registered, TTL + 2
        )
        await ground.until(
            f"slices are still on {dead}", lambda: all(put.key.node != dead for put in ground.slices), PATIENCE
        )
        await self._serve(3)
        stayed = {key: reply for key, reply in before.items() if key.node != dead}
        self._check(stayed.items() <= self.serving.items(), "a healthy instance moved")
        new = [reply for key, reply in self.serving.items() if key not in stayed]
        return f"{dead} is gone; its slice runs elsewhere:\n" + "\n".join(map(_line, new))

    async def correct_drift(self) -> str:
        """A slice without a key is stopped; the leader adds what is missing and removes what is surplus."""
        ground, slices = self.ground, self.ground.buckets["slices"]
        lost, old = next(iter(self.serving.items()))
        extra = SliceKey(lost.node, ARTIFACT, 7)
        mark = len(ground.commands)
        await slices.delete(lost)
        await ground.until("no LOAD after a slice was deleted", lambda: len(ground.commands) > mark, PATIENCE)
        await self._serve(3)
        await self._gone([old], listens=True)
        mark = len(ground.commands)
        await slices.put(extra, dump(SliceValue(SliceState.ACTIVE, self._term)))
        await ground.until("the extra slice was not unloaded", lambda: len(ground.commands) > mark, PATIENCE)
        await self._serve(3)
        self._check(len(ground.commands) == mark + 1, "more than one command for one surplus slice")
        unloaded = ground.commands[mark].key
        return f"deleted {lost}: stopped, and loaded again; added {extra}: {unloaded} unloaded; exactly 3 processes run"

    async def remove(self) -> str:
        """No blueprint, no instances."""
        await self.ground.buckets["blueprints"].delete(BlueprintKey(ARTIFACT))
        await self.ground.until("slices are left", lambda: not self.ground.slices, PATIENCE)
        await self._gone(self.serving.values())
        self._check(not self.ground.programs(), "a program still runs")
        return "no slice is left, no process runs, nothing listens"

    @property
    def _term(self) -> int:
        return self.ground.lease.term if self.ground.lease else 0

    def _complete(self) -> bool:
        return self.ground.lease is not None and self.ground.registered == set(NODES)

    async def _put(self, instances: int) -> None:
        await self.ground.buckets["blueprints"].put(BlueprintKey(ARTIFACT), str(instances).encode())

    async def _serve(self, count: int) -> None:
        """Wait until so many slices are ACTIVE and reply under their own names, and nothing else runs."""
        ground = self.ground
        group = partial(ground.cluster.group, ARTIFACT)
        await ground.until(
            f"not exactly {count} slices, all ACTIVE",
            lambda: len(group().slices) == count == group().active,
            PATIENCE,
        )

        async def served() -> bool:
            replies = {reply.slice: reply for reply in await ground.replies()}
            keys = [put.key for put in ground.slices]
            self.serving = {key: replies[name] for key in keys if (name := _name(key)) in replies}
            pids = {reply.pid for reply in self.serving.values()}
            return len(self.serving) == count == len(keys) and pids == ground.programs()

        await ground.wait_until(f"not exactly {count} processes, all replying", served, PATIENCE)

    async def _gone(self, replies: Iterable[HttpReply], *, listens: bool = False) -> None:
        """Wait until these processes have ended, and, unless ``listens``, nothing listens on their ports."""

        async def gone() -> bool:
            if any(lives(reply.pid) for reply in old):
                return False
            return listens or all([await self.ground.ask(reply.port) is None for reply in old])

        old = list(replies)
        await self.ground.wait_until("a process still runs, or something listens on its port", gone, PATIENCE)

    def _check(self, holds: bool, problem: str) -> None:
        if not holds:
            raise CdmError(problem)


def _name(key: SliceKey) -> str:
    """What a slice calls itself."""
    return str(key).removeprefix("slices/")


def _line(reply: HttpReply) -> str:
    return f"  {reply.url}  {reply.slice}, pid {reply.pid}"


def _screen(ground: Playground, title: str) -> Group:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("key", "state", "term", "port"):
        table.add_column(column, no_wrap=True)
    styles = {SliceState.ACTIVE: "green", SliceState.FAILED: "red"}
    for put in ground.slices:
        state = put.value.state
        style = styles.get(state, "yellow" if state.kind == "command" else "cyan")
        table.add_row(str(put.key), Text(state, style), str(put.value.term), str(put.value.port or ""))
    leader = f"{ground.lease.node}, term {ground.lease.term}" if ground.lease else "none"
    return Group(Text.assemble(("▶ ", "bold cyan"), (title, "bold"), f"   leader: {leader}"), table)


def _show_logs(ground: Playground, console: Console) -> None:
    for node in NODES:
        log = ground.log_of(node)
        if log.exists():
            console.print(f"[bold]last lines of {node}[/]")
            console.print(Text("\n".join(log.read_text(errors="replace").splitlines()[-8:])))
